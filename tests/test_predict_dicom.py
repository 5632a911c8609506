"""From a DICOM series to a mask, through the door; and nobody is named on the way."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from pydicom import Dataset, dcmread

from sdseg_cli.cli import run_command
from sdseg_cli.errors import ConfigError
from sdseg_cli.imaging.files import read_image, write_mask
from sdseg_cli.predict import Predictor, predict_file
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


@pytest.fixture(scope="module")
def predictor(tiny_run: Workspace) -> Predictor:
    """With a last layer that answers loudly: four steps of training predict next to nothing."""
    made = Predictor(tiny_run.run.path, device="cpu")
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(made.model.unet.out[2].weight, std=0.3, generator=generator)
    return made


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    folder = write_series(tmp_path / "scan")
    write_contours(folder / "contours")
    return folder


@pytest.fixture
def run_home(tiny_run: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("SDSEG_HOME", str(tiny_run.root))
    (tmp_path / "out").mkdir()
    return tmp_path


def test_a_series_and_its_nifti_give_one_mask(predictor: Predictor, tmp_path: Path) -> None:
    stored = stored_values()[:, :, :2]
    scan = write_series(tmp_path / "scan", stored)
    hu = stored.astype(np.float32) - 1024
    nib.save(nib.Nifti1Image(hu, AFFINE), tmp_path / "scan.nii")
    predict_file(tmp_path / "scan.nii", tmp_path / "wanted.nii.gz", predictor, seed=3)
    wanted = read_image(tmp_path / "wanted.nii.gz")
    assert 0 < wanted.array.mean() < 1
    archive = zipped(scan, tmp_path / "scan.zip")
    predict_file(archive, tmp_path / "mask.nrrd", predictor, seed=3)
    mask = read_image(tmp_path / "mask.nrrd")
    assert np.array_equal(mask.array, wanted.array)
    assert mask.geometry.same_grid(wanted.geometry, 1e-5)
    if not HAS_HIGHDICOM:
        pytest.skip("the extra dicom-seg is not installed")
    report = predict_file(scan / "IM1", tmp_path / "mask.dcm", predictor, seed=3)
    seg = seg_as_volume(dcmread(tmp_path / "mask.dcm"))
    assert np.array_equal(seg, wanted.array)
    assert report.foreground_voxels == seg.sum()


def test_no_slice_of_the_scan_is_overwritten(predictor: Predictor, tmp_path: Path) -> None:
    folder = write_series(tmp_path / "scan")
    (folder / "IM1").rename(folder / "IM1.dcm")
    before = (folder / "IM1.dcm").read_bytes()
    for source in (folder, folder / "IM2", folder / "IM1.dcm"):
        with pytest.raises(ConfigError, match=r"is (a slice of )?the scan itself"):
            predict_file(source, folder / "IM1.dcm", predictor)
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
    archive = zipped(named.parents[0], run_home / "in" / "scan.zip")
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
    import SimpleITK

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
