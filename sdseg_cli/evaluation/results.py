"""Scores of one case, of many and by each protocol, and where the numbers come from.

One object for the terminal, the JSON and the CSV.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import numpy as np

from sdseg_cli import __version__
from sdseg_cli.core.config import SampleConfig
from sdseg_cli.core.files import file_sha256
from sdseg_cli.core.tables import Cell, strict, write_csv, write_json
from sdseg_cli.data.spec import ClassRule
from sdseg_cli.metrics import (
    Grid,
    Length,
    Mask,
    Protocol,
    Score,
    ScoringOptions,
    Spacing,
)
from sdseg_cli.metrics.mask_metrics import METRICS, Lesions, MaskPair
from sdseg_cli.metrics.statistics import FEW_CASES, Summary, summarise
from sdseg_cli.report.latex import write_latex

_LESIONS = ("reference_lesions", "predicted_lesions", "matched_lesions")


@dataclass(frozen=True)
class CaseResult:
    """The scores of one case, or of one class of it, and the sizes they were counted on."""

    case_id: str
    scores: tuple[Score, ...]
    reference_voxels: int
    predicted_voxels: int
    class_label: int | str | None = None
    """The label or the name of the class that was scored; None where all foreground was."""
    reference_sha256: str = ""
    """Of which voxels are reference."""
    lesions: Lesions | None = None
    """None on the model's planes, which have none to count, of an excluded case, and unasked."""
    counts_lesions: bool = False
    """True if they were requested."""

    @property
    def name(self) -> str:
        """For messages: the case, with its class if there are several."""
        return self.case_id if self.class_label is None else f"{self.case_id} {self.class_label}"

    @property
    def values(self) -> dict[str, float | None]:
        """Column name -> value, for example `{"dice": 0.91, "iou": 0.83}`."""
        return {score.column: score.value for score in self.scores}

    @property
    def counts(self) -> dict[str, int | None]:
        """The counts behind the scores, by column."""
        counts: dict[str, int | None] = {
            "reference_voxels": self.reference_voxels,
            "predicted_voxels": self.predicted_voxels,
        }
        if self.counts_lesions:
            found = self.lesions
            lesions = (found.reference, found.predicted, found.matched) if found else (None,) * 3
            counts.update(zip(_LESIONS, lesions, strict=True))
        return counts


def score_case(
    case_id: str,
    pred: Mask,
    label: Mask,
    spacing_mm: Spacing | None,
    *,
    options: ScoringOptions | None = None,
    class_label: int | str | None = None,
    start: tuple[int, ...] | None = None,
) -> CaseResult:
    """Apply every mask metric that has a meaning on the grid to one case; those of lesions where
    the options ask for them.

    Args:
        case_id: The case.
        pred: Predicted mask, any shape, bool.
        label: Reference mask, the same shape, bool.
        spacing_mm: Along each axis of the masks, mm; None on the model's planes, which know no
            distances, and for pictures, whose distances are in pixels.
        options: What the masks lie on, and how they are judged.
        class_label: The label or class these masks are of, where each is scored on its own.
        start: Where the reference's own grid begins in theirs, if theirs reaches beyond it.

    Returns:
        One score per metric; by `standard` all undefined where both masks are empty.

    Raises:
        ValueError: The masks differ in shape, or are not bool.
    """
    options = options or ScoringOptions()
    grid, protocol = options.grid, options.protocol
    length: Length = "px" if spacing_mm is None else "mm"
    spacing: Spacing | None = None
    if grid == "native":
        spacing = (1.0,) * label.ndim if spacing_mm is None else spacing_mm
    pair = MaskPair(pred, label, spacing, length=length, options=options, start=start)
    excluded = protocol == "standard" and not (pair.predicted_voxels or pair.reference_voxels)
    scores = []
    by_lesion = options.detection_iou is not None
    for metric in METRICS:
        unit = metric.unit_in(pair.length)
        if unit is not None and (by_lesion or metric.needs != "lesions"):
            value = None if excluded else metric.of(pair, protocol)
            scores.append(Score(case_id, metric.name, value, grid, unit))
    return CaseResult(
        case_id,
        tuple(scores),
        pair.reference_voxels,
        pair.predicted_voxels,
        class_label,
        pair.reference_sha256,
        pair.lesions if by_lesion and not excluded and spacing is not None else None,
        by_lesion,
    )


@dataclass(frozen=True)
class FoldScores:
    """The scores of one fold's cases by the run that did not train on them."""

    fold: int
    run: Path
    metrics: Mapping[str, Summary]
    cases: int


SUMMARY = ("metric", "mean", "sd", "median", "95 % from", "95 % to", "cases", "undefined")
FEW_NOTE = "{} cases: too few for the 95 % interval, which is too narrow; read it as a range"
_WORST = 5
"""So many cases are named as the worst."""


@dataclass(frozen=True)
class EvaluateReport:
    """The result of `evaluate`."""

    run: Path | None
    """None for masks from elsewhere."""
    split: str | None
    grid: Grid
    protocol: Protocol
    cases: tuple[CaseResult, ...]
    """One for each case, or for each case and class."""
    seed: int | None = None
    sample: SampleConfig | None = None
    decoder: str | None = None
    """Which drew the masks; None where they were given."""
    run_threshold: float | None = None
    """The threshold that the run's validation chose; None of 0.5, and where masks were given."""
    files: tuple[Path, ...] = ()
    """Written."""
    notes: tuple[str, ...] = ()
    options: ScoringOptions = field(default_factory=ScoringOptions)
    pred: Path | None = None
    """Folder of the masks; None for a run's own."""
    ref: Path | None = None
    classes: tuple[int | str, ...] | None = None
    """Labels, or names of classes, that were scored each on its own."""
    rule: ClassRule | None = None
    """The classes where they have names; None of one foreground and of plain labels."""
    union: tuple[CaseResult, ...] = ()
    """With `rule`, each case's foreground as a whole."""
    undrawn: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Case -> classes that were never drawn in it: not scored there."""
    missing: tuple[str, ...] = ()
    """References without a prediction: not scored."""
    resampled: tuple[str, ...] = ()
    """Cases whose prediction was brought onto its reference's grid."""
    outside: Mapping[str, int] = field(default_factory=dict)
    """Of these, voxels predicted beyond the reference's grid; cases without any are left out."""
    protocols: tuple[ProtocolSummary, ...] = ()
    """The same predictions by each protocol, where that was looked at."""
    provenance: Mapping[str, object] = field(default_factory=dict)
    """Of `provenance`."""
    folds: tuple[FoldScores, ...] = ()
    """Of all folds of a set, each on the cases it did not train on: `cases` are those of all."""
    ensemble: EvaluateReport | None = None
    """Beside `folds`: the test cases, by the mean of all."""

    @cached_property
    def scored(self) -> tuple[CaseResult, ...]:
        """All but those without a voxel in prediction and reference."""
        return tuple(result for result in self.cases if not self._is_excluded(result))

    @property
    def excluded(self) -> tuple[str, ...]:
        """Cases without a voxel in prediction and reference: nothing to score, by `standard`.

        With classes, those without a voxel of any of them.
        """
        scored = {result.case_id for result in self.scored}
        return tuple(id for id in self.case_ids if id not in scored)

    @property
    def case_ids(self) -> tuple[str, ...]:
        """Each case once, in order."""
        return tuple(dict.fromkeys(result.case_id for result in self.cases))

    @property
    def units(self) -> dict[str, str]:
        """Column name -> unit, in the order of the table."""
        return {score.column: score.unit for score in self.cases[0].scores} if self.cases else {}

    @property
    def better(self) -> dict[str, str]:
        """Column name -> where a good value lies: "higher", "lower" or "zero"."""
        scores = self.cases[0].scores if self.cases else ()
        good = {metric.name: metric.better for metric in METRICS}
        return {score.column: good[score.metric] for score in scores}

    @property
    def metrics(self) -> dict[str, Summary]:
        """Column name -> mean, median, interval and count over the cases it is defined for.

        With classes, a case counts with the mean over its classes for which the metric is defined.
        """
        return {column: summarise(list(self.case_means(column).values())) for column in self.units}

    @property
    def class_metrics(self) -> dict[int | str, dict[str, Summary]] | None:
        """The same for each class alone."""
        if self.classes is None:
            return None
        return {
            label: _summaries([row for row in self.scored if row.class_label == label], self.units)
            for label in self.classes
        }

    @property
    def references(self) -> dict[str, str]:
        """Case -> sha256 of its reference, with classes of all of them."""
        hashes: dict[str, list[str]] = {}
        for result in self.cases:
            hashes.setdefault(result.case_id, []).append(result.reference_sha256)
        return {id: "-".join(of) for id, of in hashes.items()}

    @property
    def worst(self) -> tuple[str, ...]:
        """Up to 5 cases with the lowest Dice, the lowest first."""
        dice = {id: value for id, value in self.case_means("dice").items() if value is not None}
        return tuple(sorted(dice, key=dice.__getitem__)[:_WORST])

    def case_means(self, column: str) -> dict[str, float | None]:
        """Scored case -> its value, with classes the mean of those that are defined."""
        found: dict[str, list[float]] = {}
        for result in self.scored:
            values = found.setdefault(result.case_id, [])
            value = result.values[column]
            if value is not None:
                values.append(value)
        return {id: float(np.mean(values)) if values else None for id, values in found.items()}

    def to_json(self) -> dict[str, Any]:
        """The object of `--json`: strict JSON, null for what is undefined."""
        measured = "surface_dice" in self.units
        unit = "px" if "hd95" in self.units else "mm"
        classes = self.class_metrics
        values = {
            "run": self.run,
            "pred": self.pred,
            "ref": self.ref,
            "split": self.split,
            "seed": self.seed,
            "sample": asdict(self.sample) if self.sample else None,
            "decoder": self.decoder,
            "grid": self.grid,
            "protocol": self.protocol,
            "tolerance": {"value": self.options.tolerance, "unit": unit} if measured else None,
            "detection_iou": self.options.detection_iou if measured else None,
            "units": self.units,
            "better": self.better,
            "metrics": _as_json(self.metrics),
            "classes": None if classes is None else {n: _as_json(of) for n, of in classes.items()},
            "cases": [self._row(result) for result in self.scored],
            "worst": self.worst,
            "excluded": self.excluded,
            "missing": self.missing,
            "resampled": self.resampled,
            "outside": self.outside,
            "protocols": [one.to_json() for one in self.protocols] or None,
            "references": self.references,
            "notes": self.all_notes,
            "provenance": self.provenance,
        }
        if self.run_threshold is not None:
            values["run_threshold"] = self.run_threshold
        if self.rule is not None:
            values |= self._by_class(self.rule)
        if self.folds:
            values |= self._by_fold()
        return cast("dict[str, Any]", strict(values))

    def _by_class(self, rule: ClassRule) -> dict[str, Any]:
        """What several classes add to the JSON: `cases` hold the mean over classes."""
        means = {column: self.case_means(column) for column in self.units}
        ids = dict.fromkeys(result.case_id for result in self.scored)
        union = [row for row in self.union if not self._is_excluded(row)]
        summaries = self.class_metrics or {}
        undrawn = {"undrawn": self.undrawn} if self.undrawn else {}
        return {
            "cases": [{"id": id, **{name: of[id] for name, of in means.items()}} for id in ids],
            "classes": [
                {
                    "name": name,
                    "labels": group,
                    "metrics": _as_json(summaries[name]),
                    "cases": [_values(row) for row in self.scored if row.class_label == name],
                }
                for name, group in zip(rule.names, rule.groups, strict=True)
            ],
            "union": {
                "metrics": _as_json(_summaries(union, self.units)),
                "cases": [_values(row) for row in union],
            },
            **undrawn,
        }

    def _by_fold(self) -> dict[str, Any]:
        """What folds add to the JSON."""
        test = self.ensemble and self.ensemble.to_json()
        keys = ("split", "run", "metrics", "cases", "excluded")
        return {
            "folds": [
                {"fold": one.fold, "run": one.run, "metrics": _as_json(one.metrics)}
                for one in self.folds
            ],
            "fold_spread": _as_json(self.fold_spread),
            **({"ensemble": {key: test[key] for key in keys}} if test else {}),
        }

    @property
    def fold_spread(self) -> dict[str, Summary]:
        """Column name -> summary of the means of the folds."""
        return {
            column: summarise([one.metrics[column].mean for one in self.folds])
            for column in self.units
        }

    def class_rows(self) -> list[tuple[str, dict[str, Summary]]]:
        """With `rule`: each class, their mean and the union, for a table."""
        union = [row for row in self.union if not self._is_excluded(row)]
        rows = [(str(name), of) for name, of in (self.class_metrics or {}).items()]
        return [*rows, ("mean", self.metrics), ("union", _summaries(union, self.units))]

    def write(self, folder: Path) -> tuple[Path, ...]:
        """Write evaluate.csv (every case, the excluded ones with empty cells), evaluate.json and
        evaluate.tex (the summary).

        Raises:
            RunError: The disk refused.
        """
        table, summary, latex = (folder / f"evaluate.{kind}" for kind in ("csv", "json", "tex"))
        how: dict[str, Cell] = {"grid": self.grid, "protocol": self.protocol}
        rows = [{**self._row(result), **how} for result in self.cases]
        write_csv(table, list(rows[0]) if rows else ["id", *how], rows)
        write_json(summary, self.to_json())
        if self.rule is None:
            write_latex(latex, SUMMARY, self._summary_rows(), self.caption)
        else:
            write_latex(latex, ["class", *self.units], self._class_cells(), self.caption)
        return table, summary, latex

    @property
    def caption(self) -> str:
        """Caption of a table of these scores."""
        what = self.run or self.pred
        text = f"{what}: {len(self.case_ids) - len(self.excluded)} cases, {self.protocol} protocol"
        text += f", {self.grid} grid"
        if "surface_dice" in self.units:
            unit = "px" if "hd95" in self.units else "mm"
            text += f", surface Dice within {self.options.tolerance:g} {unit}"
        if self.missing:
            text += f"; {len(self.missing)} references without a prediction are left out"
        return f"{text}."

    def _class_cells(self) -> list[tuple[str, ...]]:
        rows = []
        for name, found in self.class_rows():
            means = (found[column].mean for column in self.units)
            rows.append((name, *("-" if mean is None else f"{mean:.3f}" for mean in means)))
        return rows

    def _summary_rows(self) -> list[tuple[str, ...]]:
        rows = []
        for column, found in self.metrics.items():
            low, high = found.ci95
            values = [found.mean, found.sd, found.median, low, high]
            cells = ["-" if value is None else f"{value:.3f}" for value in values]
            rows.append((column, *cells, str(found.n), str(found.undefined)))
        return rows

    def _row(self, result: CaseResult) -> dict[str, Cell]:
        label = {} if self.classes is None else {"class": result.class_label}
        return {"id": result.case_id, **label, **result.values, **result.counts}

    def _is_excluded(self, result: CaseResult) -> bool:
        empty = result.reference_voxels == result.predicted_voxels == 0
        return empty and self.protocol == "standard"

    @property
    def all_notes(self) -> tuple[str, ...]:
        """All notes for a reader of the numbers."""
        count = len(self.case_ids) - len(self.excluded)
        few = (FEW_NOTE.format(count),) if 1 < count < FEW_CASES else ()
        notes = self._undrawn_note()
        return (*self.notes, *notes, *self._class_note(), *undefined_notes(self.scored), *few)

    def _undrawn_note(self) -> tuple[str, ...]:
        if not self.undrawn:
            return ()
        cases = [f"{id} ({', '.join(names)})" for id, names in self.undrawn.items()]
        return (f"classes never drawn in a case are not scored there: {shortened(cases)}",)

    def _class_note(self) -> tuple[str, ...]:
        """With classes: how many rows are left out because the class is nowhere in the case."""
        absent = len(self.cases) - len(self.scored)
        if self.classes is None or not absent:
            return ()
        where = "files" if self.rule is None else "masks"
        text = f"{absent} of {len(self.cases)} pairs of case and class are empty in both {where}"
        return (f"{text} and not scored",)


def _values(result: CaseResult) -> dict[str, Cell]:
    return {"id": result.case_id, **result.values, **result.counts}


def _summaries(rows: Sequence[CaseResult], columns: Iterable[str]) -> dict[str, Summary]:
    return {column: summarise([row.values[column] for row in rows]) for column in columns}


def _as_json(summaries: Mapping[str, Summary]) -> dict[str, dict[str, object]]:
    return {column: summary.to_json() for column, summary in summaries.items()}


_WHY = {
    "hd95": "with one empty mask",
    "assd": "with one empty mask",
    "precision": "with no predicted voxel",
    "recall": "with no reference voxel",
}
_PAIR = ("pair of case and class", "pairs of case and class")
_FLATTERING = ("hd95", "assd")
_NAMED_CASES = 5
"""So many cases are listed in a note."""


def shortened(names: Sequence[str], most: int = _NAMED_CASES) -> str:
    """`a, b, c` of a few names, `a, b, c, d, e and 7 more` of many."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def undefined_notes(rows: Sequence[CaseResult]) -> tuple[str, ...]:
    """Notes on what each metric's mean leaves out; one note for metrics alike in this.

    Args:
        rows: The results that are scored, without the excluded ones.
    """
    left_out: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    of_classes = bool(rows) and rows[0].class_label is not None
    for number, score in enumerate(rows[0].scores if rows else ()):
        names = tuple(row.name for row in rows if row.scores[number].value is None)
        if names:
            why = _WHY.get(score.metric, "for which it is undefined")
            if score.metric in _FLATTERING and len(names) < len(rows):
                why += "; over the rest the mean is optimistic"
            left_out.setdefault((why, names), []).append(score.column)
    notes = []
    for (reason, names), columns in left_out.items():
        why, _, warning = reason.partition("; ")
        verb = "leaves" if len(columns) == 1 else "leave"
        one = f"1 {_PAIR[0]}" if of_classes else "1 case"
        if len(rows) > 1:
            one = f"{len(names)} of {len(rows)} {_PAIR[1] if of_classes else 'cases'}"
        text = f"{' and '.join(columns)} {verb} out {one} {why} ({shortened(names)})"
        notes.append(f"{text}: {warning}" if warning else text)
    return tuple(notes)


@dataclass(frozen=True)
class ProtocolSummary:
    """Scores of the same predictions by one protocol on one grid."""

    protocol: Protocol
    grid: Grid
    dice: Summary
    iou: Summary
    excluded: int
    """Cases that are not scored."""

    @classmethod
    def of(cls, protocol: Protocol, grid: Grid, cases: Sequence[CaseResult]) -> ProtocolSummary:
        """Sum up the cases as scored by it, of several classes the mean over them."""
        found = EvaluateReport(None, None, grid, protocol, tuple(cases))
        ids = found.case_ids
        dice, iou = (
            summarise([found.case_means(name).get(id) for id in ids]) for name in ("dice", "iou")
        )
        return cls(protocol, grid, dice, iou, len(ids) - dice.n)

    def to_json(self) -> dict[str, Any]:
        """A row of `protocols` in the JSON of `evaluate`."""
        return {
            "protocol": self.protocol,
            "grid": self.grid,
            "dice": self.dice.to_json(),
            "iou": self.iou.to_json(),
            "excluded": self.excluded,
        }


LIBRARIES = ("torch", "monai", "numpy", "scipy", "SimpleITK", "nibabel")
"""Those whose version can change a score."""


def provenance(*, command: str, files: Mapping[str, Path | str]) -> dict[str, object]:
    """Information needed to reproduce the numbers.

    Args:
        command: As it was typed.
        files: Name -> file that the numbers rest on, for example a manifest; one that is not there
            gets no hash. Or its sha256, of one that may have been replaced since.

    Returns:
        `command`, `date` (ISO 8601, UTC, to the second), `sdseg`, `python`, `platform` (system and
        processor; never the machine's or a person's name), `versions` by library
        (None where it is not installed) and `sha256` by name (None without a file).
    """
    return {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "sdseg": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": {name: _version(name) for name in LIBRARIES},
        "sha256": {name: _sha256(file) for name, file in files.items()},
    }


def _sha256(file: Path | str) -> str | None:
    if isinstance(file, str):
        return file
    return file_sha256(file) if file.is_file() else None


def _version(name: str) -> str | None:
    """Version of an installed package, from its metadata, so nothing heavy is imported."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
