"""How much too large or too small a mask is."""

from __future__ import annotations

import math

import numpy as np

from sdseg_cli.metrics import Mask, Spacing, metric


@metric(unit="ml", better="zero")
def volume_difference(pred: Mask, label: Mask, spacing_mm: Spacing) -> float:
    """The volume of the prediction less that of the reference: below 0 where it is too small.

    Args:
        pred: Predicted mask, any shape, bool.
        label: Reference mask, the same shape, bool.
        spacing_mm: Distance between voxels along each axis, mm.

    Returns:
        ml: 1000 mm^3.
    """
    voxels = int(np.count_nonzero(pred)) - int(np.count_nonzero(label))
    return voxels * math.prod(spacing_mm) / 1000
