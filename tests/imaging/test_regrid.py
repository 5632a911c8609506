"""Label maps brought onto other grids, voxel by voxel."""

from __future__ import annotations

import numpy as np

from sdseg_cli.imaging.regrid import extended, overlap, padded, resample_to
from sdseg_cli.imaging.volume import Geometry
from tests.fake_run import volume


def line(*labels: int, start: float = 0.0, step: float = 1.0):
    """Labels along the first axis, whose voxels' centres lie at start, start + step, ..."""
    affine = np.diag([step, 1.0, 1.0, 1.0])
    affine[0, 3] = start
    return volume(np.array(labels, np.uint8).reshape(-1, 1, 1), affine)


def onto(labels, *, count: int, start: float = 0.0, step: float = 1.0) -> list[int]:
    grid = line(*[0] * count, start=start, step=step).geometry
    found = resample_to(labels, grid)
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
    found = resample_to(labels, Geometry((4, 3, 5), turned))
    assert np.array_equal(found.array, labels.array.transpose(1, 0, 2)[:, ::-1, ::-1])


def test_a_grid_is_continued_as_far_as_something_is_labelled():
    grid = line(1, 1, 1, start=10.0).geometry
    found, inside = extended(grid, line(0, 5, 0, 5, 0, 0, start=8.0))  # labelled at 9 and 11
    assert (found.shape, found.affine[0, 3]) == ((4, 1, 1), 9.0)
    assert inside == (slice(1, 4), slice(0, 1), slice(0, 1))
    around = padded(line(1, 2, 3, start=10.0), found, inside)
    assert around.array.ravel().tolist() == [0, 1, 2, 3]
    assert around.geometry is found
    found, inside = extended(grid, line(*[1] * 3, start=11.0))  # up to 13
    assert (found.shape, found.affine[0, 3], inside[0]) == ((4, 1, 1), 10.0, slice(0, 3))


def test_a_header_that_places_voxels_absurdly_far_gives_a_size_that_can_be_refused():
    found, _ = extended(line(1, 1).geometry, line(1, 1, step=1e12))
    assert found.shape[0] > 10**6


def test_a_grid_stays_as_it_is_where_nothing_is_labelled_beyond_it():
    grid = line(1, 1, 1).geometry
    for labels in (line(0, 0, 0, 0, start=-1.0), line(0, 5, 5, 0, start=-1.0), line(1, 0)):
        assert extended(grid, labels)[0] is grid
    # Voxels half as long fill the same stretch: from -0.5 to 2.5.
    assert extended(grid, line(*[1] * 6, start=-0.25, step=0.5))[0] is grid


def test_a_grid_of_one_plane_gets_a_second_one_if_the_labels_have_several():
    grid = line(7, start=2.0).geometry
    found, inside = extended(grid, line(0, 0, 3, 0))
    assert (found.shape, inside[0]) == ((2, 1, 1), slice(0, 1))
    assert extended(grid, line(3, start=2.0))[0] is grid


def test_grids_overlap_where_their_voxels_do():
    grid = line(1, 1).geometry  # from -0.5 to 1.5
    assert overlap(line(1, start=2.4, step=2.0).geometry, grid)  # from 1.4
    assert not overlap(line(1, start=2.6, step=2.0).geometry, grid)
    assert not overlap(line(1, start=-1.1).geometry, grid)
