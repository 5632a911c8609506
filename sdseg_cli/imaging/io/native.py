"""Libraries in C and C++ print what they like; here nothing of it reaches the terminal."""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_MOST_BYTES = 1 << 16
_ONE_AT_A_TIME = threading.RLock()
"""Two that overlap would put back each other's descriptors."""


@contextmanager
def silenced() -> Iterator[list[str]]:
    """Keep from the terminal what is printed within the block, on both standard streams.

    MetaIO, GDCM and others write to the descriptors themselves, so Python's streams are no help.

    Yields:
        A list that holds what was printed once the block has ended.
    """
    printed: list[str] = []
    with _ONE_AT_A_TIME, _nowhere() as kept:
        saved = {}
        for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
            with suppress(OSError, ValueError, AttributeError):  # closed: nothing to be silenced
                stream.flush()
                saved[descriptor] = os.dup(descriptor)
        try:
            for descriptor in saved:
                os.dup2(kept.fileno(), descriptor)
            yield printed
        finally:
            with suppress(OSError, AttributeError, TypeError):  # what C still holds in buffers
                ctypes.CDLL(None).fflush(None)
            for descriptor, copy in saved.items():
                os.dup2(copy, descriptor)
                os.close(copy)
            kept.seek(0)
            printed.append(kept.read(_MOST_BYTES).decode("utf-8", "replace"))


def _nowhere() -> IO[bytes]:
    try:
        return tempfile.TemporaryFile()
    except OSError:  # no folder for it: then nobody is told what was printed
        return Path(os.devnull).open("r+b", buffering=0)
