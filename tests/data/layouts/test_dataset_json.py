"""The reader of dataset.json; splits are read as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sdseg_cli.core.errors import ConfigError, DataError
from sdseg_cli.core.findings import Finding
from sdseg_cli.data.layouts.nnunet import describe
from sdseg_cli.data.recognise import find_cases
from sdseg_cli.data.split import read_split
from sdseg_cli.data.unexpected_files import check_set
from tests.archives import scan, tooth, write_decathlon, write_nifti, write_nnunet
from tests.json_cases import CODINGS
from tests.raw_pictures import save_pair


@pytest.mark.parametrize("coding", CODINGS)
def test_descriptions_and_splits_may_begin_with_a_mark(tmp_path: Path, coding: str) -> None:
    write_nnunet(tmp_path / "set")
    file = tmp_path / "set/dataset.json"
    file.write_text(file.read_text(), encoding=coding)
    assert len(find_cases(tmp_path / "set")[1]) == 4
    ids = ["a", "b", "c"]
    (tmp_path / "s.json").write_text(json.dumps({"train": ids[:2], "val": ["c"]}), encoding=coding)
    assert read_split(tmp_path / "s.json", ids, 0).ids("train") == ["a", "b"]
    for name, text in (("train", "a\nb\n"), ("val", "images\\c.nii.gz\n")):
        (tmp_path / f"{name}.txt").write_text(text, encoding=coding)
    assert read_split(tmp_path, ids, 0).of == {"a": "train", "b": "train", "c": "val"}


@pytest.mark.parametrize("lists", [{"train": [True, "b"]}, {"train": "ab"}, {"train": {"a": 1}}])
def test_a_list_that_is_none_is_named(tmp_path: Path, lists: dict) -> None:
    (tmp_path / "s.json").write_text(json.dumps(lists))
    with pytest.raises(ConfigError, match="train is not a list of case ids"):
        read_split(tmp_path / "s.json", ["a", "b"], 0)


@pytest.mark.parametrize("start", ["", "./", ".\\", ".//", ".\\.\\"])
@pytest.mark.parametrize("slash", ["/", "\\"])
def test_listed_paths_may_be_windows(tmp_path: Path, start: str, slash: str) -> None:
    names = [f"la_{n:03d}.nii.gz" for n in range(1, 5)]
    listed = [
        {"image": f"{start}imagesTr{slash}{name}", "label": f"{start}labelsTr{slash}{name}"}
        for name in names
    ]
    cases = find_cases(write_decathlon(tmp_path, training=listed))[1]
    assert [case.image.name for case in cases] == names
    assert all(case.image.is_file() and case.label for case in cases)


@pytest.mark.parametrize(
    "path",
    ["..\\x.nii", "C:\\x.nii", "C:x.nii", "\\\\host\\x.nii"],
)
def test_a_listed_path_that_leaves_the_folder_is_refused(tmp_path: Path, path: str) -> None:
    write_decathlon(tmp_path, training=[{"image": path, "label": "labelsTr/la_001.nii.gz"}])
    with pytest.raises(DataError, match="leaves the data set's folder"):
        find_cases(tmp_path)


@pytest.mark.parametrize("path", ["a\0b", "\ud800.nii", "", ".", "x" * 300, "x/" * 999])
def test_a_listed_path_that_is_none_is_named(tmp_path: Path, path: str) -> None:
    write_decathlon(tmp_path, training=[{"image": "imagesTr/la_001.nii.gz", "label": path}])
    with pytest.raises(DataError, match="is no path of a file"):
        find_cases(tmp_path)


def test_a_listed_folder_that_is_not_there_is_no_crash(tmp_path: Path) -> None:
    write_decathlon(tmp_path, training=[{"image": "gone/a.nii.gz", "label": "gone/a.nii.gz"}])
    assert ("scan-missing", "a") not in found(tmp_path)
    assert find_cases(tmp_path)[1][0].label is None


@pytest.mark.parametrize(
    "said",
    [
        {"labels": {"a": 1.5}},
        {"labels": {"a": True}},
        {"labels": {"a": -1}},
        {"labels": {"a": 70000}},
        {"labels": {"a": [[1]]}},
        {"labels": [1]},
        {"channel_names": {"0": None}},
        {"channel_names": 7},
        {"file_ending": 7},
        {"training": [{"image": ["a"], "label": "b"}]},
        {"training": ["a"]},
    ],
)
def test_values_of_another_kind_are_named(tmp_path: Path, said: dict) -> None:
    write_nnunet(tmp_path, **said)
    with pytest.raises(DataError, match="not in the form of nnU-Net or Decathlon"):
        describe(tmp_path)


def test_forms_that_mean_the_same_are_read(tmp_path: Path) -> None:
    write_nnunet(tmp_path, channel_names="CT", labels={"a": "1", "b": 2.0}, file_ending="nii.gz")
    said = describe(tmp_path)
    assert (said.channels, said.labels, said.file_ending) == (("CT",), (1, 2), ".nii.gz")


def test_the_three_colours_of_a_picture_are_one_file(tmp_path: Path) -> None:
    for number in range(3):
        save_pair(
            tmp_path / f"imagesTr/x{number}_0000.png", tmp_path / f"labelsTr/x{number}.png", number
        )
    said = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, "polyp": 255},
        "file_ending": ".png",
    }
    (tmp_path / "dataset.json").write_text(json.dumps(said))
    assert [case.id for case in find_cases(tmp_path)[1]] == ["x0", "x1", "x2"]
    (tmp_path / "imagesTr/x0_0001.png").write_bytes(b"")
    with pytest.raises(DataError, match="several channels"):
        find_cases(tmp_path)


def found(root: Path) -> list[tuple[str, str]]:
    spec, cases = find_cases(root)
    return [(one.code, one.case) for one in check_set(root, spec, cases)]


def test_a_pair_of_another_ending_is_read_and_said(tmp_path: Path) -> None:
    write_nnunet(tmp_path)
    assert found(tmp_path) == []
    for folder, name in (("imagesTr", "case_002_0000"), ("labelsTr", "case_002")):
        (tmp_path / folder / f"{name}.nii.gz").unlink()
    write_nifti(tmp_path / "imagesTr/case_002_0000.nii", scan(2))
    write_nifti(tmp_path / "labelsTr/case_002.nii", tooth())
    assert len(find_cases(tmp_path)[1]) == 4
    assert found(tmp_path) == [("file-ending", "case_002")]


def test_endings_in_capitals_are_the_same(tmp_path: Path) -> None:
    write_nnunet(tmp_path)
    for path in list(tmp_path.glob("*Tr/*3*")):
        path.rename(path.with_name(path.name.replace(".nii.gz", ".NII.GZ")))
    assert len(find_cases(tmp_path)[1]) == 4
    assert found(tmp_path) == []


def test_another_number_of_cases_than_said_is_a_warning(tmp_path: Path) -> None:
    write_nnunet(tmp_path, numTraining=6)
    assert found(tmp_path) == [("cases-count", "*")]


@pytest.mark.parametrize(
    ("said", "count"), [("6", 6), (6.0, 6), (6, 6), ("six", None), ([], None), (True, None)]
)
def test_the_number_of_cases_may_be_a_text(tmp_path: Path, said: object, count: int | None) -> None:
    assert describe(write_nnunet(tmp_path, numTraining=said)).cases == count


def test_a_listed_file_of_another_ending_is_read_and_said(tmp_path: Path) -> None:
    write_decathlon(tmp_path)
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder / "la_003.nii.gz").rename(tmp_path / folder / "la_003.NII.GZ")
    assert len(find_cases(tmp_path)[1]) == 4
    assert found(tmp_path) == [("file-ending", "la_003")]


def test_scans_beside_decathlons_list_are_named(tmp_path: Path) -> None:
    names = [f"la_{n:03d}.nii.gz" for n in (1, 2, 3)]
    listed = [{"image": f"imagesTr/{n}", "label": f"labelsTr/{n}"} for n in names]
    write_decathlon(tmp_path, training=listed)  # numTraining is 4
    assert found(tmp_path) == [
        ("label-without-image", "labelsTr/la_004.nii.gz"),
        ("scan-not-used", "imagesTr/la_004.nii.gz"),
        ("cases-count", "*"),
    ]


def test_the_list_of_version_1_is_compared_too(tmp_path: Path) -> None:
    names = [f"case_{n:03d}.nii.gz" for n in (1, 2, 3, 9)]
    listed = [{"image": f"./imagesTr/{n}", "label": f"./labelsTr/{n}"} for n in names]
    write_nnunet(tmp_path, training=listed)
    assert found(tmp_path) == [("scan-missing", "case_009"), ("scan-not-listed", "case_004")]


def test_findings_are_findings(tmp_path: Path) -> None:
    spec, cases = find_cases(write_nnunet(tmp_path, numTraining=1))
    (one,) = check_set(tmp_path, spec, cases)
    assert one == Finding(
        "cases-count",
        "warning",
        "*",
        "dataset.json says numTraining 1, 4 here",
        "Look for files that are missing, not listed or called otherwise; else correct it.",
    )
