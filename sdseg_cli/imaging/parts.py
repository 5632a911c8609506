"""Connected parts of a mask, found plane by plane: no volume of labels is ever held.

Each plane is labelled by itself; the labels that touch from plane to plane are the edges of a graph
whose components are the parts. Labelling a plane a second time gives the same labels, so what is
kept of a plane is looked up in a table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse.csgraph import connected_components

Stack = NDArray[np.uint8]
"""(S,rows,columns), 0 or 1."""
Labels = NDArray[np.int32]
"""(rows,columns): numbers that run on from plane to plane; 0 where there is no part."""

_AROUND = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if (row, column) != (0, 0)]


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
    """Each plane's connected pieces of a value, by edge or corner for 1, by edge alone for 0.

    So what is not 0 and what is not 1 never pass through each other.

    Yields:
        Number of the plane and its labels.
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


def bounding_box(stack: Stack) -> tuple[slice, slice, slice] | None:
    """Where the ones are; None if there are none."""
    spans, ones = [], stack.view(np.bool_)  # of bytes, `any` would make a copy
    for axis in range(3):
        filled = np.flatnonzero(ones.any(axis=tuple({0, 1, 2} - {axis})))
        if filled.size == 0:
            return None
        spans.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return spans[0], spans[1], spans[2]


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
