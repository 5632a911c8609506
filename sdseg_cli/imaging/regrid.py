"""A label map brought onto another grid: each voxel takes the label of the nearest one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import ndimage

from sdseg_cli.imaging.volume import Array, Geometry, Volume


def labels_onto(labels: Volume, grid: Geometry) -> Volume:
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
