"""Distances between the borders of a predicted mask and its reference.

Borders and distances are MONAI's (`get_mask_edges`, `get_surface_distance`): a border voxel is one
of whose 6 neighbours (4 in a plane) one is background, or lies beyond the grid; its distance is
that to the centre of the nearest border voxel of the other mask, by the spacing. The tests hold
them to MONAI's. A transform of the whole box, as older releases of MONAI do it, takes a minute
and gigabytes where a single stray voxel makes the box the whole scan; a tree of border points does
not care. MONAI 1.6.1 asks a tree as well, in three times the time, and would have each worker load
torch. `benchmarks/surfaces.py` compares all three.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from sdseg_cli.metrics import Mask, Spacing

Distances = NDArray[np.float64]

_TREE = {"leafsize": 32, "balanced_tree": False, "compact_nodes": False}
"""Split where the space is halved, not where the points are: quicker to build, and several times
quicker to ask where all points of one border are about as far from the other, as from a shell to
its centre."""


@dataclass(frozen=True, eq=False)
class SurfaceDistances:
    """Both directions, one distance for each border voxel.

    Attributes:
        to_label: (P,) from the prediction's border to the reference's; infinite where the
            reference is empty.
        to_pred: (R,) the other way.
    """

    to_label: Distances
    to_pred: Distances

    @property
    def defined(self) -> bool:
        """There are two borders."""
        return self.to_label.size > 0 and self.to_pred.size > 0

    @property
    def both(self) -> Distances:
        """(P + R,) all of them."""
        return np.concatenate([self.to_label, self.to_pred])


def surface_distances(pred: Mask, label: Mask, spacing: Spacing) -> SurfaceDistances:
    """Measure both directions.

    Args:
        pred: Predicted mask, bool, any number of axes.
        label: Reference mask, the same shape, bool.
        spacing: Distance between voxels along each axis.
    """
    edges = [border(pred), border(label)]
    points = [np.argwhere(edge) for edge in edges]
    scale = np.asarray(spacing, np.float64)
    return SurfaceDistances(
        _distances(points[0], points[1], edges[1], scale),
        _distances(points[1], points[0], edges[0], scale),
    )


def border(mask: Mask) -> Mask:
    """The border voxels of a mask; beyond the array is background."""
    inner = mask.copy()
    for axis in range(mask.ndim):
        inside, around = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
        inside[1:] &= around[:-1]
        inside[:-1] &= around[1:]
        inside[0] = inside[-1] = False
    edge: Mask = mask & ~inner
    return edge


def _distances(
    own: NDArray[np.intp], other: NDArray[np.intp], edge: Mask, scale: Distances
) -> Distances:
    """From each own border voxel to the nearest of the other's, which `edge` shows as a mask."""
    if len(other) == 0:
        return np.full(len(own), np.inf)
    distances = np.zeros(len(own))
    apart = ~edge[tuple(own.T)]  # where the borders meet there is nothing to look for
    tree = KDTree(other * scale, **_TREE)
    distances[apart] = tree.query(own[apart] * scale)[0]
    return distances
