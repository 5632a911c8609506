"""One look at a predicted mask: a contact sheet of its slices, or the picture with its outline."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.imaging.intensity import Limits
from sdseg_cli.imaging.io.picture import Picture
from sdseg_cli.imaging.volume import Planes, Volume
from sdseg_cli.report.drawing import (
    INK,
    PREDICTION_COLOUR,
    MaskPlane,
    bare,
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
    pixel = (height_mm * step, width_mm * step)
    chosen = preview_slices(planes.stacked(mask))
    images = [volume.values(planes.get(volume.array, k)[::step, ::step]) for k in chosen]
    outlines = [planes.get(mask, k)[::step, ::step] != 0 for k in chosen]
    is_picture = isinstance(volume, Picture)
    figure, panels = _sheet(len(chosen), planes.shape if is_picture else None)
    window = (limits.low, limits.high)
    view = _common_view(images, outlines, window[0], pixel)
    for axes, k, image, outline in zip(panels, chosen, images, outlines, strict=False):
        show_plane(axes, image, pixel, cmap="gray", limits=window)
        show_contour(axes, outline, pixel, PREDICTION_COLOUR)
        bare(axes, _caption(k, planes.count, outline, is_picture), INK)
        if not is_picture:
            zoom(axes, view)
            mark_orientation(axes)
            mark_scale(axes, view)
    for axes in panels[len(chosen) :]:
        axes.set_axis_off()
    save_figure(figure, path)


def _sheet(count: int, picture: tuple[int, int] | None) -> tuple[Any, list[Any]]:
    """A figure and its panels: one of a picture's proportions, or rows of squares."""
    if picture is not None:
        longer = _PICTURE_INCHES / max(picture)
        figure = new_figure(max(2.0, picture[1] * longer), max(1.0, picture[0] * longer) + 0.3)
        return figure, [figure.subplots()]
    columns = min(_COLUMNS, count)
    rows = math.ceil(count / columns)
    figure = new_figure(columns * _PANEL_INCHES, rows * (_PANEL_INCHES + 0.25))
    return figure, list(figure.subplots(rows, columns, squeeze=False).ravel())


def _caption(k: int, count: int, outline: MaskPlane, is_picture: bool) -> str:
    found = "" if outline.any() else "nothing found"
    if is_picture:
        return found
    return f"slice {k + 1} of {count}{': ' if found else ''}{found}"


def _common_view(
    images: list[NDArray[np.float32]],
    outlines: list[MaskPlane],
    black: float,
    pixel: tuple[float, float],
) -> tuple[float, float, float, float]:
    """A square around the body in all slices that are shown."""
    body = np.logical_or.reduce([not_black(image, black) for image in images])
    everything = body | np.logical_or.reduce(outlines)
    return view_mm(everything, everything, pixel)
