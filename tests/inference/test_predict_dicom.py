"""From a DICOM series to a mask by the command; no output names the patient."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from pydicom import Dataset, dcmread

from sdseg_cli.cli.app import run_command
from sdseg_cli.core.errors import ConfigError
from sdseg_cli.evaluation.folders import FolderOptions, evaluate_folders
from sdseg_cli.imaging.io.files import read_image, read_labels, write_mask
from sdseg_cli.imaging.volume import Volume
from sdseg_cli.inference.options import OutputPaths, PredictOptions
from sdseg_cli.inference.predict import predict_file
from sdseg_cli.inference.predictor import Predictor
from tests.conftest import Workspace
from tests.dicom_files import (
    AFFINE,
    SECRETS,
    ct_slice,
    save,
    seg_as_volume,
    stored_values,
    write_contours,
    write_series,
    zipped,
)

HAS_HIGHDICOM = importlib.util.find_spec("highdicom") is not None


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    folder = write_series(tmp_path / "scan")
    write_contours(folder / "contours")
    return folder


@pytest.fixture
def run_home(
    tiny_run: Workspace, predictor: Predictor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Path:
    """A folder with an empty `out`; the run is loaded already, once for all tests."""
    monkeypatch.setattr("sdseg_cli.inference.predictor.Predictor", lambda *_, **__: predictor)
    monkeypatch.setenv("SDSEG_HOME", str(tiny_run.root))
    (tmp_path / "out").mkdir()
    return tmp_path


@pytest.mark.slow
def test_a_series_and_its_nifti_give_one_mask(predictor: Predictor, tmp_path: Path) -> None:
    stored = stored_values()[:, :, :2]
    scan = write_series(tmp_path / "scan", stored)
    hu = stored.astype(np.float32) - 1024
    nib.save(nib.Nifti1Image(hu, AFFINE), tmp_path / "scan.nii")
    predict_file(
        tmp_path / "scan.nii",
        OutputPaths(tmp_path / "wanted.nii.gz"),
        predictor,
        PredictOptions(seed=3),
    )
    wanted = read_image(tmp_path / "wanted.nii.gz")
    assert 0 < wanted.array.mean() < 1
    archive = zipped(scan, tmp_path / "scan.zip")
    predict_file(archive, OutputPaths(tmp_path / "mask.nrrd"), predictor, PredictOptions(seed=3))
    mask = read_image(tmp_path / "mask.nrrd")
    assert np.array_equal(mask.array, wanted.array)
    assert mask.geometry.same_grid(wanted.geometry, 1e-5)
    if not HAS_HIGHDICOM:
        pytest.skip("the extra dicom-seg is not installed")
    report = predict_file(
        scan / "IM1", OutputPaths(tmp_path / "mask.dcm"), predictor, PredictOptions(seed=3)
    )
    seg = seg_as_volume(dcmread(tmp_path / "mask.dcm"))
    assert np.array_equal(seg, wanted.array)
    assert report.foreground_voxels == seg.sum()


def test_no_slice_of_the_scan_is_overwritten(predictor: Predictor, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "scan")
    (folder / "IM1").rename(folder / "IM1.dcm")
    before = (folder / "IM1.dcm").read_bytes()
    for source in (folder, folder / "IM2", folder / "IM1.dcm"):
        with pytest.raises(ConfigError, match=r"is (a slice of )?the scan itself"):
            predict_file(source, OutputPaths(folder / "IM1.dcm"), predictor)
    assert (folder / "IM1.dcm").read_bytes() == before


def test_series_is_chosen_by_an_option(
    run_home: Path, scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_series(scan / "b", stored_values()[:, :, :2], series_uid="1.3.200")
    mask = run_home / "out" / "m.nii.gz"
    assert run_command(["predict", str(scan), "-o", str(mask)]) == 2
    shown = capsys.readouterr().err
    assert "holds 2 image series" in shown
    assert "Hint: Choose with --series: 1 = (UID ...100)" in shown
    assert not mask.exists()
    assert run_command(["predict", str(scan), "-o", str(mask), "--series", "200", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["slices"] == 2
    assert nib.load(mask).shape == (12, 16, 2)


def test_a_seg_of_another_kind_of_scan_is_refused_before_torch(
    run_home: Path, tiny_run: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = run_home / "out" / "m.dcm"
    assert run_command(["predict", str(tiny_run.scan), "-o", str(mask)]) == 2
    assert "a DICOM SEG refers to the DICOM series" in capsys.readouterr().err
    assert not mask.exists()


def _spread(made: Dataset, k: int) -> None:
    made.ImagePositionPatient[2] += 2 * (k == 5)


def _cut(folder: Path) -> None:
    file = folder / "IM3"
    file.write_bytes(file.read_bytes()[:-50])


def _nonsense(made: Dataset, k: int) -> None:
    made.RescaleSlope = "9" * 20
    made.PixelSpacing = [2, 2, 2]


@pytest.mark.slow
def test_no_patient_is_named_outside_a_dicom_object(
    run_home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Names, ids and birth dates, in files, file names, JSON, tables and errors."""
    scan = write_series(run_home / "in" / "scan", stored_values()[:, :, :2])
    write_series(run_home / "in" / "two" / "a")
    write_series(run_home / "in" / "two" / "b", series_uid="1.2.3")
    write_series(run_home / "in" / "gap", leave_out=(2,))
    write_series(run_home / "in" / "uneven", change=_spread)
    write_series(run_home / "in" / "nonsense", change=_nonsense)
    _cut(write_series(run_home / "in" / "cut"))
    write_contours(run_home / "in" / "contours" / "one")
    named = write_series(run_home / "in" / "Zaphod^Beeblebrox" / "ID-4711-0815")
    (named / "broken.dcm").write_bytes(b"nothing")
    archive = zipped(named.parents[1], run_home / "in" / "scan.zip")
    out = run_home / "out"
    good = [
        ["predict", str(scan), "-o", str(out / "a.nii.gz"), "--prob", str(out / "p.nii.gz")],
        ["predict", str(scan), "-o", str(out / "a.nrrd"), "--prob", str(out / "p.mha"), "--json"],
        ["predict", str(scan / "IM1"), "-o", str(out / "a.mha"), "--json", "--debug"],
    ]
    bad = ["two", "gap", "uneven", "nonsense", "cut", "contours", "scan.zip"]
    for arguments in good:
        assert run_command(arguments) == 0
    for name in bad:
        source = str(run_home / "in" / name)
        assert run_command(["predict", source, "-o", str(out / "x.nii.gz"), "--debug"]) == 2, name
    assert archive.is_file()
    shown = capfd.readouterr()
    assert sum(line.startswith("Error: ") for line in shown.err.splitlines()) == len(bad)
    written = {path.name: path.read_bytes() for path in out.iterdir()}
    assert sorted(written) == ["a.mha", "a.nii.gz", "a.nrrd", "p.mha", "p.nii.gz"]
    for secret in (*SECRETS.values(), "Zaphod", "4711"):
        assert secret not in shown.out + shown.err
        assert not [name for name, content in written.items() if secret.encode() in content]
    header = nib.load(out / "a.nii.gz").header
    assert not any(
        header[text].item() for text in ("descrip", "aux_file", "db_name", "intent_name")
    )


def test_free_texts_of_a_scan_do_not_reach_its_mask(tmp_path: Path) -> None:
    """Converters write names into descrip, and NRRD keeps whatever keys a tool invents."""
    image = nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.eye(4))
    for text in ("descrip", "aux_file", "db_name", "data_type", "intent_name"):
        image.header[text] = b"Zaphod"
    nib.save(image, tmp_path / "scan.nii")
    nrrd = SimpleITK.GetImageFromArray(np.zeros((5, 4, 3), np.int16))
    nrrd.SetMetaData("PatientName", "Zaphod")
    SimpleITK.WriteImage(nrrd, str(tmp_path / "scan.nrrd"))
    assert b"Zaphod" in (tmp_path / "scan.nrrd").read_bytes()
    for name in ("scan.nii", "scan.nrrd"):
        scan = read_image(tmp_path / name)
        for suffix in (".nii", ".nrrd", ".mha"):
            write_mask(tmp_path / f"mask{suffix}", np.zeros((3, 4, 5), np.uint8), scan)
            assert b"Zaphod" not in (tmp_path / f"mask{suffix}").read_bytes(), (name, suffix)


def test_a_series_saved_as_one_multi_frame_file_is_refused(
    run_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = ct_slice(stored_values(), 0)
    made.NumberOfFrames = 6
    made.PixelData = stored_values().transpose(2, 1, 0).tobytes()
    file = save(made, run_home / "enhanced.dcm")
    assert run_command(["predict", str(file), "-o", str(run_home / "m.nii.gz")]) == 2
    assert "a multi-frame object of 6 frames" in capsys.readouterr().err


def _middle(volume: Volume, path: Path) -> Path:
    """Slices 20 to 22 of a scan as a file of the kind its name says."""
    part = slice(20, 23)
    affine = volume.geometry.affine.copy()
    affine[:, 3] = affine @ [0, 0, part.start, 1]
    values = volume.values(volume.array[:, :, part])
    nib.save(nib.Nifti1Image(values, affine), path.with_suffix(".nii"))
    if path.suffix == ".nrrd":
        SimpleITK.WriteImage(SimpleITK.ReadImage(str(path.with_suffix(".nii"))), str(path))
    return path


@pytest.mark.slow
@pytest.mark.data
def test_a_real_series_and_its_nifti_are_one_scan_with_one_mask(
    predictor: Predictor, real_data: Path, tmp_path: Path
) -> None:
    series = read_image(real_data / "ibsi-sts-ct/STS_002_dicom")  # 48 slices and an RTSTRUCT
    nifti = read_image(real_data / "ibsi-sts-ct/STS_002/CT_image.nii.gz")
    assert np.array_equal(series.values(), nifti.values())
    assert series.geometry.same_grid(nifti.geometry, 1e-3)
    (tmp_path / "part").mkdir()
    for file in series.header.files[20:23]:
        shutil.copy(series.source / file, tmp_path / "part")
    nifti_part = _middle(nifti, tmp_path / "part.nii")
    predict_file(tmp_path / "part", OutputPaths(tmp_path / "a.nii.gz"), predictor)
    predict_file(nifti_part, OutputPaths(tmp_path / "b.nii.gz"), predictor)
    one, other = read_image(tmp_path / "a.nii.gz"), read_image(tmp_path / "b.nii.gz")
    assert 0 < one.array.mean() < 1
    assert np.array_equal(one.array, other.array)
    assert one.geometry.same_grid(other.geometry, 1e-3)


@pytest.mark.slow
@pytest.mark.data
def test_a_real_las_reference_scores_a_mask_on_its_lps_series(
    real_data: Path, tmp_path: Path
) -> None:
    folder = real_data / "totalsegmentator-tests/dicom_ct"
    scan = read_image(folder / "dicom")  # JPEG 2000, identifiers blanked
    labels = read_labels(folder / "seg_v2_117classes.nii.gz")
    assert (scan.geometry.axis_codes, labels.geometry.axis_codes) == ("LPS", "LAS")
    # By hand: LAS -> LPS is the y axis the other way round, and nothing else.
    liver = (labels.array[:, ::-1, :] == 5).astype(np.uint8)
    assert 50 < scan.values()[liver > 0].mean() < 150  # HU of an enhanced liver: it lies on it
    write_mask(tmp_path / "pred" / "ct.nii.gz", liver, scan)
    (tmp_path / "ref").mkdir()
    shutil.copy(labels.source, tmp_path / "ref" / "ct.nii.gz")
    report = evaluate_folders(
        tmp_path / "pred", tmp_path / "ref", reading=FolderOptions(target=(5,))
    )
    assert report.to_json()["metrics"]["dice"]["mean"] == 1


@pytest.mark.slow
@pytest.mark.data
def test_a_real_nrrd_predicts_to_nrrd_and_nifti_alike(
    predictor: Predictor, real_data: Path, tmp_path: Path
) -> None:
    scan = _middle(
        read_image(real_data / "pyradiomics-lung1/lung1_image.nrrd"), tmp_path / "s.nrrd"
    )
    predict_file(scan, OutputPaths(tmp_path / "m.nrrd"), predictor)
    predict_file(scan, OutputPaths(tmp_path / "m.nii.gz"), predictor)
    nrrd, nifti = read_image(tmp_path / "m.nrrd"), read_image(tmp_path / "m.nii.gz")
    assert 0 < nrrd.array.mean() < 1
    assert np.array_equal(nrrd.array, nifti.array)
    assert nrrd.geometry.same_grid(nifti.geometry, 1e-3)
