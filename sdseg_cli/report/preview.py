"""One look at a predicted mask: a contact sheet of its slices, or the picture with its outlines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.imaging.intensity import Limits
from sdseg_cli.imaging.io.picture import Picture
from sdseg_cli.imaging.volume import Planes, Volume
from sdseg_cli.report.drawing import (
    INK,
    Frame,
    Line,
    class_legend,
    legend_inches,
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


def preview_slices(mask: NDArray[Any]) -> list[int]:
    """At most 12 slices spread evenly over those with foreground; over all if there is none.

    Of a label map, a class that none of these shows gets its largest slice in place of the nearest
    one, as long as no other class loses its only slice.

    Args:
        mask: (S,rows,columns), 0 or 1, or a label map.

    Returns:
        Slice numbers, ascending; of a mask the first and the last are among them.
    """
    filled = np.flatnonzero(np.array([plane.any() for plane in mask]))
    candidates = filled if filled.size else np.arange(len(mask))
    places = np.linspace(0, candidates.size - 1, min(MOST_SLICES, candidates.size))
    chosen = [int(candidates[place]) for place in np.rint(places).astype(int)]
    if filled.size <= MOST_SLICES or mask.max() == 1:
        return chosen
    areas = _areas(mask)
    for area in areas.values():
        held = [{value for value, of in areas.items() if of[k]} for k in chosen]
        if any(area[k] for k in chosen):
            continue
        best = int(np.argmax(area))
        for place in sorted(range(len(chosen)), key=lambda place: abs(chosen[place] - best)):
            others = set().union(*held[:place], *held[place + 1 :])
            if held[place] <= others:
                chosen[place] = best
                break
    return sorted(chosen)


def _areas(labels: NDArray[Any]) -> dict[int, NDArray[np.int64]]:
    """Value -> its pixels in each slice, for the values of a label map (S,rows,columns)."""
    counts = [np.bincount(plane.ravel()) for plane in labels]
    most = max(len(count) for count in counts)
    table = np.stack([np.pad(count, (0, most - len(count))) for count in counts])
    return {int(value): table[:, value] for value in np.flatnonzero(table.any(axis=0)) if value}


def save_preview(
    path: Path,
    volume: Volume,
    mask: NDArray[Any],
    limits: Limits,
    *,
    names: Mapping[int, str] | None = None,
) -> None:
    """Draw the outline of a mask, or of each class of a label map, and write a PNG, atomically.

    Slices lie as a radiologist sees them, with pixels of their true proportions, all with one view
    around the body. The scan's name is not on it: it may say who the patient is.

    Args:
        path: The .png file; missing folders are made.
        volume: The scan, or a picture.
        mask: (I,J,K) on its grid: uint8, 0 or 1, or a label map.
        limits: The values drawn black and white.
        names: Value in the label map -> name of its class, in the order of the classes, which gives
            their colours; without names the values do. The legend leaves out classes that the
            mask does not hold. None of a mask of one class.

    Raises:
        RunError: The disk refused.
    """
    planes = Planes.of(volume.geometry)
    step = math.ceil(max(planes.shape) / _MOST_PIXELS)
    height_mm, width_mm, _ = planes.spacing_mm
    chosen = preview_slices(planes.stacked(mask))
    images = [volume.values(planes.get(volume.array, k)[::step, ::step]) for k in chosen]
    masks = [planes.get(mask, k)[::step, ::step] for k in chosen]
    legend: dict[int, str] = {}
    if names:
        masks = [_renumbered(plane, list(names)) for plane in masks]
        found_values = {int(value) for value in np.unique(mask)}
        legend = {
            number: name
            for number, (value, name) in enumerate(names.items(), start=1)
            if value in found_values
        }
    elif mask.max() > 1:
        values = sorted({int(value) for plane in masks for value in np.unique(plane)} - {0})
        legend = {value: f"label {value}" for value in values}
    frame = Frame((height_mm * step, width_mm * step))
    count = 1 if isinstance(volume, Picture) else len(chosen)
    columns = min(_COLUMNS, count)
    rows = math.ceil(count / columns)
    if isinstance(volume, Picture):
        height, width = (_PICTURE_INCHES / max(planes.shape) * side for side in planes.shape)
        width, height = max(2.0, width), max(1.0, height) + 0.3
    else:
        width, height = columns * _PANEL_INCHES, rows * (_PANEL_INCHES + 0.25)
        found = (plane != 0 for plane in masks)
        everything = np.logical_or.reduce([*(not_black(i, limits.low) for i in images), *found])
        frame = replace(frame, view=view_mm(everything, everything, frame.pixel_mm))
    figure = new_figure(width, height + legend_inches(legend, width))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, k, image, labels in zip(panels, chosen, images, masks, strict=False):
        place = "" if frame.view is None else f"slice {k + 1} of {planes.count}"
        show_panel(
            axes,
            ": ".join(part for part in (place, "" if labels.any() else "nothing found") if part),
            image,
            frame,
            limits=(limits.low, limits.high),
            outlines=[(labels, Line())],
            colour=INK,
        )
        if frame.view is not None:
            mark_patient(axes, frame.view)
    for axes in panels[len(chosen) :]:
        axes.set_axis_off()
    if legend:
        class_legend(figure, legend, width)
    save_figure(figure, path)


def _renumbered(labels: NDArray[Any], values: Sequence[int]) -> NDArray[np.uint16]:
    """A label map with the number of each value, from 1, in its place."""
    found = np.zeros(labels.shape, np.uint16)
    for number, value in enumerate(values, start=1):
        found[labels == value] = number
    return found
