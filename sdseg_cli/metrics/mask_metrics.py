"""The metrics of a predicted mask: plain functions of a `MaskPair`, and `METRICS`, their table.

`evaluate`, its table, its CSV and its JSON walk over `METRICS`. What is costly to find out of a
case is found once, by the pair.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse.csgraph import maximum_bipartite_matching

from sdseg_cli.metrics import (
    DETECTION_IOU,
    Better,
    Length,
    Mask,
    Protocol,
    ScoringOptions,
    Spacing,
    Unit,
    column_name,
)
from sdseg_cli.metrics.surfaces import SurfaceDistances, surface_distances

_ROUNDING = 1e-6
"""Share of the tolerance by which a distance may exceed it: 3 steps of 0.7 mm are 2.1 mm."""


@dataclass(frozen=True)
class Lesions:
    """Numbers of connected parts in reference and prediction, and of matched pairs."""

    reference: int
    predicted: int
    matched: int
    """Pairs of one of each, no part in two of them."""


def match_lesions(pred: Mask, label: Mask, least_iou: float) -> Lesions:
    """Pair the parts of two masks, one with one, as many as can be.

    Parts are connected by face, edge or corner (26 neighbours, 8 in a plane).

    Args:
        pred: Predicted mask, any shape, bool.
        label: Reference mask, the same shape, bool.
        least_iou: Two parts may be a pair if their IoU is at least this; above 0.
    """
    both = pred & label
    predicted, predicted_sizes = _parts(pred, both)
    reference, reference_sizes = _parts(label, both)
    counted = np.ones(predicted.size, np.int64), (predicted, reference)
    shared = sparse.coo_array(counted, (predicted_sizes.size, reference_sizes.size))
    shared.sum_duplicates()
    one, other = shared.coords
    iou = shared.data / (predicted_sizes[one] + reference_sizes[other] - shared.data)
    may = iou >= least_iou
    pairs = sparse.coo_array((may[may], (one[may], other[may])), shared.shape).tocsr()
    matched = maximum_bipartite_matching(pairs, perm_type="column")
    return Lesions(
        reference=reference_sizes.size - 1,
        predicted=predicted_sizes.size - 1,
        matched=int(np.count_nonzero(matched >= 0)),
    )


def _parts(mask: Mask, where: Mask) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The number of the part at each voxel of `where`, from 1; and the voxels of each part.

    Only this is kept: a volume of labels takes four times the scan.
    """
    labels, _ = ndimage.label(mask, ndimage.generate_binary_structure(mask.ndim, mask.ndim))
    return labels[where], np.bincount(labels[mask], minlength=1)


class MaskPair:
    """A prediction and its reference, cut to where either is.

    Nothing changes by cutting: beyond the box both are empty. The axes come out in the order in
    which they lie in memory, the spacing with them: passes over a whole scan are then several times
    faster.

    Args:
        pred: Predicted mask, any shape, bool.
        label: Reference mask, the same shape, bool.
        spacing: Distance between voxels along each axis; None where it has no meaning.
        length: What the spacing is counted in.
        options: How the case is judged.
        start: Index of the reference's own first voxel, where the grid was continued beyond it.

    Attributes:
        pred, label: The masks, cut, C-contiguous; uncut where both are empty.
        spacing: Along each axis of them.
        length: None without a spacing.

    Raises:
        ValueError: The shapes differ, a mask is not bool, or the spacing has other axes.
    """

    def __init__(
        self,
        pred: Mask,
        label: Mask,
        spacing: Spacing | None,
        *,
        length: Length = "mm",
        options: ScoringOptions | None = None,
        start: tuple[int, ...] | None = None,
    ) -> None:
        if pred.shape != label.shape:
            raise ValueError(f"masks differ in shape: {pred.shape} and {label.shape}")
        if pred.dtype != np.bool_ or label.dtype != np.bool_:
            raise ValueError(f"masks must be bool, not {pred.dtype} and {label.dtype}")
        if spacing is not None and len(spacing) != pred.ndim:
            raise ValueError(f"{len(spacing)} spacings for {pred.ndim} axes")
        box, order = _box(pred | label), np.argsort([-abs(step) for step in label.strides])
        self.pred: Mask = np.ascontiguousarray(pred[box].transpose(order))
        self.label: Mask = np.ascontiguousarray(label[box].transpose(order))
        self.spacing = None if spacing is None else tuple(spacing[axis] for axis in order)
        self.length = None if spacing is None else length
        self.options = options or ScoringOptions()
        begin = start or (0,) * pred.ndim
        self._order = order
        self._start = [(part.start or 0) - one for part, one in zip(box, begin, strict=True)]
        self._flat = tuple(int(n) for n, axis in enumerate(order) if pred.shape[axis] == 1)

    @cached_property
    def predicted_voxels(self) -> int:
        """Voxels of the prediction."""
        return int(np.count_nonzero(self.pred))

    @cached_property
    def reference_voxels(self) -> int:
        """Voxels of the reference."""
        return int(np.count_nonzero(self.label))

    @cached_property
    def shared_voxels(self) -> int:
        """Voxels of both."""
        return int(np.count_nonzero(self.pred & self.label))

    @cached_property
    def reference_sha256(self) -> str:
        """Hash of the reference voxels, which shows whether two evaluations share a reference.

        It depends neither on the prediction nor on how the arrays lie in memory.
        """
        if not self.reference_voxels:
            return hashlib.sha256(b"empty").hexdigest()
        stored = self.label.transpose(np.argsort(self._order))
        own = _box(stored)
        part = stored[own]
        start = [first + span.start for first, span in zip(self._start, own, strict=True)]
        where = repr((start, part.shape)).encode()
        return hashlib.sha256(where + np.packbits(part).tobytes()).hexdigest()

    @property
    def spacing_mm(self) -> Spacing:
        """Distance between voxels along each axis of the masks."""
        if self.spacing is None:
            raise ValueError("a grid without a spacing has no distances")
        return self.spacing

    @cached_property
    def surfaces(self) -> SurfaceDistances:
        """Distances between both borders; a grid of one plane is measured within that plane."""
        spacing = [step for n, step in enumerate(self.spacing_mm) if n not in self._flat]
        pred, label = (mask.squeeze(axis=self._flat) for mask in (self.pred, self.label))
        return surface_distances(pred, label, tuple(spacing))

    @cached_property
    def lesions(self) -> Lesions:
        """Connected parts of both, and how many of them belong together."""
        return match_lesions(self.pred, self.label, self.options.detection_iou or DETECTION_IOU)


def _box(mask: Mask) -> tuple[slice, ...]:
    """Bounding box of a mask; the whole grid if it is empty."""
    spans = []
    for axis in range(mask.ndim):
        filled = np.flatnonzero(mask.any(axis=tuple({*range(mask.ndim)} - {axis})))
        if filled.size == 0:
            return (slice(None),) * mask.ndim
        spans.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(spans)


def dice(pair: MaskPair) -> float | None:
    """Twice the overlap over the sum of both sizes: 2|A n B| / (|A| + |B|), in [0, 1].

    0 when one mask is empty, None (nothing to score) when both are; IoU, surface Dice and F1 too.
    """
    total = pair.predicted_voxels + pair.reference_voxels
    return None if total == 0 else 2 * pair.shared_voxels / total


def iou(pair: MaskPair) -> float | None:
    """The overlap over the union: |A n B| / |A u B|, the Jaccard index."""
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

    In mm, in pictures px; None if a mask is empty. Percentiles are interpolated linearly, as
    MONAI's `compute_hausdorff_distance` does it.
    """
    found = pair.surfaces
    if not found.defined:
        return None
    return float(max(np.percentile(one, 95) for one in (found.to_label, found.to_pred)))


def assd(pair: MaskPair) -> float | None:
    """The average symmetric surface distance: the mean of all distances of both directions.

    In mm, in pictures px; None if a mask is empty. MONAI's
    `compute_average_surface_distance(symmetric=True)`.
    """
    return float(pair.surfaces.both.mean()) if pair.surfaces.defined else None


def surface_dice(pair: MaskPair) -> float | None:
    """The share of both borders that lies within the tolerance of the other one.

    Border voxels are counted, as in MONAI's `compute_surface_dice(use_subvoxels=False)`; the
    tolerance itself is within.
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
    """Lesion-wise F1: 2 TP / (2 TP + FP + FN), which is twice the pairs over all parts."""
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
        """Its unit on a grid where distances are counted in `length`.

        A length is None where distances have no meaning, as on the cropped and resized planes of
        the model. So is a unit where the metric has none: no distances there, no ml in pixels.
        """
        if length is None:
            return self.unit if self.needs == "voxels" else None
        if self.unit == "ml":
            return "ml" if length == "mm" else None
        return length if self.unit == "mm" else self.unit

    def of(self, pair: MaskPair, protocol: Protocol = "standard") -> float | None:
        """Score one case; None where the metric is undefined.

        "official" gives Dice and IoU of an empty reference as the official code does: 1 for a
        non-empty prediction, 0 when both are empty (unsound, but what the published figures were
        made with).
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
