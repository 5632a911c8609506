"""Resampling weights, computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdseg_cli.imaging.resample import nearest_indices, resize_matrix, span


def test_enlarging_interpolates_between_aligned_pixel_areas() -> None:
    expected = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    assert np.allclose(resize_matrix(2, 4, antialias=True).toarray(), expected)
    assert np.allclose(resize_matrix(2, 4, antialias=False).toarray(), expected)


def test_shrinking_widens_the_triangle() -> None:
    # Centre 0.5, reach 2: weights 3/4, 3/4, 1/4 on pixels 0, 1, 2, then normalised.
    expected = np.array([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7
    assert np.allclose(resize_matrix(4, 2, antialias=True).toarray(), expected)


def test_shrinking_without_antialiasing_averages_the_two_nearest() -> None:
    expected = [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]
    assert np.allclose(resize_matrix(4, 2, antialias=False).toarray(), expected)


@pytest.mark.parametrize("antialias", [True, False])
def test_equal_sizes_give_the_exact_identity(antialias: bool) -> None:
    assert np.array_equal(resize_matrix(7, 7, antialias=antialias).toarray(), np.eye(7))


@settings(max_examples=30, deadline=None)
@given(n_in=st.integers(1, 90), n_out=st.integers(1, 90), antialias=st.booleans())
def test_weights_are_shares_and_mirror_symmetric(n_in: int, n_out: int, antialias: bool) -> None:
    weights = resize_matrix(n_in, n_out, antialias=antialias).toarray()
    assert weights.min() >= 0
    assert np.allclose(weights.sum(axis=1), 1, atol=1e-6)
    assert np.allclose(weights, weights[::-1, ::-1], atol=1e-6)


def test_nearest_pixels_by_hand() -> None:
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
def test_the_shared_part_of_a_box_and_an_axis(
    start: int, side: int, extent: int, box: slice, axis: slice
) -> None:
    assert span(start, side, extent) == (box, axis)
