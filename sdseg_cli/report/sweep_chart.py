"""Dice against the number of reverse steps, one line per eta and number of samples.

As in `distribution`, only places are worked out here; the page draws them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdseg_cli.report import stored, wording
from sdseg_cli.report.distribution import Tick, ticks

WIDTH, HEIGHT = 560.0, 220.0
LEFT, RIGHT, TOP, BASE = 52.0, 545.0, 12.0, 180.0
"""Of the space within the axes."""


@dataclass(frozen=True)
class Point:
    """One way of sampling."""

    x: float
    y: float
    low: float
    """Place of one SD below."""
    high: float
    """Place of one SD above."""
    text: str


@dataclass(frozen=True)
class Line:
    """Ways of sampling that differ in their steps only."""

    label: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class SweepChart:
    """A plot, `WIDTH` x `HEIGHT`."""

    lines: tuple[Line, ...]
    steps: tuple[Tick, ...]
    """Of the lower axis, evenly apart."""
    dice: tuple[Tick, ...]
    """Of the left axis; `x` is the height."""
    decimals: int


def sweep_chart(rows: Sequence[Mapping[str, Any]]) -> SweepChart | None:
    """Lay out a sweep.

    Args:
        rows: With `steps`, `eta`, `samples` and `dice` (`mean`, `sd`), as in sweep.json.

    Returns:
        The plot; None if fewer than two numbers of steps have a Dice.
    """
    found: dict[str, dict[float, tuple[float, float]]] = {}
    for row in rows:
        dice = stored.mapping(row.get("dice"))
        steps, mean = stored.number(row.get("steps")), stored.number(dice.get("mean"))
        if steps is None or mean is None:
            continue
        label = f"eta {stored.text(row.get('eta'))}, samples {stored.text(row.get('samples'))}"
        found.setdefault(label, {})[steps] = (mean, stored.number(dice.get("sd")) or 0.0)
    every = sorted({steps for line in found.values() for steps in line})
    if len(every) < 2:
        return None
    values = [value for line in found.values() for value in line.values()]
    marks, decimals = ticks(min(m - s for m, s in values), max(m + s for m, s in values))
    across = {s: LEFT + (RIGHT - LEFT) * (i + 0.5) / len(every) for i, s in enumerate(every)}

    def height(value: float) -> float:
        return round(BASE - (BASE - TOP) * (value - marks[0]) / (marks[-1] - marks[0]), 2)

    lines = []
    for place, (label, line) in enumerate(found.items()):
        shift = 7.0 * (place - (len(found) - 1) / 2)  # so that bars do not hide each other
        points = [
            Point(
                round(across[steps] + shift, 2),
                height(mean),
                height(mean - sd),
                height(mean + sd),
                f"{label}, steps {steps:g}: {wording.number(mean, 4)}",
            )
            for steps, (mean, sd) in sorted(line.items())
        ]
        lines.append(Line(label, tuple(points)))
    return SweepChart(
        tuple(lines),
        tuple(Tick(round(x, 2), steps) for steps, x in across.items()),
        tuple(Tick(height(value), value) for value in marks),
        decimals,
    )
