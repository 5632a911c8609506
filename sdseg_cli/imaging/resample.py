"""Resampling: along one axis as a sparse matrix, and of a label map onto another grid.

The matrices are built from sizes only. A matrix times a plane is the same sum in the same order on
every machine and for every memory layout, which dense products through BLAS do not promise.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.imaging.volume import Array, Geometry, Volume, bounding_box

_EDGE = 1e-6
"""Of a voxel: a centre that lies on the border of another voxel is within it."""
_FARTHEST = 1e6
"""Voxels; what a header places farther away fits into no memory anyway, and perhaps no integer."""
Span = tuple[slice, ...]


@lru_cache(maxsize=256)
def resize_matrix(n_in: int, n_out: int, *, antialias: bool) -> Any:
    """Weights that resize an axis, pixel areas aligned; the identity when the sizes agree.

    Args:
        n_in: Pixels before.
        n_out: Pixels after.
        antialias: Widen the triangle by the shrinking factor; else plain linear interpolation.

    Returns:
        scipy.sparse CSR (n_out, n_in) float32; rows sum to 1, taps beyond the ends left out.
    """
    from scipy.sparse import csr_array

    scale = n_in / n_out
    reach = max(scale, 1.0) if antialias else 1.0
    centres = (np.arange(n_out) + 0.5) * scale - 0.5
    first = np.floor(centres - reach).astype(np.int64)
    taps = first[:, None] + np.arange(int(np.ceil(2 * reach)) + 2)
    weights = np.clip(1 - np.abs(taps - centres[:, None]) / reach, 0, None)
    weights[(taps < 0) | (taps >= n_in)] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    rows, columns = np.nonzero(weights)
    entries = weights[rows, columns].astype(np.float32)
    return csr_array((entries, (rows, taps[rows, columns])), shape=(n_out, n_in))


@lru_cache(maxsize=256)
def nearest_indices(n_in: int, n_out: int) -> NDArray[np.int64]:
    """For each of n_out pixels, the index of the nearest of n_in (the later one on a tie)."""
    return ((2 * np.arange(n_out) + 1) * n_in) // (2 * n_out)


def span(start: int, side: int, extent: int) -> tuple[slice, slice]:
    """The part that [start, start + side) shares with [0, extent).

    Returns:
        The shared part as a slice of the box, and as a slice of the axis; both maybe empty.
    """
    low, high = max(start, 0), max(min(start + side, extent), max(start, 0))
    return slice(low - start, high - start), slice(low, high)


def resample_to(labels: Volume, grid: Geometry) -> Volume:
    """Resample a label map onto a grid, to the nearest neighbour in the world.

    Returns:
        The labels on the grid, of the same type, without a file header; 0 beyond the label map.
    """
    from scipy import ndimage

    onto = np.linalg.inv(labels.geometry.affine) @ grid.affine  # index of the grid -> own index
    array: Array = np.empty(grid.shape, labels.array.dtype, order="F")
    ndimage.affine_transform(
        labels.array,
        onto[:3, :3],
        onto[:3, 3],
        output_shape=grid.shape,
        output=array,
        order=0,
        mode="grid-constant",  # "constant" would lose the outer half of the outermost voxels
    )
    return replace(labels, array=array, geometry=grid, header=None)


def overlap(labels: Geometry, grid: Geometry) -> bool:
    """True if two grids overlap in the world, judged by boxes along `grid`'s axes."""
    low, high = _span(labels, tuple(slice(0, n) for n in labels.shape), grid)
    return bool(np.all(high > -0.5) and np.all(low < np.array(grid.shape) - 0.5))


def extended(grid: Geometry, labels: Volume) -> tuple[Geometry, Span]:
    """The grid, continued at its own steps as far as a label map is labelled.

    A grid of one plane gets a second one where the label map has several: it was cut out of a
    volume, and is to be measured as one.

    Returns:
        The grid continued, and where the given one lies in it; the same grid where nothing is
        labelled beyond it.
    """
    shape = np.array(grid.shape)
    first, last = np.zeros(3, np.int64), shape - 1
    labelled = bounding_box(labels.array)
    if labelled is not None:
        low, high = _span(labels.geometry, labelled, grid)
        first = np.minimum(first, np.ceil(low - _EDGE).astype(np.int64))
        last = np.maximum(last, np.floor(high + _EDGE).astype(np.int64))
    low, high = _span(labels.geometry, tuple(slice(0, n) for n in labels.array.shape), grid)
    planes = np.floor(high + _EDGE) - np.ceil(low - _EDGE) + 1
    last = last + ((first == last) & (planes > 1))
    sizes = [int(n) for n in last - first + 1]
    span = tuple(slice(-int(one), -int(one) + n) for one, n in zip(first, grid.shape, strict=True))
    if tuple(sizes) == grid.shape:
        return grid, span
    affine = grid.affine.copy()
    affine[:3, 3] += grid.affine[:3, :3] @ first
    return replace(grid, shape=(sizes[0], sizes[1], sizes[2]), affine=affine), span


def padded(labels: Volume, grid: Geometry, span: Span) -> Volume:
    """A label map as a part of a larger grid, with background around; see `extended`."""
    if grid.shape == labels.array.shape:
        return labels
    array: Array = np.zeros(grid.shape, labels.array.dtype, order="F")
    array[span] = labels.array
    return replace(labels, array=array, geometry=grid, header=None)


def _span(
    own: Geometry, box: Span, grid: Geometry
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """From where to where a box of voxels reaches, borders included, in indices of a grid."""
    edges = itertools.product(*((part.start - 0.5, part.stop - 0.5) for part in box))
    corners = np.array([[*corner, 1.0] for corner in edges])
    found = corners @ (np.linalg.inv(grid.affine) @ own.affine).T[:, :3]
    return np.maximum(found.min(axis=0), -_FARTHEST), np.minimum(found.max(axis=0), _FARTHEST)
