"""Reading and writing volumes: what is kept bit for bit, what is refused."""

from __future__ import annotations

import gzip
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from sdseg_cli.core.errors import DataError, RunError
from sdseg_cli.imaging.io.files import (
    check_mask_writable,
    check_writable,
    read_geometry,
    read_image,
    read_labels,
    write_mask,
    write_probability,
)
from sdseg_cli.imaging.io.header_checks import straightened
from sdseg_cli.imaging.volume import Geometry, Volume

GRID_FIELDS = (
    "dim", "pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip


def scan_header(
    kind: type = nib.Nifti1Header, shape: tuple[int, ...] = (5, 4, 3)
) -> nib.Nifti1Header:
    """An awkward header: oblique sform, another qform, odd codes, units and zooms."""
    header = kind()
    header.set_data_shape(shape)
    header.set_data_dtype(np.int16)
    header["pixdim"][:4] = -1, 0.7011718, 0.7011719, 3.2699997
    header["quatern_b"], header["quatern_c"], header["quatern_d"] = 0.031, 0.9987, -0.0123
    header["qoffset_x"], header["qoffset_y"] = 123.456, -98.7654
    header["qform_code"], header["sform_code"] = 1, 4
    header["srow_x"] = -0.7, 0.01, 0.1, 90.1
    header["srow_y"] = 0.02, -0.69, 0.3, 70.2
    header["srow_z"] = 0.03, 0.02, 3.2, -12.3
    header["xyzt_units"] = 10
    header["cal_min"], header["cal_max"] = -100, 200
    header["descrip"] = b"made up"
    return header


def write_scan(
    path: Path, header: nib.Nifti1Header, slope: float = 1, extension: bytes = b""
) -> Path:
    """Bytes laid out by hand, so that no library repairs the header on the way."""
    values = np.arange(np.prod(header.get_data_shape()), dtype=header.get_data_dtype())
    header["scl_slope"], header["scl_inter"] = slope, -10
    header["vox_offset"] = header.sizeof_hdr + 4 + len(extension)
    flag = b"\1\0\0\0" if extension else b"\0\0\0\0"
    content = header.binaryblock + flag + extension + values.tobytes()
    packed = gzip.compress(content, 1) if path.name.endswith(".gz") else content
    path.write_bytes(packed)
    return path


@pytest.mark.parametrize("kind", [nib.Nifti1Header, nib.Nifti2Header])
@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("shape", [(5, 4, 3), (5, 4, 3, 1), (5, 4)])
def test_a_mask_keeps_the_scans_grid_bit_for_bit(tmp_path, kind, name, shape):
    scan = read_image(write_scan(tmp_path / name, scan_header(kind, shape)))
    write_mask(tmp_path / "new/mask.nii.gz", np.ones((*shape, 1)[:3], np.uint8), scan)
    raw = gzip.decompress((tmp_path / "new/mask.nii.gz").read_bytes())
    mask = kind(raw[: kind.sizeof_hdr], check=False)
    for field in GRID_FIELDS:
        assert mask[field].tobytes() == scan_header(kind, shape)[field].tobytes(), field
    assert nib.load(tmp_path / "new/mask.nii.gz").shape == shape


def test_a_header_that_nibabel_would_repair_is_copied_as_it_stands(tmp_path, caplog):
    header = scan_header()
    header["pixdim"][0] = 0
    header["pixdim"][2] = -0.7011719
    scan = read_image(write_scan(tmp_path / "scan.nii", header))
    write_mask(tmp_path / "mask.nii", np.zeros((5, 4, 3), np.uint8), scan)
    mask = nib.Nifti1Header((tmp_path / "mask.nii").read_bytes()[:348], check=False)
    assert mask["pixdim"].tolist() == header["pixdim"].tolist()


def test_a_mask_is_plain_uint8_without_the_scans_scaling_or_extensions(tmp_path):
    extension = b"\x20\0\0\0\x06\0\0\0" + b"patient name".ljust(24, b"\0")
    scan = read_image(write_scan(tmp_path / "scan.nii", scan_header(), 2.5, extension))
    values = np.arange(60, dtype=np.uint8).reshape(5, 4, 3)
    write_mask(tmp_path / "mask.nii", values, scan)
    raw = (tmp_path / "mask.nii").read_bytes()
    header = nib.Nifti1Header(raw[:348])
    assert header.get_data_dtype() == np.uint8
    assert header.get_slope_inter() == (1, 0)
    assert (header["cal_min"], header["cal_max"]) == (0, 0)
    assert header["descrip"] == b""
    assert b"patient" not in raw
    assert np.array_equal(nib.load(tmp_path / "mask.nii").get_fdata(), values)


def test_a_scan_stays_at_its_stored_type_and_scales_on_demand(tmp_path):
    extension = b"\x10\0\0\0\x06\0\0\0" + b"12345678"
    path = write_scan(tmp_path / "scan.nii.gz", scan_header(), 0.5, extension)
    scan = read_image(path)
    assert scan.array.dtype == np.int16
    assert (scan.slope, scan.intercept) == (0.5, -10)
    assert np.array_equal(scan.values(), nib.load(path).get_fdata(dtype=np.float32))
    # This header is sheared by 3.7 degrees.
    affine = straightened(nib.load(path).affine, (5, 4, 3))
    assert np.array_equal(scan.geometry.affine, affine)
    assert read_geometry(path).same_grid(scan.geometry, 0)


def test_a_big_endian_scan_is_read_and_masked(tmp_path):
    header = scan_header().as_byteswapped(">")
    scan = read_image(write_scan(tmp_path / "scan.nii", header))
    assert scan.values()[2, 1, 0] == 7 - 10
    write_mask(tmp_path / "mask.nii", np.ones((5, 4, 3), np.uint8), scan)
    assert nib.load(tmp_path / "mask.nii").header.endianness == ">"
    assert nib.load(tmp_path / "mask.nii").get_fdata().all()


@pytest.mark.slow
def test_a_gzipped_scan_is_held_once_while_reading(tmp_path):
    header = scan_header(shape=(256, 256, 200))
    path = write_scan(tmp_path / "scan.nii.gz", header)
    tracemalloc.start()
    scan = read_image(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * scan.array.nbytes


def test_writing_twice_gives_the_same_bytes(tmp_path):
    scan = read_image(write_scan(tmp_path / "scan.nii", scan_header()))
    for name in ("a.nii.gz", "b.nii.gz"):
        write_mask(tmp_path / name, np.ones((5, 4, 3), np.uint8), scan)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_probabilities_read_back_as_shares_of_255(tmp_path):
    scan = read_image(write_scan(tmp_path / "scan.nii", scan_header()))
    levels = np.full((5, 4, 3), 255, np.uint8)
    levels[0, 0, 0] = 51
    write_probability(tmp_path / "p.nii.gz", levels, scan)
    read = nib.load(tmp_path / "p.nii.gz")
    assert read.get_data_dtype() == np.uint8
    assert read.get_fdata()[0, 0, 0] == pytest.approx(0.2)
    assert read.get_fdata().max() == pytest.approx(1.0)


def broken_files(folder: Path) -> dict[str, Path]:
    whole = write_scan(folder / "whole.nii.gz", scan_header()).read_bytes()
    plain = write_scan(folder / "whole.nii", scan_header()).read_bytes()
    flipped = bytearray(whole)
    flipped[-6] ^= 0xFF  # in gzip's checksum
    files = {
        "cut.nii.gz": whole[:-40],
        "cut.nii": plain[:-1],
        "flipped.nii.gz": bytes(flipped),
        "text.nii.gz": b"this is not a scan\n",
        "text.nii": b"this is not a scan, whatever its name says\n" * 20,
        "gzipped text.nii.gz": gzip.compress(b"patient,volume\n" * 40),
        "empty.nii.gz": b"",
        "empty.nii": b"",
        "text.nrrd": b"not NRRD",
        "scan.dcm": b"DICM",
        "scan": b"",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    colour = np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colour, np.eye(4)), folder / "colour.nii")
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2, 3), np.int16), np.eye(4)), folder / "series.nii")
    flat = scan_header()
    flat["srow_z"] = 0
    write_scan(folder / "flat.nii", flat)
    SimpleITK.WriteImage(SimpleITK.Image([4, 4], SimpleITK.sitkInt16), str(folder / "flat.mha"))
    names = [*files, "colour.nii", "series.nii", "flat.nii", "flat.mha", "missing.nii.gz", "."]
    return {name: folder / name for name in names}


def test_what_is_no_readable_3d_scan_is_refused_with_a_hint(tmp_path):
    for name, path in broken_files(tmp_path).items():
        with pytest.raises(DataError) as caught:
            read_image(path)
        assert str(path) in caught.value.message, name
        assert caught.value.hint
        assert "\n" not in caught.value.message


def test_label_maps_are_uint8_or_uint16_and_whole_floats_count_as_whole(tmp_path):
    values = np.zeros((3, 2, 2), np.float32)
    values[0, 0, 0] = 300
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "wide.nii.gz")
    nib.save(nib.Nifti1Image((values > 0).astype(np.int16), np.eye(4)), tmp_path / "mask.nii.gz")
    wide, mask = read_labels(tmp_path / "wide.nii.gz"), read_labels(tmp_path / "mask.nii.gz")
    assert (wide.array.dtype, wide.array[0, 0, 0]) == (np.uint16, 300)
    assert (mask.array.dtype, mask.array.sum()) == (np.uint8, 1)


@pytest.mark.parametrize("value", [0.5, -1, np.nan, 70000])
def test_a_label_map_holds_whole_numbers_only(tmp_path, value):
    values = np.full((2, 2, 2), value, np.float32)
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "label.nii.gz")
    with pytest.raises(DataError, match="not a label map"):
        read_labels(tmp_path / "label.nii.gz")


def test_nrrd_and_nifti_of_one_scan_lie_on_one_grid(tmp_path, ct_phantom):
    nib.save(
        nib.Nifti1Image(ct_phantom.scan.array, ct_phantom.scan.geometry.affine),
        tmp_path / "scan.nii.gz",
    )
    SimpleITK.WriteImage(
        SimpleITK.ReadImage(str(tmp_path / "scan.nii.gz")), str(tmp_path / "scan.nrrd")
    )
    nifti, nrrd = read_image(tmp_path / "scan.nii.gz"), read_image(tmp_path / "scan.nrrd")
    assert nrrd.geometry.same_grid(nifti.geometry, 1e-4)
    assert np.array_equal(nrrd.array, nifti.array)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_a_mask_in_a_metaimage_lies_on_its_scan(tmp_path, ct_phantom, suffix):
    mask = (ct_phantom.labels.array > 0).astype(np.uint8)
    write_mask(tmp_path / f"from_nifti{suffix}", mask, ct_phantom.scan)
    first = read_labels(tmp_path / f"from_nifti{suffix}")
    write_mask(tmp_path / f"again{suffix}", mask, first)
    again = read_labels(tmp_path / f"again{suffix}")
    assert first.geometry.same_grid(ct_phantom.scan.geometry, 1e-4)
    assert again.geometry.same_grid(first.geometry, 1e-9)
    assert np.array_equal(again.array, mask)


def test_a_nifti_mask_of_a_scan_without_nifti_header_has_its_affine(tmp_path, ct_phantom):
    write_mask(tmp_path / "mask.nii.gz", ct_phantom.labels.array, ct_phantom.scan)
    read = read_labels(tmp_path / "mask.nii.gz")
    assert read.geometry.same_grid(ct_phantom.scan.geometry, 1e-4)
    assert nib.load(tmp_path / "mask.nii.gz").header.get_xyzt_units()[0] == "mm"


def test_a_sheared_grid_is_refused_where_the_format_cannot_hold_it(tmp_path):
    sheared = np.eye(4)
    sheared[0, 1] = 0.3
    scan = Volume(np.zeros((2, 2, 2)), Geometry((2, 2, 2), sheared))
    with pytest.raises(DataError, match="sheared"):
        write_mask(tmp_path / "mask.mha", np.zeros((2, 2, 2), np.uint8), scan)
    write_mask(tmp_path / "mask.nii.gz", np.zeros((2, 2, 2), np.uint8), scan)
    assert np.allclose(nib.load(tmp_path / "mask.nii.gz").affine, sheared)


@pytest.mark.parametrize("name", ["mask.txt", "mask.mhd", "mask", "."])
def test_output_names_that_cannot_be_written_are_refused_early(tmp_path, name):
    with pytest.raises(DataError):
        check_writable(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_a_run_error(tmp_path, ct_phantom):
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="cannot be written"):
        write_mask(tmp_path / "mask.nii.gz", ct_phantom.labels.array, ct_phantom.scan)


@pytest.mark.data
def test_the_real_nrrd_and_its_label_lie_on_one_grid(real_data):
    folder = real_data / "pyradiomics-lung1"
    scan, label = (
        read_image(folder / "lung1_image.nrrd"), read_labels(folder / "lung1_label.nrrd")
    )  # fmt: skip
    assert scan.geometry.axis_codes == "LPS"
    assert scan.geometry.same_grid(label.geometry, 1e-3)
    assert label.array.astype(bool).sum() == 837


def _sheared_nifti(path: Path) -> Volume:
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[0, 1] = 2 * np.tan(np.deg2rad(2))
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), affine), path)
    return read_image(path)


def test_a_sheared_scan_gets_its_mask_only_in_its_own_format(tmp_path):
    scan = _sheared_nifti(tmp_path / "ct.nii")
    assert scan.geometry.shear_degrees > 1
    check_mask_writable(tmp_path / "m.nii.gz", scan)
    with pytest.raises(DataError, match=r"m\.nrrd: the axes of ct\.nii are 2\.0 degrees") as caught:
        check_mask_writable(tmp_path / "m.nrrd", scan)
    assert ".nii" in caught.value.hint
    nrrd = replace(scan, source=tmp_path / "ct.nrrd", header=None)
    with pytest.raises(DataError, match=r"m\.nii: the axes of ct\.nrrd"):
        check_mask_writable(tmp_path / "m.nii", nrrd)


def test_a_scan_that_does_not_say_how_it_lies_gets_its_mask_only_as_nifti(tmp_path):
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), None)
    nib.save(image, tmp_path / "ct.nii")
    scan = read_image(tmp_path / "ct.nii")
    check_mask_writable(tmp_path / "m.nii.gz", scan)
    with pytest.raises(DataError, match="does not say how it lies"):
        check_mask_writable(tmp_path / "m.mha", scan)


@pytest.mark.parametrize(
    ("name", "dtype", "voxel_bytes"),
    [
        ("a.nii", np.int16, 2),
        ("a.nii.gz", np.float32, 4),
        ("a.mha", np.int16, 2),
        ("a.nrrd", np.uint8, 1),
    ],
)
def test_a_volumes_size_is_told_before_it_is_read(name, dtype, voxel_bytes, tmp_path):
    array = np.zeros((5, 4, 3), dtype)
    if name.startswith("a.nii"):
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / name)
    else:
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array.T), str(tmp_path / name))
    told: list[tuple[tuple[int, ...], int]] = []
    read_image(tmp_path / name, on_header=lambda grid, size: told.append((grid.shape, size)))
    assert told == [((5, 4, 3), voxel_bytes)]


@pytest.mark.parametrize("suffix", [b".nii.gz", b".nii", b".mha", b".nrrd"])
def test_a_mask_is_written_under_a_name_that_is_no_utf8(tmp_path, suffix):
    scan = Volume(np.zeros((4, 3, 2), np.int16, "F"), Geometry((4, 3, 2), np.diag([2.0, 2, 3, 1])))
    mask = np.zeros((4, 3, 2), np.uint8, "F")
    mask[1, 2, 0] = 1
    odd = tmp_path / os.fsdecode(b"g\xfc" + suffix)
    write_mask(odd, mask, scan)
    assert [path.name for path in tmp_path.iterdir()] == [odd.name]
    plain = odd.rename(tmp_path / f"plain{suffix.decode()}")
    assert np.array_equal(read_labels(plain).array, mask)


def test_the_hint_names_all_that_a_mask_may_end_in(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        check_writable(tmp_path / "p1.png")
    assert caught.value.hint == (
        "End the name in .nii, .nii.gz, .nrrd, .mha; a mask also in .seg.nrrd (named segments, for "
        "3D Slicer); a picture of the mask on its scan is --preview."
    )
