"""Two ways on the same cases, as a picture: each case a dot, and each case's difference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sdseg_cli.metrics.paired import Paired
from sdseg_cli.report.drawing import (
    FAINT,
    INK,
    PREDICTION_COLOUR,
    chart,
    fitted,
    name_places,
    new_figure,
    save_figure,
)

_NAMED = 40
"""So many cases at most are named under their differences."""
_CHART_INCHES = 5.6
MEAN_COLOUR = "#b79cff"
"""Neither a reference's nor a prediction's."""


def comparison_picture(
    path: Path,
    dice: Mapping[str, tuple[float | None, float | None]],
    names: tuple[str, str],
    found: Paired,
) -> None:
    """Draw Dice of B against Dice of A, and B - A case by case in order.

    Args:
        path: The .png file; missing folders are made.
        dice: Case -> Dice of A and of B; cases without both are left out.
        names: What A and B are called.
        found: Their comparison, for the mean and its interval.

    Raises:
        RunError: The disk refused.
    """
    both = {name: (a, b) for name, (a, b) in dice.items() if a is not None and b is not None}
    figure = new_figure(11.0, 5.0)
    figure.suptitle(
        f"A: {fitted(names[0], 5.0, 10)}    B: {fitted(names[1], 5.0, 10)}",
        color=INK,
        fontsize=10,
        x=0.012,
        ha="left",
    )
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.4))
    values = np.array(list(both.values()), np.float64).reshape(-1, 2)
    _draw_pairs(left, values)
    _draw_differences(right, dict(zip(both, values[:, 1] - values[:, 0], strict=True)), found)
    save_figure(figure, path)


def _draw_pairs(axes: Any, values: np.ndarray[Any, Any]) -> None:
    chart(axes, "Dice of each case", "A")
    axes.set_ylabel("B", color=FAINT, fontsize=9)
    low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    margin = max(0.02, 0.08 * (high - low))
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, color=FAINT, linewidth=0.8, linestyle="dashed")
    axes.scatter(values[:, 0], values[:, 1], s=22, color=PREDICTION_COLOUR, alpha=0.8, zorder=3)
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    for x, y, text, side in (
        (0.03, 0.96, "B better", {"ha": "left", "va": "top"}),
        (0.97, 0.04, "A better", {"ha": "right", "va": "bottom"}),
    ):
        axes.text(x, y, text, transform=axes.transAxes, color=FAINT, fontsize=8, **side)


def _draw_differences(axes: Any, differences: dict[str, float], found: Paired) -> None:
    chart(axes, "B - A, case by case", "")
    ordered = sorted(differences.items(), key=lambda item: item[1])
    places = np.arange(len(ordered))
    heights = np.array([value for _, value in ordered], np.float64)
    axes.axhline(0, color=FAINT, linewidth=0.8)
    axes.vlines(places, 0, heights, color=PREDICTION_COLOUR, alpha=0.5, linewidth=2)
    axes.scatter(places, heights, s=18, color=PREDICTION_COLOUR, zorder=3)
    low, high = found.ci95
    if found.difference is not None:
        axes.axhline(found.difference, color=MEAN_COLOUR, linewidth=1.2)
    if low is not None and high is not None:
        axes.axhspan(low, high, color=MEAN_COLOUR, alpha=0.16, linewidth=0)
        axes.set_title(
            "mean and its 95 % interval", color=MEAN_COLOUR, fontsize=9, loc="right", pad=6
        )
    if len(ordered) <= _NAMED:
        name_places(axes, [name for name, _ in ordered], _CHART_INCHES)
    else:
        axes.set_xticks([])
