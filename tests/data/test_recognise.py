"""Which adapter fits."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdseg_cli.core.errors import ConfigError, DataError
from sdseg_cli.data.recognise import find_cases


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
