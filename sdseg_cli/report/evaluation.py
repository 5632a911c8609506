"""The scores of many cases: one object for the terminal, the JSON and the CSV."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from sdseg_cli.config import SampleConfig
from sdseg_cli.metrics import Grid, Mask, Protocol, Score, Spacing, mask_metrics
from sdseg_cli.metrics.statistics import Summary, summarise
from sdseg_cli.report.tables import Cell, strict, write_csv, write_json


@dataclass(frozen=True)
class CaseResult:
    """The scores of one case, and the sizes they were counted on."""

    case_id: str
    scores: tuple[Score, ...]
    reference_voxels: int
    predicted_voxels: int

    @property
    def values(self) -> dict[str, float | None]:
        """Column name -> value, for example `{"dice": 0.91, "iou": 0.83}`."""
        return {score.column: score.value for score in self.scores}


def score_case(
    case_id: str,
    pred: Mask,
    label: Mask,
    spacing_mm: Spacing | None,
    *,
    grid: Grid = "native",
    protocol: Protocol = "standard",
) -> CaseResult:
    """Apply every mask metric to one case.

    Args:
        case_id: The case.
        pred: Predicted mask, any shape, bool.
        label: Reference mask, the same shape, bool.
        spacing_mm: Along each axis of the masks, mm; None where there is none.
        grid: What the masks lie on.
        protocol: How empty masks are scored.

    Returns:
        One score per metric.

    Raises:
        ValueError: The masks differ in shape, or are not bool.
    """
    scores = tuple(
        Score(
            case_id,
            metric.name,
            metric.measure(pred, label, spacing_mm, protocol),
            grid,
            metric.unit,
        )
        for metric in mask_metrics()
    )
    return CaseResult(case_id, scores, int(label.sum()), int(pred.sum()))


@dataclass(frozen=True)
class EvaluateReport:
    """What `evaluate` found and wrote."""

    run: Path | None
    """None for masks from elsewhere."""
    split: str | None
    grid: Grid
    protocol: Protocol
    cases: tuple[CaseResult, ...]
    seed: int | None = None
    sample: SampleConfig | None = None
    decoder: str | None = None
    """Which drew the masks; None where they were given."""
    files: tuple[Path, ...] = ()
    """Written."""
    notes: tuple[str, ...] = ()

    @property
    def excluded(self) -> tuple[str, ...]:
        """Cases without a voxel in prediction and reference: nothing to score, by `standard`."""
        if self.protocol == "official":
            return ()
        return tuple(
            result.case_id
            for result in self.cases
            if result.reference_voxels == result.predicted_voxels == 0
        )

    @property
    def metrics(self) -> dict[str, Summary]:
        """Column name -> mean, median, interval and count over the cases it is defined for."""
        return {
            metric.column: summarise([result.values[metric.column] for result in self.cases])
            for metric in mask_metrics()
        }

    def to_json(self) -> dict[str, Any]:
        """The object of `--json`: strict JSON, null for what is undefined."""
        scored = [result for result in self.cases if result.case_id not in self.excluded]
        values = {
            "run": self.run,
            "split": self.split,
            "seed": self.seed,
            "sample": asdict(self.sample) if self.sample else None,
            "decoder": self.decoder,
            "grid": self.grid,
            "protocol": self.protocol,
            "metrics": {name: summary.to_json() for name, summary in self.metrics.items()},
            "cases": [{"id": result.case_id, **result.values} for result in scored],
            "excluded": self.excluded,
            "notes": self.notes,
        }
        return cast("dict[str, Any]", strict(values))

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write evaluate.csv (every case, the excluded ones with empty cells) and evaluate.json."""
        table, summary = folder / "evaluate.csv", folder / "evaluate.json"
        names = [metric.column for metric in mask_metrics()]
        columns = ["id", *names, "reference_voxels", "predicted_voxels", "grid", "protocol"]
        rows: list[dict[str, Cell]] = [
            {
                "id": result.case_id,
                **result.values,
                "reference_voxels": result.reference_voxels,
                "predicted_voxels": result.predicted_voxels,
                "grid": self.grid,
                "protocol": self.protocol,
            }
            for result in self.cases
        ]
        write_csv(table, columns, rows)
        write_json(summary, self.to_json())
        return table, summary
