"""Files are replaced whole or not at all."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from sdseg_cli.core import files as atomic
from sdseg_cli.core.errors import ConfigError, RunError
from sdseg_cli.core.files import (
    LEFT_AFTER_S,
    file_sha256,
    is_leftover_of,
    remove_leftovers,
    replacing,
    replacing_folder,
    require_writable,
    stands_for,
    temporary_for,
)


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


def test_a_process_of_the_same_number_has_other_temporary_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getpid", lambda: 1)  # as in every container
    names = {temporary_for(tmp_path / "mask.nii.gz").name for _ in range(20)}
    assert len(names) == 20
    assert {stands_for(name) for name in names} == {"mask.nii.gz"}
    (tmp_path / ".1.part.maps").mkdir()  # of a version that had no other part
    killed = temporary_for(tmp_path / "maps")
    killed.mkdir()
    (killed / "half").write_text("half")
    with replacing_folder(tmp_path / "maps") as temporary:
        (temporary / "new").write_text("new")
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["new"]
    assert killed.exists(), "it may be in work on another machine"
    os.utime(killed, (time.time() - LEFT_AFTER_S - 60,) * 2)
    with replacing_folder(tmp_path / "maps"):
        pass
    assert not killed.exists()


def test_what_a_temporary_name_stands_for_is_known() -> None:
    assert stands_for(".12.part.ct.nii.gz") == "ct.nii.gz"
    assert stands_for(".12.part..12.part.ct.nii.gz") == "ct.nii.gz", "of older versions"
    assert stands_for(".12-0badcafe.part.ct.nii.gz") == "ct.nii.gz"
    for other in (".ct.nii.gz", "a.part.csv", ".x.part.csv", "12.part.csv", ".lock"):
        assert stands_for(other) is None
    inner = temporary_for(temporary_for(Path("ct.nii.gz")))
    assert inner.name.count(".part.") == 1


@pytest.mark.parametrize("letter", ["m", "\u00df", "\U0001f642"])
def test_the_longest_name_a_system_takes_can_be_written(tmp_path: Path, letter: str) -> None:
    name = letter * (248 // len(letter.encode())) + ".nii.gz"
    with replacing(tmp_path / name) as outer, replacing(outer) as temporary:
        assert temporary.name.endswith(".nii.gz")
        assert is_leftover_of(temporary.name, [name])
        temporary.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.nii.gz")
    with (
        pytest.raises(ConfigError, match="is a pipe or a device"),
        replacing(tmp_path / "pipe.nii.gz") as temporary,
    ):
        temporary.write_text("never")
    assert (tmp_path / "pipe.nii.gz").is_fifo()


def test_an_error_of_a_writer_names_the_file_and_not_the_temporary_one(tmp_path: Path) -> None:
    target = tmp_path / "mask.mha"
    with pytest.raises(RunError) as caught, replacing(target) as outer, replacing(outer):
        raise OSError("the writer could not")
    assert caught.value.message == f"{target}: cannot be written (the writer could not)."
    assert str(caught.value) == caught.value.message


@pytest.mark.parametrize("name", ["mask.nii", "new/folder/mask.nii", "m" * 248 + ".nii.gz"])
def test_a_file_that_can_be_written_leaves_no_trace_of_the_question(
    tmp_path: Path, name: str
) -> None:
    require_writable(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
    with replacing(tmp_path / name) as temporary:
        temporary.write_text("x")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("file/mask.nii", "file is a file, not a folder"),
        ("file/a/b/mask.nii", "file is a file, not a folder"),
        ("link/mask.nii", "link is a link that leads nowhere"),
        ("m" * 256, "too long"),
        ("ü" * 128, "too long"),
        ("m" * 256 + "/mask.nii", "too long"),
        ("new/" + "m" * 256 + "/mask.nii", "too long by 1 letters"),
        ("d/" * 2100 + "mask.nii", "too long"),
        ("a\0b/mask.nii", "null byte"),
    ],
)
def test_a_file_that_cannot_be_written_is_known_before(
    tmp_path: Path, name: str, said: str
) -> None:
    (tmp_path / "file").write_text("a file")
    (tmp_path / "link").symlink_to("nowhere")
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(RunError, match=said) as caught:
        require_writable(tmp_path / name)
    assert caught.value.message.startswith(f"{tmp_path / name}: cannot be written (")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_folder_that_takes_no_new_file_is_known_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied", str(dir / "tmp1234"))

    monkeypatch.setattr(atomic, "TemporaryFile", refuse)
    with pytest.raises(RunError) as caught:
        require_writable(tmp_path / "new/mask.nii")
    assert (
        caught.value.message == f"{tmp_path}/new/mask.nii: cannot be written (Permission denied)."
    )


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc")
def test_a_folder_that_the_system_keeps_is_known_before() -> None:
    for name in ("/proc/mask.nii", "/proc/self/new/mask.nii"):
        with pytest.raises(RunError, match=rf"^{name}: cannot be written"):
            require_writable(Path(name))


def test_the_hash_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert file_sha256(tmp_path / "abc").startswith("ba7816bf8f01cfea414140de5dae2223")
    (tmp_path / "empty").write_bytes(b"")
    assert file_sha256(tmp_path / "empty").startswith("e3b0c44298fc1c149afbf4c8996fb924")
