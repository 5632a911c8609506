"""Turning a volume's axes: values stay where they are in the world."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sdseg_cli.imaging.reorient import reorient_to
from sdseg_cli.imaging.volume import Geometry, Volume

OBLIQUE = np.array([[-1.6, 1.8, 0.1, 10], [-1.2, -2.4, 0.2, -20], [0, 0.1, 5, -300], [0, 0, 0, 1]])


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("flips", list(itertools.product((1, -1), repeat=3)))
def test_every_order_and_direction_comes_back_voxel_for_voxel(
    axes: tuple[int, int, int], flips: tuple[int, int, int]
) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    grid = Geometry((2, 3, 4), OBLIQUE)
    stored = array.transpose(axes)[tuple(slice(None, None, step) for step in flips)]
    affine = np.eye(4)
    affine[:, :3] = OBLIQUE[:, [axes[0], axes[1], axes[2]]] * flips
    corner = [0.0, 0.0, 0.0, 1.0]
    for axis, flip in zip(axes, flips, strict=True):
        corner[axis] = array.shape[axis] - 1 if flip < 0 else 0
    affine[:, 3] = OBLIQUE @ corner
    other = Volume(stored, Geometry(stored.shape, affine))
    back = reorient_to(other, grid)
    assert np.array_equal(back.array, array)
    assert back.geometry.corner_distance_voxels(grid) < 1e-12


def test_a_volume_in_the_same_order_is_left_alone() -> None:
    volume = Volume(np.zeros((2, 3, 4)), Geometry((2, 3, 4), OBLIQUE), header="its own")
    shifted = OBLIQUE.copy()
    shifted[0, 3] += 500
    assert reorient_to(volume, Geometry((9, 9, 9), shifted)) is volume
