"""What a header claims against what the file holds: checked before memory is taken for voxels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sdseg_cli.core.errors import DataError
from sdseg_cli.imaging.volume import Array

PACKED_RATIO = 1032
"""Deflate (gzip, zlib) unpacks to at most so many times its size."""
BLOCK_BYTES = 1 << 20
"""Files are read in blocks of this size."""

_HINT = "The header is wrong or the file was cut short: export it again."


def require_held(
    path: Path, claimed_bytes: int, held_bytes: int, *, packed: bool, exact: bool = False
) -> None:
    """Refuse a header that claims more voxels than the file can hold.

    Args:
        path: The file, for the message.
        claimed_bytes: Size of the voxels by the header.
        held_bytes: Size of the file's voxels as they lie on the disk.
        packed: Whether they are compressed; they may then unpack to `PACKED_RATIO` times as much.
            What unpacks to less is found while reading, before memory beyond it is used.
        exact: Refuse one that claims fewer, too.

    Raises:
        DataError: It claims more.
    """
    held = max(held_bytes, 0) * (PACKED_RATIO if packed else 1)
    if claimed_bytes > held or (exact and claimed_bytes != held):
        raise DataError(
            f"{path}: its header claims {claimed_bytes:,} bytes of voxels, the file holds "
            f"{'at most ' if packed else ''}{held:,}.",
            _HINT,
            "damaged",
        )


def read_array(stream: BinaryIO, shape: tuple[int, int, int], dtype: Any) -> Array:
    """Fill an array from a stream; memory is used only as bytes arrive.

    Args:
        stream: At the first voxel.
        shape: (I, J, K), the first index fastest.
        dtype: As stored.

    Raises:
        EOFError: The stream ended before.
    """
    flat = np.empty(math.prod(shape), dtype)
    target = memoryview(flat.view(np.uint8).data)
    filled = 0
    while filled < len(target):
        block = stream.read(min(BLOCK_BYTES, len(target) - filled))
        if not block:
            raise EOFError(f"{filled} of {len(target)} bytes of voxels")
        target[filled : filled + len(block)] = block
        filled += len(block)
    return flat.reshape(shape, order="F")
