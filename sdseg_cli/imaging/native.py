"""Libraries in C and C++ print what they like; here nothing of it reaches the terminal."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_ONE_AT_A_TIME = threading.RLock()
"""Two that overlap would put back each other's descriptors."""


@contextmanager
def silenced() -> Iterator[None]:
    """Send to nowhere what is printed within the block, on both standard streams.

    MetaIO, GDCM and others write to the descriptors themselves, so Python's streams are no help.
    """
    with _ONE_AT_A_TIME:
        saved = {}
        for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
            with suppress(OSError, ValueError, AttributeError):  # closed: nothing to be silenced
                stream.flush()
                saved[descriptor] = os.dup(descriptor)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            for descriptor in saved:
                os.dup2(nowhere, descriptor)
            yield
        finally:
            with suppress(OSError, AttributeError, TypeError):  # what C still holds in buffers
                ctypes.CDLL(None).fflush(None)
            for descriptor, copy in saved.items():
                os.dup2(copy, descriptor)
                os.close(copy)
            os.close(nowhere)
