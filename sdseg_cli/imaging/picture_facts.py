"""Measure a picture and its mask, PNG or JPEG, with Pillow."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.errors import DataError, GeometryError
from sdseg_cli.facts import CaseFacts, Fault, GridFacts, LabelFacts
from sdseg_cli.imaging.measure import Pair, fault_of

THRESHOLD = 128
"""A mask's pixels above it are foreground."""


def measure_pictures(pair: Pair) -> CaseFacts:
    """Measure one picture and its mask; what cannot be read becomes a fault."""
    faults: list[Fault] = []
    grid = labels = None
    digest = ""
    try:
        pixels = read_pixels(pair.image, "RGB")
        rows, columns = pixels.shape[:2]
        grid = GridFacts(shape=(rows, columns), plane=(rows, columns))
        digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
    except DataError as error:
        faults.append(fault_of("image", error))
    if pair.label is not None:
        role = "label"
        try:
            mask = read_pixels(pair.label, "L")
            labels = measure_mask(mask)
            role = "grid"
            if grid is not None and mask.shape != grid.plane:
                raise GeometryError(
                    f"image {pair.image.name} has {grid.plane[1]}x{grid.plane[0]} pixels, mask "
                    f"{pair.label.name} has {mask.shape[1]}x{mask.shape[0]}.",
                    "Export both at one size, without resizing either.",
                    "shape",
                )
        except DataError as error:
            faults.append(fault_of(role, error))
    return CaseFacts(pair.id, pair.image, pair.label, grid, None, labels, tuple(faults), digest)


def measure_mask(mask: NDArray[np.uint8]) -> LabelFacts:
    """What a grey mask holds, thresholded, and how much of it is neither black nor white.

    Args:
        mask: (H, W) uint8.
    """
    counts = np.bincount(mask.ravel(), minlength=256)
    foreground = int(counts[THRESHOLD + 1 :].sum())
    highest = int(np.flatnonzero(counts)[-1])
    if highest <= THRESHOLD:  # labels as they are, not black and white
        present = np.flatnonzero(counts)
        return LabelFacts(mask.size, {int(value): int(counts[value]) for value in present})
    both = {0: mask.size - foreground, 255: foreground}
    return LabelFacts(
        voxels=mask.size,
        counts={value: count for value, count in both.items() if count},
        between_share=float(counts[1:255].sum()) / mask.size,
    )


def read_pixels(path: Path, mode: str) -> NDArray[np.uint8]:
    """Decode a picture to its last byte.

    Args:
        path: PNG, JPEG, ...
        mode: "RGB" for (H, W, 3) or "L" for (H, W).

    Raises:
        DataError: Missing, damaged, or no picture.
    """
    from PIL import Image, UnidentifiedImageError

    if not path.is_file():
        raise DataError(f"{path} does not exist.", "Check the path.", "missing")
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert(mode), np.uint8)
    except UnidentifiedImageError as error:
        raise DataError(
            f"{path}: not a picture, whatever its name says.",
            "Give a PNG or JPEG; check that the download finished.",
            "kind",
        ) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path}: cannot be read ({' '.join(str(error).split())}).",
            "It may be cut short or damaged: copy or export it again.",
            "damaged",
        ) from error
