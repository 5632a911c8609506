"""Pictures a person judges a result by: scan, reference, prediction and probability of one slice.

Planes are drawn as a radiologist sees them (front up, the patient's right on the left), with pixels
of their true proportions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.imaging.slices import SliceTransform
from sdseg_cli.imaging.volume import Volume
from sdseg_cli.report.drawing import (
    INK,
    PANEL_INCHES,
    PAPER,
    PREDICTION_COLOUR,
    REFERENCE_COLOUR,
    MaskPlane,
    Plane,
    bare,
    colour_bar,
    fitted,
    mark_orientation,
    mark_scale,
    new_figure,
    not_black,
    save_figure,
    show_contour,
    show_plane,
    view_mm,
    zoom,
)

_TITLE_SIZE, _NAME_INCHES = 12, 7.0


@dataclass(frozen=True, eq=False)
class CasePlane:
    """One axial slice of one case, ready to draw. All planes are (rows, columns), canonical."""

    case_id: str
    heading: str
    """What the row is about, for example "best"."""
    dice: float | None
    slice_index: int
    """From the feet, 0-based."""
    slices: int
    image: Plane
    """Values of the scan (HU for CT); (rows, columns, 3) of a picture."""
    reference: MaskPlane
    prediction: MaskPlane
    probability: Plane
    """In [0,1]."""
    window: tuple[float, float]
    """The values drawn black and white."""
    pixel_mm: tuple[float, float]
    """Height and width of a pixel; (1, 1) of a picture."""

    @property
    def is_picture(self) -> bool:
        """Whether it is in colour, without millimetres and a patient's right."""
        return self.image.ndim == 3


def case_plane(
    case_id: str,
    heading: str,
    volume: Volume,
    reference: NDArray[np.bool_],
    prediction: NDArray[np.bool_],
    probability: Callable[[int], NDArray[np.float32]],
    restore: SliceTransform,
    *,
    dice: float | None,
    window: tuple[float, float],
) -> CasePlane:
    """Cut the telling slice out of a case: the one with the largest reference area.

    Without a reference the largest predicted area decides; with neither, it is the middle slice.

    Args:
        case_id: The case.
        heading: What the row is about, for example "best".
        volume: The scan, (I,J,K).
        reference: (I,J,K) bool, on the scan's grid.
        prediction: (I,J,K) bool, on the scan's grid.
        probability: Slice number -> (256,256) in [0,1], the model's plane; asked once.
        restore: The way from the model's planes to the scan.
        dice: Of the whole case; None where it is undefined.
        window: The scan's values drawn black and white.

    Returns:
        The slice, ready for `save_cases`.
    """
    k = largest_area_slice(reference, prediction, restore)
    height_mm, width_mm, _ = restore.planes.spacing_mm
    return CasePlane(
        case_id=case_id,
        heading=heading,
        dice=dice,
        slice_index=k,
        slices=restore.slices,
        image=volume.values(restore.canonical_plane(volume.array, k)),
        reference=np.array(restore.canonical_plane(reference, k)),
        prediction=np.array(restore.canonical_plane(prediction, k)),
        probability=restore.to_native(probability(k), k),
        window=window,
        pixel_mm=(height_mm, width_mm),
    )


def largest_area_slice(
    reference: NDArray[np.bool_], prediction: NDArray[np.bool_], restore: SliceTransform
) -> int:
    """The slice with the largest reference area, else predicted area, else the middle one."""
    for mask in (reference, prediction):
        areas = [
            int(np.count_nonzero(restore.canonical_plane(mask, k))) for k in range(restore.slices)
        ]
        if max(areas) > 0:
            return int(np.argmax(areas))
    return restore.slices // 2


def save_cases(path: Path, rows: Sequence[CasePlane]) -> None:
    """Draw one row per case (scan, reference, prediction, probability) and write a PNG, atomically.

    Args:
        path: The .png file; missing folders are made.
        rows: At least one slice.

    Raises:
        RunError: The disk refused.
        ValueError: No rows.
    """
    if not rows:
        raise ValueError("a picture of no cases")
    figure = new_figure(4 * PANEL_INCHES + 0.6, len(rows) * (PANEL_INCHES + 0.6))
    parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for row, part in zip(rows, parts, strict=True):
        part.set_facecolor(PAPER)
        part.suptitle(_title(row), color=INK, fontsize=_TITLE_SIZE, x=0.012, ha="left")
        _draw_row(part, row)
    save_figure(figure, path)


def _title(row: CasePlane) -> str:
    dice = "undefined" if row.dice is None else f"{row.dice:.3f}"
    heading = f"{row.heading}:  " if row.heading else ""
    place = "" if row.is_picture else f"    slice {row.slice_index + 1} of {row.slices}"
    name = fitted(row.case_id, _NAME_INCHES, _TITLE_SIZE)
    return f"{heading}{name}    Dice {dice}{place}"


def _draw_row(part: Any, row: CasePlane) -> None:
    scan, reference, prediction, probability = part.subplots(1, 4)
    bare(scan, "picture" if row.is_picture else "scan")
    bare(reference, "reference", REFERENCE_COLOUR)
    none = "" if row.prediction.any() else ": none here"
    bare(prediction, f"prediction (dashed){none}", PREDICTION_COLOUR)
    bare(probability, "probability")
    for axes in (scan, reference, prediction):
        show_plane(axes, row.image, row.pixel_mm, cmap="gray", limits=row.window)
    show_contour(reference, row.reference, row.pixel_mm, REFERENCE_COLOUR)
    show_contour(prediction, row.reference, row.pixel_mm, REFERENCE_COLOUR, width=0.9)
    show_contour(prediction, row.prediction, row.pixel_mm, PREDICTION_COLOUR, dashed=True)
    drawn = show_plane(
        probability, row.probability, row.pixel_mm, cmap="inferno", limits=(0.0, 1.0)
    )
    show_contour(probability, row.reference, row.pixel_mm, REFERENCE_COLOUR, width=0.9)
    colour_bar(part, drawn, probability)
    seen = not_black(row.image, row.window[0])
    view = view_mm(row.reference | row.prediction, seen, row.pixel_mm)
    for axes in (scan, reference, prediction, probability):
        zoom(axes, view)
    if not row.is_picture:
        mark_orientation(scan)
        mark_scale(scan, view)
