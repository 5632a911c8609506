"""Resampling along one axis as a sparse matrix, built from sizes only.

A matrix times a plane is the same sum in the same order on every machine and for every memory
layout, which dense products through BLAS do not promise.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray


@lru_cache(maxsize=256)
def resize_matrix(n_in: int, n_out: int, *, antialias: bool) -> Any:
    """Weights that resize an axis, pixel areas aligned; the identity when the sizes agree.

    Args:
        n_in: Pixels before.
        n_out: Pixels after.
        antialias: Widen the triangle by the shrinking factor; else plain linear interpolation.

    Returns:
        scipy.sparse CSR (n_out, n_in) float32; rows sum to 1, taps beyond the ends left out.
    """
    from scipy.sparse import csr_array

    scale = n_in / n_out
    reach = max(scale, 1.0) if antialias else 1.0
    centres = (np.arange(n_out) + 0.5) * scale - 0.5
    first = np.floor(centres - reach).astype(np.int64)
    taps = first[:, None] + np.arange(int(np.ceil(2 * reach)) + 2)
    weights = np.clip(1 - np.abs(taps - centres[:, None]) / reach, 0, None)
    weights[(taps < 0) | (taps >= n_in)] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    rows, columns = np.nonzero(weights)
    entries = weights[rows, columns].astype(np.float32)
    return csr_array((entries, (rows, taps[rows, columns])), shape=(n_out, n_in))


@lru_cache(maxsize=256)
def nearest_indices(n_in: int, n_out: int) -> NDArray[np.int64]:
    """For each of n_out pixels, the index of the nearest of n_in (the later one on a tie)."""
    return ((2 * np.arange(n_out) + 1) * n_in) // (2 * n_out)


def span(start: int, side: int, extent: int) -> tuple[slice, slice]:
    """The part that [start, start + side) shares with [0, extent).

    Returns:
        The shared part as a slice of the box, and as a slice of the axis; both maybe empty.
    """
    low, high = max(start, 0), max(min(start + side, extent), max(start, 0))
    return slice(low - start, high - start), slice(low, high)
