"""Files: replaced only by complete new ones, and known again by their sha256."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from sdseg_cli.core.errors import ConfigError, RunError, SdsegError
from sdseg_cli.core.filenames import leads_nowhere

_LEFTOVER = re.compile(r"\.\d+(?:-[0-9a-f]+)?\.part\.(.+)")
"""The name of a file that is not complete: the writer's number, and the name it will have."""
_LONGEST = 200
"""Bytes of the longest name that a temporary name holds whole: systems take 255 in all."""
LEFT_AFTER_S = 3600.0
"""A file that others may be writing counts as left behind after so long without a write."""


def file_sha256(path: Path) -> str:
    """The file's sha256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def temporary_for(path: Path) -> Path:
    """A unique name beside `path`, with the same suffixes.

    The process's number alone is not unique: in every container it is 1, also of a process that
    was killed. A temporary name for a temporary name is one for the file meant.
    """
    token = f"{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(f".{token}.part.{_kept(stands_for(path.name) or path.name)}")


def stands_for(temporary: str) -> str | None:
    """The name that a half-written file was to have, as `temporary_for` keeps it; None for any
    other name.
    """
    kept: str | None = None
    while found := _LEFTOVER.fullmatch(temporary):  # of older versions one may contain another
        kept = temporary = found[1]
    return kept


def is_leftover_of(temporary: str, names: Collection[str]) -> bool:
    """True if a killed process left the file while it wrote one of these names."""
    kept = stands_for(temporary)
    return kept is not None and kept in {_kept(name) for name in names}


def _kept(name: str) -> str:
    """A name as a temporary one keeps it: a long one loses its beginning."""
    if len(os.fsencode(name)) <= _LONGEST:
        return name
    return f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}{name[-40:]}"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; on success it becomes `path`, else nothing is left.

    Missing folders are made, and removed again on failure.

    Yields:
        A path in the same folder, with the same suffixes, to write to.

    Raises:
        RunError: The disk refused (full, read-only, no permission).
        ConfigError: `path` is a pipe or a device, which a file would replace.
    """
    made: list[Path] = []
    temporary = temporary_for(path)
    try:
        made += [folder for folder in path.absolute().parents if not folder.exists()]
        require_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        with suppress(OSError):
            for folder in made:
                folder.rmdir()  # Refuses, rightly, where a neighbour has written meanwhile.
        if isinstance(error, OSError):
            raise RunError(
                f"{path}: cannot be written ({error.strerror or error}).",
                "Check the folder's permissions and the space left on the disk.",
            ) from error
        if isinstance(error, SdsegError):  # of a writer that knows the temporary name only
            error.message = error.message.replace(str(temporary), str(path))
            error.args = (error.message,)
        raise


def require_writable(path: Path) -> None:
    """Refuse a file that `replacing` could not write, before any work is spent on it.

    Nothing is left, and folders that are missing are not made yet.

    Raises:
        RunError: Its folder takes no new files, a part of its path is a file, or a name is too
            long for the disk.
    """
    try:
        if "\0" in str(path):
            raise ValueError("its name holds a null byte")
        with suppress(FileNotFoundError, NotADirectoryError):
            path.lstat()  # refuses a path that is too long as a whole
        there = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
        if leads_nowhere(there):
            raise NotADirectoryError(errno.ENOTDIR, f"{there} is a link that leads nowhere")
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{there} is a file, not a folder")
        with TemporaryFile(dir=there):  # without a name where the system can do that
            pass
        if hasattr(os, "pathconf"):
            limit = os.pathconf(there, "PC_NAME_MAX")
            names = path.absolute().relative_to(there).parts  # a temporary name is never too long
            over = max(len(os.fsencode(name)) for name in names) - limit
            if over > 0:
                raise OSError(errno.ENAMETOOLONG, f"its name is too long by {over} letters")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunError(
            f"{path}: cannot be written ({reason or error}).",
            "Check the folder's permissions, the disk, and the length of the name; or give "
            "another folder.",
        ) from error


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside `folder`; on success it takes its place, else nothing changes.

    Yields:
        A folder to fill.

    Raises:
        RunError: The disk refused.
    """
    temporary = temporary_for(folder)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
        _sync_folder(folder.parent)
        remove_old_folders(folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise RunError(
                f"{folder}: cannot be written ({error.strerror or error}).",
                "Check the folder's permissions and the space left on the disk.",
            ) from error
        raise


def require_replaceable(path: Path) -> None:
    """Refuse to replace a pipe, a socket or a device by a file; links are followed.

    Raises:
        ConfigError: `path` is one.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ConfigError(
            f"{path}: is a pipe or a device, not a file.", "Name a file; it is made if need be."
        )


def remove_leftovers(folder: Path) -> None:
    """Delete files left half-written in a folder that no other process writes to now.

    Raises:
        RunError: The disk refused.
    """
    for leftover in folder.glob(".*.part.*"):
        if stands_for(leftover.name) is None:
            continue
        try:
            leftover.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(
                f"{leftover}: cannot be removed ({error.strerror or error}).",
                "Check the folder's permissions.",
            ) from error


def remove_old_folders(folder: Path) -> None:
    """Delete copies of a folder that were left half-written long ago; it is complete now."""
    for leftover in folder.parent.glob(".*.part.*"):
        if is_leftover_of(leftover.name, [folder.name]):
            with suppress(OSError):  # somebody else removed it
                if leftover.stat().st_mtime < time.time() - LEFT_AFTER_S:
                    shutil.rmtree(leftover, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    # The rename itself must survive a power cut; Windows cannot open folders and needs none.
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
