"""Prepared arrays on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.errors import DataError


def open_array(path: Path) -> NDArray[np.generic]:
    """A .npy file, memory-mapped: nothing but its header is read; a pickle in it is refused.

    Raises:
        DataError: Missing or damaged.
    """
    try:
        array: NDArray[np.generic] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path}: missing or damaged.",
            "Run the same `sdseg prepare` command again; it redoes what is missing.",
        ) from error
    return array
