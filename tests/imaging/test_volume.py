"""Geometry, Volume and Planes."""

from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from sdseg_cli.core.errors import GeometryError
from sdseg_cli.imaging.volume import (
    Geometry,
    Planes,
    Volume,
    bounding_box,
    reorient_to,
    require_same_grid,
)
from tests.imaging.test_slices import ORDERS, SIGNS

SIGNED_PERMUTATIONS = list(itertools.product(ORDERS, SIGNS))


def affine_of(columns: np.ndarray) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = columns
    return affine


def test_spacing_is_the_length_of_each_column():
    geometry = Geometry((2, 2, 2), affine_of(np.array([[3, 0, 0], [4, 0, -2], [0, 7, 0]])))
    assert geometry.spacing_mm == (5, 7, 2)


@pytest.mark.parametrize(("order", "signs"), SIGNED_PERMUTATIONS)
def test_axis_codes_are_nibabels(order, signs):
    affine = affine_of(np.diag(signs)[:, order] * [0.7, 2, 5])
    assert Geometry((2, 3, 4), affine).axis_codes == "".join(nib.aff2axcodes(affine))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    copy=st.sampled_from(SIGNED_PERMUTATIONS),
)
def test_a_permuted_copy_of_any_oblique_grid_names_the_same_physical_axes(seed, copy):
    order, signs = copy
    columns = Rotation.random(random_state=seed).as_matrix() * [1.0, 2.0, 3.0]
    copied = columns[:, order] * signs
    original, other = (
        Geometry((2, 2, 2), affine_of(columns)),
        Geometry((2, 2, 2), affine_of(copied)),
    )
    for axis, sign, copied_axis, copied_sign in zip(
        original.axes, original.signs, other.axes, other.signs, strict=True
    ):
        assert np.array_equal(columns[:, axis] * sign, copied[:, copied_axis] * copied_sign)


def test_grids_a_twentieth_of_a_voxel_apart_are_one_and_a_fifth_apart_are_two():
    affine = np.diag([2.0, 2.0, 4.0, 1.0])
    near, far = affine.copy(), affine.copy()
    near[0, 3], far[0, 3] = 0.1, 0.4
    geometry = Geometry((9, 9, 9), affine)
    assert geometry.same_grid(Geometry((9, 9, 9), near))
    assert not geometry.same_grid(Geometry((9, 9, 9), far))
    assert geometry.corner_distance_voxels(Geometry((9, 9, 9), far)) == pytest.approx(0.2)


def test_a_small_tilt_counts_where_it_is_largest_at_the_corners():
    tilted = np.eye(4)
    tilted[0, 1] = 0.01  # 1 mm at the far end of 101 voxels
    apart = Geometry((101, 101, 3), np.eye(4)).corner_distance_voxels(
        Geometry((101, 101, 3), tilted)
    )
    assert apart == pytest.approx(1.0, rel=1e-4)


def test_grids_of_another_shape_differ():
    assert not Geometry((2, 2, 2), np.eye(4)).same_grid(Geometry((2, 2, 3), np.eye(4)))


@pytest.mark.parametrize(
    "affine", [np.diag([1.0, 1, 0, 1]), np.full((4, 4), np.nan), np.ones((4, 4)), np.eye(3)]
)
def test_a_flat_or_undefined_affine_is_refused(affine):
    with pytest.raises(ValueError, match="affine"):
        Geometry((2, 2, 2), affine)


def test_values_apply_slope_and_intercept_to_a_part():
    stored = np.array([[[0, 100], [200, 300]]], np.int16)
    volume = Volume(stored, Geometry((1, 2, 2), np.eye(4)), slope=0.5, intercept=-1024)
    assert volume.values(stored[0, 1]).tolist() == [-924, -874]
    assert volume.values().shape == (1, 2, 2)
    assert volume.values().dtype == np.float32


def test_a_big_endian_part_becomes_native_float32():
    stored = np.arange(8, dtype=">i2").reshape(2, 2, 2)
    volume = Volume(stored, Geometry((2, 2, 2), np.eye(4)))
    assert volume.values(stored[1]).dtype == np.dtype(np.float32)
    assert volume.values(stored[1]).tolist() == [[4, 5], [6, 7]]


def test_an_array_of_another_shape_than_its_geometry_is_refused():
    with pytest.raises(ValueError, match="geometry"):
        Volume(np.zeros((2, 2, 2)), Geometry((2, 2, 3), np.eye(4)))


def test_grids_must_agree_in_shape_and_in_place():
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    scan = Geometry((16, 16, 4), affine)
    require_same_grid(scan, Geometry((16, 16, 4), affine), "scan", "label")
    sizes = r"scan has shape \(16, 16, 4\), label has shape \(16, 16, 3\)"
    with pytest.raises(GeometryError, match=sizes):
        require_same_grid(scan, Geometry((16, 16, 3), affine), "scan", "label")
    moved = affine.copy()
    moved[2, 3] += 4  # mm, twice the smallest spacing
    with pytest.raises(GeometryError, match="lie up to 2 voxels apart"):
        require_same_grid(scan, Geometry((16, 16, 4), moved), "scan", "label")


@pytest.mark.parametrize(("order", "signs"), SIGNED_PERMUTATIONS)
def test_all_planes_at_once_are_the_planes_one_by_one(order, signs):
    affine = np.eye(4)
    affine[:3, :3] = (np.diag(signs) @ np.diag([1.0, 2.0, 3.0]))[:, list(order)]
    array = np.arange(24).reshape(2, 3, 4)
    planes = Planes.of(Geometry((2, 3, 4), affine))
    stacked = planes.stacked(array)
    assert np.shares_memory(stacked, array)
    assert np.array_equal(stacked, [planes.get(array, k) for k in range(planes.count)])


OBLIQUE = np.array([[-1.6, 1.8, 0.1, 10], [-1.2, -2.4, 0.2, -20], [0, 0.1, 5, -300], [0, 0, 0, 1]])


@pytest.mark.parametrize(("axes", "flips"), SIGNED_PERMUTATIONS)
def test_every_order_and_direction_comes_back_voxel_for_voxel(axes, flips):
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


def test_a_volume_in_the_same_order_is_left_alone():
    volume = Volume(np.zeros((2, 3, 4)), Geometry((2, 3, 4), OBLIQUE), header="its own")
    shifted = OBLIQUE.copy()
    shifted[0, 3] += 500
    assert reorient_to(volume, Geometry((9, 9, 9), shifted)) is volume


def test_the_box_is_where_the_ones_are():
    mask = np.zeros((5, 6, 7), np.uint8)
    assert bounding_box(mask) is None
    mask[1, 2, 3] = mask[3, 2, 6] = 1
    assert bounding_box(mask) == (slice(1, 4), slice(2, 3), slice(3, 7))
