"""Small plots of a page: how a metric spreads over the cases, and Dice against reverse steps.

Both are lists of shapes, which the page writes as SVG; its style draws them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sdseg_cli.report.wording import number

_RADII = ((30, 4.0), (150, 3.0), (400, 2.4), (math.inf, 1.8))  # so many cases, dots so large
_COLOURS = 5
"""So many lines differ in colour."""


@dataclass(frozen=True)
class Shape:
    """An element of SVG."""

    tag: str
    attributes: Mapping[str, object]
    text: str = ""
    """Written inside: a label, or of a point what it is."""
    case_id: str = ""
    """The case that it stands for."""


@dataclass(frozen=True)
class Plot:
    """A picture of `width` x `height` units."""

    width: int
    height: int
    shapes: tuple[Shape, ...]
    keys: tuple[str, ...] = ()
    """Names of the lines, in the order of their colours."""


@dataclass(frozen=True)
class Dot:
    """One case of a distribution."""

    case_id: str
    value: float
    text: str
    """The value as the page writes it."""


@dataclass(frozen=True)
class _Axis:
    """Round marks from `start` to `end` of a plot."""

    marks: tuple[float, ...]
    decimals: int
    start: float
    end: float

    @classmethod
    def over(
        cls, values: Sequence[float], start: float, end: float, limits: tuple[float, float]
    ) -> _Axis:
        """An axis that holds all values; see `ticks` for the limits."""
        return cls(*ticks(min(values), max(values), limits), start, end)

    def place(self, value: float) -> float:
        share = (value - self.marks[0]) / (self.marks[-1] - self.marks[0])
        return round(self.start + (self.end - self.start) * share, 2)

    def labelled(self) -> Iterable[tuple[float, str]]:
        return ((self.place(mark), number(mark, self.decimals)) for mark in self.marks)


def ticks(
    low: float, high: float, limits: tuple[float, float] = (-math.inf, math.inf)
) -> tuple[tuple[float, ...], int]:
    """Round values from at most `low` to at least `high`, at least three of them.

    Args:
        low: The lowest value.
        high: The highest.
        limits: The least and the most that a value can be: an axis around a single value ends
            there.

    Returns:
        The values, and how many decimals they need.
    """
    if high - low < 1e-9 * max(1.0, abs(low), abs(high)):
        margin = 0.05 * max(abs(low), 1.0)
        lower, upper = min(low, limits[0]), max(high, limits[1])
        low, high = max(low - margin, lower), min(high + margin, upper)
    rough = (high - low) / 4
    power = math.floor(math.log10(rough))
    step = next(m * 10.0**power for m in (1, 2, 5, 10) if m * 10.0**power >= 0.999 * rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return tuple(round(i * step, 12) for i in range(first, last + 1)), decimals


def distribution(
    dots: Sequence[Dot], limits: tuple[float, float] = (-math.inf, math.inf)
) -> Plot | None:
    """A dot for each case at its value, the median as a line and the middle half as a box.

    Dots that would cover each other are stacked; there is no box for fewer than four.

    Args:
        dots: The cases for which the metric is defined.
        limits: The least and the most that a value can be.

    Returns:
        The plot; None without a dot.
    """
    if not dots:
        return None
    left, right, top, base = 14.0, 346.0, 10.0, 84.0
    values = [dot.value for dot in dots]
    axis = _Axis.over(values, left, right, limits)
    shapes = []
    for x, text in axis.labelled():
        shapes.append(_line("grid", x, x, top, base + 4))
        shapes.append(_label("tick", x, base + 18, text))
    shapes.append(_line("axis", left, right, base + 4, base + 4))
    lower, median, upper = (axis.place(float(q)) for q in np.percentile(values, (25, 50, 75)))
    width = round(upper - lower, 2)
    box = {"x": lower, "y": top, "width": width, "height": base - top, "rx": 2}
    has_box = len(dots) >= 4
    if has_box:
        shapes.append(Shape("rect", {"class": "box", **box}))
    radius = next(radius for most, radius in _RADII if len(dots) <= most)
    places = [axis.place(value) for value in values]
    for dot, x, y in zip(dots, places, _stacked(places, radius, top, base), strict=True):
        circle = {"cx": x, "cy": y, "r": radius, "data-text": dot.text}
        shapes.append(Shape("circle", circle, case_id=dot.case_id))
    if has_box:
        shapes.append(Shape("rect", {"class": "edges", **box}))
    shapes.append(_line("median", median, median, top - 4, base + 4))
    return Plot(360, 112, tuple(shapes))


def class_distribution(
    rows: Sequence[tuple[str, Sequence[Dot]]], limits: tuple[float, float] = (-math.inf, math.inf)
) -> Plot | None:
    """A strip for each class, one below the other on one axis; each is read as `distribution`.

    Args:
        rows: Name of a class, and the cases for which the metric is defined.
        limits: The least and the most that a value can be.

    Returns:
        The plot, its shapes marked with the number of their class, from 1; None without a dot.
    """
    values = [dot.value for _, dots in rows for dot in dots]
    if not values:
        return None
    left, right, strip, top = 14.0, 346.0, 46.0, 6.0
    base = top + strip * len(rows)
    axis = _Axis.over(values, left, right, limits)
    shapes = []
    for x, text in axis.labelled():
        shapes.append(_line("grid", x, x, top, base))
        shapes.append(_label("tick", x, base + 14, text))
    shapes.append(_line("axis", left, right, base, base))
    radius = min(3.0, next(radius for most, radius in _RADII if len(values) / len(rows) <= most))
    for number_, (name, dots) in enumerate(rows, start=1):
        of_class, begin = f"of-class class-{number_}", top + strip * (number_ - 1)
        shapes.append(_label(f"name {of_class}", left, begin + 12, name))
        places = [axis.place(dot.value) for dot in dots]
        if not places:
            continue
        upper, lower = begin + 17, begin + strip - 3
        quarters = np.percentile([dot.value for dot in dots], (25, 50, 75))
        first, median, third = (axis.place(float(q)) for q in quarters)
        if len(dots) >= 4:
            box = {"x": first, "y": upper, "width": round(third - first, 2), "height": 26, "rx": 2}
            shapes.append(Shape("rect", {"class": f"box {of_class}", **box}))
        heights = _stacked(places, radius, upper, lower)
        for dot, x, y in zip(dots, places, heights, strict=True):
            text = f"{name}  {dot.text}"
            circle = {"class": of_class, "cx": x, "cy": y, "r": radius, "data-text": text}
            shapes.append(Shape("circle", circle, case_id=dot.case_id))
        shapes.append(_line(f"median {of_class}", median, median, upper - 2, lower + 2))
    return Plot(360, round(base + 20), tuple(shapes))


def _stacked(places: Sequence[float], radius: float, top: float, base: float) -> list[float]:
    """Heights around the middle; dots of one narrow strip lie above and below each other."""
    strips: dict[int, list[int]] = {}
    for index, x in enumerate(places):
        strips.setdefault(int(x / (2 * radius)), []).append(index)
    most = max(len(strip) for strip in strips.values())
    # The densest strip must fit; dots may then overlap, evenly.
    step = min(2 * radius, (base - top - 2 * radius) / most)
    heights = [0.0] * len(places)
    for strip in strips.values():
        for rank, index in enumerate(strip):
            side = -1 if rank % 2 else 1
            heights[index] = round((top + base) / 2 + side * step * ((rank + 1) // 2), 2)
    return heights


def sweep_chart(lines: Mapping[str, Mapping[int, tuple[float, float]]]) -> Plot | None:
    """Dice against the number of reverse steps, with a standard deviation up and down.

    Args:
        lines: Name -> steps -> mean and standard deviation.

    Returns:
        The plot; None for fewer than two numbers of steps.
    """
    every = sorted({steps for line in lines.values() for steps in line})
    if len(every) < 2:
        return None
    left, right, top, base = 52.0, 545.0, 12.0, 180.0
    ends = [m + sign * sd for line in lines.values() for m, sd in line.values() for sign in (-1, 1)]
    axis = _Axis.over(ends, base, top, (-math.inf, math.inf))
    across = {s: left + (right - left) * (i + 0.5) / len(every) for i, s in enumerate(every)}
    shapes = []
    for y, text in axis.labelled():
        shapes.append(_line("grid", left, right, y, y))
        shapes.append(_label("tick end", left - 8, y + 4, text))
    for steps, x in across.items():
        shapes.append(_label("tick", round(x, 2), base + 20, number(steps, 0)))
    shapes.append(_line("axis", left, right, base, base))
    for place, (name, line) in enumerate(lines.items()):
        colour = f"line line-{place % _COLOURS}"
        shift = 7.0 * (place - (len(lines) - 1) / 2)  # so that bars do not hide each other
        points = [
            (round(across[steps] + shift, 2), steps, *values)
            for steps, values in sorted(line.items())
        ]
        joined = " ".join(f"{x},{axis.place(mean)}" for x, _, mean, _ in points)
        shapes.append(Shape("polyline", {"class": colour, "points": joined}))
        for x, steps, mean, sd in points:
            shapes.append(_line(colour, x, x, axis.place(mean - sd), axis.place(mean + sd)))
            square = {"x": x - 4, "y": axis.place(mean) - 4, "width": 8, "height": 8, "rx": 4}
            what = f"{name}, steps {steps}: {number(mean, 4)}"
            shapes.append(Shape("rect", {"class": colour, **square}, what))
    return Plot(560, 220, tuple(shapes), tuple(lines))


def _line(style: str, x1: float, x2: float, y1: float, y2: float) -> Shape:
    return Shape("line", {"class": style, "x1": x1, "x2": x2, "y1": y1, "y2": y2})


def _label(style: str, x: float, y: float, text: str) -> Shape:
    return Shape("text", {"class": style, "x": x, "y": y}, text)
