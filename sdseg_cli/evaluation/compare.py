"""Two runs, or two folders of masks, on the same cases: is one better than the other?

Each is evaluated as `evaluate` does it; then their cases are paired by id. Both must have been
judged on the same references.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdseg_cli.core.errors import ConfigError, DataError
from sdseg_cli.core.files import require_writable
from sdseg_cli.core.progress import Progress, no_op
from sdseg_cli.data.manifest import Manifest
from sdseg_cli.evaluation.comparison import Comparison, Evaluation
from sdseg_cli.evaluation.evaluate import evaluate
from sdseg_cli.evaluation.folders import evaluate_folders
from sdseg_cli.evaluation.results import EvaluateReport
from sdseg_cli.evaluation.undefined import shortened
from sdseg_cli.metrics import ScoringOptions
from sdseg_cli.runs.run_folder import RunDir


@dataclass(frozen=True)
class Rules:
    """How both sides are judged.

    Attributes:
        grid: "native" or "model".
        protocol: "standard" or "official".
        options: Tolerance and overlap that count.
        allow_missing: Compare the cases that both have, where otherwise all must be there.
    """

    grid: str = "native"
    protocol: str = "standard"
    options: ScoringOptions = field(default_factory=ScoringOptions)
    allow_missing: bool = False


STANDARD = Rules()


def compare_runs(
    a: RunDir,
    b: RunDir,
    workspace: Path,
    *,
    split: str = "test",
    rules: Rules = STANDARD,
    seed: int = 0,
    device: str = "auto",
    batch_size: int | None = None,
    decoder: str = "auto",
    report: Path | None = None,
    command: str = "",
    progress: Progress = no_op,
) -> Comparison:
    """Compare two runs on one split of the data they were trained on.

    Each run predicts what it has not kept, with its own settings of sampling.

    Args:
        a: A run.
        b: Another.
        workspace: Folder that holds `prepared/` and `runs/`.
        split: "train", "val" or "test".
        rules: How both are judged.
        seed: Of all noise.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        batch_size: Slices at a time; None for what suits the device.
        decoder: As `Predictor`.
        report: Folder for the files; None for `report/compare/<A>` in run B.
        command: What was typed, for the reports.
        progress: Told in slices.

    Returns:
        The comparison, written.

    Raises:
        ConfigError: Both are one run, or as `evaluate`.
        DataError: They do not have the same cases and references; or as `evaluate`.
        RunError: The disk refused.
    """
    if a.path.resolve() == b.path.resolve():
        raise ConfigError(f"{a.path} is both A and B.", "Give two runs: see sdseg runs.")
    names = _run_name(a), _run_name(b)
    sets = a.config().dataset, b.config().dataset
    if sets[0] != sets[1]:  # refused before a model predicts for an hour
        ids = [[case.id for case in Manifest.find(workspace, of).cases(split)] for of in sets]
        _require_same_cases(ids[0], ids[1], names, rules)
    folder = report or b.report / "compare" / names[0].replace("/", "-")
    require_writable(folder / "compare.json")  # before a model predicts for an hour, too
    found = [
        evaluate(
            run.path,
            workspace,
            split=split,
            grid=rules.grid,
            protocol=rules.protocol,
            options=rules.options,
            seed=seed,
            device=device,
            batch_size=batch_size,
            decoder=decoder,
            command=command,
            progress=progress,
        )
        for run in (a, b)
    ]
    return _compare(found[0], found[1], names, rules).write(folder)


def compare_folders(
    a: Path,
    b: Path,
    ref: Path,
    *,
    rules: Rules = STANDARD,
    report: Path | None = None,
    progress: Progress = no_op,
    **reading: Any,
) -> Comparison:
    """Compare two folders of masks against the same references.

    Args:
        a: Folder of masks.
        b: Another.
        ref: Folder of references.
        rules: How both are judged.
        report: Folder for the files; None writes none.
        progress: Told in cases.
        reading: How masks and references are read: see `evaluate_folders`.

    Raises:
        ConfigError: Both are one folder.
        DataError: They do not have the same cases; or as `evaluate_folders`.
        GeometryError: A mask does not lie on its reference's grid.
        RunError: The disk refused.
    """
    if a.resolve() == b.resolve():
        raise ConfigError(f"{a} is both A and B.", "Give two folders of masks.")
    if report is not None:
        require_writable(report / "compare.json")
    found = [
        evaluate_folders(
            masks,
            ref,
            grid=rules.grid,
            protocol=rules.protocol,
            options=rules.options,
            allow_missing=rules.allow_missing,
            progress=progress,
            **reading,
        )
        for masks in (a, b)
    ]
    comparison = _compare(found[0], found[1], (str(a), str(b)), rules)
    return comparison if report is None else comparison.write(report)


def _require_same_cases(
    a: Sequence[str], b: Sequence[str], names: tuple[str, str], rules: Rules
) -> list[str]:
    """Refuse cases that only one side has, or say in a note each that they are left out."""
    notes = []
    for own, others, owner in ((a, {*b}, names[0]), (b, {*a}, names[1])):
        alone = [name for name in own if name not in others]
        if not alone:
            continue
        what = f"{len(alone)} {'case is' if len(alone) == 1 else 'cases are'} in {owner} only"
        if not rules.allow_missing:
            raise DataError(
                f"{what}: {shortened(alone)}.",
                "Predict the same cases with both, or add --allow-missing to compare the others.",
            )
        notes.append(f"{what} and left out: {shortened(alone)}")
    if not {*a} & {*b}:
        raise DataError("The two have no case in common.", "Compare predictions of the same cases.")
    return notes


def _compare(
    a: EvaluateReport, b: EvaluateReport, names: tuple[str, str], rules: Rules
) -> Comparison:
    """Pair the cases, once they are known to be the same ones."""
    first, second = a.references, b.references
    notes = [*_said(a, b), *_require_same_cases([*first], [*second], names, rules)]
    common = [name for name in first if name in second]
    for name in common:
        if first[name] != second[name]:
            raise DataError(
                f"case {name}: the two were judged on different references.",
                "Prepare both sets from the same labels and target, or use --ref for both.",
            )
    empty = [name for name in common if (name in a.excluded) != (name in b.excluded)]
    if empty:
        notes.append(
            "empty reference, and only one of the two found nothing (right, but without a Dice): "
            + ", ".join(empty)
        )
    both = [name for name in common if name in a.excluded and name in b.excluded]
    if both:
        notes.append(f"empty reference, and both found nothing, so not compared: {', '.join(both)}")
    return Comparison(_only(a.to_json(), common), _only(b.to_json(), common), names, tuple(notes))


def _said(a: EvaluateReport, b: EvaluateReport) -> list[str]:
    """What either evaluation had to say of its files, each thing once."""
    shared = [note for note in a.notes if note in b.notes]
    own = [f"{side}: {n}" for side, of in (("A", a), ("B", b)) for n in of.notes if n not in shared]
    return [*shared, *own]


def _only(found: Evaluation, cases: list[str]) -> Mapping[str, Any]:
    kept = set(cases)
    return {**found, "cases": [row for row in found["cases"] if row["id"] in kept]}


def _run_name(run: RunDir) -> str:
    """Set and name, as `sdseg runs` lists it."""
    return f"{run.path.resolve().parent.name}/{run.path.resolve().name}"
