"""The metrics of a predicted mask: plain functions of a `MaskPair`, and `METRICS`, their table.

`evaluate`, its table, its CSV and its JSON walk over `METRICS`. What is costly to find out of a
case is found once, by the pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sdseg_cli.metrics import Better, Length, Protocol, Unit, column_name
from sdseg_cli.metrics.pair import MaskPair

_ROUNDING = 1e-6
"""Share of the tolerance by which a distance may exceed it: 3 steps of 0.7 mm are 2.1 mm."""


def dice(pair: MaskPair) -> float | None:
    """Twice the overlap over the sum of both sizes: 2|A n B| / (|A| + |B|).

    Returns:
        A value in [0, 1]: 0 when one mask is empty, None (nothing to score) when both are.
    """
    total = pair.predicted_voxels + pair.reference_voxels
    return None if total == 0 else 2 * pair.shared_voxels / total


def iou(pair: MaskPair) -> float | None:
    """The overlap over the union: |A n B| / |A u B|, the Jaccard index.

    Returns:
        A value in [0, 1]: 0 when one mask is empty, None (nothing to score) when both are.
    """
    union = pair.predicted_voxels + pair.reference_voxels - pair.shared_voxels
    return None if union == 0 else pair.shared_voxels / union


def precision(pair: MaskPair) -> float | None:
    """The share of the prediction that is right, in [0, 1]; None when nothing is predicted."""
    return None if pair.predicted_voxels == 0 else pair.shared_voxels / pair.predicted_voxels


def recall(pair: MaskPair) -> float | None:
    """The share of the reference that is found, in [0, 1]; None when there is nothing to find."""
    return None if pair.reference_voxels == 0 else pair.shared_voxels / pair.reference_voxels


def hd95(pair: MaskPair) -> float | None:
    """The 95th percentile of the surface distances of each direction, the larger of the two.

    Percentiles are interpolated linearly, as MONAI's `compute_hausdorff_distance` does it.

    Returns:
        mm, in pictures px; None if a mask is empty.
    """
    found = pair.surfaces
    if not found.defined:
        return None
    return float(max(np.percentile(one, 95) for one in (found.to_label, found.to_pred)))


def assd(pair: MaskPair) -> float | None:
    """The average symmetric surface distance: the mean of all distances of both directions.

    MONAI's `compute_average_surface_distance(symmetric=True)`.

    Returns:
        mm, in pictures px; None if a mask is empty.
    """
    return float(pair.surfaces.both.mean()) if pair.surfaces.defined else None


def surface_dice(pair: MaskPair) -> float | None:
    """The share of both borders that lies within the tolerance of the other one.

    Border voxels are counted, as in MONAI's `compute_surface_dice(use_subvoxels=False)`; the
    tolerance itself is within.

    Returns:
        A value in [0, 1]: 0 when one mask is empty, None when both are.
    """
    both = pair.surfaces.both
    if both.size == 0:
        return None
    within = both <= pair.options.tolerance * (1 + _ROUNDING)
    return float(np.count_nonzero(within) / both.size)


def volume_difference(pair: MaskPair) -> float:
    """The volume of the prediction less that of the reference, ml; below 0 if it is too small."""
    return (pair.predicted_voxels - pair.reference_voxels) * math.prod(pair.spacing_mm) / 1000


def detection_f1(pair: MaskPair) -> float | None:
    """Lesion-wise F1: 2 TP / (2 TP + FP + FN), which is twice the pairs over all parts.

    Returns:
        A value in [0, 1]: 0 when one mask is empty, None when both are.
    """
    parts = pair.lesions.reference + pair.lesions.predicted
    return None if parts == 0 else 2 * pair.lesions.matched / parts


@dataclass(frozen=True)
class Metric:
    """A mask metric with what has to be known to print it.

    Attributes:
        name: Of the column, without its unit.
        unit: Of the value; in pictures "mm" is pixels, and there is no "ml".
        better: Which way a good value lies.
        function: Gives the value, None where it is undefined.
        needs: The voxels alone; or lengths, which the planes of the model do not have; or lesions,
            which are only counted where asked for, and by lengths too: what touches what, and how
            large it is, is the scan's own matter.
    """

    name: str
    unit: Unit
    better: Better
    function: Callable[[MaskPair], float | None]
    needs: Literal["voxels", "lengths", "lesions"]

    @property
    def column(self) -> str:
        """Its name in CSV and JSON where distances are in mm, see `column_name`."""
        return column_name(self.name, self.unit)

    def unit_in(self, length: Length | None) -> Unit | None:
        """Its unit on a grid.

        Args:
            length: What distances are counted in there; None where they have no meaning, as on
                the cropped and resized planes of the model.

        Returns:
            None where the metric has no meaning: no distances without a length, no ml in pixels.
        """
        if length is None:
            return self.unit if self.needs == "voxels" else None
        if self.unit == "ml":
            return "ml" if length == "mm" else None
        return length if self.unit == "mm" else self.unit

    def of(self, pair: MaskPair, protocol: Protocol = "standard") -> float | None:
        """Score one case.

        Args:
            pair: Its masks, and what was computed of them so far.
            protocol: "official" gives Dice and IoU of an empty reference as the official code does:
                1 for a non-empty prediction, 0 when both are empty (unsound, but what the
                published figures were made with).

        Returns:
            The value, or None where it is undefined.
        """
        if protocol == "official" and self.name in ("dice", "iou") and not pair.reference_voxels:
            return 1.0 if pair.predicted_voxels else 0.0
        return None if self.unit_in(pair.length) is None else self.function(pair)


METRICS = (
    Metric("dice", "1", "higher", dice, "voxels"),
    Metric("iou", "1", "higher", iou, "voxels"),
    Metric("precision", "1", "higher", precision, "voxels"),
    Metric("recall", "1", "higher", recall, "voxels"),
    Metric("hd95", "mm", "lower", hd95, "lengths"),
    Metric("assd", "mm", "lower", assd, "lengths"),
    Metric("surface_dice", "1", "higher", surface_dice, "lengths"),
    Metric("volume_difference", "ml", "zero", volume_difference, "lengths"),
    Metric("detection_f1", "1", "higher", detection_f1, "lesions"),
)
"""Every mask metric, in the order of the columns."""
