"""The scores of one case: every metric that has a meaning on its grid."""

from __future__ import annotations

from dataclasses import dataclass

from sdseg_cli.metrics import (
    Grid,
    Length,
    Mask,
    Protocol,
    Score,
    ScoringOptions,
    Spacing,
)
from sdseg_cli.metrics.lesions import Lesions
from sdseg_cli.metrics.mask_metrics import METRICS
from sdseg_cli.metrics.pair import MaskPair

_LESIONS = ("reference_lesions", "predicted_lesions", "matched_lesions")


@dataclass(frozen=True)
class CaseResult:
    """The scores of one case, or of one class of it, and the sizes they were counted on."""

    case_id: str
    scores: tuple[Score, ...]
    reference_voxels: int
    predicted_voxels: int
    class_label: int | None = None
    """The label that was scored; None where all foreground was."""
    reference_sha256: str = ""
    """Of which voxels are reference."""
    lesions: Lesions | None = None
    """None on the model's planes, which have none to count, of an excluded case, and unasked."""
    counts_lesions: bool = False
    """Whether they were asked for."""

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
        """What the scores were counted on, by column."""
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
    grid: Grid = "native",
    protocol: Protocol = "standard",
    options: ScoringOptions | None = None,
    class_label: int | None = None,
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
        grid: What the masks lie on.
        protocol: How empty masks are scored.
        options: How it is judged.
        class_label: The label these masks are of, where each is scored on its own.
        start: Where the reference's own grid begins in theirs, if theirs reaches beyond it.

    Returns:
        One score per metric; by `standard` all undefined where both masks are empty.

    Raises:
        ValueError: The masks differ in shape, or are not bool.
    """
    length: Length = "px" if spacing_mm is None else "mm"
    spacing: Spacing | None = None
    if grid == "native":
        spacing = (1.0,) * label.ndim if spacing_mm is None else spacing_mm
    pair = MaskPair(pred, label, spacing, length=length, options=options, start=start)
    excluded = protocol == "standard" and not (pair.predicted_voxels or pair.reference_voxels)
    scores = []
    by_lesion = pair.options.detection_iou is not None
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
