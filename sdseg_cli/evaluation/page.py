"""report.html: everything a run's report folder holds, on one page that needs nothing else.

The page is a pure function of the folder. It holds its own style, script and pictures, asks no
network for anything, and forbids itself to (a Content-Security-Policy that names style and script
by their hash); so a case named like a script is a name, whatever it holds.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from sdseg_cli import __version__
from sdseg_cli.core.errors import ConfigError, DataError, RunError
from sdseg_cli.core.files import replacing
from sdseg_cli.evaluation.evaluation_view import Evaluation, evaluation_view
from sdseg_cli.evaluation.stability_view import Stability, Sweep, stability_view, sweep_view
from sdseg_cli.report import distribution, panels, stored, sweep_chart, wording
from sdseg_cli.report.drawing import PREDICTION_COLOUR, REFERENCE_COLOUR
from sdseg_cli.report.panels import MAP_FILE, CasePanel, Polyline, media_type
from sdseg_cli.report.stored import Unreadable

SOURCES = ("evaluate.json", "stability.json", "sweep.json")
FILE = "report.html"
OF_RUNS = ("stability.json", "sweep.json", panels.FILE, MAP_FILE)
"""What only a run's report has."""
MOST_PANELS = 300
TEMPLATE = Path(__file__).parent / "template"

View = TypeVar("View")


@dataclass(frozen=True)
class _Page:
    """What the folder holds, as far as it can be read."""

    evaluation: Evaluation | None
    stability: Stability | None
    sweep: Sweep | None
    panels: Mapping[str, CasePanel]
    maps: Mapping[str, CasePanel]
    """Where the runs of a case disagree."""
    stability_png: str | None
    """As a data address."""
    notes: tuple[str, ...]
    """What is left out, and why."""


def write_report(folder: Path, *, title: str, config: str | None = None) -> Path:
    """Write report.html from the files beside it, atomically.

    Args:
        folder: Of the report: evaluate.json, stability.json, sweep.json, panels.json,
            map_panels.json, stability.png; each may be absent. One that cannot be read leaves a
            note on the page.
        title: Heading of the page, as plain text.
        config: The run's settings as TOML; None to leave them out.

    Returns:
        The file.

    Raises:
        DataError: There is neither evaluate.json nor stability.json nor sweep.json.
        RunError: The disk refused.
    """
    if not any((folder / name).is_file() for name in SOURCES):
        raise DataError(
            f"{folder}: there is nothing to report.",
            "Run `sdseg evaluate` or `sdseg stability` first.",
        )
    html = _render(_read(folder), title, config)
    path = folder / FILE
    with replacing(path) as temporary:
        # A file name may hold bytes that are no text; the page is worth more than they are.
        temporary.write_bytes(html.encode("utf-8", errors="replace"))
    return path


def require_own_folder(folder: Path) -> None:
    """Refuse a folder for a report on masks, before they are scored.

    Args:
        folder: There, or to be made.

    Raises:
        ConfigError: It holds the report of a run, whose pictures and stability the page would show
            as those of the masks.
        RunError: It cannot be made or written to.
    """
    if any((folder / name).exists() for name in OF_RUNS):
        raise ConfigError(f"{folder} holds the report of a run.", "Give --report another folder.")
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise RunError(
            f"{folder}: no report can be written there.",
            f"Check {nearest}: it has to be a folder that you may write to.",
        )


def _read(folder: Path) -> _Page:
    notes: list[str] = []
    evaluation = _view(folder / "evaluate.json", evaluation_view, notes)
    stability = _view(folder / "stability.json", stability_view, notes)
    sweep = _view(folder / "sweep.json", sweep_view, notes)
    by_case = _panels(folder, panels.FILE, notes)
    kept = _kept(by_case, evaluation, stability)
    if len(kept) < len(by_case):
        notes.append(
            f"{len(kept)} of {len(by_case)} pictures are kept, so that the page stays small: best, "
            f"median, least stable and the {MOST_PANELS} worst cases"
        )
    picture = _picture(folder / "stability.png", notes)
    maps = _kept(_panels(folder, MAP_FILE, notes), evaluation, stability)
    page = _Page(evaluation, stability, sweep, kept, maps, picture, tuple(notes))
    return replace(page, notes=(*notes, *_differing_checkpoints(page)))


def _differing_checkpoints(page: _Page) -> tuple[str, ...]:
    """A note if the parts of the page were made with different weights: a run may train on."""
    made: dict[str, list[str]] = {}
    for name, origin in _provenances(page):
        if checkpoint := stored.text(stored.mapping(origin.get("sha256")).get("checkpoint")):
            made.setdefault(checkpoint, []).append(name)
    if len(made) < 2:
        return ()
    parts = " and ".join(", ".join(names) for names in made.values())
    return (f"{parts} are of different checkpoints of the run: make the older one again",)


def _panels(folder: Path, name: str, notes: list[str]) -> dict[str, CasePanel]:
    """The pictures of a file, by case; none, and a note, if it is damaged."""
    try:
        return {panel.case_id: panel for panel in panels.load_panels(folder, name)}
    except DataError as error:
        notes.append(f"pictures are left out: {name} is damaged. {error.hint}")
        return {}


def _view(path: Path, view: Callable[[Mapping[str, Any]], View], notes: list[str]) -> View | None:
    """What a file says; None, and a note, if it says nothing that can be shown."""
    try:
        found = stored.read(path)
        return None if found is None else view(found)
    except Unreadable as error:
        notes.append(f"{path.name} is left out: {error}")
        return None


def _picture(path: Path, notes: list[str]) -> str | None:
    """A picture file as a data address; None if it is not there or no picture."""
    if not path.is_file():
        return None
    try:
        content = path.read_bytes()
    except OSError as error:
        notes.append(f"{path.name} is left out: {error.strerror or error}")
        return None
    if media_type(content) is None:
        notes.append(f"{path.name} is left out: damaged (neither PNG nor JPEG)")
        return None
    return _data_address(content)


def _data_address(picture: bytes) -> str:
    return f"data:{media_type(picture)};base64,{base64.b64encode(picture).decode('ascii')}"


def _kept(
    found: Mapping[str, CasePanel], evaluation: Evaluation | None, stability: Stability | None
) -> dict[str, CasePanel]:
    """The panels that go onto the page, in their order."""
    if len(found) <= MOST_PANELS:
        return dict(found)
    worst_first = evaluation.ranked if evaluation else tuple(found)
    wanted = {*[name for name in worst_first if name in found][:MOST_PANELS]}
    if evaluation:
        wanted |= {case.case_id for case in evaluation.featured}
    if stability:
        wanted |= {*stability.most_unstable}
    return {name: panel for name, panel in found.items() if name in wanted}


def _render(page: _Page, title: str, config: str | None) -> str:
    """The page's text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    colours = f":root{{--reference:{REFERENCE_COLOUR};--prediction:{PREDICTION_COLOUR}}}\n"
    style = colours + (TEMPLATE / "report.css").read_text(encoding="utf-8")
    script = (TEMPLATE / "report.js").read_text(encoding="utf-8")
    numbers = {name: i for i, name in enumerate(_case_ids(page))}
    pictures = {
        kind: {str(numbers[name]): _panel_json(panel) for name, panel in shown.items()}
        for kind, shown in (("panels", page.panels), ("maps", page.maps))
    }
    return environment.get_template("report.html.j2").render(
        page=page,
        title=title,
        config=config,
        numbers=numbers,
        provenances=_provenances(page),
        policy=_policy(style, script),
        style=Markup(style),
        script=Markup(script),
        data=Markup(script_json({"ids": list(numbers), **pictures})),
        outline=_outline,
        picture=_data_address,
        tick=wording.number,
        plot=distribution,
        sweep_plot=sweep_chart,
        version=__version__,
    )


def script_json(value: object) -> str:
    """JSON that is safe inside a script element, whatever its strings hold."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _policy(style: str, script: str) -> str:
    """What the page may load: its own style and script, pictures it carries, nothing else."""

    def of(text: str) -> str:
        digest = hashlib.sha256(text.encode("utf-8")).digest()
        return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"

    allowed = f"style-src {of(style)}; script-src {of(script)}; img-src data:"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def _case_ids(page: _Page) -> Iterable[str]:
    """Every case the page names, once."""
    tables = [page.evaluation.cases] if page.evaluation else []
    if page.stability and page.stability.cases:
        tables.append(page.stability.cases)
    named = [row.case_id for table in tables for row in table.rows]
    named += page.stability.most_unstable if page.stability else ()
    if page.evaluation:
        named += [case_id for case_id, _ in page.evaluation.worst]
    return dict.fromkeys([*named, *page.panels, *page.maps])


def _panel_json(panel: CasePanel) -> dict[str, object]:
    return {
        "caption": panel.caption,
        "src": _data_address(panel.image_png),
        "width": panel.width,
        "height": panel.height,
        "width_mm": panel.width_mm,
        "reference": _outline(panel.reference),
        "prediction": _outline(panel.prediction),
    }


def _outline(lines: Sequence[Polyline]) -> str:
    """Closed lines as an SVG path."""
    return "".join(
        f"M{' '.join(f'{x:g},{y:g}' for x, y in line)}Z" for line in lines if len(line) > 2
    )


def _provenances(page: _Page) -> list[tuple[str, Mapping[str, Any]]]:
    """Which command made which part."""
    parts: list[tuple[str, Evaluation | Stability | Sweep | None]] = [
        ("Evaluation", page.evaluation),
        ("Stability", page.stability),
        ("Sweep", page.sweep),
    ]
    return [(name, part.provenance) for name, part in parts if part and part.provenance]
