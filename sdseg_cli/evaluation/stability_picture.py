"""How much the result depends on the noise, as a picture: one slice over M runs, and every Dice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.config import THRESHOLD
from sdseg_cli.report.drawing import (
    INK,
    PANEL_INCHES,
    PAPER,
    PREDICTION_COLOUR,
    REFERENCE_COLOUR,
    MaskPlane,
    Plane,
    bare,
    chart,
    colour_bar,
    fitted,
    name_places,
    new_figure,
    not_black,
    save_figure,
    show_contour,
    show_plane,
    view_mm,
    zoom,
)

_NAMED = 40
"""So many cases at most are named below their Dice."""
_CHART_INCHES = 4 * PANEL_INCHES + 0.8


@dataclass(frozen=True, eq=False)
class StabilityPlane:
    """One slice of one case as M runs saw it, on the model's plane."""

    case_id: str
    slice_index: int
    """From the feet, 0-based."""
    image: Plane
    """(H,W), of a picture (H,W,3), in [-1,1]."""
    reference: MaskPlane
    """(H,W)."""
    probability: NDArray[np.floating[Any]]
    """(M,H,W) in [0,1], one per run."""


def stability_picture(
    path: Path, view: StabilityPlane, dice: Mapping[str, Sequence[float]]
) -> None:
    """Draw one slice (every run's outline, mean, spread), and the Dice of every run and case.

    Args:
        path: The .png file; missing folders are made.
        view: The slice to show.
        dice: Per case the Dice of each run, in order.

    Raises:
        RunError: The disk refused.
    """
    figure = new_figure(4 * PANEL_INCHES + 1.4, PANEL_INCHES + 3.2)
    top, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.25, 1))[:, 0]
    _draw_planes(top, view)
    _draw_dice(below, dice)
    save_figure(figure, path)


def _draw_planes(part: Any, view: StabilityPlane) -> None:
    part.set_facecolor(PAPER)
    runs = len(view.probability)
    is_picture = view.image.ndim == 3
    place = "" if is_picture else f"    slice {view.slice_index + 1}"
    name = fitted(view.case_id, 7.0, 12)
    title = f"least stable case:  {name}{place}    {runs} runs"
    part.suptitle(title, color=INK, fontsize=12, x=0.012, ha="left")
    scan, outlines, mean, spread = part.subplots(1, 4)
    bare(scan, f"{'picture' if is_picture else 'scan'} with reference", REFERENCE_COLOUR)
    bare(outlines, f"outlines of {runs} runs", PREDICTION_COLOUR)
    bare(mean, "mean probability")
    bare(spread, "standard deviation over runs")
    square = (1.0, 1.0)
    for axes in (scan, outlines):
        show_plane(axes, view.image, square, cmap="gray", limits=(-1.0, 1.0))
    show_contour(scan, view.reference, square, REFERENCE_COLOUR)
    probability = view.probability.astype(np.float32)
    for plane in probability:
        show_contour(outlines, plane > THRESHOLD, square, PREDICTION_COLOUR, width=0.9, alpha=0.8)
    sd = probability.std(axis=0, ddof=1)
    most = max(float(sd.max()), 0.01)
    for axes, plane, high in ((mean, probability.mean(axis=0), 1.0), (spread, sd, most)):
        drawn = show_plane(axes, plane, square, cmap="inferno", limits=(0.0, high))
        colour_bar(part, drawn, axes)
    union = view.reference | (probability > THRESHOLD).any(axis=0)
    seen = view_mm(union, not_black(view.image, -1.0), square)
    for axes in (scan, outlines, mean, spread):
        zoom(axes, seen)


def _draw_dice(part: Any, dice: Mapping[str, Sequence[float]]) -> None:
    part.set_facecolor(PAPER)
    axes = part.subplots()
    chart(axes, "Dice of each run, by case", "")
    ordered = sorted(dice.items(), key=lambda item: -float(np.mean(item[1])))
    for place, (_, values) in enumerate(ordered):
        x = np.full(len(values), float(place))
        axes.plot(x, values, color=PREDICTION_COLOUR, alpha=0.35, linewidth=3)
        axes.plot(x, values, color=PREDICTION_COLOUR, marker="o", markersize=4, linestyle="none")
    if len(ordered) <= _NAMED:
        name_places(axes, [name for name, _ in ordered], _CHART_INCHES)
    axes.set_xlim(-0.6, len(ordered) - 0.4)
    axes.margins(y=0.15)
