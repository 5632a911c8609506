"""Which adapter fits."""

from __future__ import annotations

import shlex
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sdseg_cli.cli.app import run_command
from sdseg_cli.core.errors import ConfigError, DataError
from sdseg_cli.data.recognise import find_cases
from tests import dicom_files
from tests.raw_cases import AFFINE, SHAPE
from tests.raw_pictures import touch


def make_btcv(root: Path) -> None:
    for name in ("img/img0001.nii.gz", "label/label0001.nii.gz"):
        (root / name).parent.mkdir(parents=True)
        (root / name).touch()


def test_a_plain_layout_is_recognised(tmp_path: Path) -> None:
    make_btcv(tmp_path / "a")
    for name in ("images/x.nii.gz", "labels/x.nii.gz"):
        (tmp_path / "b" / name).parent.mkdir(parents=True)
        (tmp_path / "b" / name).touch()
    assert find_cases(tmp_path / "a")[0].name == "btcv"
    assert find_cases(tmp_path / "b")[0].name == "folder"
    assert find_cases(tmp_path / "a", "btcv8")[0].name == "btcv8"


def test_patterns_mean_folder_unless_an_adapter_is_named(tmp_path: Path) -> None:
    make_btcv(tmp_path)
    patterns = ("img/img*.nii.gz", "label/label*.nii.gz")
    assert find_cases(tmp_path, None, *patterns)[0].name == "folder"
    assert find_cases(tmp_path, "btcv", *patterns)[0].name == "btcv"


def test_a_folder_two_adapters_fit_is_refused(tmp_path: Path) -> None:
    make_btcv(tmp_path)
    (tmp_path / "pt_1").mkdir()
    (tmp_path / "pt_1/image.nii.gz").touch()
    with pytest.raises(DataError, match="looks like btcv, folder") as caught:
        find_cases(tmp_path)
    assert "--dataset" in caught.value.hint


def test_an_unknown_adapter_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="btvc") as caught:
        find_cases(tmp_path, "btvc")
    assert "Did you mean btcv?" in caught.value.hint


def test_one_pattern_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="go together"):
        find_cases(tmp_path, None, "*/image.nii.gz", None)


@pytest.mark.parametrize("dataset", [None, "btcv", "folder"])
def test_folders_without_cases_are_refused_with_the_layout(
    tmp_path: Path, dataset: str | None
) -> None:
    with pytest.raises(DataError, match="no cases") as caught:
        find_cases(tmp_path, dataset)
    assert "label" in caught.value.hint


def test_a_missing_folder_or_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file"):
        find_cases(tmp_path / "file")
    with pytest.raises(DataError, match="does not exist"):
        find_cases(tmp_path / "nothing")


def test_a_folder_of_several_data_sets_is_refused_by_name(tmp_path: Path) -> None:
    for name in ("polyps/images/a.png", "polyps/masks/a.png", "scans/pt_1/image.nii.gz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(DataError, match="holds several data sets: polyps, scans"):
        find_cases(tmp_path)


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
