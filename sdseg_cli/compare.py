"""Two runs, or two folders of masks, on the same cases: is one better than the other?

Each is evaluated as `evaluate` does it; then their cases are paired by id. Both must have been
judged on the same references.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdseg_cli.errors import ConfigError, DataError
from sdseg_cli.evaluate import evaluate
from sdseg_cli.evaluate_folders import evaluate_folders
from sdseg_cli.metrics import Terms
from sdseg_cli.progress import Progress, silent
from sdseg_cli.report.comparison import Comparison, Evaluation
from sdseg_cli.training.run_folder import RunDir

_NAMED = 5


@dataclass(frozen=True)
class Rules:
    """How both sides are judged.

    Attributes:
        grid: "native" or "model".
        protocol: "standard" or "official".
        terms: Tolerance and overlap that count.
        allow_missing: Compare the cases that both have, where otherwise all must be there.
    """

    grid: str = "native"
    protocol: str = "standard"
    terms: Terms = field(default_factory=Terms)
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
    progress: Progress = silent,
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
        device: "auto", "cpu", "cuda" or "mps".
        batch_size: Slices at a time; None for what suits the device.
        decoder: As `Predictor`.
        report: Folder for the files; None for `report/compare/<A>` in run B.
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
    found = [
        evaluate(
            run.path,
            workspace,
            split=split,
            grid=rules.grid,
            protocol=rules.protocol,
            terms=rules.terms,
            seed=seed,
            device=device,
            batch_size=batch_size,
            decoder=decoder,
            progress=progress,
        ).to_json()
        for run in (a, b)
    ]
    names = _run_name(a), _run_name(b)
    folder = report or b.report / "compare" / names[0].replace("/", "-")
    return _compare(found[0], found[1], names, rules).write(folder)


def compare_folders(
    a: Path,
    b: Path,
    ref: Path,
    *,
    rules: Rules = STANDARD,
    report: Path | None = None,
    progress: Progress = silent,
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
    found = [
        evaluate_folders(
            masks,
            ref,
            grid=rules.grid,
            protocol=rules.protocol,
            terms=rules.terms,
            allow_missing=rules.allow_missing,
            progress=progress,
            **reading,
        ).to_json()
        for masks in (a, b)
    ]
    comparison = _compare(found[0], found[1], (str(a), str(b)), rules)
    return comparison if report is None else comparison.write(report)


def _compare(a: Evaluation, b: Evaluation, names: tuple[str, str], rules: Rules) -> Comparison:
    """Pair the cases, once they are known to be the same ones."""
    first, second = a["references"], b["references"]
    notes = []
    for alone, owner in (
        ([name for name in first if name not in second], names[0]),
        ([name for name in second if name not in first], names[1]),
    ):
        if not alone:
            continue
        listed = ", ".join(alone[:_NAMED]) + (" ..." if len(alone) > _NAMED else "")
        if not rules.allow_missing:
            raise DataError(
                f"{len(alone)} cases are in {owner} only: {listed}.",
                "Predict the same cases with both, or add --allow-missing to compare the others.",
            )
        notes.append(f"{len(alone)} cases are in {owner} only and are left out: {listed}")
    common = [name for name in first if name in second]
    if not common:
        raise DataError("The two have no case in common.", "Compare predictions of the same cases.")
    for name in common:
        if first[name] != second[name]:
            raise DataError(
                f"case {name}: the two were judged on different references.",
                "Prepare both sets from the same labels and target, or use --ref for both.",
            )
    empty = [name for name in common if (name in a["excluded"]) != (name in b["excluded"])]
    if empty:
        notes.append(
            "empty reference, and only one of the two found nothing (right, but without a Dice): "
            + ", ".join(empty)
        )
    return Comparison(_only(a, common), _only(b, common), names, tuple(notes))


def _only(found: Evaluation, cases: list[str]) -> Mapping[str, Any]:
    kept = set(cases)
    return {**found, "cases": [row for row in found["cases"] if row["id"] in kept]}


def _run_name(run: RunDir) -> str:
    """Set and name, as `sdseg runs` lists it."""
    return f"{run.path.resolve().parent.name}/{run.path.resolve().name}"
