"""A label map brought onto another grid: each voxel takes the label of the nearest one."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sdseg_cli.imaging.volume import Array, Geometry, Volume, bounding_box

_EDGE = 1e-6
"""Of a voxel: a centre that lies on the border of another voxel is within it."""
_FARTHEST = 1e6
"""Voxels; what a header places farther away fits into no memory anyway, and perhaps no integer."""
Span = tuple[slice, ...]


def resample_to(labels: Volume, grid: Geometry) -> Volume:
    """Resample a label map to the nearest neighbour in the world.

    Args:
        labels: Whole numbers, where they lie.
        grid: Where they shall lie.

    Returns:
        The labels on the grid, of the same type, without a file header; 0 beyond the label map.
    """
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
    """Whether two grids share a part of the world, as far as boxes along `grid`'s axes tell."""
    low, high = _span(labels, tuple(slice(0, n) for n in labels.shape), grid)
    return bool(np.all(high > -0.5) and np.all(low < np.array(grid.shape) - 0.5))


def extended(grid: Geometry, labels: Volume) -> tuple[Geometry, Span]:
    """The grid, continued at its own steps as far as a label map is labelled.

    A grid of one plane gets a second one where the label map has several: it was cut out of a
    volume, and is to be measured as one.

    Args:
        grid: A grid, perhaps cut to what it shows.
        labels: A label map, where it lies.

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
