"""Geometry, Volume and Planes: an array that knows where its voxels lie in the patient, its axial
planes, and the same voxels stored in another order of axes.

One convention everywhere inside: indices (i, j, k) in the order the file stores them, and world
coordinates in RAS+ millimetres. Only the readers of other formats know any other.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.errors import GeometryError

Array = NDArray[Any]

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From the world of DICOM and ITK to ours, and back: both turn x and y."""
GRID_TOLERANCE_VOXELS = 0.1
"""Two grids are one when no corner of theirs lies further apart than this share of a voxel."""

OnHeader = Callable[["Geometry", int], None]
"""Called with a scan's grid and a stored voxel's bytes before memory is taken; it may raise."""

_AXIS_LETTERS = ("LR", "PA", "IS")


@dataclass(frozen=True, eq=False)
class Geometry:
    """The place of a grid of voxels in the world.

    Attributes:
        shape: Number of voxels (I, J, K) along the stored axes.
        affine: (4, 4) float64, voxel index -> RAS+ mm. Invertible.
        shear_degrees: How far the file's own axes were off right angles before `header_checks`
            straightened them; 0 when it did not have to.
        forms_apart_mm: How far a corner moves between the two ways in which a NIfTI header says
            the place, sform (which is read) and qform; 0 where they agree.
        says_place: False where a NIfTI header says that it does not know the place (both codes 0).
        unit_known: False where the code of a NIfTI header's unit of length has no meaning.
        spare_bytes: How much a NIfTI file holds behind the voxels that its header claims; known
            once it was read to its end.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    shear_degrees: float = 0.0
    forms_apart_mm: float = 0.0
    says_place: bool = True
    unit_known: bool = True
    spare_bytes: int = 0

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"shape must be three positive numbers, not {self.shape}")
        if self.affine.shape != (4, 4) or not np.isfinite(self.affine).all():
            raise ValueError("affine must be 4x4 and finite")
        with np.errstate(all="ignore"):
            lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
            flat = np.linalg.matrix_rank(self.affine[:3, :3]) < 3
        if not np.isfinite(lengths).all():
            raise ValueError("affine has voxels too large for any number")
        if flat or lengths.min() == 0:
            raise ValueError("affine maps the grid onto a plane or a line")

    @cached_property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along each stored axis, in mm."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(lengths[0]), float(lengths[1]), float(lengths[2])

    @cached_property
    def axes(self) -> tuple[int, int, int]:
        """The stored axis nearest to left-right, to back-front and to feet-head, in this order.

        The assignment with the largest sum of cosines, so that a permuted or flipped copy of an
        oblique grid is read along the same physical axes (a greedy choice depends on the order).
        """
        cosines = self.affine[:3, :3] / np.asarray(self.spacing_mm)

        def merit(axes: tuple[int, ...]) -> tuple[float, ...]:
            right, front, head = (cosines[:, axis] for axis in axes)
            total = abs(right[0]) + abs(front[1]) + abs(head[2])
            # At 45 degrees assignments tie; the rest decides, blind to order and sign.
            lines = (
                pair[a] * pair[b] for pair in (right, head) for a, b in ((0, 1), (0, 2), (1, 2))
            )
            return total, abs(head[2]), *lines

        best = max(itertools.permutations(range(3)), key=merit)
        return best[0], best[1], best[2]

    @cached_property
    def signs(self) -> tuple[int, int, int]:
        """+1 where the axis of `axes` runs towards right, front or head, else -1."""
        along = [self.affine[world, axis] for world, axis in enumerate(self.axes)]
        return (
            1 if along[0] > 0 else -1,
            1 if along[1] > 0 else -1,
            1 if along[2] > 0 else -1,
        )

    @property
    def axis_codes(self) -> str:
        """Direction of each stored axis, for example "LPS"."""
        codes = [""] * 3
        for world, (axis, sign) in enumerate(zip(self.axes, self.signs, strict=True)):
            codes[axis] = _AXIS_LETTERS[world][sign > 0]
        return "".join(codes)

    def corner_distance_voxels(self, other: Geometry) -> float:
        """Largest distance of the corners of two grids of one shape, in smallest spacings."""
        corners = np.array(
            [[*corner, 1.0] for corner in itertools.product(*((0, n - 1) for n in self.shape))]
        )
        apart_mm = np.linalg.norm((corners @ (self.affine - other.affine).T)[:, :3], axis=1)
        return float(apart_mm.max() / min(self.spacing_mm))

    def same_grid(self, other: Geometry, tolerance_voxels: float = GRID_TOLERANCE_VOXELS) -> bool:
        """True if both have one shape and corners within the tolerance (in voxels)."""
        return self.shape == other.shape and self.corner_distance_voxels(other) <= tolerance_voxels


def require_same_grid(first: Geometry, second: Geometry, one: str, other: str) -> None:
    """Refuse, as a GeometryError, two grids that differ in shape or place.

    Args:
        first: A grid.
        second: Another.
        one: What the first is, for example "case 07: scan ct.nii.gz".
        other: What the second is.
    """
    if first.shape != second.shape:
        raise GeometryError(
            f"{one} has shape {first.shape}, {other} has shape {second.shape}.",
            "Export both from one series, without resampling either.",
            "shape",
        )
    if not first.same_grid(second):
        apart = first.corner_distance_voxels(second)
        raise GeometryError(
            f"{one} ({first.axis_codes}) and {other} ({second.axis_codes}) lie up to {apart:.2g} "
            f"voxels apart; {GRID_TOLERANCE_VOXELS} is allowed.",
            "Export both from one series; if only the header is wrong, copy the scan's onto it.",
            "place",
        )


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan or a mask at its stored type: held once, converted part by part.

    Attributes:
        array: (I, J, K), any integer or floating type.
        geometry: Where it lies; `geometry.shape == array.shape`.
        slope: value = slope * stored + intercept (HU for CT).
        header: The file's own header, for writing another file on the same grid.
    """

    array: Array
    geometry: Geometry
    slope: float = 1.0
    intercept: float = 0.0
    header: object | None = None
    source: Path | None = None

    def __post_init__(self) -> None:
        if self.array.shape != self.geometry.shape:
            raise ValueError(f"array is {self.array.shape}, geometry {self.geometry.shape}")

    @property
    def spacing_mm(self) -> tuple[float, float, float] | None:
        """Distance between voxels along each stored axis in mm; None where it is unknown."""
        return self.geometry.spacing_mm

    @property
    def name(self) -> str:
        """The file's name, or "volume" when it was never a file."""
        return self.source.name if self.source else "volume"

    def values(self, stored: Array | None = None) -> NDArray[np.float32]:
        """Real values (HU for CT) of a part of the array.

        Args:
            stored: A part of `array`, as stored; the whole array when absent (memory!).

        Returns:
            float32, C-contiguous, of the part's shape. It may be the scan's own memory: do not
            write to it.
        """
        part = self.array if stored is None else stored
        if self.slope != 1.0 or self.intercept != 0.0:
            # float64 first: a large stored integer times a small slope keeps its last digits.
            part = part.astype(np.float64) * self.slope + self.intercept
        with np.errstate(over="ignore"):  # Beyond float32 becomes infinite, which checks report.
            return np.ascontiguousarray(part, dtype=np.float32)


@dataclass(frozen=True)
class Segment:
    """A class of a label map, as formats that name classes write it.

    Attributes:
        name: Of the class.
        value: In the label map.
        colour: Red, green and blue, each 0..255.
    """

    name: str
    value: int
    colour: tuple[int, int, int] = (255, 255, 255)


@dataclass(frozen=True)
class Planes:
    """The canonical axial planes of a stored array.

    Attributes:
        axes: Stored axis of the rows (front to back), the columns (right to left) and the slices
            (feet to head).
        reversed: Whether the stored axis runs the other way, for each.
        count: Number of slices.
        shape: Rows and columns of a plane.
        spacing_mm: Between rows, columns and slices.
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


def reorient_to(volume: Volume, grid: Geometry) -> Volume:
    """The volume with its axes in the order and direction that another grid stores them.

    Only axes are exchanged and turned round: each voxel keeps its value and its place in the world.
    Whether both then lie on one grid is for `require_same_grid` to say.

    Returns:
        A view of the same memory, without a file header; `volume` itself if nothing differs.
    """
    own = volume.geometry
    if (own.axes, own.signs) == (grid.axes, grid.signs):
        return volume
    order, steps = _turns(own, grid)
    turns = tuple(slice(None, None, step) for step in steps)
    array = volume.array.transpose(order)[turns]
    return replace(volume, array=array, geometry=geometry_like(own, grid), header=None)


def geometry_like(own: Geometry, grid: Geometry) -> Geometry:
    """Reorient a grid alone, as `reorient_to` does."""
    if (own.axes, own.signs) == (grid.axes, grid.signs):
        return own
    order, steps = _turns(own, grid)
    turned = np.eye(4)
    for axis, (source, step) in enumerate(zip(order, steps, strict=True)):
        turned[:3, axis] = 0
        turned[source, axis] = step
        if step < 0:
            turned[source, 3] = own.shape[source] - 1
    rows, columns, slices = (own.shape[source] for source in order)
    return Geometry((rows, columns, slices), own.affine @ turned)


def _turns(own: Geometry, grid: Geometry) -> tuple[list[int], list[int]]:
    """For each axis of `grid`: the stored axis of `own` along it, and -1 where it is turned."""
    worlds = [grid.axes.index(axis) for axis in range(3)]
    steps = [own.signs[world] * grid.signs[world] for world in worlds]
    return [own.axes[world] for world in worlds], steps


def bounding_box(array: Array) -> tuple[slice, slice, slice] | None:
    """The box around all that is not 0 in an array (I, J, K); None where there is nothing."""
    spans = []
    for axis in range(3):
        filled = np.flatnonzero(array.any(axis=tuple({0, 1, 2} - {axis})))
        if filled.size == 0:
            return None
        spans.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return spans[0], spans[1], spans[2]
