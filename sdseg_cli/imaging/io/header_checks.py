"""Checks of headers: no more voxels than the file holds, and axes at right angles.

Sizes are checked before memory is taken for voxels. Scanners measure along three perpendicular
axes: a header that says otherwise by a fraction of a degree was rounded, by a few is straightened;
one that says otherwise by many (a tilted gantry) needs resampling, which is not ours to do
silently.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.errors import DataError
from sdseg_cli.imaging.volume import Array, Geometry

PACKED_RATIO = 1032
"""Deflate (gzip, zlib) unpacks to at most so many times its size."""
BLOCK_BYTES = 1 << 20
"""Files are read in blocks of this size."""
ROUNDING_DEGREES = 0.01
"""Less than this is how headers round: the affine is taken as it stands."""
LARGEST_SHEAR_DEGREES = 5.0
"""More than this is refused; between the two, the nearest rotation is read instead."""

CUT_SHORT_HINT = "The header is wrong or the file was cut short: export it again."


def require_held(
    path: Path, claimed_bytes: int, held_bytes: int, *, packed: bool, exact: bool = False
) -> None:
    """Refuse a header that claims more voxels than the file can hold.

    Args:
        path: The file, for the message.
        claimed_bytes: By the header.
        held_bytes: As they lie on the disk.
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
            CUT_SHORT_HINT,
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


def skip(stream: BinaryIO, count: int) -> None:
    """Read past so many bytes, or to the end."""
    while count > 0 and (block := stream.read(min(count, BLOCK_BYTES))):
        count -= len(block)


def geometry_of(path: Path, shape: tuple[int, int, int], affine: NDArray[np.float64]) -> Geometry:
    """The geometry a header describes, with a small shear straightened.

    Args:
        path: The file, for messages.
        shape: (I, J, K).
        affine: (4, 4) float64, voxel index -> RAS+ mm, as the header says.

    Returns:
        A geometry with axes at right angles (up to `ROUNDING_DEGREES`); its `shear_degrees` is what
        was taken away. Spacing and the centre of the grid stay where they were.

    Raises:
        DataError: The affine is no grid at all, or is sheared by more than is allowed.
    """
    try:
        geometry = Geometry(shape, affine)
    except ValueError as error:
        raise DataError(
            f"{path}: its header gives no usable grid ({error}).",
            "Export the scan again, or repair its size, spacing and orientation.",
            "affine",
        ) from error
    shear = shear_degrees(affine)
    if shear > LARGEST_SHEAR_DEGREES:
        raise DataError(
            f"{path}: its axes are {shear:.1f} degrees off right angles; "
            f"{LARGEST_SHEAR_DEGREES:g} are allowed.",
            "Resample it to a straight grid first (a tilted gantry: dcm2niix does it).",
            "sheared",
        )
    if shear <= ROUNDING_DEGREES:
        return geometry
    return Geometry(shape, straightened(affine, shape), shear_degrees=shear)


def shear_degrees(affine: NDArray[np.float64]) -> float:
    """By how many degrees the worst pair of axes of a (4, 4) affine misses a right angle."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosines = [
        abs(directions[:, a] @ directions[:, b]) for a, b in itertools.combinations((0, 1, 2), 2)
    ]
    return float(np.degrees(np.arcsin(min(1.0, max(cosines)))))


def straightened(affine: NDArray[np.float64], shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """A (4, 4) affine with the nearest rotation as its directions.

    Spacing, handedness and the centre of the grid stay as they are.
    """
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    straight = affine.copy()
    straight[:3, :3] = nearest_rotation(affine[:3, :3] / spacing_mm) * spacing_mm
    centre = (np.asarray(shape) - 1) / 2
    straight[:3, 3] += (affine[:3, :3] - straight[:3, :3]) @ centre
    return straight


def nearest_rotation(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """The three perpendicular directions nearest to others, (3, 3) both (polar decomposition)."""
    left, _, right = np.linalg.svd(directions)
    turned: NDArray[np.float64] = left @ right
    return turned
