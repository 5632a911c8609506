"""From a scan to the model's square axial slices, and the exact way back.

A *canonical plane* is one axial slice with rows running from front to back and columns from the
patient's right to the left, as radiologists look at it, whatever order the file stores. Slices
are counted from the feet to the head. The model sees a square of the plane at a fixed size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sdseg_cli.imaging.intensity import Limits, Normalisation, extent, percentiles
from sdseg_cli.imaging.resample import nearest_indices, resize_matrix, span
from sdseg_cli.imaging.volume import Array, Geometry, Planes, Volume

CROPS = ("none", "body")
"""What `--crop` may be: the whole plane, or a square around the body in each slice."""
BODY_HU = -400.0
"""Above this is body, below it air, lung or a mattress."""
MARGIN = 0.04
"""Added on each side, as a share of the body's larger extent."""
SMALLEST = 0.25
"""Least side of a square, as a share of the padded plane's."""

_GRID = 128
"""The body is looked for on planes of at most this size: a table's shell is then a pixel thin."""
_PART = 0.2
"""Parts smaller than this share of the slice's largest are no limbs: tubes, masks, headrests."""


@dataclass(frozen=True, eq=False)
class SliceTransform:
    """The transform from a scan's planes to the model's squares and back.

    Attributes:
        planes: How axial planes lie in the stored array.
        size: Side of the model's square in pixels.
        boxes: (S, 3) int64: first row, first column and side of each slice's square on its
            canonical plane, in pixels; it may reach beyond the plane.
    """

    planes: Planes
    size: int
    boxes: NDArray[np.int64]

    @classmethod
    def of(
        cls, geometry: Geometry, size: int = 256, boxes: NDArray[np.int64] | None = None
    ) -> SliceTransform:
        """The transform for a scan's grid; without boxes, whole planes padded to squares."""
        planes = Planes.of(geometry)
        if boxes is None:
            boxes = np.tile(planes.square, (planes.count, 1))
        boxes = np.asarray(boxes, np.int64)
        if boxes.shape != (planes.count, 3) or boxes[:, 2].min() < 1:
            raise ValueError(f"boxes {boxes.shape} do not fit {planes.count} slices")
        return cls(planes, size, boxes)

    @property
    def slices(self) -> int:
        """Number of axial slices S."""
        return self.planes.count

    @property
    def plane_shape(self) -> tuple[int, int]:
        """Rows and columns of a canonical plane."""
        return self.planes.shape

    def canonical_plane(self, array: Array, k: int) -> Array:
        """The k-th axial slice of a stored array, as a view (rows, cols)."""
        return self.planes.get(array, k)

    def place(self, native_array: Array, plane: Array, k: int) -> None:
        """Write a canonical plane into the stored array: undoes `canonical_plane` exactly."""
        self.planes.get(native_array, k)[...] = plane

    def to_model(
        self, plane: NDArray[np.float32], k: int, background: float
    ) -> NDArray[np.float32]:
        """Resize slice k for the model, antialiased when shrinking, linear when enlarging.

        Args:
            plane: (rows, cols) float32.
            k: Slice number, which says the box.
            background: Value beyond the plane.

        Returns:
            (size, size) float32 within the range of plane and background.
        """
        square = np.full((self.boxes[k, 2],) * 2, background, np.float32)
        in_box, in_plane = self._overlap(k)
        square[in_box] = plane[in_plane]
        return _resize(square, self.size, antialias=True)

    def _overlap(self, k: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """The part that slice k's box and its plane share: where in the box, where on the plane."""
        row, column, side = (int(n) for n in self.boxes[k])
        box_rows, rows = span(row, side, self.plane_shape[0])
        box_columns, columns = span(column, side, self.plane_shape[1])
        return (box_rows, box_columns), (rows, columns)

    def labels_to_model(self, plane: Array, k: int) -> Array:
        """Resize a label slice: to the nearest pixel when enlarging, by majority when shrinking.

        0 beyond the plane. Shrinking to the nearest pixel would move every label by half a pixel
        of the scan where the factor is even, as from 512 to 256; the image does not move.

        Args:
            plane: (rows, cols) integers.
            k: Slice number.

        Returns:
            (size, size) of the same type.
        """
        square = np.zeros((self.boxes[k, 2],) * 2, plane.dtype)
        in_box, in_plane = self._overlap(k)
        square[in_box] = plane[in_plane]
        if len(square) > self.size:
            return _majority(square, self.size)
        picked = nearest_indices(len(square), self.size)
        return square[np.ix_(picked, picked)]

    def to_native(self, model_plane: NDArray[np.float32], k: int) -> NDArray[np.float32]:
        """Bring a model plane back by linear interpolation; 0 outside the box.

        Not antialiased: a label enlarged for the model then comes back unchanged at > 0.5.

        Args:
            model_plane: (size, size) float32, for example probabilities.
            k: Slice number.

        Returns:
            (rows, cols) float32, for `place`.
        """
        in_box, in_plane = self._overlap(k)
        plane = np.zeros(self.plane_shape, np.float32)
        plane[in_plane] = _resize(model_plane, int(self.boxes[k, 2]), antialias=False)[in_box]
        return plane


@dataclass(frozen=True, eq=False)
class SliceStack:
    """A scan as the model sees it, made on demand: no more than a batch is ever held.

    Attributes:
        volume: The scan at its stored type.
        limits: Values that become -1 and +1.
        restore: The way back.
    """

    volume: Volume
    limits: Limits
    restore: SliceTransform

    def __len__(self) -> int:
        return self.restore.slices

    @property
    def square_shape(self) -> tuple[int, ...]:
        """(size, size), of a picture (3, size, size)."""
        return (*self.volume.array.shape[3:], self.restore.size, self.restore.size)

    def pixels(self, start: int, stop: int) -> NDArray[np.float32]:
        """Slices start..stop-1, feet to head.

        Returns:
            (stop - start, size, size) float32 in [-1, 1], of pictures (stop - start, 3, size,
            size); -1 beyond the scan.
        """
        batch = np.empty((stop - start, *self.square_shape), np.float32)
        for n, k in enumerate(range(start, stop)):
            stored = self.restore.canonical_plane(self.volume.array, k)
            for channel in np.ndindex(self.volume.array.shape[3:]):
                colour = self.limits.rescale(self.volume.values(stored[(..., *channel)]))
                colour = np.ascontiguousarray(colour)
                batch[(n, *channel)] = self.restore.to_model(colour, k, background=-1.0)
        # Weights sum to 1 only up to rounding.
        return np.clip(batch, -1, 1, out=batch)


def to_stack(
    volume: Volume, normalise: Normalisation, *, size: int = 256, crop: str = "none"
) -> SliceStack:
    """Prepare a scan for the model; the same scan always gives the same squares.

    Args:
        volume: The scan.
        normalise: How values become [-1, 1].
        size: Side of the model's square in pixels.
        crop: One of `CROPS`.
    """
    if crop not in CROPS:
        raise ValueError(f"crop is {crop!r}, not one of {CROPS}")
    boxes = body_boxes(volume, normalise) if crop == "body" else None
    return SliceStack(
        volume, normalise.limits(volume), SliceTransform.of(volume.geometry, size=size, boxes=boxes)
    )


def _majority(square: Array, size: int) -> Array:
    """The label that weighs most in each pixel, as `to_model` weighs; on a tie the higher one."""
    chosen = np.zeros((size, size), square.dtype)
    heaviest = np.zeros((size, size), np.float32)
    for label in np.flatnonzero(np.bincount(square.ravel())):
        weight = _resize((square == label).astype(np.float32), size, antialias=True)
        wins = weight >= heaviest
        chosen[wins], heaviest[wins] = label, weight[wins]
    return chosen


def _resize(square: NDArray[np.float32], size: int, *, antialias: bool) -> NDArray[np.float32]:
    matrix: Any = resize_matrix(square.shape[0], size, antialias=antialias)
    half: NDArray[np.float32] = matrix @ square
    return np.ascontiguousarray((matrix @ half.T).T)


def body_boxes(volume: Volume, normalise: Normalisation) -> NDArray[np.int64]:
    """The square around the body in each slice.

    Args:
        volume: The scan.
        normalise: A window that starts below 0 means Hounsfield units; otherwise Otsu's
            threshold separates body from background.

    Returns:
        (S, 3) int64: first row, first column, side, in pixels of the canonical plane. The whole
        padded plane where a slice shows no body.
    """
    is_hu = normalise.kind != "percentile" and normalise.low < 0
    threshold = BODY_HU if is_hu else _otsu(volume)
    planes = Planes.of(volume.geometry)
    boxes = np.tile(planes.square, (planes.count, 1))
    for k in range(planes.count):
        plane = np.nan_to_num(volume.values(planes.get(volume.array, k)))
        box = _box(plane, threshold)
        if box is not None:
            boxes[k] = box
    return boxes


def shows_body(squares: NDArray[np.float32]) -> NDArray[np.bool_]:
    """True for CT slices, as a model sees them, that show part of a body.

    Air and lung lie below a window for soft tissue, at -1; so does a mattress. What is above it in
    no block of 3x3 pixels is noise or a thin shell.

    Args:
        squares: (S,256,256) in [-1,1], by a window that starts between air and water.

    Returns:
        (S,) bool; False means that a model has nothing to find.
    """
    block = np.ones((3, 3), bool)
    return np.array([ndimage.binary_erosion(square > -1, block).any() for square in squares], bool)


def _box(plane: NDArray[np.float32], threshold: float) -> tuple[int, int, int] | None:
    """Square around the body of one plane (rows, cols), or None when there is no body."""
    rows, columns = plane.shape
    small = (min(rows, _GRID), min(columns, _GRID))
    body = _body(
        np.asarray(
            resize_matrix(rows, small[0], antialias=True)
            @ plane
            @ resize_matrix(columns, small[1], antialias=True).T
        )
        > threshold
    )
    if not body.any():
        return None
    (top, bottom), (left, right) = (
        (found[0] * full / reduced, (found[-1] + 1) * full / reduced)
        for found, full, reduced in (
            (np.flatnonzero(body.any(axis=1)), rows, small[0]),
            (np.flatnonzero(body.any(axis=0)), columns, small[1]),
        )
    )
    whole = max(rows, columns)
    side = max(bottom - top, right - left) * (1 + 2 * MARGIN)
    side_px = min(max(int(np.ceil(side)), int(np.ceil(SMALLEST * whole))), whole)
    return (
        int(np.floor((top + bottom - side_px) / 2)),
        int(np.floor((left + right - side_px) / 2)),
        side_px,
    )


def _body(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Without thin things and small parts."""
    opened = ndimage.binary_opening(mask, np.ones((3, 3), bool))
    labels, count = ndimage.label(opened)
    areas = np.bincount(labels.ravel())
    if count == 0:
        return np.zeros_like(mask)
    areas[0] = 0
    large = areas >= _PART * areas.max()
    kept: NDArray[np.bool_] = large[labels] & opened
    return kept


def _otsu(volume: Volume) -> float:
    """Otsu's threshold between the minimum and the 99.5 percentile: no bright speck moves it."""
    from skimage.filters import threshold_otsu

    whole = extent(volume)
    (high,) = percentiles(volume, (99.5,))
    if not whole.minimum < high:
        return float("inf")
    planes = Planes.of(volume.geometry)
    counts = np.zeros(256, np.int64)
    edges = np.linspace(whole.minimum, high, 257)
    for k in range(planes.count):
        values = volume.values(planes.get(volume.array, k))
        # In float64: rounded up to float32, the largest values would fall off the last edge.
        finite = values[np.isfinite(values)].astype(np.float64)
        counts += np.histogram(np.minimum(finite, high), edges)[0]
    return float(threshold_otsu(hist=(counts, (edges[:-1] + edges[1:]) / 2)))
