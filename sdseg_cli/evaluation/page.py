"""report.html: everything a run's report folder holds, on one page that needs nothing else.

A command gives what it found itself; what other commands found is read from the folder. The page
holds its own style, script and pictures, asks no network for anything, and forbids itself to (a
Content-Security-Policy that names style and script by their hash); so a case named like a script is
a name, whatever it holds.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sdseg_cli import __version__
from sdseg_cli.core.errors import ConfigError, DataError, RunError
from sdseg_cli.core.files import replacing
from sdseg_cli.core.json_files import read_object
from sdseg_cli.evaluation.page_parts import (
    Evaluation,
    Found,
    Part,
    Stability,
    Sweep,
    evaluation_part,
    stability_part,
    sweep_part,
)
from sdseg_cli.report import panels
from sdseg_cli.report.drawing import PREDICTION_COLOUR, REFERENCE_COLOUR, class_colour
from sdseg_cli.report.panels import MAP_FILE, CasePanel, Polyline, media_type

if TYPE_CHECKING:
    from jinja2 import Environment

FILE = "report.html"
OF_RUNS = ("stability.json", "sweep.json", panels.FILE, MAP_FILE)
"""Parts that only a run's report has."""
MOST_PANELS = 300
TEMPLATE = Path(__file__).parent / "template"

PartT = TypeVar("PartT", bound=Part)


@dataclass(frozen=True)
class Results:
    """Results shown on the page; None is read from the report folder.

    Attributes:
        evaluation: The JSON object of `evaluate`.
        stability: Of `stability`.
        sweep: Of `stability` with several ways of sampling.
        panels: A slice of each case.
        maps: Where the runs of a case disagree.
    """

    evaluation: Found | None = None
    stability: Found | None = None
    sweep: Found | None = None
    panels: Sequence[CasePanel] | None = None
    maps: Sequence[CasePanel] | None = None


@dataclass(frozen=True)
class _Page:
    """The parts of the page."""

    evaluation: Evaluation | None
    stability: Stability | None
    sweep: Sweep | None
    panels: Mapping[str, CasePanel]
    maps: Mapping[str, CasePanel]
    stability_png: str | None
    """As a data address."""
    notes: tuple[str, ...]
    """Parts that are left out, and why."""

    @property
    def parts(self) -> dict[str, Part]:
        """Those that are there, by name."""
        found = {"Evaluation": self.evaluation, "Stability": self.stability, "Sweep": self.sweep}
        return {name: part for name, part in found.items() if part is not None}


def write_report(
    folder: Path, found: Results | None = None, *, title: str, config: str | None = None
) -> Path:
    """Write report.html, atomically.

    Args:
        folder: Of the report: evaluate.json, stability.json, sweep.json, panels.json,
            map_panels.json, stability.png; each may be absent. One that cannot be read leaves a
            note on the page.
        found: What is not read from the folder.
        title: Heading of the page, as plain text.
        config: The run's settings as TOML; None to leave them out.

    Returns:
        The file.

    Raises:
        DataError: There is neither evaluate.json nor stability.json nor sweep.json.
        RunError: The disk refused.
    """
    found = found or Results()
    notes: list[str] = []
    evaluation = _part(folder / "evaluate.json", found.evaluation, evaluation_part, notes)
    stability = _part(folder / "stability.json", found.stability, stability_part, notes)
    sweep = _part(folder / "sweep.json", found.sweep, sweep_part, notes)
    if not (evaluation or stability or sweep or notes):
        raise DataError(
            f"{folder}: there is nothing to report.",
            "Run `sdseg evaluate` or `sdseg stability` first.",
        )
    by_case = _panels(folder, panels.FILE, found.panels, notes)
    kept = _kept(by_case, evaluation, stability)
    if len(kept) < len(by_case):
        notes.append(
            f"{len(kept)} of {len(by_case)} pictures are kept, so that the page stays small: best, "
            f"median, least stable and the {MOST_PANELS} worst cases"
        )
    picture = _picture(folder / "stability.png", notes)
    maps = _kept(_panels(folder, MAP_FILE, found.maps, notes), evaluation, stability)
    page = _Page(evaluation, stability, sweep, kept, maps, picture, tuple(notes))
    page = replace(page, notes=(*notes, *_differing_checkpoints(page)))
    path = folder / FILE
    with replacing(path) as temporary:
        # A file name may hold bytes that are no text; the page is worth more than they are.
        temporary.write_bytes(_render(page, title, config).encode("utf-8", errors="replace"))
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


def _differing_checkpoints(page: _Page) -> tuple[str, ...]:
    """A note if the parts of the page were made with different weights: a run may train on."""
    made: dict[str, list[str]] = {}
    for name, part in page.parts.items():
        if part.checkpoint is not None:
            made.setdefault(part.checkpoint, []).append(name)
    if len(made) < 2:
        return ()
    parts = " and ".join(", ".join(names) for names in made.values())
    return (f"{parts} are of different checkpoints of the run: make the older one again",)


def _part(
    path: Path, found: Found | None, part: Callable[[Found], PartT], notes: list[str]
) -> PartT | None:
    """The part of the page that is given, else that of the file; a note if the file is damaged."""
    if found is not None:
        return part(found)
    if not path.exists():
        return None
    try:
        return part(read_object(path))
    except DataError as error:
        why = error.message.removeprefix(f"{path}: ").removesuffix(".")
        notes.append(f"{path.name} is left out: {why if error.code else f'damaged ({why})'}")
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        notes.append(
            f"{path.name} is left out: it does not hold what this version shows ({error}); another "
            "version may have written it"
        )
    return None


def _panels(
    folder: Path, name: str, found: Sequence[CasePanel] | None, notes: list[str]
) -> dict[str, CasePanel]:
    """The pictures given, else those of a file, by case; none, and a note, if it is damaged."""
    try:
        found = panels.load_panels(folder, name) if found is None else found
    except DataError as error:
        notes.append(f"pictures are left out: {name} is damaged. {error.hint}")
        return {}
    return {panel.case_id: panel for panel in found}


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


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _render(page: _Page, title: str, config: str | None) -> str:
    """The page's text."""
    from markupsafe import Markup

    colours = f":root{{--reference:{REFERENCE_COLOUR};--prediction:{PREDICTION_COLOUR}}}\n"
    style = colours + (TEMPLATE / "report.css").read_text(encoding="utf-8")
    script = (TEMPLATE / "report.js").read_text(encoding="utf-8")
    classes = page.evaluation.by_class if page.evaluation else None
    panels_of = (*page.panels.values(), *page.maps.values())
    count = max((len(panel.classes) for panel in panels_of), default=0)
    if classes is not None:
        count = max(count, len(classes.names))
    if count:
        style += (TEMPLATE / "classes.css").read_text(encoding="utf-8") + "".join(
            f".class-{number}{{--class:{class_colour(number)}}}\n" for number in range(1, count + 1)
        )
        script += (TEMPLATE / "classes.js").read_text(encoding="utf-8")
    named = [case_id for part in page.parts.values() for case_id in part.case_ids]
    numbers = {name: i for i, name in enumerate(dict.fromkeys([*named, *page.panels, *page.maps]))}
    pictures = {
        kind: {str(numbers[name]): _panel_json(panel) for name, panel in shown.items()}
        for kind, shown in (("panels", page.panels), ("maps", page.maps))
    }
    data: dict[str, object] = {"ids": list(numbers), **pictures}
    if classes is not None:
        data["values"] = [
            {
                str(numbers[name]): [[cell.text, cell.value] for cell in cells]
                for name, cells in values.items()
                if name in numbers
            }
            for values in classes.values
        ]
    template = _environment().get_template("report.html.j2")
    return template.render(
        page=page,
        title=title,
        config=config,
        numbers=numbers,
        policy=_policy(style, script),
        style=Markup(style),
        script=Markup(script),
        data=Markup(script_json(data)),
        outline=_outline,
        picture=_data_address,
        version=__version__,
    )


def script_json(value: object) -> str:
    """JSON that is safe inside a script element, whatever its strings hold."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _policy(style: str, script: str) -> str:
    """Content policy: its own style, script and embedded pictures, nothing else."""

    def of(text: str) -> str:
        digest = hashlib.sha256(text.encode("utf-8")).digest()
        return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"

    allowed = f"style-src {of(style)}; script-src {of(script)}; img-src data:"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def _panel_json(panel: CasePanel) -> dict[str, object]:
    return {
        "caption": panel.caption,
        "src": _data_address(panel.image_png),
        "width": panel.width,
        "height": panel.height,
        "width_mm": panel.width_mm,
        "reference": _outline(panel.reference),
        "prediction": _outline(panel.prediction),
        **(
            {"classes": [[_outline(one) for one in pair] for pair in panel.classes]}
            if panel.classes
            else {}
        ),
    }


def _outline(lines: Sequence[Polyline]) -> str:
    """Closed lines as an SVG path."""
    return "".join(
        f"M{' '.join(f'{x:g},{y:g}' for x, y in line)}Z" for line in lines if len(line) > 2
    )
