"""The square around the body in each axial slice, for `--crop body`.

Found again from the scan alone whenever it is read, so nothing has to be stored with a mask.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.imaging.intensity import Normalisation, extent, percentiles
from sdseg_cli.imaging.resample import resize_matrix
from sdseg_cli.imaging.volume import Planes, Volume

BODY_HU = -400.0
"""Above this is body, below it air, lung or a mattress."""
MARGIN = 0.04
"""Added on each side, as a share of the body's larger extent."""
SMALLEST = 0.25
"""Least side of a square, as a share of the padded plane's."""

_GRID = 128
"""The body is looked for on planes of at most this size: a table's shell is then a pixel thin."""
_PART = 0.2
"""Parts smaller than this share of the slice's largest are no limbs: tubes, masks, headrests."""


def body_boxes(volume: Volume, normalise: Normalisation) -> NDArray[np.int64]:
    """The square around the body in each slice.

    Args:
        volume: The scan.
        normalise: A window that starts below 0 means Hounsfield units; otherwise Otsu's
            threshold separates body from background.

    Returns:
        (S, 3) int64: first row, first column, side, in pixels of the canonical plane. The whole
        padded plane where a slice shows no body.
    """
    is_hu = normalise.kind != "percentile" and normalise.low < 0
    threshold = BODY_HU if is_hu else _otsu(volume)
    planes = Planes.of(volume.geometry)
    boxes = np.tile(planes.square, (planes.count, 1))
    for k in range(planes.count):
        plane = np.nan_to_num(volume.values(planes.get(volume.array, k)))
        box = _box(plane, threshold)
        if box is not None:
            boxes[k] = box
    return boxes


def shows_body(squares: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether anything of a body is in CT slices as a model sees them.

    Air and lung lie below a window for soft tissue, at -1; so does a mattress. What is above it in
    no block of 3x3 pixels is noise or a thin shell.

    Args:
        squares: (S,256,256) in [-1,1], by a window that starts between air and water.

    Returns:
        (S,) bool; False means that a model has nothing to find.
    """
    from scipy import ndimage

    block = np.ones((3, 3), bool)
    return np.array([ndimage.binary_erosion(square > -1, block).any() for square in squares], bool)


def _box(plane: NDArray[np.float32], threshold: float) -> tuple[int, int, int] | None:
    """Square around the body of one plane (rows, cols), or None when there is no body."""
    rows, columns = plane.shape
    small = (min(rows, _GRID), min(columns, _GRID))
    body = _body(
        np.asarray(
            resize_matrix(rows, small[0], antialias=True)
            @ plane
            @ resize_matrix(columns, small[1], antialias=True).T
        )
        > threshold
    )
    if not body.any():
        return None
    (top, bottom), (left, right) = (
        (found[0] * full / reduced, (found[-1] + 1) * full / reduced)
        for found, full, reduced in (
            (np.flatnonzero(body.any(axis=1)), rows, small[0]),
            (np.flatnonzero(body.any(axis=0)), columns, small[1]),
        )
    )
    whole = max(rows, columns)
    side = max(bottom - top, right - left) * (1 + 2 * MARGIN)
    side_px = min(max(int(np.ceil(side)), int(np.ceil(SMALLEST * whole))), whole)
    return (
        int(np.floor((top + bottom - side_px) / 2)),
        int(np.floor((left + right - side_px) / 2)),
        side_px,
    )


def _body(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Without thin things and small parts."""
    from scipy import ndimage

    opened = ndimage.binary_opening(mask, np.ones((3, 3), bool))
    labels, count = ndimage.label(opened)
    areas = np.bincount(labels.ravel())
    if count == 0:
        return np.zeros_like(mask)
    areas[0] = 0
    large = areas >= _PART * areas.max()
    kept: NDArray[np.bool_] = large[labels] & opened
    return kept


def _otsu(volume: Volume) -> float:
    """Otsu's threshold between the minimum and the 99.5 percentile: no bright speck moves it."""
    from skimage.filters import threshold_otsu

    whole = extent(volume)
    (high,) = percentiles(volume, (99.5,))
    if not whole.minimum < high:
        return float("inf")
    planes = Planes.of(volume.geometry)
    counts = np.zeros(256, np.int64)
    edges = np.linspace(whole.minimum, high, 257)
    for k in range(planes.count):
        values = volume.values(planes.get(volume.array, k))
        # In float64: rounded up to float32, the largest values would fall off the last edge.
        finite = values[np.isfinite(values)].astype(np.float64)
        counts += np.histogram(np.minimum(finite, high), edges)[0]
    return float(threshold_otsu(hist=(counts, (edges[:-1] + edges[1:]) / 2)))
