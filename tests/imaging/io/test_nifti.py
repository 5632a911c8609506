"""Odd NIfTI headers and files: units, two forms, long quaternions, packing."""

from __future__ import annotations

import gzip
import lzma
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from scipy.spatial.transform import Rotation

from sdseg_cli.core.errors import DataError
from sdseg_cli.imaging.io.files import (
    check_mask_writable,
    read_geometry,
    read_image,
    read_labels,
    write_mask,
)

SHAPE = (6, 5, 4)
GRID = np.diag([2.0, 2.0, 3.0, 1.0])
VOXELS = np.arange(120, dtype=np.int16).reshape(SHAPE)


def header_of(
    sform: np.ndarray | None = GRID,
    qform: np.ndarray | None = None,
    kind: type = nib.Nifti1Header,
    **fields: Any,
) -> Any:
    header = kind()
    header.set_data_shape(SHAPE)
    header.set_data_dtype(np.int16)
    for form, put in ((sform, header.set_sform), (qform, header.set_qform)):
        if form is not None:
            put(form, code=1)
    header["vox_offset"] = header.sizeof_hdr + 4
    header["magic"] = b"n+1" if kind is nib.Nifti1Header else header["magic"]
    for field, value in fields.items():
        header[field] = value
    return header


def write(path: Path, header: Any, after: bytes = b"") -> Path:
    data = header.binaryblock + bytes(4) + VOXELS.tobytes(order="F") + after
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


def stored_header(path: Path, kind: type = nib.Nifti1Header) -> Any:
    return kind(path.read_bytes()[: kind.sizeof_hdr], check=False)


@pytest.mark.parametrize("kind", [nib.Nifti1Header, nib.Nifti2Header])
@pytest.mark.parametrize("form", ["sform", "qform", "none"])
@pytest.mark.parametrize(("code", "per_mm"), [(1, 0.001), (3, 1000.0), (2, 1.0), (0, 1.0)])
def test_lengths_are_read_in_mm_whatever_unit_the_header_has(tmp_path, kind, form, code, per_mm):
    affine = np.diag([2.0 * per_mm, 2.0 * per_mm, 3.0 * per_mm, 1.0])
    affine[:3, 3] = [10 * per_mm, -20 * per_mm, 30 * per_mm]
    header = header_of(
        affine if form == "sform" else None, affine if form == "qform" else None, kind
    )
    if form == "none":
        header["pixdim"][1:4] = np.diag(affine)[:3]
    header["xyzt_units"] = code + 8  # seconds beside it
    path = write(tmp_path / "scan.nii", header)
    found = read_geometry(path)
    assert found.spacing_mm == (2.0, 2.0, 3.0)  # exactly: 0.002 m is 2 mm
    if form != "none":
        assert found.affine[:3, 3].tolist() == [10.0, -20.0, 30.0]
    assert found.unit_known
    scan = read_image(path)
    write_mask(tmp_path / "mask.nii", np.zeros(SHAPE, np.uint8), scan)
    out = stored_header(tmp_path / "mask.nii", kind)
    for field in ("pixdim", "xyzt_units", "srow_x", "srow_y", "srow_z", "sform_code", "qform_code"):
        assert out[field].tobytes() == header[field].tobytes(), field
    if form != "none":
        write_mask(tmp_path / "mask.nrrd", np.zeros(SHAPE, np.uint8), scan)
        assert SimpleITK.ReadImage(str(tmp_path / "mask.nrrd")).GetSpacing() == (2.0, 2.0, 3.0)


@pytest.mark.parametrize("code", [4, 5, 6, 7])
def test_a_unit_without_a_meaning_is_read_as_mm_and_known_as_such(tmp_path, code):
    found = read_geometry(write(tmp_path / "scan.nii", header_of(xyzt_units=code)))
    assert (found.spacing_mm, found.unit_known) == ((2.0, 2.0, 3.0), False)


def moved(by: tuple[float, float, float]) -> np.ndarray:
    affine = GRID.copy()
    affine[:3, 3] = by
    return affine


@pytest.mark.parametrize(
    ("qform", "apart_mm"),
    [
        (moved((3.0, 4.0, 0.0)), 5.0),
        (moved((0.0, 0.0, 0.3)), 0.3),  # 0.15 of the smallest voxel
        (moved((0.0, 0.0, 0.1)), 0.0),  # 0.05
        (np.diag([-2.0, 2.0, 3.0, 1.0]), 20.0),  # turned: 5 voxels of 2 mm, there and back
        (np.diag([2.0, 2.0, 6.0, 1.0]), 9.0),  # 3 steps of 3 mm more
    ],
)
@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_sform_and_qform_that_disagree_are_measured_and_not_written_to_other_formats(
    tmp_path, qform, apart_mm, suffix
):
    header = header_of(GRID, qform, qform_code=2)
    scan = read_image(write(tmp_path / "scan.nii", header))
    assert scan.geometry.forms_apart_mm == pytest.approx(apart_mm, abs=1e-5)
    np.testing.assert_array_equal(scan.geometry.affine, GRID)  # the sform is read
    check_mask_writable(tmp_path / "mask.nii.gz", scan)
    if apart_mm:
        with pytest.raises(DataError, match=r"sform and the qform of scan\.nii lie .* mm apart"):
            check_mask_writable(tmp_path / f"mask{suffix}", scan)
    else:
        check_mask_writable(tmp_path / f"mask{suffix}", scan)


@pytest.mark.parametrize("field", ["sform_code", "qform_code"])
def test_a_form_that_is_not_in_use_disagrees_with_none(tmp_path, field):
    path = write(tmp_path / "scan.nii", header_of(GRID, moved((30, 0, 0)), **{field: 0}))
    assert read_geometry(path).forms_apart_mm == 0


def test_no_code_says_no_place(tmp_path):
    assert not read_geometry(write(tmp_path / "scan.nii", header_of(None))).says_place
    assert read_geometry(write(tmp_path / "scan.nii", header_of(GRID))).says_place


@pytest.mark.slow
def test_forms_written_from_one_affine_never_disagree_by_rounding(tmp_path):
    # Turns near a half one, where float32 tells the quaternion's first number least exactly.
    random = np.random.default_rng(0)
    for n in range(300):
        turn = Rotation.from_rotvec([0, 0, np.pi]) if n % 2 else Rotation.identity()
        small = Rotation.from_rotvec(random.normal(0, 10.0 ** random.uniform(-5, -1), 3))
        affine = np.eye(4)
        affine[:3, :3] = (turn * small).as_matrix() * random.uniform(0.3, 5, 3)
        affine[:3, 3] = random.uniform(-1500, 1500, 3)
        header = header_of(affine, affine)
        header.set_data_shape((1000, 900, 800))
        header["datatype"], header["bitpix"] = 2, 8
        path = tmp_path / "scan.nii"
        path.write_bytes(header.binaryblock + bytes(4))
        with path.open("r+b") as file:
            file.truncate(352 + 1000 * 900 * 800)  # a hole: no byte on the disk
        assert read_geometry(path).forms_apart_mm == 0


def test_a_quaternion_a_hair_too_long_is_shortened_and_goes_out_as_it_came(tmp_path):
    # (0.70711, 0.70711, 0): 1.0000047 long; it exchanges x and y and turns z.
    fields = {"quatern_b": 0.70711, "quatern_c": 0.70711, "quatern_d": 0.0}
    header = header_of(None, GRID, **fields)
    scan = read_image(write(tmp_path / "scan.nii", header))
    expected = np.array([[0, 2, 0], [2, 0, 0], [0, 0, -3]])
    np.testing.assert_allclose(scan.geometry.affine[:3, :3], expected, atol=1e-6)
    write_mask(tmp_path / "mask.nii", np.zeros(SHAPE, np.uint8), scan)
    out = stored_header(tmp_path / "mask.nii")
    assert all(out[f"quatern_{one}"] == header[f"quatern_{one}"] for one in "bcd")


@pytest.mark.parametrize("axis", [1, 2, 3])
@pytest.mark.parametrize("step", [0.0, np.nan])
def test_a_spacing_that_the_header_does_not_give_is_not_taken_for_1_mm(tmp_path, axis, step):
    for qform in (GRID, None):
        header = header_of(None, qform)
        header["pixdim"][axis] = step
        with pytest.raises(DataError, match=f"no spacing along axis {axis}"):
            read_geometry(write(tmp_path / "scan.nii", header))
    header = header_of(GRID)  # an sform says it itself
    header["pixdim"][axis] = step
    assert read_geometry(write(tmp_path / "scan.nii", header)).spacing_mm == (2, 2, 3)


def test_a_quaternion_far_too_long_is_no_orientation(tmp_path):
    path = write(tmp_path / "scan.nii", header_of(None, GRID, quatern_b=0.8, quatern_c=0.8))
    with pytest.raises(DataError, match=r"quaternion of its qform is 1\.13\d+ long"):
        read_geometry(path)


def test_content_says_whether_a_file_is_packed_not_its_name(tmp_path):
    plain = write(tmp_path / "a.nii", header_of()).rename(tmp_path / "plain.nii.gz")
    packed = write(tmp_path / "b.nii.gz", header_of()).rename(tmp_path / "packed.nii")
    for path in (plain, packed):
        np.testing.assert_array_equal(read_image(path).array, VOXELS)
        np.testing.assert_array_equal(read_labels(path).array, VOXELS)
        assert read_geometry(path).shape == SHAPE
    write_mask(tmp_path / "mask.nii.gz", np.ones(SHAPE, np.uint8), read_image(plain))
    assert gzip.decompress((tmp_path / "mask.nii.gz").read_bytes())[:4] == b"\x5c\1\0\0"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (gzip.compress, "a file compressed by gzip twice"),
        (lambda data: lzma.compress(gzip.decompress(data)), "an xz file"),
        (lambda data: b"BZh91AY&SY" + data, "a bzip2 file"),
        (lambda data: gzip.compress(b"NRRD0004\n"), "an NRRD file"),
        (lambda data: b"<!DOCTYPE html><html>", "a web page"),
        (lambda data: data + b"garbage", r"other bytes follow the end of its compressed data"),
        (lambda data: data + bytes(100) + b"x", r"other bytes follow the end"),
    ],
)
@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii"])
def test_what_is_packed_otherwise_is_called_by_its_name(tmp_path, change, said, name):
    data = write(tmp_path / "good.nii.gz", header_of()).read_bytes()
    path = tmp_path / name
    path.write_bytes(change(data))
    with pytest.raises(DataError, match=said):
        read_image(path)


@pytest.mark.parametrize("after", [bytes(512), gzip.compress(b"", mtime=0)])
def test_what_gzip_allows_after_its_data_is_read(tmp_path, after):
    path = write(tmp_path / "scan.nii.gz", header_of())
    path.write_bytes(path.read_bytes() + after)
    np.testing.assert_array_equal(read_image(path).array, VOXELS)


@pytest.mark.parametrize(
    ("fields", "after", "spare"),
    [
        ({}, b"", 0),
        ({}, bytes(100), 0),  # some programs fill the last block
        ({}, bytes(99) + b"x", 100),
        ({"dim": [3, 6, 5, 3, 1, 1, 1, 1]}, b"", 60),  # a slice of 30 int16 is lost
        ({"dim": [3, 6, 5, 4, 2, 1, 1, 1]}, VOXELS.tobytes(), 240),  # said to be 3D, holds two
    ],
)
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_what_a_file_holds_behind_its_voxels_is_counted(tmp_path, name, fields, after, spare):
    path = write(tmp_path / name, header_of(**fields), after)
    assert read_image(path).geometry.spare_bytes == spare


@pytest.mark.parametrize(
    "fields",
    [
        {"pixdim": [0, 2, 2, 3, 0, 0, 0, 0]},
        {"pixdim": [5, -2, 0, 3, 0, 0, 0, 0]},
        {"sform_code": 9, "qform_code": -3},
        {"scl_slope": np.nan},
        {"qform_code": 1, "quatern_b": np.nan},
        {"srow_x": [1e38] * 4, "xyzt_units": 1},
        {"bitpix": 8},
        {"datatype": 9},
        {"sizeof_hdr": 348, "magic": b"x"},
    ],
)
def test_libraries_print_nothing_about_odd_headers(tmp_path, capfd, fields):
    path = write(tmp_path / "scan.nii", header_of(**fields))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        try:
            scan = read_image(path)
            write_mask(tmp_path / "mask.nii.gz", np.zeros(SHAPE, np.uint8), scan)
        except DataError:
            pass
    assert capfd.readouterr() == ("", "")
