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

from sdseg_cli.imaging.body import body_boxes
from sdseg_cli.imaging.intensity import Limits, Normalisation
from sdseg_cli.imaging.resample import nearest_indices, resize_matrix, span
from sdseg_cli.imaging.volume import Array, Geometry, Planes, Volume

CROPS = ("none", "body")
"""What `--crop` may be: the whole plane, or a square around the body in each slice."""


@dataclass(frozen=True, eq=False)
class SliceTransform:
    """The way from a scan's planes to the model's squares and back.

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
        """The way for a grid.

        Args:
            geometry: The scan's grid.
            size: Side of the model's square in pixels.
            boxes: As the attribute; when absent, the whole plane padded to a centred square.
        """
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
        row, column, side = (int(n) for n in self.boxes[k])
        box_rows, rows = span(row, side, plane.shape[0])
        box_columns, columns = span(column, side, plane.shape[1])
        square = np.full((side, side), background, np.float32)
        square[box_rows, box_columns] = plane[rows, columns]
        return _resize(square, self.size, antialias=True)

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
        row, column, side = (int(n) for n in self.boxes[k])
        box_rows, rows = span(row, side, plane.shape[0])
        box_columns, columns = span(column, side, plane.shape[1])
        square = np.zeros((side, side), plane.dtype)
        square[box_rows, box_columns] = plane[rows, columns]
        if side > self.size:
            return _majority(square, self.size)
        picked = nearest_indices(side, self.size)
        return square[np.ix_(picked, picked)]

    def to_native(self, model_plane: NDArray[np.float32], k: int) -> NDArray[np.float32]:
        """Bring a model plane back by linear interpolation; 0 outside the box.

        Not antialiased: a label enlarged for the model then comes back unchanged at > 0.5.

        Args:
            model_plane: (size, size) float32, for example probabilities.
            k: Slice number.

        Returns:
            (rows, cols) float32 on the canonical plane, for `place`.
        """
        row, column, side = (int(n) for n in self.boxes[k])
        box_rows, rows = span(row, side, self.plane_shape[0])
        box_columns, columns = span(column, side, self.plane_shape[1])
        plane = np.zeros(self.plane_shape, np.float32)
        square = _resize(model_plane, side, antialias=False)
        plane[rows, columns] = square[box_rows, box_columns]
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
