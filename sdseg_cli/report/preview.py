"""One look at a predicted mask: a contact sheet of its slices, or the picture with its outline."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.imaging.intensity import Limits
from sdseg_cli.imaging.io.picture import Picture
from sdseg_cli.imaging.volume import Planes, Volume
from sdseg_cli.report.drawing import (
    INK,
    PREDICTION_COLOUR,
    Frame,
    Line,
    mark_patient,
    new_figure,
    not_black,
    save_figure,
    show_panel,
    view_mm,
)

MOST_SLICES = 12
_COLUMNS = 4
_PANEL_INCHES = 2.6
_PICTURE_INCHES = 7.0
_MOST_PIXELS = 1536
"""Along a side: larger planes are drawn from every n-th pixel."""


def preview_slices(mask: NDArray[np.uint8]) -> list[int]:
    """At most 12 slices spread evenly over those with foreground; over all if there is none.

    Args:
        mask: (S,rows,columns), 0 or 1.

    Returns:
        Slice numbers, ascending; the first and the last are among them.
    """
    filled = np.flatnonzero(mask.view(np.bool_).any(axis=(1, 2)))
    candidates = filled if filled.size else np.arange(len(mask))
    places = np.linspace(0, candidates.size - 1, min(MOST_SLICES, candidates.size))
    return [int(candidates[place]) for place in np.rint(places).astype(int)]


def save_preview(path: Path, volume: Volume, mask: NDArray[np.uint8], limits: Limits) -> None:
    """Draw the mask's outline on its scan and write a PNG, atomically.

    Slices lie as a radiologist sees them, with pixels of their true proportions, all with one view
    around the body. The scan's name is not on it: it may say who the patient is.

    Args:
        path: The .png file; missing folders are made.
        volume: The scan, or a picture.
        mask: (I,J,K) uint8, 0 or 1, on its grid.
        limits: The values drawn black and white.

    Raises:
        RunError: The disk refused.
    """
    planes = Planes.of(volume.geometry)
    step = math.ceil(max(planes.shape) / _MOST_PIXELS)
    height_mm, width_mm, _ = planes.spacing_mm
    chosen = preview_slices(planes.stacked(mask))
    images = [volume.values(planes.get(volume.array, k)[::step, ::step]) for k in chosen]
    masks = [planes.get(mask, k)[::step, ::step] != 0 for k in chosen]
    frame = Frame((height_mm * step, width_mm * step))
    count = 1 if isinstance(volume, Picture) else len(chosen)
    columns = min(_COLUMNS, count)
    rows = math.ceil(count / columns)
    if isinstance(volume, Picture):
        height, width = (_PICTURE_INCHES / max(planes.shape) * side for side in planes.shape)
        figure = new_figure(max(2.0, width), max(1.0, height) + 0.3)
    else:
        figure = new_figure(columns * _PANEL_INCHES, rows * (_PANEL_INCHES + 0.25))
        everything = np.logical_or.reduce([*(not_black(i, limits.low) for i in images), *masks])
        frame = replace(frame, view=view_mm(everything, everything, frame.pixel_mm))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, k, image, found in zip(panels, chosen, images, masks, strict=False):
        place = "" if frame.view is None else f"slice {k + 1} of {planes.count}"
        show_panel(
            axes,
            ": ".join(part for part in (place, "" if found.any() else "nothing found") if part),
            image,
            frame,
            limits=(limits.low, limits.high),
            outlines=[(found, Line(PREDICTION_COLOUR))],
            colour=INK,
        )
        if frame.view is not None:
            mark_patient(axes, frame.view)
    for axes in panels[len(chosen) :]:
        axes.set_axis_off()
    save_figure(figure, path)
