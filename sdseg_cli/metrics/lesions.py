"""Which connected parts of a reference (lesions) a prediction found, and how many it made up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse
from scipy.sparse.csgraph import maximum_bipartite_matching

from sdseg_cli.metrics import Mask


@dataclass(frozen=True)
class Lesions:
    """How many parts there are.

    Attributes:
        reference: Connected parts of the reference.
        predicted: Connected parts of the prediction.
        matched: Pairs of one of each, no part in two of them.
    """

    reference: int
    predicted: int
    matched: int


def match_lesions(pred: Mask, label: Mask, least_iou: float) -> Lesions:
    """Pair the parts of two masks, one with one, as many as can be.

    Parts are connected by face, edge or corner (26 neighbours, 8 in a plane).

    Args:
        pred: Predicted mask, any shape, bool.
        label: Reference mask, the same shape, bool.
        least_iou: Two parts may be a pair if their IoU is at least this; above 0.
    """
    both = pred & label
    predicted, predicted_sizes = _parts(pred, both)
    reference, reference_sizes = _parts(label, both)
    counted = np.ones(predicted.size, np.int64), (predicted, reference)
    shared = sparse.coo_array(counted, (predicted_sizes.size, reference_sizes.size))
    shared.sum_duplicates()
    one, other = shared.coords
    iou = shared.data / (predicted_sizes[one] + reference_sizes[other] - shared.data)
    may = iou >= least_iou
    pairs = sparse.coo_array((may[may], (one[may], other[may])), shared.shape).tocsr()
    matched = maximum_bipartite_matching(pairs, perm_type="column")
    return Lesions(
        reference=reference_sizes.size - 1,
        predicted=predicted_sizes.size - 1,
        matched=int(np.count_nonzero(matched >= 0)),
    )


def _parts(mask: Mask, where: Mask) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The number of the part at each voxel of `where`, from 1; and the voxels of each part.

    Only this is kept: a volume of labels takes four times the scan.
    """
    labels, _ = ndimage.label(mask, ndimage.generate_binary_structure(mask.ndim, mask.ndim))
    return labels[where], np.bincount(labels[mask], minlength=1)
