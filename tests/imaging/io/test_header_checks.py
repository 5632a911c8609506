"""Headers that lie: refused before memory is taken, and never with a traceback."""

from __future__ import annotations

import gzip
import itertools
import resource
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from sdseg_cli.core.errors import DataError
from sdseg_cli.imaging.io.files import read_geometry, read_image, write_mask
from sdseg_cli.imaging.io.header_checks import (
    PACKED_RATIO,
    geometry_of,
    require_held,
    shear_degrees,
    straightened,
)

SHAPE = (6, 5, 4)


def nifti(kind: type = nib.Nifti1Header, **fields: object) -> bytes:
    """240 bytes of voxels behind a header with some fields overwritten."""
    header = kind()
    header.set_data_shape(SHAPE)
    header.set_data_dtype(np.int16)
    header.set_sform(np.diag([-1.0, -1.0, 2.0, 1.0]), code=1)
    header["vox_offset"] = header.sizeof_hdr + 4
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + bytes(4) + bytes(240)


def dim(*sizes: int, axes: int = 3) -> list[int]:
    return [axes, *sizes, *[1] * (7 - len(sizes))]


NIFTI_LIES = {
    "more voxels than there are": ({"dim": dim(600, 500, 400)}, "claims 240,000,000 bytes"),
    "a negative size": ({"dim": dim(6, -5, 4)}, "not one 3D volume"),
    "a size of zero": ({"dim": dim(6, 0, 4)}, "not one 3D volume"),
    "no axes": ({"dim": dim(6, 5, 4, axes=0)}, ""),
    "too many axes": ({"dim": dim(6, 5, 4, axes=9)}, ""),
    "four axes": ({"dim": dim(6, 5, 2, 2, axes=4)}, "not one 3D volume"),
    "bits of another type": ({"bitpix": 8}, "int16 voxels of 8 bits"),
    "voxels beyond the end": ({"vox_offset": 1e6}, "the file holds 0"),
    "voxels within the header": ({"vox_offset": 0}, ""),
    "voxels before the file": ({"vox_offset": -1000}, ""),
    "voxels nowhere": ({"vox_offset": np.nan}, ""),
    "voxels at infinity": ({"vox_offset": np.inf}, ""),
    "an unknown type": ({"datatype": 77}, ""),
    "voxels in another file": ({"magic": b"ni1"}, "img file"),
}


@pytest.mark.parametrize("lie", sorted(NIFTI_LIES))
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_a_nifti_header_that_lies_is_refused(tmp_path, lie, name):
    fields, said = NIFTI_LIES[lie]
    content = nifti(**fields)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    offset_alone = lie == "voxels beyond the end" and name.endswith(".gz")
    for read in (read_image,) if offset_alone else (read_geometry, read_image):
        with pytest.raises(DataError) as caught:
            read(tmp_path / name)
        assert (said if not offset_alone else "0 of 240 bytes") in caught.value.message
        assert caught.value.hint and "\n" not in caught.value.message


def test_two_to_the_31_voxels_a_side_are_refused(tmp_path):
    path = tmp_path / "scan.nii"
    path.write_bytes(nifti(nib.Nifti2Header, dim=dim(2**31, 2**31, 2**31)))
    with pytest.raises(DataError, match="claims 19,807,040,628,566,084,398,385,987,584 bytes"):
        read_geometry(path)


def test_what_a_gzipped_header_claims_is_not_taken_from_memory_before_it_is_there(tmp_path):
    # A megabyte that does not shrink: the bound alone would let a gigabyte pass.
    noise = np.random.default_rng(0).bytes(1 << 20)
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(gzip.compress(nifti(dim=dim(1000, 1000, 500)) + noise, 1))
    read_geometry(path)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="1048816 of 1000000000 bytes of voxels"):
        read_image(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 100_000


def test_the_bound_itself_is_allowed_and_one_byte_more_is_not():
    require_held(Path("a"), 240, 240, packed=False)
    require_held(Path("a"), 240 * PACKED_RATIO, 240, packed=True)
    for claimed, packed in ((241, False), (240 * PACKED_RATIO + 1, True)):
        with pytest.raises(DataError, match=f"claims {claimed:,} bytes"):
            require_held(Path("a"), claimed, 240, packed=packed)


def test_a_constant_scan_shrinks_less_than_the_bound(tmp_path):
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((256, 256, 64), np.int16), np.eye(4)), path)
    assert read_image(path).geometry.shape == (256, 256, 64)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    changes=st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=6)
)
def test_no_bytes_in_a_header_give_anything_but_a_scan_or_a_refusal(tmp_path_factory, changes):
    content = bytearray(nifti())
    for place, value in changes:
        content[place] = value
    path = tmp_path_factory.getbasetemp() / "fuzzed.nii"
    path.write_bytes(content)
    try:
        scan = read_image(path)
    except DataError as error:
        assert error.hint
    else:
        assert scan.array.nbytes <= 244


def write(path: Path, *, compress: bool = False, array: np.ndarray | None = None) -> bytes:
    voxels = np.zeros(SHAPE[::-1], np.int16) if array is None else array
    image = SimpleITK.GetImageFromArray(voxels, isVector=voxels.ndim == 4)
    SimpleITK.WriteImage(image, str(path), useCompression=compress)
    return path.read_bytes()


TEXT_LIES = [
    ("s.nrrd", b"sizes: 6 5 4", b"sizes: 6000 5000 4000", "claims 240,000,000,000 bytes"),
    ("s.nrrd", b"sizes: 6 5 4", b"sizes: 6 -5 4", "cannot be read"),
    ("s.nrrd", b"sizes: 6 5 4", b"sizes: 6 0 4", "cannot be read"),
    ("s.nrrd", b"sizes: 6 5 4", b"sizes: 2147483648 2147483648 4", ""),
    ("s.nrrd", b"directions: (1,0,0)", b"directions: none", "no direction in space"),
    ("s.nrrd", b"directions: (1,0,0)", b"directions: (0,0,0)", ""),
    ("s.nrrd", b"encoding: raw", b"encoding: raw\ndata file: ../s.raw", "outside its folder"),
    ("s.nrrd", b"encoding: raw", b"encoding: raw\ndatafile: /etc/passwd", "outside its folder"),
    ("s.nrrd", b"encoding: raw", b"encoding: raw\ndata file: LIST", "no file beside it"),
    ("s.mha", b"DimSize = 6 5 4", b"DimSize = 6000 5000 4000", "claims 240,000,000,000 bytes"),
    ("s.mha", b"DimSize = 6 5 4", b"DimSize = 6 -5 4", ""),
    ("s.mha", b"DimSize = 6 5 4", b"DimSize = 6 0 4", "no usable grid"),
    ("s.mha", b"DimSize = 6 5 4", b"DimSize = 2147483648 2147483648 4", "claims"),
    ("s.mha", b"ElementSpacing = 1 1 1", b"ElementSpacing = 1 0 1", ""),
    ("s.mhd", b"s.raw", b"../s.raw", "outside its folder"),
    ("s.mhd", b"s.raw", b"/etc/passwd", "outside its folder"),
    ("s.mhd", b"s.raw", b"..\\s.raw", "outside its folder"),
    ("s.mhd", b"s.raw", b"gone.raw", "no file beside it"),
    ("s.mhd", b"s.raw", b"LIST", "no file beside it"),
    ("s.mhd", b"s.raw", b"s%03d.raw 1 4 1", "no file beside it"),
]


@pytest.mark.parametrize(("name", "old", "new", "said"), TEXT_LIES)
@pytest.mark.parametrize("compress", [False, True])
def test_an_nrrd_or_metaimage_header_that_lies_is_refused(tmp_path, name, old, new, said, compress):
    content = write(tmp_path / name, compress=compress)
    if compress:
        old, new = (part.replace(b"s.raw", b"s.zraw") for part in (old, new))
        old, new = (part.replace(b"encoding: raw", b"encoding: gzip") for part in (old, new))
    assert old in content
    (tmp_path / name).write_bytes(content.replace(old, new, 1))
    for read in (read_geometry, read_image):
        with pytest.raises(DataError) as caught:
            read(tmp_path / name)
        assert said in caught.value.message
        assert caught.value.hint and "\n" not in caught.value.message


@pytest.mark.parametrize("shape", [(4, 5, 6, 3), (3, 4, 5, 6)])
@pytest.mark.parametrize("name", ["s.nrrd", "s.mha"])
def test_colours_and_series_are_refused(tmp_path, name, shape):
    write(tmp_path / name, array=np.zeros(shape, np.uint8))
    with pytest.raises(DataError, match=r"value\(s\) per voxel"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", ["s.nrrd", "s.mha", "s.mhd"])
def test_honest_files_are_read(tmp_path, name, compress):
    write(tmp_path / name, compress=compress)
    assert read_image(tmp_path / name).geometry.shape == SHAPE


def test_an_nrrd_written_out_as_text_is_read(tmp_path):
    header = b"NRRD0004\ntype: float\ndimension: 3\nsizes: 2 2 2\nencoding: ascii\n\n"
    (tmp_path / "s.nrrd").write_bytes(header + b"1 2 3 4 5 6 7 8\n")
    assert read_image(tmp_path / "s.nrrd").values().max() == 8


SHEARED_SHAPE = (9, 7, 5)
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
def test_the_shear_is_the_angle_that_was_put_in(seed, degrees):
    assert shear_degrees(sheared(seed, degrees)) == pytest.approx(abs(degrees), abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(seed=seeds, degrees=angles)
def test_straight_axes_are_perpendicular_and_keep_spacing_handedness_and_centre(seed, degrees):
    affine = sheared(seed, degrees)
    straight = straightened(affine, SHEARED_SHAPE)
    assert np.allclose(directions(straight).T @ directions(straight), np.eye(3), atol=1e-12)
    assert np.allclose(np.linalg.norm(straight[:3, :3], axis=0), SPACING_MM)
    assert np.sign(np.linalg.det(straight)) == np.sign(np.linalg.det(affine))
    centre = [*(n / 2 - 0.5 for n in SHEARED_SHAPE), 1]
    assert np.allclose(straight @ centre, affine @ centre)
    assert np.allclose(straightened(straight, SHEARED_SHAPE), straight)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, degrees=angles, turn=st.floats(-2, 2))
def test_no_other_rotation_is_nearer(seed, degrees, turn):
    affine = sheared(seed, degrees)
    best = directions(straightened(affine, SHEARED_SHAPE))
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
def test_a_permuted_and_flipped_copy_is_straightened_alike(seed, degrees, order, flips):
    affine = sheared(seed, degrees)
    copy = np.zeros((4, 4))  # index of the copy -> index of the original
    copy[3, 3] = 1
    for new, old in enumerate(order):
        copy[old, new] = -1 if flips[new] else 1
        copy[old, 3] = SHEARED_SHAPE[old] - 1 if flips[new] else 0
    shape = tuple(SHEARED_SHAPE[old] for old in order)
    both = straightened(affine @ copy, (shape[0], shape[1], shape[2]))
    assert np.allclose(both, straightened(affine, SHEARED_SHAPE) @ copy, atol=1e-9)


def test_rounding_is_left_alone_to_the_last_bit():
    affine = sheared(3, 0.009)
    geometry = geometry_of(Path("ct.nii"), SHEARED_SHAPE, affine)
    assert geometry.shear_degrees == 0
    assert np.array_equal(geometry.affine, affine)


def test_a_small_shear_is_straightened_and_a_large_one_is_refused():
    assert geometry_of(
        Path("ct.nii"), SHEARED_SHAPE, sheared(1, 4.9)
    ).shear_degrees == pytest.approx(4.9)
    with pytest.raises(DataError, match=r"ct\.nii: its axes are 5\.1 degrees off") as caught:
        geometry_of(Path("ct.nii"), SHEARED_SHAPE, sheared(1, 5.1))
    assert caught.value.code == "sheared"
    with pytest.raises(DataError, match="no usable grid") as flat:
        geometry_of(Path("ct.nii"), SHEARED_SHAPE, np.diag([1.0, 1.0, 0.0, 1.0]))
    assert flat.value.code == "affine"


@pytest.mark.parametrize("seed", [0, 1])
def test_the_header_of_a_sheared_scan_goes_out_as_it_came_in(tmp_path, seed):
    header = nib.Nifti1Header()
    header.set_data_shape(SHEARED_SHAPE)
    header.set_sform(sheared(seed, 2.0), code=1)
    nib.save(
        nib.Nifti1Image(np.zeros(SHEARED_SHAPE, np.int16), None, header), tmp_path / "ct.nii.gz"
    )
    scan = read_image(tmp_path / "ct.nii.gz")
    assert scan.geometry.shear_degrees == pytest.approx(2.0, abs=1e-4)
    assert shear_degrees(scan.geometry.affine) == pytest.approx(0, abs=1e-6)
    write_mask(tmp_path / "mask.nii.gz", np.ones(SHEARED_SHAPE, np.uint8), scan)
    before, after = (nib.load(tmp_path / name).header for name in ("ct.nii.gz", "mask.nii.gz"))
    for field in ("srow_x", "srow_y", "srow_z", "sform_code", "qform_code", "pixdim"):
        assert before[field].tobytes() == after[field].tobytes()
    again = read_geometry(tmp_path / "mask.nii.gz")
    assert np.array_equal(again.affine, scan.geometry.affine)
    with pytest.raises(DataError, match="sheared"):  # it would have to lie somewhere else
        write_mask(tmp_path / "mask.nrrd", np.ones(SHEARED_SHAPE, np.uint8), scan)


def test_every_pair_of_axes_counts():
    for first, second in itertools.permutations(range(3), 2):
        affine = np.eye(4)
        affine[first, second] = np.tan(np.radians(3))
        assert shear_degrees(affine) == pytest.approx(3)
