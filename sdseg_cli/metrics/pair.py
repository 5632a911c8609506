"""One case as the metrics see it: two masks, and what is costly to find out of them, found once."""

from __future__ import annotations

import hashlib
from functools import cached_property

import numpy as np

from sdseg_cli.metrics import DETECTION_IOU, Length, Mask, ScoringOptions, Spacing
from sdseg_cli.metrics.lesions import Lesions, match_lesions
from sdseg_cli.metrics.surfaces import SurfaceDistances, surface_distances


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
        options: As given.

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
        """How many voxels the prediction has."""
        return int(np.count_nonzero(self.pred))

    @cached_property
    def reference_voxels(self) -> int:
        """How many voxels the reference has."""
        return int(np.count_nonzero(self.label))

    @cached_property
    def shared_voxels(self) -> int:
        """How many voxels are in both."""
        return int(np.count_nonzero(self.pred & self.label))

    @cached_property
    def reference_sha256(self) -> str:
        """Of which voxels are reference, so that two evaluations can be told to share one.

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
    """Where a mask is; everywhere if it is nowhere."""
    spans = []
    for axis in range(mask.ndim):
        filled = np.flatnonzero(mask.any(axis=tuple({*range(mask.ndim)} - {axis})))
        if filled.size == 0:
            return (slice(None),) * mask.ndim
        spans.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(spans)
