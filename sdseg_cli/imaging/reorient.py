"""One world grid, stored in another order of axes: turned exactly, without resampling."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sdseg_cli.imaging.volume import Geometry, Volume


def stored_like(volume: Volume, grid: Geometry) -> Volume:
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
    order = [own.axes[grid.axes.index(axis)] for axis in range(3)]
    turned = np.eye(4)
    steps = []
    for axis, source in enumerate(order):
        world = grid.axes.index(axis)
        step = own.signs[world] * grid.signs[world]
        steps.append(slice(None, None, step))
        turned[:3, axis] = 0
        turned[source, axis] = step
        if step < 0:
            turned[source, 3] = own.shape[source] - 1
    array = volume.array.transpose(order)[tuple(steps)]
    rows, columns, slices = array.shape
    geometry = Geometry((rows, columns, slices), own.affine @ turned)
    return replace(volume, array=array, geometry=geometry, header=None)
