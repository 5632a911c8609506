"""Unpacking: within limits, inside one folder, and nothing stays behind."""

from __future__ import annotations

import os
import stat
import struct
import tempfile
import zipfile
from pathlib import Path

import pytest

from sdseg_cli.core.errors import DataError, RunError
from sdseg_cli.imaging.io.archives import extracted


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder, so that what stays behind can be seen."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def packed(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in entries:
            made.writestr(name, content)
    return path


def refused(archive: Path, **limits: int) -> DataError:
    with pytest.raises(DataError) as caught, extracted(archive, **limits):
        pytest.fail("it was unpacked")
    return caught.value


def test_files_are_numbered_and_gone_afterwards(tmp_path, scratch):
    archive = packed(
        tmp_path / "a.zip", ("x/", b""), ("x/Zaphod", b"one"), ("x/zaphod.DCM", b"two")
    )
    with extracted(archive) as folder:
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
            "2": b"one",
            "3.dcm": b"two",
        }
        assert folder.is_relative_to(scratch)
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not list(scratch.iterdir())


@pytest.mark.parametrize(
    "name", ["../out", "a/../../out", "/etc/out", "C:\\out", "..\\out", "\\\\server\\share\\out"]
)
def test_an_entry_that_climbs_out_is_refused(tmp_path, scratch, name):
    archive = packed(tmp_path / "a.zip", ("fine", b"1"), (name, b"2"))
    assert refused(archive).message == (
        f"{archive}: entry 2 would be written outside the folder it is unpacked to."
    )
    assert not list(scratch.iterdir())
    assert not list(tmp_path.rglob("out"))


def test_hidden_entries_are_left_out_by_their_names(tmp_path):
    link = zipfile.ZipInfo(".link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive = packed(
        tmp_path / "a.zip",
        ("./ct/IM0.dcm", b"a slice"),
        ("__MACOSX/ct/._IM0.dcm", b"Mac OS X"),
        ("ct/._IM0.dcm", b"Mac OS X"),
        ("ct\\._IM0.dcm", b"Mac OS X"),
        (".DS_Store", b"x"),
        (".git/IM1", b"x"),
        (link, b"/etc/passwd"),
        ("ct/README", b"read"),
        ("ct/IM1.xml", b"<x/>"),
        ("ct/1.2.840", b"another slice"),
    )
    with extracted(archive) as folder:
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
            "1.dcm": b"a slice",
            "8.other": b"read",
            "9.other": b"<x/>",
            "10": b"another slice",
        }


def test_an_entry_without_a_name_is_refused(tmp_path):
    archive = packed(tmp_path / "a.zip", ("one", b"1"), ("x", b"2"))
    content = archive.read_bytes()
    archive.write_bytes(content.replace(b"x", b"\0"))  # a name ends at a zero
    assert refused(archive).message == f"{archive}: entry 2 has no name."


@pytest.mark.parametrize("place", ["directory", "local"])
def test_a_name_that_is_no_utf_8_is_refused_and_escaped(tmp_path, scratch, place):
    archive = packed(tmp_path / "a.zip", ("ä\x1b[1m", b"1"))
    content = bytearray(archive.read_bytes())
    name = "ä".encode()
    at = content.rindex(name) if place == "directory" else content.index(name)
    content[at : at + 2] = b"\xff\xfe"
    archive.write_bytes(content)
    assert refused(archive).message == (
        f"{archive}: an entry's name is not UTF-8, though it claims to be: \\xff\\xfe\\x1b[1m."
    )
    assert not list(scratch.iterdir())


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices_are_refused(tmp_path, scratch, kind):
    link = zipfile.ZipInfo("link")
    link.external_attr = (kind | 0o777) << 16
    archive = packed(tmp_path / "a.zip", (link, b"/etc/passwd"))
    assert "entry 1 is a link or a device" in refused(archive).message
    assert not list(scratch.iterdir())


def test_an_encrypted_entry_is_refused(tmp_path):
    archive = packed(tmp_path / "a.zip", ("one", b"1"))
    content = bytearray(archive.read_bytes())
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # local header, directory
        content[content.index(mark) + offset] |= 1
    archive.write_bytes(content)
    assert "entry 1 is encrypted" in refused(archive).message


def test_too_many_entries_are_refused(tmp_path):
    archive = packed(tmp_path / "a.zip", *((str(n), b"") for n in range(4)))
    with extracted(archive, max_entries=4) as folder:
        assert len(list(folder.iterdir())) == 4
    assert "has 4 entries; 3 are allowed" in refused(archive, max_entries=3).message


def test_what_unpacks_beyond_the_limit_is_refused(tmp_path, scratch):
    archive = packed(tmp_path / "a.zip", ("zeros", bytes(1 << 21)), ("more", bytes(1 << 21)))
    assert archive.stat().st_size < 10_000
    with extracted(archive, max_bytes=1 << 22) as folder:
        assert (folder / "2").stat().st_size == 1 << 21
    assert "unpacks to more than 0.00391 GiB" in refused(archive, max_bytes=(1 << 22) - 1).message
    assert not list(scratch.iterdir())


def test_a_directory_that_understates_a_size_is_found_out(tmp_path, scratch):
    archive = packed(tmp_path / "a.zip", ("zeros", bytes(1 << 21)))
    content = bytearray(archive.read_bytes())
    for mark, offset in ((b"PK\3\4", 22), (b"PK\1\2", 24)):  # uncompressed size in both headers
        struct.pack_into("<I", content, content.index(mark) + offset, 10)
    archive.write_bytes(content)
    assert "damaged" in refused(archive, max_bytes=100).message
    assert not list(scratch.iterdir())


@pytest.mark.parametrize("cut", [10, 60, -30])
def test_a_damaged_zip_is_refused(tmp_path, scratch, cut):
    archive = packed(tmp_path / "a.zip", ("noise", os.urandom(500)))
    archive.write_bytes(archive.read_bytes()[:cut])
    assert "not a zip file, or a damaged one" in refused(archive).message
    assert not list(scratch.iterdir())


def test_a_flipped_byte_is_noticed(tmp_path, scratch):
    archive = packed(tmp_path / "a.zip", ("noise", os.urandom(500)))
    content = bytearray(archive.read_bytes())
    content[100] ^= 0xFF
    archive.write_bytes(content)
    assert "damaged" in refused(archive).message
    assert not list(scratch.iterdir())


def test_a_full_disk_is_no_fault_of_the_archive(tmp_path, scratch, monkeypatch):
    archive = packed(tmp_path / "a.zip", ("one", b"1"))
    monkeypatch.setattr(
        zipfile.ZipFile, "open", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(RunError, match="No space left"), extracted(archive):
        pytest.fail("it was unpacked")
    assert not list(scratch.iterdir())


def test_a_failure_of_the_user_of_the_folder_leaves_nothing(tmp_path, scratch):
    archive = packed(tmp_path / "a.zip", ("one", b"1"))
    with pytest.raises(KeyError), extracted(archive):
        raise KeyError("one")
    assert not list(scratch.iterdir())
