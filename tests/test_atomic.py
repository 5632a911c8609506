"""Files are replaced whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdseg_cli.atomic import remove_leftovers, replacing, replacing_folder
from sdseg_cli.errors import RunError


def test_a_complete_file_replaces_the_old_one_and_nothing_else_is_left(tmp_path: Path) -> None:
    target = tmp_path / "a/b/report.csv"
    for text in ("old", "new"):
        with replacing(target) as temporary:
            temporary.write_text(text)
    assert target.read_text() == "new"
    assert list(target.parent.iterdir()) == [target]


def test_a_failure_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "mask.nii.gz"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_whole_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    maps.mkdir()
    (maps / "old").write_text("old")
    with replacing_folder(maps) as temporary:
        (temporary / "new").write_text("new")
        assert [path.name for path in maps.iterdir()] == ["old"]
    assert [path.name for path in maps.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [maps]


def test_a_failure_keeps_the_old_folder(tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    maps.mkdir()
    (maps / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing_folder(maps) as temporary:
        (temporary / "new").write_text("half")
        raise KeyboardInterrupt
    assert [path.name for path in maps.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [maps]


def test_a_failure_removes_the_folders_it_made(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="half way"), replacing(tmp_path / "a/b/c") as temporary:
        temporary.write_text("half")
        raise ValueError("half way")
    assert list(tmp_path.iterdir()) == []


def test_a_refusing_disk_is_a_run_error_naming_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(RunError, match="file/mask"), replacing(tmp_path / "file/mask.nii") as t:
        t.write_text("never")


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    block = replacing(tmp_path / "report.csv")
    block.__enter__().write_text("half")  # and never left
    for name in (".lock", "a.part.csv"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "a.part.csv"]
