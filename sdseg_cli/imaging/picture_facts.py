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
            labels = measure_mask(mask, pair.levels)
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


def measure_mask(
    mask: NDArray[np.uint8], levels: tuple[tuple[int, int], ...] | None = None
) -> LabelFacts:
    """What a grey mask holds, and how much of it is none of its own greys.

    Args:
        mask: (H, W) uint8.
        levels: As of `Pair`; when absent, values up to 128 are labels and brighter masks are black
            and white.
    """
    greys = np.bincount(mask.ravel(), minlength=256)
    present = [int(grey) for grey in np.flatnonzero(greys)]
    if levels is None and present[-1] <= THRESHOLD:
        return LabelFacts(mask.size, {grey: int(greys[grey]) for grey in present})
    steps = levels or ((0, 0), (THRESHOLD + 1, 255))
    ends = [*(start for start, _ in steps[1:]), 256]
    counts: dict[int, int] = {}
    for (start, label), end in zip(steps, ends, strict=True):
        if count := int(greys[start:end].sum()):
            counts[label] = counts.get(label, 0) + count
    own = (0, 255) if len(steps) < 3 else (0, 128, 255)
    between = mask.size - int(greys[list(own)].sum())
    return LabelFacts(mask.size, counts, between_share=between / mask.size)


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
