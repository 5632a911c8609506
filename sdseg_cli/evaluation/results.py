"""The scores of many cases: one object for the terminal, the JSON and the CSV."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from sdseg_cli.core.config import SampleConfig
from sdseg_cli.core.tables import Cell, strict, write_csv, write_json
from sdseg_cli.evaluation.case_scores import CaseResult
from sdseg_cli.evaluation.protocols import ProtocolSummary
from sdseg_cli.evaluation.undefined import undefined_notes
from sdseg_cli.metrics import Grid, Protocol, ScoringOptions
from sdseg_cli.metrics.mask_metrics import METRICS
from sdseg_cli.metrics.statistics import FEW_CASES, Summary, summarise
from sdseg_cli.report.latex import write_latex

SUMMARY = ("metric", "mean", "sd", "median", "95 % from", "95 % to", "cases", "undefined")
FEW_NOTE = "{} cases: too few for the 95 % interval, which is too narrow; read it as a range"
_WORST = 5
"""So many cases are named as the worst."""


@dataclass(frozen=True)
class EvaluateReport:
    """What `evaluate` found and wrote."""

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
    files: tuple[Path, ...] = ()
    """Written."""
    notes: tuple[str, ...] = ()
    options: ScoringOptions = field(default_factory=ScoringOptions)
    pred: Path | None = None
    """Folder of the masks; None for a run's own."""
    ref: Path | None = None
    classes: tuple[int, ...] | None = None
    """Labels that were scored each on its own."""
    missing: tuple[str, ...] = ()
    """References without a prediction: not scored."""
    resampled: tuple[str, ...] = ()
    """Cases whose prediction was brought onto its reference's grid."""
    outside: Mapping[str, int] = field(default_factory=dict)
    """Of these, voxels predicted beyond the reference's grid; cases without any are left out."""
    protocols: tuple[ProtocolSummary, ...] = ()
    """The same predictions by each protocol, where that was looked at."""
    provenance: Mapping[str, object] = field(default_factory=dict)
    """Of `provenance.py`."""

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
    def class_metrics(self) -> dict[int, dict[str, Summary]] | None:
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
        return cast("dict[str, Any]", strict(values))

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
        write_latex(latex, SUMMARY, self._summary_rows(), self.caption)
        return table, summary, latex

    @property
    def caption(self) -> str:
        """What a table of these scores has to say of itself."""
        what = self.run or self.pred
        text = f"{what}: {len(self.case_ids) - len(self.excluded)} cases, {self.protocol} protocol"
        text += f", {self.grid} grid"
        if "surface_dice" in self.units:
            unit = "px" if "hd95" in self.units else "mm"
            text += f", surface Dice within {self.options.tolerance:g} {unit}"
        if self.missing:
            text += f"; {len(self.missing)} references without a prediction are left out"
        return f"{text}."

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
        """What was said beforehand, and what a reader of the numbers has to know."""
        count = len(self.case_ids) - len(self.excluded)
        few = (FEW_NOTE.format(count),) if 1 < count < FEW_CASES else ()
        return (*self.notes, *self._class_note(), *undefined_notes(self.scored), *few)

    def _class_note(self) -> tuple[str, ...]:
        """With classes: how many rows are left out because the class is nowhere in the case."""
        absent = len(self.cases) - len(self.scored)
        if self.classes is None or not absent:
            return ()
        text = f"{absent} of {len(self.cases)} pairs of case and class are empty in both files"
        return (f"{text} and not scored",)


def _summaries(rows: Sequence[CaseResult], columns: Iterable[str]) -> dict[str, Summary]:
    return {column: summarise([row.values[column] for row in rows]) for column in columns}


def _as_json(summaries: dict[str, Summary]) -> dict[str, dict[str, object]]:
    return {column: summary.to_json() for column, summary in summaries.items()}
