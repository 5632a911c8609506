"""Axial planes of a stored array: which axis is which, and which way it runs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.imaging.volume import Array, Geometry


@dataclass(frozen=True)
class Planes:
    """How canonical axial planes lie in a stored array.

    Attributes:
        axes: Stored axis of the rows (front to back), the columns (right to left) and the slices
            (feet to head).
        reversed: Whether the stored axis runs the other way, for each.
        count: Number of slices.
        shape: Rows and columns of a plane.
        spacing_mm: Distance between rows, columns and slices in mm.
    """

    axes: tuple[int, int, int]
    reversed: tuple[bool, bool, bool]
    count: int
    shape: tuple[int, int]
    spacing_mm: tuple[float, float, float]

    @classmethod
    def of(cls, geometry: Geometry) -> Planes:
        """Read the nearest axes off the affine."""
        side, front, head = geometry.axes
        side_sign, front_sign, head_sign = geometry.signs
        sizes, spacing = geometry.shape, geometry.spacing_mm
        return cls(
            axes=(front, side, head),
            reversed=(front_sign > 0, side_sign > 0, head_sign < 0),
            count=sizes[head],
            shape=(sizes[front], sizes[side]),
            spacing_mm=(spacing[front], spacing[side], spacing[head]),
        )

    @property
    def stored_shape(self) -> tuple[int, int, int]:
        """Shape (I, J, K) of the stored array."""
        sizes = dict(zip(self.axes, (*self.shape, self.count), strict=True))
        return sizes[0], sizes[1], sizes[2]

    @property
    def square(self) -> NDArray[np.int64]:
        """(3,) int64: first row, first column and side of the whole plane padded to a square."""
        rows, columns = self.shape
        side = max(rows, columns)
        return np.array([-((side - rows) // 2), -((side - columns) // 2), side], np.int64)

    def get(self, array: Array, k: int) -> Array:
        """The k-th axial slice from the feet, as a view (rows, cols) of the stored array."""
        if not 0 <= k < self.count:
            raise IndexError(f"slice {k} of {self.count}")
        rows, columns, slices = self.axes
        plane = np.moveaxis(array, slices, 0)[self.count - 1 - k if self.reversed[2] else k]
        if rows > columns:
            plane = plane.T
        row_step, column_step = (-1 if flip else 1 for flip in self.reversed[:2])
        view: Array = plane[::row_step, ::column_step]
        return view

    def stacked(self, array: Array) -> Array:
        """All of them, feet to head, as a view (S, rows, cols) of the stored array."""
        rows, columns, slices = self.axes
        turned = array.transpose(slices, rows, columns)
        row_step, column_step, step = (-1 if flip else 1 for flip in self.reversed)
        view: Array = turned[::step, ::row_step, ::column_step]
        return view
