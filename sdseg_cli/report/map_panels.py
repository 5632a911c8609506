"""Where the runs of a case disagree, as a small picture: the slice, tinted where voxels flip."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.report.drawing import MaskPlane, PixelMm
from sdseg_cli.report.panels import CasePanel, case_panel

FILE = "map_panels.json"
_TINT = np.array([0.62, 0.2, 1.0], np.float32)
"""Red, green, blue: neither an outline's colour nor one that tissue has."""
_STRONGEST = 0.8


def map_panel(
    case_id: str,
    caption: str,
    plane: NDArray[Any],
    reference: MaskPlane,
    majority: MaskPlane,
    disagreement: NDArray[np.uint8],
    window: tuple[float, float],
    pixel_mm: PixelMm,
) -> CasePanel:
    """A slice with the disagreement of its runs laid over it.

    Args:
        case_id: The case.
        caption: What is shown.
        plane: (rows, columns) values as a radiologist sees them, or (rows, columns, 3) colours.
        reference: (rows, columns) bool.
        majority: (rows, columns) bool, what more than half of the runs call foreground.
        disagreement: (rows, columns), 4p(1-p) in steps of 1/255.
        window: The values drawn black and white.
        pixel_mm: Height and width of a pixel; (1, 1) of a picture.
    """
    low, high = window
    grey = np.clip((plane.astype(np.float32) - low) / max(high - low, 1e-6), 0, 1)
    colours = grey if grey.ndim == 3 else np.repeat(grey[..., None], 3, axis=2)
    share = _STRONGEST * (disagreement.astype(np.float32) / 255)[..., None]
    tinted = colours * (1 - share) + _TINT * share
    return case_panel(
        case_id,
        caption,
        tinted,
        reference,
        majority,
        (0.0, 1.0),
        pixel_mm,
        measured=plane.ndim == 2,  # in colour, but a slice of a patient all the same
    )
