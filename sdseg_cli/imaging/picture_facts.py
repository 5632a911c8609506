"""Measure a picture and its mask, read as `prepare` reads them."""

from __future__ import annotations

import hashlib

import numpy as np

from sdseg_cli.core.errors import DataError, GeometryError
from sdseg_cli.imaging.io.picture import (
    MaskLevels,
    Picture,
    labels_of,
    levels_of,
    read_picture,
    read_picture_greys,
)
from sdseg_cli.imaging.measure import Pair, fault_of
from sdseg_cli.imaging.statistics import CaseFacts, Fault, GridStatistics, LabelStatistics

MANY_GREYS = 16
"""A mask of more values than these, white among them, is a soft edge and no list of classes."""


def measure_pictures(pair: Pair) -> CaseFacts:
    """Measure one picture and its mask; what cannot be read becomes a fault."""
    faults: list[Fault] = []
    grid = labels = None
    digest = ""
    try:
        pixels = read_picture(pair.image).array
        rows, columns = pixels.shape[:2]
        grid = GridStatistics(shape=(rows, columns), plane=(rows, columns))
        digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
    except DataError as error:
        faults.append(fault_of("image", error))
    if pair.label is not None:
        role = "label"
        try:
            mask = read_picture_greys(pair.label, pair.levels)
            labels = measure_mask(mask, pair.levels)
            role = "grid"
            rows, columns = mask.array.shape[:2]
            if grid is not None and (rows, columns) != grid.plane:
                raise GeometryError(
                    f"image {pair.image.name} has {grid.plane[1]}x{grid.plane[0]} pixels, mask "
                    f"{pair.label.name} has {columns}x{rows}.",
                    "Export both at one size, without resizing either.",
                    "shape",
                )
        except DataError as error:
            faults.append(fault_of(role, error))
    return CaseFacts(pair.id, pair.image, pair.label, grid, None, labels, tuple(faults), digest)


def measure_mask(greys: Picture, levels: MaskLevels | None = None) -> LabelStatistics:
    """The labels of a mask, and how much of it is none of its own greys.

    Args:
        greys: Of `read_picture_greys`.
        levels: As of `Pair`.
    """
    values, counts = np.unique(labels_of(greys, levels).array, return_counts=True)
    found = {int(value): int(count) for value, count in zip(values, counts, strict=True)}
    used = levels_of(greys, levels)
    own = [0, 255] if used is None or len(used) < 3 else [0, 128, 255]
    is_soft = used is not None or (len(found) > MANY_GREYS and values[-1] == 255)
    between = float(np.isin(greys.array, own, invert=True).mean()) if is_soft else 0.0
    return LabelStatistics(greys.array.size, found, between_share=between, graded=used is None)
