"""How a metric spreads over the cases: where to draw every dot, the quartiles and the axis.

Only places are worked out here; the page draws them. Every case is a dot at its value; dots that
would cover each other are stacked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 360.0, 112.0
"""Of a plot, in its own units."""
LEFT, RIGHT = 14.0, 346.0
"""Where the axis begins and ends."""
TOP, BASE = 10.0, 84.0
"""Between these the dots and the box lie; the axis is at the base."""
_RADII = ((30, 4.0), (150, 3.0), (400, 2.4), (math.inf, 1.8))  # so many cases, dots so large


@dataclass(frozen=True)
class Dot:
    """One case."""

    x: float
    y: float
    index: int
    """Of its value."""


@dataclass(frozen=True)
class Tick:
    """One mark of the axis."""

    x: float
    value: float


@dataclass(frozen=True)
class Distribution:
    """A plot of one metric, `WIDTH` x `HEIGHT`."""

    dots: tuple[Dot, ...]
    radius: float
    ticks: tuple[Tick, ...]
    decimals: int
    """That the values of the ticks need."""
    quartiles: tuple[float, float] | None
    """Places of the 25th and the 75th percentile; None for fewer than four cases."""
    median: float
    """Its place."""


def distribution(values: Sequence[float | None]) -> Distribution | None:
    """Lay out the values of one metric.

    Args:
        values: One per case; None where the metric is undefined.

    Returns:
        The plot; None if no case has a value.
    """
    known = [(value, i) for i, value in enumerate(values) if value is not None]
    if not known:
        return None
    numbers = np.array([value for value, _ in known], float)
    marks, decimals = ticks(float(numbers.min()), float(numbers.max()))
    low, high = marks[0], marks[-1]

    def place(value: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (value - low) / (high - low), 2)

    radius = next(radius for most, radius in _RADII if len(known) <= most)
    lower, median, upper = (float(q) for q in np.percentile(numbers, (25, 50, 75)))
    return Distribution(
        dots=_stacked([(place(value), i) for value, i in known], radius),
        radius=radius,
        ticks=tuple(Tick(place(value), value) for value in marks),
        decimals=decimals,
        quartiles=(place(lower), place(upper)) if len(known) >= 4 else None,
        median=place(median),
    )


def ticks(low: float, high: float) -> tuple[tuple[float, ...], int]:
    """Round values from at most `low` to at least `high`, four to eight of them.

    Returns:
        The values, and how many decimals they need.
    """
    if high - low < 1e-9 * max(1.0, abs(low), abs(high)):
        low, high = low - 0.05 * max(abs(low), 1.0), high + 0.05 * max(abs(high), 1.0)
    rough = (high - low) / 4
    power = math.floor(math.log10(rough))
    step = next(m * 10.0**power for m in (1, 2, 5, 10) if m * 10.0**power >= 0.999 * rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return tuple(round(i * step, 12) for i in range(first, last + 1)), decimals


def _stacked(places: Sequence[tuple[float, int]], radius: float) -> tuple[Dot, ...]:
    """Dots around the middle; those of one narrow strip above and below each other."""
    strips: dict[int, list[tuple[float, int]]] = {}
    for x, index in places:
        strips.setdefault(int(x / (2 * radius)), []).append((x, index))
    most = max(len(strip) for strip in strips.values())
    # The densest strip must fit; dots may then overlap, evenly.
    step = min(2 * radius, (BASE - TOP - 2 * radius) / most)
    middle = (TOP + BASE) / 2
    dots = []
    for strip in strips.values():
        for rank, (x, index) in enumerate(strip):
            side = -1 if rank % 2 else 1
            dots.append(Dot(x, round(middle + side * step * ((rank + 1) // 2), 2), index))
    return tuple(sorted(dots, key=lambda dot: dot.index))
