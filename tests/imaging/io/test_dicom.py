"""A series as a volume: the right value at the right place in the patient, or a refusal."""

from __future__ import annotations

import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from sdseg_cli.core.errors import DataError
from sdseg_cli.imaging.io.files import read_geometry, read_image, write_mask
from tests.dicom_files import (
    AFFINE,
    ALONG_ROW,
    ORIGIN,
    SHAPE,
    Change,
    ct_slice,
    position,
    save,
    stored_values,
    write_contours,
    write_series,
    zipped,
)


def refusal(folder: Path, change: Change) -> str:
    with pytest.raises(DataError) as caught:
        read_image(write_series(folder / "scan", change=change))
    assert "\n" not in caught.value.message
    return caught.value.message


def test_each_voxel_has_its_value_and_its_place(tmp_path):
    volume = read_image(write_series(tmp_path / "scan"))
    assert np.array_equal(volume.array, stored_values())
    assert volume.array.dtype == np.uint16
    assert (volume.slope, volume.intercept) == (1, -1024)
    assert volume.values()[3, 2, 1] == 900 + 3 * 96 + 2 * 6 + 1 - 1024
    np.testing.assert_allclose(volume.geometry.affine, AFFINE, atol=1e-12)
    assert volume.geometry.shape == SHAPE
    assert volume.geometry.axis_codes == "LPS"
    assert read_geometry(tmp_path / "scan").same_grid(volume.geometry, 0)


def test_simpleitk_reads_the_same_volume(tmp_path):
    folder = write_series(tmp_path / "scan")
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    SimpleITK.WriteImage(reader.Execute(), str(tmp_path / "scan.nrrd"))
    theirs, ours = read_image(tmp_path / "scan.nrrd"), read_image(folder)
    assert np.array_equal(theirs.values(), ours.values())
    assert theirs.geometry.corner_distance_voxels(ours.geometry) < 1e-6


def test_a_volume_is_laid_out_for_reading_slice_by_slice(tmp_path):
    assert read_image(write_series(tmp_path / "scan")).array.flags.f_contiguous


def test_signed_twelve_bit_values_keep_their_sign(tmp_path):
    def signed(made: Dataset, k: int) -> None:
        made.BitsStored, made.HighBit, made.PixelRepresentation = 12, 11, 1
        made.PixelData = (np.frombuffer(made.PixelData, np.int16) - 2000).tobytes()

    volume = read_image(write_series(tmp_path / "scan", change=signed))
    assert np.array_equal(volume.array, stored_values().astype(np.int16) - 2000)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_compressed_slices_are_the_plain_ones(tmp_path, syntax):
    volume = read_image(
        write_series(tmp_path / "scan", change=lambda made, k: made.compress(syntax))
    )
    assert np.array_equal(volume.array, stored_values())
    assert volume.intercept == -1024


def test_jpeg_2000_is_decoded_without_rescaling(tmp_path):
    def compress(made: Dataset, k: int) -> None:
        plane = made.pixel_array
        image = SimpleITK.GetImageFromArray(plane)
        path = tmp_path / "plane.dcm"
        writer = SimpleITK.ImageFileWriter()
        writer.SetFileName(str(path))
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG2000")
        writer.Execute(image)
        packed = dcmread(path)
        assert packed.file_meta.TransferSyntaxUID == JPEG2000Lossless
        made.file_meta.TransferSyntaxUID = JPEG2000Lossless
        made.PixelData = packed.PixelData
        made["PixelData"].is_undefined_length = True

    volume = read_image(write_series(tmp_path / "scan", change=compress))
    assert np.array_equal(volume.array, stored_values())
    assert (volume.slope, volume.intercept) == (1, -1024)


def test_a_jpeg_that_is_cut_short_is_refused_and_its_decoder_not_heard(tmp_path, capfd):
    def compress(made: Dataset, k: int, keep: float = 1) -> None:
        path = tmp_path / "plane.dcm"
        writer = SimpleITK.ImageFileWriter()
        writer.SetFileName(str(path))
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG")
        writer.Execute(SimpleITK.GetImageFromArray(made.pixel_array))
        packed = dcmread(path)
        frame = next(generate_frames(packed.PixelData, number_of_frames=1))
        made.file_meta.TransferSyntaxUID = packed.file_meta.TransferSyntaxUID
        made.PixelData = encapsulate([frame[: int(len(frame) * (keep if k == 2 else 1))]])
        made["PixelData"].is_undefined_length = True

    whole = read_image(write_series(tmp_path / "whole", change=compress))
    assert np.array_equal(whole.array, stored_values())
    cut = write_series(tmp_path / "cut", change=lambda made, k: compress(made, k, 0.6))
    with pytest.raises(DataError, match=r"cut/IM\d: cannot be read as DICOM"):
        read_image(cut)
    assert capfd.readouterr() == ("", "")


def test_slopes_that_differ_are_applied(tmp_path):
    def pet(made: Dataset, k: int) -> None:
        made.RescaleSlope, made.RescaleIntercept = 0.5 + k, 0

    volume = read_image(write_series(tmp_path / "scan", change=pet))
    assert volume.array.dtype == np.float32
    assert (volume.slope, volume.intercept) == (1, 0)
    assert np.array_equal(volume.array, stored_values() * (0.5 + np.arange(6)))


def test_the_size_is_told_before_the_pixels_are_read(tmp_path):
    def pet(made: Dataset, k: int) -> None:
        made.RescaleSlope = 0.5 + k

    told: list[tuple[tuple[int, ...], int]] = []
    for name, change in (("ct", None), ("pet", pet)):
        folder = write_series(tmp_path / name, **({"change": change} if change else {}))
        read_image(folder, on_header=lambda grid, size: told.append((grid.shape, size)))
    assert told == [(SHAPE, 2), (SHAPE, 4)], "as stored; values where the slopes differ"


def test_slices_are_sorted_by_place_whatever_their_numbers_say(tmp_path):
    def misnumber(made: Dataset, k: int) -> None:
        made.InstanceNumber = 3
        made.SliceLocation = -k

    folder = write_series(tmp_path / "scan", change=misnumber)
    assert np.array_equal(read_image(folder).array, stored_values())


def test_a_single_slice_takes_its_thickness(tmp_path):
    save(ct_slice(stored_values(), 2), tmp_path / "scan" / "one")
    volume = read_image(tmp_path / "scan")
    assert volume.geometry.shape == (12, 16, 1)
    assert volume.geometry.spacing_mm == pytest.approx((2, 3, 5))
    assert volume.geometry.affine[2, 3] == -290


def test_a_missing_slice_is_named(tmp_path):
    folder = write_series(tmp_path / "scan", leave_out=(3,))
    with pytest.raises(DataError, match="1 slice is missing between them") as caught:
        read_image(folder)
    assert "lie 10 mm apart, most slices 5 mm" in caught.value.message
    folder = write_series(tmp_path / "worse", leave_out=(2, 3))
    with pytest.raises(DataError, match="2 slices are missing between them"):
        read_image(folder)


@pytest.mark.parametrize(
    ("moved", "said"),
    [
        (lambda k: [0, 0, 2 if k == 5 else 0], "most slices 5 mm: the spacing is not constant"),
        (lambda k: [0, 0, 5 * (k // 2 - k)], "lie at one position"),
        (lambda k: ALONG_ROW * 5 * k * np.tan(np.deg2rad(15)), "sheared by 15 degrees (gantry"),
    ],
)
def test_slices_that_do_not_stack_are_refused(tmp_path, moved, said):
    def move(made: Dataset, k: int) -> None:
        made.ImagePositionPatient = [round(n, 6) for n in position(k) + moved(k)]

    assert said in refusal(tmp_path, move)


def test_rounded_positions_are_even_enough(tmp_path):
    def rounded(made: Dataset, k: int) -> None:
        made.ImagePositionPatient[2] = round(ORIGIN[2] + 0.625 * k, 2)

    volume = read_image(write_series(tmp_path / "scan", change=rounded))
    assert volume.geometry.spacing_mm[2] == pytest.approx(0.624)  # (3.12 - 0) / 5


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ImageOrientationPatient", [1, 0, 0, 0, 0, -1], "has another direction than"),
        ("PixelSpacing", [3, 2.5], "has another pixel spacing than"),
        ("NumberOfFrames", 6, "a multi-frame object of 6 frames"),
        ("SamplesPerPixel", 3, "a colour image"),
        ("RescaleSlope", 0, "RescaleSlope is 0"),
        ("RescaleSlope", [1, 2], "RescaleSlope is not 1 number"),
        ("PixelSpacing", None, "has no PixelSpacing"),
        ("ImagePositionPatient", None, "has no ImagePositionPatient"),
        ("ImagePositionPatient", [1, 2], "ImagePositionPatient is not 3 numbers"),
        ("ModalityLUTSequence", [Dataset()], "need a lookup table"),
        ("PixelData", b"\0\1", "claims 192 pixels, which its"),
        ("RescaleSlope", None, "no RescaleSlope, which 5 of 6 slices have"),
        ("RescaleIntercept", None, "no RescaleIntercept, which 5 of 6 slices have"),
        ("RescaleSlope", -1, "a RescaleSlope below 0, where other slices have one above"),
        ("RescaleType", "US", "another RescaleType than the other 5 slices"),
        ("RescaleType", "MGML", "its values are no Hounsfield units"),
        ("Units", "CNTS", "another Units than the other 5 slices"),
        ("FrameOfReferenceUID", "1.2.3", "another FrameOfReferenceUID than the other 5 slices"),
        ("Modality", "MR", "another Modality than the other 5 slices"),
        ("PhotometricInterpretation", "MONOCHROME1", "are inverted (MONOCHROME1)"),
        ("PhotometricInterpretation", "PALETTE COLOR", "a colour image"),
        ("BitsStored", 17, "says 17 of 16 bits up to bit 15"),
        ("BitsStored", 12, "says 12 of 16 bits up to bit 15"),
        ("BitsStored", 0, "says 0 of 16 bits"),
    ],
)
def test_one_odd_slice_is_refused(tmp_path, name, value, said):
    def odd(made: Dataset, k: int) -> None:
        if k == 3:
            setattr(made, name, value)
            if name == "PixelData":
                made.Rows, made.Columns = 4000, 4000

    if name == "PixelData":
        said = "claims 16,000,000 pixels, which its"
    assert said in refusal(tmp_path, odd)


def test_all_slices_without_a_slope_are_named_up_to_five(tmp_path):
    """Names in natural order: slices 1, 2, 3, 4, 5, 0 are called IM2, IM1, IM5, IM0, IM3, IM4."""

    def drop(made: Dataset, k: int) -> None:
        if k:
            del made.RescaleSlope, made.RescaleIntercept

    names = "IM0, IM1, IM2, IM3, IM5"
    message = refusal(tmp_path, drop)
    assert message == (f"{tmp_path / 'scan'}/{names}: no RescaleSlope, which 1 of 6 slices have.")


def test_a_series_without_any_slope_holds_its_stored_values(tmp_path):
    def drop(made: Dataset, k: int) -> None:
        del made.RescaleSlope, made.RescaleIntercept

    volume = read_image(write_series(tmp_path / "scan", change=drop))
    assert (volume.slope, volume.intercept) == (1, 0)
    assert np.array_equal(volume.values(), stored_values())


@pytest.mark.parametrize(("name", "value"), [("BitsStored", 12), ("PixelRepresentation", 1)])
def test_a_slice_stored_in_another_way_has_its_values(tmp_path, name, value):
    """All values are below 2^11, so they are the same numbers signed, unsigned and of 12 bits."""

    def other(made: Dataset, k: int) -> None:
        if k == 3:
            setattr(made, name, value)
            made.HighBit = 11 if name == "BitsStored" else 15

    volume = read_image(write_series(tmp_path / "scan", stored_values() - 900, change=other))
    assert np.array_equal(volume.values(), stored_values() - 900.0 - 1024)


def test_signed_twelve_bit_values_that_fill_twelve_bits_only_keep_their_sign(tmp_path):
    def packed(made: Dataset, k: int) -> None:
        made.BitsStored, made.HighBit, made.PixelRepresentation = 12, 11, 1
        values = np.frombuffer(made.PixelData, np.int16) - 2000
        made.PixelData = (values & 0xFFF).astype(np.uint16).tobytes()

    volume = read_image(write_series(tmp_path / "scan", change=packed))
    assert np.array_equal(volume.array, stored_values().astype(np.int16) - 2000)


def test_a_slice_of_another_size_is_refused(tmp_path):
    folder = write_series(tmp_path / "scan", leave_out=(5,))
    save(ct_slice(stored_values()[:10], 5), folder / "IM9")
    with pytest.raises(DataError, match=r"has another size than"):
        read_image(folder)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0], "no two perpendicular directions"),
        ("ImageOrientationPatient", [0, 0, 0, 0, 0, 0], "no two perpendicular directions"),
        ("PixelSpacing", [0, 2], "no number above 0"),
        ("PixelSpacing", [-3, 2], "no number above 0"),
    ],
)
def test_a_grid_that_is_none_is_refused(tmp_path, name, value, said):
    assert said in refusal(tmp_path, lambda made, k: setattr(made, name, value))


def test_a_damaged_intercept_does_not_pass_for_an_absent_one(tmp_path):
    folder = write_series(tmp_path / "scan")
    content = (folder / "IM4").read_bytes()
    assert content.count(b"-1024") == 1
    (folder / "IM4").write_bytes(content.replace(b"-1024", b"-10x4"))
    with pytest.raises(DataError, match="IM4: its RescaleIntercept is not 1 number"):
        read_image(folder)


def test_a_slice_cut_short_is_named(tmp_path):
    folder = write_series(tmp_path / "scan")
    cut = folder / "IM2"
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(DataError, match="IM2: cannot be read as DICOM"):
        read_image(folder)


def test_a_compressed_slice_that_cannot_be_decoded_is_named(tmp_path):
    def garble(made: Dataset, k: int) -> None:
        made.compress(JPEGLSLossless)
        if k == 4:
            made.PixelData = made.PixelData[:20] + b"\7" * (len(made.PixelData) - 20)

    assert "cannot be read as DICOM" in refusal(tmp_path, garble)


def test_odd_values_cause_no_warning_that_would_quote_them(tmp_path, caplog):
    def odd(made: Dataset, k: int) -> None:
        made.PatientBirthDate = made.ContentDate = "28 May 1942"
        made.SliceThickness = "5.000000000000000000001"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = write_series(tmp_path / "scan", change=odd)
    caplog.clear()
    read_image(folder)  # a warning would be an error here
    assert not caplog.records


@pytest.mark.parametrize("name", ["mask.nii.gz", "mask.nrrd", "mask.mha"])
def test_a_mask_of_a_series_lies_on_it(tmp_path, name):
    folder = write_series(tmp_path / "scan")
    write_contours(folder / "contours")
    scan = read_image(zipped(folder, tmp_path / "scan.zip"))
    values = np.random.default_rng(0).integers(0, 2, SHAPE).astype(np.uint8)
    write_mask(tmp_path / name, values, scan)
    mask = read_image(tmp_path / name)
    assert np.array_equal(mask.array, values)
    assert mask.geometry.corner_distance_voxels(scan.geometry) < 1e-5


def test_a_nifti_mask_of_a_series_says_where_it_lies_twice_and_in_mm(tmp_path):
    scan = read_image(write_series(tmp_path / "scan"))
    write_mask(tmp_path / "mask.nii.gz", np.ones(SHAPE, np.uint8), scan)
    header = nib.load(tmp_path / "mask.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    np.testing.assert_allclose(header.get_sform(), AFFINE, atol=1e-5)
    np.testing.assert_allclose(header.get_qform(), AFFINE, atol=1e-5)
    assert header.get_xyzt_units()[0] == "mm"
