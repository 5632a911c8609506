"""How far a predicted mask and its reference overlap, voxel by voxel over a whole case."""

from __future__ import annotations

import numpy as np

from sdseg_cli.metrics import Mask, metric


def _overlap(pred: Mask, label: Mask) -> tuple[int, int, int]:
    """Voxels in both masks, in the prediction, in the reference."""
    if pred.shape != label.shape:
        raise ValueError(f"masks differ in shape: {pred.shape} and {label.shape}")
    if pred.dtype != np.bool_ or label.dtype != np.bool_:
        raise ValueError(f"masks must be bool, not {pred.dtype} and {label.dtype}")
    both = int(np.count_nonzero(pred & label))
    return both, int(np.count_nonzero(pred)), int(np.count_nonzero(label))


@metric(unit="1", better="higher")
def dice(pred: Mask, label: Mask) -> float | None:
    """Twice the overlap over the sum of both sizes: 2|A n B| / (|A| + |B|).

    Args:
        pred: Predicted mask, any shape, bool.
        label: Reference mask, the same shape, bool.

    Returns:
        A value in [0, 1]: 0 when one mask is empty, None (nothing to score) when both are.

    Raises:
        ValueError: The shapes differ, or a mask is not bool.
    """
    both, predicted, reference = _overlap(pred, label)
    total = predicted + reference
    return None if total == 0 else 2 * both / total


@metric(unit="1", better="higher")
def iou(pred: Mask, label: Mask) -> float | None:
    """The overlap over the union: |A n B| / |A u B|, the Jaccard index.

    Args:
        pred: Predicted mask, any shape, bool.
        label: Reference mask, the same shape, bool.

    Returns:
        A value in [0, 1]: 0 when one mask is empty, None (nothing to score) when both are.

    Raises:
        ValueError: The shapes differ, or a mask is not bool.
    """
    both, predicted, reference = _overlap(pred, label)
    union = predicted + reference - both
    return None if union == 0 else both / union


@metric(unit="1", better="higher")
def precision(pred: Mask, label: Mask) -> float | None:
    """The share of the prediction that is right: |A n B| / |A|.

    Args:
        pred: Predicted mask A, any shape, bool.
        label: Reference mask B, the same shape, bool.

    Returns:
        A value in [0, 1]; None when nothing is predicted.

    Raises:
        ValueError: The shapes differ, or a mask is not bool.
    """
    both, predicted, _ = _overlap(pred, label)
    return None if predicted == 0 else both / predicted


@metric(unit="1", better="higher")
def recall(pred: Mask, label: Mask) -> float | None:
    """The share of the reference that is found: |A n B| / |B|.

    Args:
        pred: Predicted mask A, any shape, bool.
        label: Reference mask B, the same shape, bool.

    Returns:
        A value in [0, 1]; None when there is nothing to find.

    Raises:
        ValueError: The shapes differ, or a mask is not bool.
    """
    both, _, reference = _overlap(pred, label)
    return None if reference == 0 else both / reference
