"""One process trains in a run folder, or prepares a set, and others can tell.

The lock is the system's (flock), so that it ends with its process, however that ends. The file says
who holds it. Where a platform or a file system has no such locks, nothing is locked.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sdseg_cli.core.errors import DataError, RunError
from sdseg_cli.core.json_files import read_object

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TRIES, WAIT_S = 3, 0.05
"""`is_locked` holds the lock for a moment; that must not turn a training process away."""

_HELD: set[int] = set()


def _let_go_in_child() -> None:
    # A loader's worker outlives a killed trainer by seconds; it must not keep the lock meanwhile.
    for descriptor in _HELD:
        os.close(descriptor)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


def take(descriptor: int, *, shared: bool = False, wait: bool = False) -> bool | None:
    """Lock an open file, until it is closed.

    Args:
        descriptor: Of the file.
        shared: Others may hold it too, if they share it as well.
        wait: For those that hold it otherwise.

    Returns:
        False where another holds it; None where there are no locks.
    """
    if fcntl is None:
        return None
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


@contextmanager
def locked(
    path: Path,
    *,
    subject: str = "",
    busy: str = "is training in this folder",
    hint: str = "Wait for it or stop it, or give another folder with --run.",
) -> Iterator[None]:
    """Within the block this process alone holds the lock `path`; the file is removed afterwards.

    Missing folders are made, and removed again if they stay empty.

    Args:
        path: The lock's file.
        subject: What is locked, as an error names it; default the file's folder.
        busy: What its holder does.
        hint: What to do about it.

    Raises:
        RunError: Another process holds it, or the disk refused.
    """
    made = [folder for folder in path.absolute().parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquired(path)
    except OSError as error:
        _remove_empty(made)
        raise RunError(
            f"{path.parent}: cannot be written ({error.strerror or error}).",
            "Check the folder's permissions and the space left on the disk.",
        ) from error
    if descriptor is None:
        raise RunError(f"{subject or path.parent}: {holder(path)} {busy}.", hint)
    _HELD.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _HELD:  # not so in a forked child
            with suppress(OSError):
                path.unlink()  # while it is held: nobody else's is removed
            _HELD.remove(descriptor)
            os.close(descriptor)
            _remove_empty(made)


def is_locked(path: Path) -> bool:
    """True if a living process holds the lock; False where that cannot be determined."""
    if not path.is_file():  # to open a pipe would wait for its writer
        return False
    try:
        with path.open("rb") as file:
            return take(file.fileno(), shared=True) is False
    except OSError:
        return False


def holder(path: Path) -> str:
    """The process that holds the lock, according to the file: "process 12 on host"."""
    try:
        owner = read_object(path)
    except DataError:
        return "another process"
    pid, host = owner.get("pid"), owner.get("host")
    known = isinstance(pid, int) and isinstance(host, str)
    return f"process {pid} on {host}" if known else "another process"


def _acquired(path: Path) -> int | None:
    """The descriptor that holds the lock; None where another process does."""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(WAIT_S)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if take(descriptor) is not False and _is_at(path, descriptor):
                owner = {"pid": os.getpid(), "host": socket.gethostname()}
                os.ftruncate(descriptor, 0)
                os.write(descriptor, json.dumps(owner).encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    return None


def _is_at(path: Path, descriptor: int) -> bool:
    """False where its last holder has removed the file meanwhile."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove_empty(folders: list[Path]) -> None:
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()
