"""What is said of a folder of no known layout."""

from __future__ import annotations

import shlex
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sdseg_cli.cli.app import run_command
from sdseg_cli.core.errors import DataError
from sdseg_cli.data.recognise import find_cases
from tests import dicom_files
from tests.raw_cases import AFFINE, SHAPE
from tests.raw_pictures import touch

LAYOUTS = [
    ("CTs/p{}", "segs/p{}", "CTs/ and segs/ with equal names"),
    ("CTs/p{}_vol", "segs/p{}_seg", "CTs/ and segs/ with like names"),
    ("imagesTr/p{}_0000", "labelsTr/p{}", "imagesTr/ and labelsTr/ without dataset.json"),
    ("imagesTr/p{}", "labelsTr/p{}", "imagesTr/ and labelsTr/ without dataset.json"),
    ("pt_{}/volume", "pt_{}/tumour", "6 volumes"),
    ("pt_{}/CT", "pt_{}/tumour", "no scan has a label map"),
    ("pt_{}/pt_{}_vol", "pt_{}/pt_{}_lesion", "6 volumes"),
    ("pt_{}/scan/v", "pt_{}/gt/v", "6 volumes"),
    ("volume-{}", "segmentation-{}", "6 volumes"),
    ("p{}", "p{}_seg", "6 volumes"),
    ("p{}_ct", "p{}_seg", "3 scans and 3 label maps in one folder"),
    ("A/{}", "B/{}", "A/ and B/ with equal names"),
    ("my scans/it's {}", "my gt/it's {}", "my scans/ and my gt/ with equal names"),
]


def write(root: Path, scans: str, masks: str, ending: str = ".nii.gz") -> None:
    mask = np.zeros(SHAPE, np.uint8)
    mask[5:9, 5:12, 1:4] = 1
    for number in range(1, 4):
        scan = np.random.default_rng(number).integers(-1000, 1000, SHAPE).astype(np.int16)
        for name, array in ((scans, scan), (masks, mask)):
            path = root / f"{name.replace('{}', str(number))}{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, AFFINE), path)


@pytest.mark.parametrize(("scans", "masks", "words"), LAYOUTS)
def test_the_command_that_is_suggested_works(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    scans: str,
    masks: str,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDSEG_HOME", str(tmp_path))
    write(tmp_path / "raw data", scans, masks)
    assert run_command(["prepare", "raw data", "--workers", "1"]) == 2
    error = capsys.readouterr().err
    assert words in error
    command = error.split("This fits: sdseg ")[1].split(". Known layouts:")[0].strip()
    typed = shlex.split(command.removesuffix("."))
    assert run_command([*typed, "--name", "set", "--workers", "1", "--quiet"]) == 0
    assert (tmp_path / "prepared/set/manifest.json").is_file()


def refused(root: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        find_cases(root)
    return caught.value


def test_pictures_are_paired_too(tmp_path: Path) -> None:
    touch(tmp_path, *(f"photos/{n}.jpg" for n in range(3)), *(f"gts/{n}.png" for n in range(3)))
    error = refused(tmp_path)
    assert error.message.endswith("it holds photos/ and gts/ with like names, 6 pictures.")
    assert "--image-glob 'photos/*.jpg' --label-glob 'gts/*.png'. Known layouts: btcv" in error.hint


def test_dicom_is_named_and_what_becomes_of_it(tmp_path: Path) -> None:
    dicom_files.write_series(tmp_path / "patient/ct")
    count = len(list((tmp_path / "patient/ct").iterdir()))
    error = refused(tmp_path)
    assert error.message.endswith(f"it holds {count} DICOM files.")
    assert error.hint.startswith("DICOM is read by predict, not as training data: convert")
    assert "Known layouts: btcv" in error.hint


def test_scans_alone_are_counted_and_nothing_is_suggested(tmp_path: Path) -> None:
    write(tmp_path, "scans/{}", "scans/other_{}")
    for path in tmp_path.glob("scans/other*"):
        path.unlink()
    error = refused(tmp_path)
    assert error.message.endswith("it holds 3 volumes.")
    assert error.hint.startswith("Use --image-glob and --label-glob. Known layouts: btcv")


def test_a_scan_without_a_mask_suggests_no_pattern_that_would_be_refused(tmp_path: Path) -> None:
    write(tmp_path, "CTs/{}", "segs/{}")
    (tmp_path / "segs/2.nii.gz").unlink()
    assert "This fits" not in refused(tmp_path).hint


def test_hidden_files_and_loops_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "CTs/{}", "segs/{}")
    (tmp_path / "CTs/._1.nii.gz").write_bytes(b"")
    (tmp_path / "CTs/again").symlink_to(tmp_path)
    assert "CTs/ and segs/ with equal names, 6 volumes" in refused(tmp_path).message
