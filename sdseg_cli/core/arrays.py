"""Prepared arrays on disk."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.errors import DataError


def open_array(path: Path) -> NDArray[np.generic]:
    """A .npy file, memory-mapped: nothing but its header is read; a pickle in it is refused.

    Raises:
        DataError: Missing or damaged.
    """
    hint = "Run the same `sdseg prepare` command again; it redoes what is missing."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a header that is none of ours
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header is parsed as Python and may raise anything
        raise DataError(f"{path}: missing or damaged.", hint) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "buif":
        raise DataError(f"{path}: damaged (no array of numbers).", hint)
    return array
