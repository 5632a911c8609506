"""The curves of a run: loss terms, validation Dice and learning rate against the step."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.report.drawing import (
    FAINT,
    INK,
    LINE_COLOURS,
    PREDICTION_COLOUR,
    chart,
    class_colour,
    fitted,
    legend,
    new_figure,
    save_figure,
)

_DRAWN = 600
"""A line has at most so many points, or twice as many; more would not be seen."""

_FEW = 4
"""Points that are drawn as dots, and large."""

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Steps and values."""


def training_curve(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Draw the loss terms (raw faint, smoothed strong), the validation Dice and the learning rate.

    Args:
        rows: Lines of `log.jsonl`: `step` with `lr`, `loss` and its terms `loss_...`, or with
            `val_dice`, of several classes also `val_dice_classes`: name -> Dice.
        path: The .png file; missing folders are made.

    Raises:
        RunError: The disk refused.
    """
    from matplotlib.ticker import MaxNLocator

    lines = list(rows)
    figure = new_figure(8.5, 7.2)
    figure.set_layout_engine("none")  # places that are known need no solver, which is slow
    loss, dice, rate = figure.subplots(
        3,
        1,
        sharex=True,
        height_ratios=(5, 4, 1.6),
        gridspec_kw={"left": 0.09, "right": 0.975, "top": 0.955, "bottom": 0.07, "hspace": 0.26},
    )
    _draw_loss(loss, lines)
    _draw_dice(dice, lines)
    chart(rate, "Learning rate", "step")
    rates = _thinned(_curve(lines, "lr"))
    rate.plot(*rates, color=FAINT, linewidth=1.6, marker=_marker(rates), markersize=5)
    rate.set_ylim(bottom=0)
    rate.set_xlim(0, 1.03 * max((row["step"] for row in lines), default=1))
    rate.xaxis.set_major_locator(MaxNLocator(integer=True))
    rate.yaxis.set_major_formatter(lambda value, _: f"{value:.2g}")
    save_figure(figure, path)


def _draw_loss(axes: Any, lines: Sequence[Mapping[str, Any]]) -> None:
    chart(axes, "Loss", "")
    terms = sorted({key for row in lines for key in row if key.startswith("loss")})
    for term, colour in zip(terms, itertools.cycle(LINE_COLOURS)):
        steps, values = _curve(lines, term)
        if not (values > 0).any():  # a switched-off term is 0 throughout: no logarithm
            continue
        axes.plot(*_envelope((steps, values)), color=colour, alpha=0.22, linewidth=0.8)
        # The total lies widest at the bottom: it may coincide with its only term.
        width = 3.6 if term == "loss" else 1.6
        smooth = _thinned((steps, smoothed(values)))
        style = {"color": colour, "linewidth": width, "markersize": 2 + 2 * width}
        axes.plot(*smooth, **style, marker=_marker(smooth), label=term.replace("_", " "))
        axes.set_yscale("log", nonpositive="mask")
    if axes.get_legend_handles_labels()[0]:
        legend(axes)


def _draw_dice(axes: Any, lines: Sequence[Mapping[str, Any]]) -> None:
    """The Dice, of several classes their mean, and a thin line for each."""
    classes = [(row["step"], row.get("val_dice_classes") or {}) for row in lines]
    names = list(dict.fromkeys(name for _, dice in classes for name in dice))
    chart(axes, "Validation Dice: mean, and of each class" if names else "Validation Dice", "")
    for number, name in enumerate(names, start=1):
        curve = _curve([{"step": step, "dice": dice.get(name)} for step, dice in classes], "dice")
        style = {"color": class_colour(number), "linewidth": 1.0, "alpha": 0.75}
        axes.plot(*curve, marker=_marker(curve), markersize=4, label=fitted(name, 1.3, 8), **style)
    steps, values = _curve(lines, "val_dice")
    if steps.size:
        size = 7 if len(steps) < _FEW else 3.5
        colour = INK if names else PREDICTION_COLOUR  # which is that of class 1
        style = {"color": colour, "marker": "o", "markersize": size}
        axes.plot(steps, values, clip_on=False, **style)
        best = len(values) - 1 - int(np.argmax(values[::-1]))  # the last of equals, as kept
        name = f"best {values[best]:.3f} at step {int(steps[best])}"
        ring = {"color": INK, "markersize": 12, "fillstyle": "none", "linestyle": "none"}
        axes.plot(steps[best], values[best], marker="o", label=name, clip_on=False, **ring)
        if names:
            style = {"frameon": False, "labelcolor": INK, "fontsize": 8}
            axes.legend(loc="upper left", ncols=4, **style)
        else:
            legend(axes)
    axes.set_ylim(0, 1)


def _marker(curve: Curve) -> str:
    """A dot where a line would be too short to be seen."""
    return "o" if len(curve[0]) < _FEW else ""


def _curve(rows: Sequence[Mapping[str, Any]], key: str) -> Curve:
    """Steps and finite values of the rows that have the key."""
    pairs = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    table = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
    table = table[np.isfinite(table[:, 1])]
    return table[:, 0], table[:, 1]


def _thinned(curve: Curve) -> Curve:
    """Evenly chosen points, with the first and the last."""
    steps, values = curve
    if len(steps) <= 2 * _DRAWN:
        return curve
    index = np.linspace(0, len(steps) - 1, _DRAWN).round().astype(int)
    return steps[index], values[index]


def _envelope(curve: Curve) -> Curve:
    """The least and the greatest of each stretch: looks as the whole line does, peaks included."""
    steps, values = curve
    size = -(-len(steps) // _DRAWN)
    if size <= 2:
        return curve
    starts = np.arange(0, len(steps), size)
    ends = np.stack([np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)], 1)
    return np.repeat(steps[starts], 2), ends.ravel()


def smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """A centred running mean over a fiftieth of the curve; narrower windows at both ends."""
    half = len(values) // 100
    sums = np.concatenate(([0.0], np.cumsum(values)))
    index = np.arange(len(values))
    start, stop = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return np.asarray((sums[stop] - sums[start]) / (stop - start), dtype=np.float64)
