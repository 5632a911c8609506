"""Label maps brought onto other grids, voxel by voxel."""

from __future__ import annotations

import numpy as np

from sdseg_cli.imaging.regrid import labels_onto
from sdseg_cli.imaging.volume import Geometry
from tests.fake_run import volume


def line(*labels: int, start: float = 0.0, step: float = 1.0):
    """Labels along the first axis, whose voxels' centres lie at start, start + step, ..."""
    affine = np.diag([step, 1.0, 1.0, 1.0])
    affine[0, 3] = start
    return volume(np.array(labels, np.uint8).reshape(-1, 1, 1), affine)


def onto(labels, *, count: int, start: float = 0.0, step: float = 1.0) -> list[int]:
    grid = line(*[0] * count, start=start, step=step).geometry
    found = labels_onto(labels, grid)
    assert found.geometry is grid
    assert found.array.dtype == np.uint8
    return found.array.ravel().tolist()


def test_each_voxel_takes_the_label_of_the_nearest():
    assert onto(line(1, 2, 3), count=3, start=0.4) == [1, 2, 3]
    assert onto(line(1, 2, 3), count=3, start=0.6) == [2, 3, 0]


def test_half_a_voxel_beyond_the_outermost_is_still_that_voxel():
    assert onto(line(7), count=5, start=-0.8, step=0.4) == [0, 7, 7, 7, 0]


def test_a_coarse_map_on_a_fine_grid_repeats_its_labels():
    assert onto(line(4, 9, step=2.0), count=4, start=-0.5) == [4, 4, 9, 9]


def test_beyond_the_map_is_background():
    assert onto(line(5, 5), count=4, start=-2) == [0, 0, 5, 5]


def test_axes_that_are_turned_and_exchanged_come_out_exactly():
    rng = np.random.default_rng(0)
    labels = volume(rng.integers(0, 4, (3, 4, 5), np.uint8), np.diag([1.0, 2, 3, 1]))
    turned = np.array([[0, -1.0, 0, 2], [2, 0, 0, 0], [0, 0, -3, 12], [0, 0, 0, 1]])
    found = labels_onto(labels, Geometry((4, 3, 5), turned))
    assert np.array_equal(found.array, labels.array.transpose(1, 0, 2)[:, ::-1, ::-1])
