"""Resampling weights, computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdseg_cli.imaging.resample import (
    extended,
    nearest_indices,
    overlap,
    padded,
    resample_to,
    resize_matrix,
    span,
)
from sdseg_cli.imaging.volume import Geometry
from tests.fake_run import volume


def test_enlarging_interpolates_between_aligned_pixel_areas():
    expected = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    assert np.allclose(resize_matrix(2, 4, antialias=True).toarray(), expected)
    assert np.allclose(resize_matrix(2, 4, antialias=False).toarray(), expected)


def test_shrinking_widens_the_triangle():
    # Centre 0.5, reach 2: weights 3/4, 3/4, 1/4 on pixels 0, 1, 2, then normalised.
    expected = np.array([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7
    assert np.allclose(resize_matrix(4, 2, antialias=True).toarray(), expected)


def test_shrinking_without_antialiasing_averages_the_two_nearest():
    expected = [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]
    assert np.allclose(resize_matrix(4, 2, antialias=False).toarray(), expected)


@pytest.mark.parametrize("antialias", [True, False])
def test_equal_sizes_give_the_exact_identity(antialias):
    assert np.array_equal(resize_matrix(7, 7, antialias=antialias).toarray(), np.eye(7))


@settings(max_examples=30, deadline=None)
@given(n_in=st.integers(1, 90), n_out=st.integers(1, 90), antialias=st.booleans())
def test_weights_are_shares_and_mirror_symmetric(n_in, n_out, antialias):
    weights = resize_matrix(n_in, n_out, antialias=antialias).toarray()
    assert weights.min() >= 0
    assert np.allclose(weights.sum(axis=1), 1, atol=1e-6)
    assert np.allclose(weights, weights[::-1, ::-1], atol=1e-6)


def test_nearest_pixels_by_hand():
    assert nearest_indices(2, 4).tolist() == [0, 0, 1, 1]
    assert nearest_indices(5, 5).tolist() == [0, 1, 2, 3, 4]
    assert nearest_indices(3, 2).tolist() == [0, 2]
    assert nearest_indices(4, 2).tolist() == [1, 3]  # a tie: the later one


@pytest.mark.parametrize(
    ("start", "side", "extent", "box", "axis"),
    [
        (2, 3, 10, slice(0, 3), slice(2, 5)),
        (-2, 5, 10, slice(2, 5), slice(0, 3)),
        (8, 5, 10, slice(0, 2), slice(8, 10)),
        (-1, 12, 10, slice(1, 11), slice(0, 10)),
        (20, 3, 10, slice(0, 0), slice(20, 20)),
    ],
)
def test_the_shared_part_of_a_box_and_an_axis(start, side, extent, box, axis):
    assert span(start, side, extent) == (box, axis)


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
