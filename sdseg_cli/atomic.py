"""Replace a file only by a complete new one."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from sdseg_cli.errors import RunError, SdsegError
from sdseg_cli.filenames import leads_nowhere

_TEMPORARY = "." * 48
"""As long as what stands before a name while its file is written, twice if its writer does so."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; on success it becomes `path`, else nothing is left.

    Missing folders are made, and removed again on failure.

    Yields:
        A path in the same folder, with the same suffixes, to write to.

    Raises:
        RunError: The disk refused (full, read-only, no permission).
    """
    made = [folder for folder in path.absolute().parents if not folder.exists()]
    temporary = path.with_name(f".{os.getpid()}.part.{path.name}")
    try:
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
        if isinstance(error, SdsegError):  # of a writer that was told the temporary name
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
            names = [*path.absolute().relative_to(there).parts[:-1], _TEMPORARY + path.name]
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
    temporary = folder.with_name(f".{os.getpid()}.part.{folder.name}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
        _sync_folder(folder.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise RunError(
                f"{folder}: cannot be written ({error.strerror or error}).",
                "Check the folder's permissions and the space left on the disk.",
            ) from error
        raise


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes left half-written in a folder that nobody else writes to now.

    Raises:
        RunError: The disk refused.
    """
    for leftover in folder.glob(".*.part.*"):
        try:
            leftover.unlink(missing_ok=True)
        except OSError as error:
            raise RunError(
                f"{leftover}: cannot be removed ({error.strerror or error}).",
                "Check the folder's permissions.",
            ) from error


def _sync_folder(folder: Path) -> None:
    # The rename itself must survive a power cut; Windows cannot open folders and needs none.
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
