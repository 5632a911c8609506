"""A folder of masks against a folder of references, wherever they come from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sdseg_cli.datasets.folder import FOLDER
from sdseg_cli.datasets.manifest import foreground
from sdseg_cli.datasets.recognise import adapter
from sdseg_cli.errors import ConfigError, DataError
from sdseg_cli.filenames import (
    PICTURE_SUFFIXES,
    VOLUME_SUFFIXES,
    is_picture,
    natural_key,
    stem_of,
    suffix_of,
)
from sdseg_cli.imaging.files import read_labels
from sdseg_cli.imaging.reorient import stored_like
from sdseg_cli.imaging.volume import require_same_grid
from sdseg_cli.progress import Progress, silent
from sdseg_cli.report.evaluation import EvaluateReport, score_case

_NAMED = 5
"""So many cases are listed in a message."""


def evaluate_folders(
    pred: Path,
    ref: Path,
    *,
    target: tuple[int, ...] | None = None,
    dataset: str | None = None,
    grid: str = "native",
    protocol: str = "standard",
    report: Path | None = None,
    progress: Progress = silent,
) -> EvaluateReport:
    """Score a folder of masks against a folder of references, wherever they come from.

    Files belong together whose paths below the two folders agree up to the suffix. They have to lie
    on one grid in the world; in which order and direction its axes are stored may differ.

    Args:
        pred: Folder of masks; what is not 0 is foreground.
        ref: Folder of label maps.
        target: Labels of `ref` that count as foreground; None for the data set's, or all but 0.
        dataset: Adapter whose rules read the references; None for plain label maps.
        grid: "native" only: there are no model planes here.
        protocol: "standard" only, likewise.
        report: Folder for evaluate.csv and evaluate.json; None writes no file.
        progress: Told in cases.

    Returns:
        The scores. Masks without a reference are named in its notes.

    Raises:
        ConfigError: Another grid or protocol is asked for.
        DataError: A folder is missing or empty, a reference has no mask, or a file is damaged.
        GeometryError: A mask does not lie on its reference's grid.
        RunError: The disk refused.
    """
    if (grid, protocol) != ("native", "standard"):
        raise ConfigError(
            "--pred and --ref are scored on their own grid, by the standard protocol.",
            "Leave --grid and --protocol out, or evaluate a run.",
        )
    spec = FOLDER if dataset is None else adapter(dataset)
    target = spec.target if target is None else target
    masks, references = _masks_below(pred, "--pred"), _masks_below(ref, "--ref")
    missing = [name for name in references if name not in masks]
    if missing:
        raise DataError(
            f"{pred}: no mask for {len(missing)} of {len(references)} cases: {_list(missing)}.",
            "Name each mask as its reference, or predict the missing cases.",
        )
    results = []
    for done, (name, file) in enumerate(references.items(), start=1):
        label = read_labels(file, spec.mask_levels)
        mask = stored_like(read_labels(masks[name]), label.geometry)
        names = f"case {name}: prediction {mask.name}", f"reference {label.name}"
        require_same_grid(mask.geometry, label.geometry, *names)
        truth = foreground(label.array, target)
        results.append(score_case(name, mask.array != 0, truth, label.spacing_mm))
        progress(done, len(references), f"case {name}")
    extra = [name for name in masks if name not in references]
    notes = (f"not scored, no reference: {_list(extra)}",) if extra else ()
    found = EvaluateReport(None, None, "native", "standard", tuple(results), notes=notes)
    return found if report is None else replace(found, files=found.write(report))


def _masks_below(folder: Path, option: str) -> dict[str, Path]:
    """Path below the folder without suffix -> mask, naturally sorted.

    Pictures are masks only where there is no volume: beside volumes they are views of them.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder.", f"Give {option} a folder of masks.")
    found: dict[str, Path] = {}
    files = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]
    volumes = [path for path in files if suffix_of(path) is not None]
    for path in volumes or [path for path in files if is_picture(path)]:
        name = path.relative_to(folder).with_name(stem_of(path)).as_posix()
        if name in found:
            raise DataError(
                f"{path} and {found[name]} are both case {name}.", "Keep one of the two."
            )
        found[name] = path
    if not found:
        raise DataError(
            f"{folder}: no masks.",
            f"They end in {', '.join((*VOLUME_SUFFIXES, *PICTURE_SUFFIXES))}.",
        )
    return {name: found[name] for name in sorted(found, key=natural_key)}


def _list(names: list[str]) -> str:
    shown = ", ".join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"
