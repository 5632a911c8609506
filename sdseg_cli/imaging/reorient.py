"""One world grid, stored in another order of axes: turned exactly, without resampling."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sdseg_cli.imaging.volume import Geometry, Volume


def reorient_to(volume: Volume, grid: Geometry) -> Volume:
    """The volume with its axes in the order and direction that another grid stores them.

    Only axes are exchanged and turned round: each voxel keeps its value and its place in the world.
    Whether both then lie on one grid is for `require_same_grid` to say.

    Args:
        volume: Any volume.
        grid: Whose order of axes to take, whatever its shape.

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
    """As `reorient_to`, for a grid alone."""
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
