"""Cleaning: of predicted masks, and of the label maps of some data sets.

A predicted mask is cleaned on the scan's own grid, always in this order:

    threshold     a voxel is foreground where its probability is above it
    fill_holes    background that foreground encloses on all sides becomes foreground
    min_size_ml   smaller parts are dropped
    keep_largest  all but the N largest parts are dropped

Holes are filled first, so that a hollow organ counts with what it encloses. Voxels belong to one
part if they share a face, an edge or a corner; in a picture, an edge or a corner.

Parts are found plane by plane, so that no volume of labels is ever held: each plane is labelled by
itself; the labels that touch from plane to plane are the edges of a graph whose components are the
parts. Labelling a plane a second time gives the same labels, so what is kept of a plane is looked
up in a table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse.csgraph import connected_components

from sdseg_cli.core.config import THRESHOLD
from sdseg_cli.core.errors import ConfigError
from sdseg_cli.core.filenames import is_picture
from sdseg_cli.imaging.intensity import extent
from sdseg_cli.imaging.io.picture import Picture
from sdseg_cli.imaging.volume import Array, Volume, bounding_box

_ROUNDING = 1e-6
"""Headers hold the spacing as float32: a part of just the smallest size must not fall by that."""

Spacing = tuple[float, float, float]
Stack = NDArray[np.uint8]
"""(S,rows,columns), 0 or 1."""
Labels = NDArray[np.int32]
"""(rows,columns): numbers that run on from plane to plane; 0 where there is no part."""

_AROUND = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if (row, column) != (0, 0)]


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

    def clean(self, mask: Stack, spacing_mm: Spacing | None) -> None:
        """All that comes after the threshold, in place.

        Memory: two planes of labels and a table of the planes' parts, within the mask's bounding
        box; nothing as large as the mask.

        Args:
            mask: (S,rows,columns) uint8, 0 or 1, as `Planes.stacked` gives it.
            spacing_mm: Of the voxels, in any order; None for a picture.
        """
        if self.fill_holes:
            fill_holes(mask)
        self._drop(mask, spacing_mm)

    def clean_classes(self, labels: NDArray[Any], spacing_mm: Spacing | None) -> None:
        """Likewise each class of a label map by itself, in place.

        A hole becomes the class that encloses it most closely, and only where it is background:
        classes with a smaller bounding box come first. What is dropped of them is background, which
        a class around it may fill.

        Args:
            labels: (S,rows,columns), 0 is background.
            spacing_mm: As in `clean`.
        """
        if replace(self, threshold=THRESHOLD) == PostProcess():
            return
        for value, box in _boxes(labels):
            within = labels[box]
            own = within == value
            part = own.astype(np.uint8)
            if self.fill_holes:
                fill_holes(part)
                part &= own | (within == 0)
            self._drop(part, spacing_mm)
            stays = part.view(np.bool_)
            within[own & ~stays] = 0
            within[stays] = value

    def clean_regions(self, regions: NDArray[Any], count: int, spacing_mm: Spacing | None) -> None:
        """Likewise each of several regions that may overlap, in place.

        Args:
            regions: (S,rows,columns), bit n of a voxel says whether it has region n.
            count: Number of regions.
            spacing_mm: As in `clean`.
        """
        if replace(self, threshold=THRESHOLD) == PostProcess():
            return
        for number in range(count):
            bit = regions.dtype.type(1 << number)
            part = ((regions & bit) != 0).astype(np.uint8)
            self.clean(part, spacing_mm)
            regions &= ~bit
            regions[part.view(np.bool_)] |= bit

    def _drop(self, mask: Stack, spacing_mm: Spacing | None) -> None:
        """Drop parts that are too small or too many, in place."""
        if self.min_size_ml is not None and spacing_mm is not None:
            least_mm3 = 1000 * self.min_size_ml * (1 - _ROUNDING)
            drop_small(mask, int(np.ceil(least_mm3 / np.prod(spacing_mm))))
        if self.keep_largest is not None:
            keep_largest(mask, self.keep_largest)


def _boxes(labels: NDArray[Any]) -> list[tuple[int, tuple[slice, slice, slice]]]:
    """Each value but 0 and the box around it, the smallest box first; a plane beyond on each side
    where there is one, so that a class on one slice of several is seen to be open.
    """
    spans: dict[int, list[int]] = {}
    for k, plane in enumerate(labels):
        for value in np.unique(plane):
            if value:
                rows, columns = np.nonzero(plane == value)
                ends = [k, k, rows[0], rows[-1], columns.min(), columns.max()]
                before = spans.setdefault(int(value), ends)
                for n, end in enumerate(ends):
                    before[n] = (max if n % 2 else min)(before[n], int(end))
    boxes = {
        value: (
            slice(max(0, ends[0] - 1), ends[1] + 2),
            slice(ends[2], ends[3] + 1),
            slice(ends[4], ends[5] + 1),
        )
        for value, ends in spans.items()
    }
    return sorted(boxes.items(), key=lambda item: np.prod([s.stop - s.start for s in item[1]]))


def fill_holes(mask: Stack) -> None:
    """Fill, in place, the background that is enclosed on all sides, by faces; one plane in 2D."""
    box = bounding_box(mask.view(np.bool_))  # of bytes, `any` would make a copy
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
    _keep(mask, lambda sizes: sizes >= least_voxels)


def keep_largest(mask: Stack, count: int) -> None:
    """Drop, in place, all but the `count` largest parts."""
    _keep(mask, lambda sizes: np.argsort(np.argsort(-sizes, kind="stable")) < count)


def _keep(mask: Stack, is_kept: Callable[[NDArray[np.int64]], NDArray[np.bool_]]) -> None:
    """Drop the parts that are not kept by their sizes in voxels."""
    box = bounding_box(mask.view(np.bool_))
    if box is None:
        return
    within = mask[box]
    found = find_parts(within, 1)
    kept = np.concatenate([[False], is_kept(found.sizes[1:])])
    if not kept[1:].all():
        stays = kept[found.part_of]
        for k, labels in labelled_planes(within, 1):
            within[k] &= stays[labels]


@dataclass(frozen=True, eq=False)
class Parts:
    """The parts of one value of a stack.

    Attributes:
        part_of: (L,) number of a plane's label -> number of its part, from 0; label 0 is part 0,
            which is what has the other value. Parts count from the first plane, row and column on.
        sizes: (P,) voxels of each part; 0 for part 0.
        at_border: (P,) whether a part touches a face of the stack. A stack of one plane has no
            faces before and behind.
    """

    part_of: NDArray[np.int64]
    sizes: NDArray[np.int64]
    at_border: NDArray[np.bool_]


def labelled_planes(stack: Stack, value: int) -> Iterator[tuple[int, Labels]]:
    """Each plane's number and labelled pieces of a value: by edge or corner for 1, edge for 0.

    So what is not 0 and what is not 1 never pass through each other.
    """
    structure = ndimage.generate_binary_structure(2, 2 if value else 1)
    before = 0
    for k, plane in enumerate(stack):
        labels, count = ndimage.label(plane == value, structure)
        np.add(labels, before, out=labels, where=labels > 0)
        before += count
        yield k, labels


def find_parts(stack: Stack, value: int) -> Parts:
    """Connect the pieces of all planes: by face, edge or corner (26) for 1, by face (6) for 0.

    Besides the stack, memory holds two planes of labels and some bytes per label.
    """
    edges, counts = [np.zeros((2, 0), np.int32)], [np.zeros(1, np.int64)]
    border = [np.zeros(1, np.int32)]
    before = 0
    below: Labels | None = None
    for k, labels in labelled_planes(stack, value):
        counts.append(np.bincount(labels.ravel())[before + 1 :])
        before += counts[-1].size
        faces = [labels[0], labels[-1], labels[:, 0], labels[:, -1]]
        if len(stack) > 1 and k in (0, len(stack) - 1):
            faces = [labels.ravel()]
        border.append(np.unique(np.concatenate(faces)))
        if below is not None:
            edges.append(_touching(below, labels, corners=bool(value)))
        below = labels
    first, second = np.concatenate(edges, axis=1)
    sizes = np.concatenate(counts)
    graph = sparse.coo_array((np.ones(first.size, bool), (first, second)), (sizes.size,) * 2)
    part_of = _in_order(connected_components(graph, directed=False)[1])
    at_border = np.zeros(int(part_of.max()) + 1, bool)
    at_border[part_of[np.concatenate(border)]] = True
    return Parts(part_of, np.bincount(part_of, weights=sizes).astype(np.int64), at_border)


def _touching(below: Labels, above: Labels, *, corners: bool) -> Labels:
    """Pairs (2,n) of labels that touch by a face, and if asked by an edge or a corner."""
    pairs = [np.stack([below, above])[:, (below > 0) & (above > 0)]]
    if corners:
        # On top of a label, its neighbours in the plane below belong to that label anyway.
        rows, columns = np.nonzero((above > 0) & (below == 0))
        wide, upper = np.pad(below, 1), above[rows, columns]
        for down, across in _AROUND:
            lower = wide[rows + 1 + down, columns + 1 + across]
            pairs.append(np.stack([lower, upper])[:, lower > 0])
    return np.concatenate([_without_repeats(some) for some in pairs], axis=1)


def _without_repeats(pairs: Labels) -> Labels:
    """Pairs that differ from the one before: along a row, mostly one of many."""
    changes = np.ones(pairs.shape[1], bool)
    changes[1:] = (pairs[:, 1:] != pairs[:, :-1]).any(axis=0)
    return pairs[:, changes]


def _in_order(component: NDArray[Any]) -> NDArray[np.int64]:
    """The same components, numbered by their first label."""
    _, first, inverse = np.unique(component, return_index=True, return_inverse=True)
    rank = np.empty(first.size, np.int64)
    rank[np.argsort(first)] = np.arange(first.size)
    ordered: NDArray[np.int64] = rank[inverse]
    return ordered


@dataclass(frozen=True)
class Cleaning:
    """Cleaning of a label map: slips of the annotation to remove, in this order.

    Attributes:
        smallest_voxels: Connected components of the labelled voxels (26 neighbours, whatever
            their labels) with fewer voxels than this are removed.
        inside_field: Labels where the scan is at its minimum, outside the scanned field, are
            removed.
    """

    smallest_voxels: int = 0
    inside_field: bool = False

    def apply(self, label: Volume, scan: Volume) -> Volume:
        """The label map without what is to be removed, given the scan on its grid."""
        if self == Cleaning():
            return label
        array = label.array.copy(order="K")
        if self.smallest_voxels > 1:
            _remove_small(array, self.smallest_voxels)
        if self.inside_field:
            minimum = np.float32(extent(scan).minimum)
            for k in range(array.shape[2]):
                array[:, :, k][scan.values(scan.array[:, :, k]) <= minimum] = 0
        return replace(label, array=array)


def _remove_small(labels: Array, smallest_voxels: int) -> None:
    """Set connected components (26 neighbours) below a size to 0, in place."""
    labelled = labels > 0
    box = bounding_box(labelled)
    if box is None:
        return
    # The numbered components take four bytes a voxel: only where there is something to number.
    numbers, _ = ndimage.label(labelled[box], structure=np.ones((3, 3, 3)))
    small = np.bincount(numbers.ravel()) < smallest_voxels
    small[0] = False
    labels[box][small[numbers]] = 0
