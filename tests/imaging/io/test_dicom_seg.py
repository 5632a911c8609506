"""A DICOM SEG, read back with pydicom: the mask, its frames' places, and whose it is."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from sdseg_cli import __version__
from sdseg_cli.core.errors import ConfigError, DataError
from sdseg_cli.imaging.io.dicom_seg import check_references
from sdseg_cli.imaging.io.files import check_mask_writable, check_writable, read_image, write_mask
from tests.dicom_files import (
    ALONG_COLUMN,
    ALONG_ROW,
    FRAME_UID,
    SECRETS,
    SERIES_UID,
    SHAPE,
    STUDY_UID,
    seg_as_volume,
    write_series,
    zipped,
)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("highdicom") is None, reason="the extra dicom-seg is not installed"
)


def a_mask() -> np.ndarray:
    """Noise on slices 1 to 4; 0 and 5 are empty."""
    mask = np.random.default_rng(3).integers(0, 2, SHAPE).astype(np.uint8)
    mask[:, :, [0, 5]] = 0
    return mask


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("seg")
    scan = read_image(write_series(folder / "scan"))
    write_mask(folder / "mask.dcm", a_mask(), scan)
    return dcmread(folder / "mask.dcm")


@pytest.mark.slow
def test_every_voxel_of_the_mask_comes_back_where_it_was(written):
    assert np.array_equal(seg_as_volume(written), a_mask())


def test_empty_frames_are_left_out_unless_all_are_empty(written, tmp_path):
    assert written.NumberOfFrames == 4
    scan = read_image(write_series(tmp_path / "scan"))
    write_mask(tmp_path / "empty.dcm", np.zeros(SHAPE, np.uint8), scan)
    empty = dcmread(tmp_path / "empty.dcm")
    assert empty.NumberOfFrames == 6
    assert not empty.pixel_array.any()


def test_its_grid_is_that_of_the_series(written):
    shared = written.SharedFunctionalGroupsSequence[0]
    orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    assert np.allclose(orientation, [*ALONG_ROW, *ALONG_COLUMN])
    measures = shared.PixelMeasuresSequence[0]
    assert list(measures.PixelSpacing) == [3, 2]
    assert measures.SpacingBetweenSlices == 5
    assert written.FrameOfReferenceUID == FRAME_UID


def test_it_is_a_binary_segment_by_us(written):
    assert (written.Modality, written.SegmentationType) == ("SEG", "BINARY")
    (segment,) = written.SegmentSequence
    assert segment.SegmentAlgorithmType == "AUTOMATIC"
    assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Anatomical Structure"
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    algorithm = segment.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("sdseg", __version__)


def test_it_belongs_to_the_patient_and_the_series(written):
    for name in ("PatientName", "PatientID", "PatientBirthDate"):
        assert written[name].value == SECRETS[name]
    assert written.StudyInstanceUID == STUDY_UID
    (series,) = written.ReferencedSeriesSequence
    assert series.SeriesInstanceUID == SERIES_UID
    assert len(series.ReferencedInstanceSequence) == 6
    assert written.SeriesInstanceUID != SERIES_UID


def test_a_zip_is_opened_again_for_it(tmp_path, written):
    scan = read_image(zipped(write_series(tmp_path / "scan"), tmp_path / "scan.zip"))
    write_mask(tmp_path / "mask.dcm", a_mask(), scan)
    assert np.array_equal(dcmread(tmp_path / "mask.dcm").pixel_array, written.pixel_array)


def test_dciodvfy_finds_no_error(tmp_path):
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")
    scan = read_image(write_series(tmp_path / "scan"))
    write_mask(tmp_path / "mask.dcm", a_mask(), scan)
    run = subprocess.run(
        ["dciodvfy", tmp_path / "mask.dcm"], capture_output=True, text=True, timeout=60, check=False
    )
    assert not [line for line in run.stderr.splitlines() if line.startswith("Error")]
    assert run.stderr.splitlines()[-1] == "Segmentation"


def test_other_scans_cannot_have_one(tmp_path):
    (tmp_path / "scan.nii.gz").touch()
    for scan in (None, tmp_path / "scan.nii.gz"):
        with pytest.raises(DataError, match="refers to the DICOM series it was made from"):
            check_writable(tmp_path / "mask.dcm", scan)


def test_without_highdicom_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("sdseg_cli.imaging.io.dicom_seg.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package highdicom") as caught:
        check_writable(tmp_path / "mask.dcm", write_series(tmp_path / "scan"))
    assert "pip install 'sdseg-cli[dicom-seg]'" in caught.value.hint


def test_a_series_without_identifiers_is_refused_before_the_work(tmp_path):
    def blank(made: Dataset, k: int) -> None:
        made.StudyInstanceUID = ""

    scan = read_image(write_series(tmp_path / "scan", change=blank))
    check_mask_writable(tmp_path / "mask.nii.gz", scan)
    for refuse in (
        lambda: check_mask_writable(tmp_path / "mask.dcm", scan),
        lambda: check_references(scan),
        lambda: write_mask(tmp_path / "mask.dcm", a_mask(), scan),
    ):
        with pytest.raises(DataError, match="its files have no StudyInstanceUID"):
            refuse()
    assert not (tmp_path / "mask.dcm").exists()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        *(
            (name, None, f"its files have no {name}, which a DICOM SEG has to repeat")
            for name in (
                "PatientID",
                "PatientName",
                "PatientBirthDate",
                "PatientSex",
                "StudyID",
                "StudyDate",
                "StudyTime",
                "AccessionNumber",
            )
        ),
        *(
            (name, blank, f"its files have no {name} for a DICOM SEG to refer to")
            for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality")
            for blank in ("", None)
        ),
        ("PatientSex", "Zaphod", "its headers lack or misspell what a DICOM SEG has to repeat"),
        ("PatientBirthDate", "28 May 1942", "lack or misspell what a DICOM SEG has to repeat"),
    ],
)
def test_what_a_series_lacks_is_named_before_the_work(tmp_path, name, value, said):
    def odd(made: Dataset, k: int) -> None:
        if value is None:
            del made[name]
        else:
            setattr(made, name, value)

    scan = read_image(write_series(tmp_path / "scan", change=odd))
    check_mask_writable(tmp_path / "mask.nii.gz", scan)
    with pytest.raises(DataError) as caught:
        check_mask_writable(tmp_path / "mask.dcm", scan)
    assert said in caught.value.message
    assert not any(secret in str(caught.value) for secret in (*SECRETS.values(), "28 May"))


@pytest.mark.parametrize("name", ["StudyInstanceUID", "FrameOfReferenceUID", "PatientID"])
def test_slices_of_several_patients_or_frames_get_no_seg(tmp_path, name):
    def odd(made: Dataset, k: int) -> None:
        setattr(made, name, f"1.2.3.{k}")

    scan = read_image(write_series(tmp_path / "scan", change=odd))
    with pytest.raises(DataError, match=f"its files have several {name}"):
        check_mask_writable(tmp_path / "mask.dcm", scan)


@pytest.mark.parametrize(
    "name", ["PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate"]
)
def test_what_is_there_and_empty_is_repeated_empty(tmp_path, name):
    folder = write_series(tmp_path / "scan", change=lambda made, k: setattr(made, name, ""))
    scan = read_image(folder)
    check_mask_writable(tmp_path / "mask.dcm", scan)
    write_mask(tmp_path / "mask.dcm", a_mask(), scan)
    assert np.array_equal(seg_as_volume(dcmread(tmp_path / "mask.dcm")), a_mask())


def test_a_series_that_vanished_is_told(tmp_path):
    scan = read_image(write_series(tmp_path / "scan"))
    shutil.rmtree(tmp_path / "scan")
    (tmp_path / "scan").mkdir()
    with pytest.raises(DataError, match=r"scan: (the series changed or vanished|.* has none)"):
        write_mask(tmp_path / "mask.dcm", a_mask(), scan)
    assert not list(tmp_path.glob("*mask*"))
