"""A small shear is read as the nearest rotation, a large one is refused, and no header changes."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from sdseg_cli.core.errors import DataError
from sdseg_cli.imaging.io.files import read_geometry, read_image, write_mask
from sdseg_cli.imaging.io.header_checks import geometry_of, shear_degrees, straightened

SHAPE = (9, 7, 5)
SPACING_MM = np.array([0.8, 1.5, 4.0])


def sheared(seed: int, degrees: float) -> np.ndarray:
    """A random grid whose second axis leans towards the first by so many degrees."""
    lean = np.eye(3)
    lean[:2, 1] = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(random_state=seed).as_matrix() @ lean * SPACING_MM
    affine[:3, 3] = np.random.default_rng(seed).uniform(-200, 200, 3)
    return affine


def directions(affine: np.ndarray) -> np.ndarray:
    columns: np.ndarray = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return columns


seeds = st.integers(0, 10_000)
angles = st.floats(-4.9, 4.9)


@settings(max_examples=50, deadline=None)
@given(seed=seeds, degrees=angles)
def test_the_shear_is_the_angle_that_was_put_in(seed: int, degrees: float) -> None:
    assert shear_degrees(sheared(seed, degrees)) == pytest.approx(abs(degrees), abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(seed=seeds, degrees=angles)
def test_straight_axes_are_perpendicular_and_keep_spacing_handedness_and_centre(
    seed: int, degrees: float
) -> None:
    affine = sheared(seed, degrees)
    straight = straightened(affine, SHAPE)
    assert np.allclose(directions(straight).T @ directions(straight), np.eye(3), atol=1e-12)
    assert np.allclose(np.linalg.norm(straight[:3, :3], axis=0), SPACING_MM)
    assert np.sign(np.linalg.det(straight)) == np.sign(np.linalg.det(affine))
    centre = [*(n / 2 - 0.5 for n in SHAPE), 1]
    assert np.allclose(straight @ centre, affine @ centre)
    assert np.allclose(straightened(straight, SHAPE), straight)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, degrees=angles, turn=st.floats(-2, 2))
def test_no_other_rotation_is_nearer(seed: int, degrees: float, turn: float) -> None:
    affine = sheared(seed, degrees)
    best = directions(straightened(affine, SHAPE))
    axis = Rotation.random(random_state=seed + 1).as_matrix()[0]
    other = Rotation.from_rotvec(np.radians(turn) * axis).as_matrix() @ best
    apart = np.linalg.norm(directions(affine) - best)
    assert apart <= np.linalg.norm(directions(affine) - other) + 1e-12


@settings(max_examples=30, deadline=None)
@given(
    seed=seeds,
    degrees=angles,
    order=st.permutations([0, 1, 2]),
    flips=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_a_permuted_and_flipped_copy_is_straightened_alike(
    seed: int, degrees: float, order: list[int], flips: tuple[bool, bool, bool]
) -> None:
    affine = sheared(seed, degrees)
    copy = np.zeros((4, 4))  # index of the copy -> index of the original
    copy[3, 3] = 1
    for new, old in enumerate(order):
        copy[old, new] = -1 if flips[new] else 1
        copy[old, 3] = SHAPE[old] - 1 if flips[new] else 0
    shape = tuple(SHAPE[old] for old in order)
    both = straightened(affine @ copy, (shape[0], shape[1], shape[2]))
    assert np.allclose(both, straightened(affine, SHAPE) @ copy, atol=1e-9)


def test_rounding_is_left_alone_to_the_last_bit() -> None:
    affine = sheared(3, 0.009)
    geometry = geometry_of(Path("ct.nii"), SHAPE, affine)
    assert geometry.shear_degrees == 0
    assert np.array_equal(geometry.affine, affine)


def test_a_small_shear_is_straightened_and_a_large_one_is_refused() -> None:
    assert geometry_of(Path("ct.nii"), SHAPE, sheared(1, 4.9)).shear_degrees == pytest.approx(4.9)
    with pytest.raises(DataError, match=r"ct\.nii: its axes are 5\.1 degrees off") as caught:
        geometry_of(Path("ct.nii"), SHAPE, sheared(1, 5.1))
    assert caught.value.code == "sheared"
    with pytest.raises(DataError, match="no usable grid") as flat:
        geometry_of(Path("ct.nii"), SHAPE, np.diag([1.0, 1.0, 0.0, 1.0]))
    assert flat.value.code == "affine"


@pytest.mark.parametrize("seed", [0, 1])
def test_the_header_of_a_sheared_scan_goes_out_as_it_came_in(tmp_path: Path, seed: int) -> None:
    header = nib.Nifti1Header()
    header.set_data_shape(SHAPE)
    header.set_sform(sheared(seed, 2.0), code=1)
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.int16), None, header), tmp_path / "ct.nii.gz")
    scan = read_image(tmp_path / "ct.nii.gz")
    assert scan.geometry.shear_degrees == pytest.approx(2.0, abs=1e-4)
    assert shear_degrees(scan.geometry.affine) == pytest.approx(0, abs=1e-6)
    write_mask(tmp_path / "mask.nii.gz", np.ones(SHAPE, np.uint8), scan)
    before, after = (nib.load(tmp_path / name).header for name in ("ct.nii.gz", "mask.nii.gz"))
    for field in ("srow_x", "srow_y", "srow_z", "sform_code", "qform_code", "pixdim"):
        assert before[field].tobytes() == after[field].tobytes()
    again = read_geometry(tmp_path / "mask.nii.gz")
    assert np.array_equal(again.affine, scan.geometry.affine)
    with pytest.raises(DataError, match="sheared"):  # it would have to lie somewhere else
        write_mask(tmp_path / "mask.nrrd", np.ones(SHAPE, np.uint8), scan)


def test_every_pair_of_axes_counts() -> None:
    for first, second in itertools.permutations(range(3), 2):
        affine = np.eye(4)
        affine[first, second] = np.tan(np.radians(3))
        assert shear_degrees(affine) == pytest.approx(3)
