"""Files beside the cases."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdseg_cli.data import recognise
from sdseg_cli.data.layouts.folder import find_cases
from sdseg_cli.data.spec import Case
from sdseg_cli.data.unexpected_files import (
    check_set,
    check_unexpected_files,
    dicom_folders,
    is_dicom,
)


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def strays(root: Path, cases: list[Case], label_glob: str | None = None) -> list[tuple[str, str]]:
    return [(one.code, one.case) for one in check_unexpected_files(root, cases, label_glob)]


def test_a_mask_without_a_scan_is_named(tmp_path: Path) -> None:
    root = touch(
        tmp_path, "images/a.nii.gz", "labels/a.nii.gz", "labels/b.nii.gz", "labels/._c.nii.gz"
    )
    assert strays(root, find_cases(root)) == [("label-without-image", "labels/b.nii.gz")]


def test_with_patterns_the_pattern_says_what_a_mask_is(tmp_path: Path) -> None:
    root = touch(tmp_path, "1/ct.nii", "1/seg.nii", "2/seg.nii", "2/note.txt")
    case = Case("1", root / "1/ct.nii", root / "1/seg.nii")
    assert strays(root, [case], "*/seg.nii") == [("label-without-image", "2/seg.nii")]
    beside = [("label-without-image", "2/seg.nii")]
    assert strays(root, [case]) == beside
    touch(root, "results/2/seg.nii", "2/ct.nii")  # elsewhere anything may lie
    assert strays(root, [case, Case("2", root / "2/ct.nii", root / "2/seg.nii")]) == []


def test_dicom_is_known_by_its_mark_whatever_the_name(tmp_path: Path) -> None:
    touch(tmp_path, "a/scan.nii", "b/notes", "d/.hidden")
    for name in ("c/CT.1.2.840", "e/1.dcm"):
        touch(tmp_path, name)
        (tmp_path / name).write_bytes(bytes(128) + b"DICM")
    assert [folder.name for folder in dicom_folders(tmp_path)] == ["c", "e"]
    assert not is_dicom(tmp_path / "nothing")


def found(root: Path, *globs: str) -> list[tuple[str, str, str]]:
    spec, cases = recognise.find_cases(root, None, *globs)
    return [(one.level, one.code, one.case) for one in check_set(root, spec, cases, *globs)]


def test_two_masks_of_one_stem_are_an_error(tmp_path: Path) -> None:
    root = touch(tmp_path, "images/a.nii.gz", "images/b.nii.gz", "labels/a.nii.gz")
    touch(root, "labels/b.nii.gz", "labels/b.nii")
    assert found(root) == [("error", "label-twice", "b")]
    touch(tmp_path / "pictures", "images/a.png", "masks/a.png", "masks/a.bmp")
    assert found(tmp_path / "pictures") == [("error", "label-twice", "a")]
    touch(tmp_path / "cases", "1/image.nii.gz", "1/label.nii.gz", "1/label.NII")
    assert found(tmp_path / "cases") == [("error", "label-twice", "1")]


def test_links_to_what_is_not_there_are_named_where_no_case_needs_them(tmp_path: Path) -> None:
    """A case whose scan or label map is such a link is an error of that case, once it is read."""
    root = touch(tmp_path, "images/a.nii.gz", "labels/a.nii.gz", "labels/b.nii.gz")
    (root / "images/b.nii.gz").symlink_to("/not/fetched/b.nii.gz")
    assert found(root) == []
    assert [case.id for case in find_cases(root)] == ["a", "b"]
    cases = touch(tmp_path / "cases", "1/image.nii.gz", "1/label.nii.gz", "2/other.nii.gz")
    (cases / "2/more.nii.gz").symlink_to("gone.nii.gz")
    assert found(cases) == [("warning", "link-dangling", "2/more.nii.gz")]


def test_what_lies_among_the_scans_and_is_no_case_is_named(tmp_path: Path) -> None:
    root = touch(tmp_path, "images/a.nii.gz", "labels/a.nii.gz", "images/a.png", "images/a.json")
    touch(root, "images/more/d.nii", "images/b.mgz", "images/notes.txt", "images/.b.nii")
    touch(root, "images/c.png")
    assert found(root) == [
        ("warning", "scan-not-used", "images/more"),
        ("warning", "scan-not-used", "images/b.mgz"),
        ("warning", "scan-not-used", "images/c.png"),
    ]


def test_files_that_patterns_miss_for_their_ending_are_named(tmp_path: Path) -> None:
    root = touch(tmp_path, "1/ct.nii.gz", "1/seg.nii.gz", "2/ct.nii", "2/seg.NII.GZ")
    globs = ("*/ct.nii.gz", "*/seg.nii.gz")
    assert found(root, *globs) == [
        ("warning", "file-ending", "2/ct.nii"),
        ("warning", "file-ending", "2/seg.NII.GZ"),
    ]
    assert found(root, "*/ct.*", "*/seg.*") == []


@pytest.mark.parametrize(
    ("scans", "masks"),
    [
        ("img/img{}", "label/label{}"),
        ("labelled/image/Teeth_{}_0000", "labelled/label/Teeth_{}_0000"),
    ],
)
def test_other_endings_are_read_in_the_named_archives_too(
    tmp_path: Path, scans: str, masks: str
) -> None:
    for number, ending in (("0001", ".nii.gz"), ("0002", ".nii"), ("0003", ".NII.GZ")):
        touch(tmp_path, scans.format(number) + ending, masks.format(number) + ending)
    cases = recognise.find_cases(tmp_path)[1]
    assert [(case.image.name[-3:].lower(), bool(case.label)) for case in cases] == [
        (".gz", True),
        ("nii", True),
        (".gz", True),
    ]
    assert found(tmp_path) == []
