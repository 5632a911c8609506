"""What lies beside the cases."""

from __future__ import annotations

from pathlib import Path

from sdseg_cli.datasets.folder import find_cases
from sdseg_cli.datasets.spec import Case
from sdseg_cli.datasets.strays import check_strays, dicom_folders, is_dicom


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def strays(root: Path, cases: list[Case], label_glob: str | None = None) -> list[tuple[str, str]]:
    return [(one.code, one.case) for one in check_strays(root, cases, label_glob)]


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
