"""What is done after the network, on the scan's own grid, always in this order:

    threshold     a voxel is foreground where its probability is above it
    fill_holes    background that foreground encloses on all sides becomes foreground
    min_size_ml   smaller parts are dropped
    keep_largest  all but the N largest parts are dropped

Holes are filled first, so that a hollow organ counts with what it encloses. Voxels belong to one
part if they share a face, an edge or a corner; in a picture, an edge or a corner.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.config import THRESHOLD
from sdseg_cli.core.errors import ConfigError
from sdseg_cli.core.filenames import is_picture
from sdseg_cli.imaging.io.picture import Picture
from sdseg_cli.imaging.parts import Parts, Stack, bounding_box, find_parts, labelled_planes
from sdseg_cli.imaging.volume import Volume

_ROUNDING = 1e-6
"""Headers hold the spacing as float32: a part of just the smallest size must not fall by that."""


@dataclass(frozen=True)
class PostProcess:
    """See the module for the order."""

    threshold: float = THRESHOLD
    """Above 0 and below 1."""
    fill_holes: bool = False
    """In 3D: a tube that is open at its ends has no hole. In a picture, 2D."""
    min_size_ml: float | None = None
    """Parts of at least so many millilitres stay; None keeps all."""
    keep_largest: int | None = None
    """So many parts stay, by voxels; of equal ones the first from the feet, front and right."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:  # so put, NaN is refused too
            raise ConfigError(
                f"--threshold is {self.threshold:g}.",
                "Give a probability above 0 and below 1; 0.5 is usual.",
            )
        if self.min_size_ml is not None and not 0 < self.min_size_ml < np.inf:
            raise ConfigError(
                f"--min-size is {self.min_size_ml:g}.",
                "Give millilitres above 0, for example 0.5.",
            )
        if self.keep_largest is not None and self.keep_largest < 1:
            raise ConfigError(
                f"--keep-largest is {self.keep_largest}.", "Give at least 1, the largest part."
            )

    def require_size_known(self, scan: Volume | Path) -> None:
        """Refuse millilitres where there are no millimetres, known by a scan's name already.

        Raises:
            ConfigError: A smallest size is given for a picture.
        """
        picture = is_picture(scan) if isinstance(scan, Path) else isinstance(scan, Picture)
        if self.min_size_ml is not None and picture:
            raise ConfigError(
                f"{scan.name}: --min-size is in millilitres, and a picture knows none.",
                "Leave it out; --keep-largest works on pictures.",
            )

    def clean(self, mask: Stack, spacing_mm: tuple[float, float, float] | None) -> None:
        """All that comes after the threshold, in place.

        Memory: two planes of labels and a table of the planes' parts, within the mask's bounding
        box; nothing as large as the mask.

        Args:
            mask: (S,rows,columns) uint8, 0 or 1, as `Planes.stacked` gives it.
            spacing_mm: Of the voxels, in any order; None for a picture.
        """
        if self.fill_holes:
            fill_holes(mask)
        if self.min_size_ml is not None and spacing_mm is not None:
            least_mm3 = 1000 * self.min_size_ml * (1 - _ROUNDING)
            drop_small(mask, int(np.ceil(least_mm3 / np.prod(spacing_mm))))
        if self.keep_largest is not None:
            keep_largest(mask, self.keep_largest)


def fill_holes(mask: Stack) -> None:
    """Fill, in place, the background that is enclosed on all sides, by faces.

    Args:
        mask: (S,rows,columns) uint8, 0 or 1; a single plane is filled in 2D.
    """
    box = bounding_box(mask)
    if box is None:
        return
    within = mask[box]
    # In a scan of several slices, a mask on one of them is open above and below.
    flat = len(within) == 1 and len(mask) > 1
    holes = None if flat else find_parts(within, 0)
    if holes is None or holes.at_border[1:].all():
        return
    enclosed = ~holes.at_border
    enclosed[0] = False
    fill = enclosed[holes.part_of]
    for k, labels in labelled_planes(within, 0):
        within[k] |= fill[labels]


def drop_small(mask: Stack, least_voxels: int) -> None:
    """Drop, in place, the parts of fewer voxels."""
    box = bounding_box(mask)
    if box is not None:
        found = find_parts(mask[box], 1)
        _keep(mask[box], found, found.sizes >= least_voxels)


def keep_largest(mask: Stack, count: int) -> None:
    """Drop, in place, all but the `count` largest parts."""
    box = bounding_box(mask)
    if box is not None:
        found = find_parts(mask[box], 1)
        kept = np.zeros(found.sizes.size, bool)
        kept[1 + np.argsort(-found.sizes[1:], kind="stable")[:count]] = True
        _keep(mask[box], found, kept)


def _keep(mask: Stack, found: Parts, kept: NDArray[np.bool_]) -> None:
    if kept[1:].all():
        return
    stays = kept[found.part_of]
    for k, labels in labelled_planes(mask, 1):
        mask[k] &= stays[labels]
