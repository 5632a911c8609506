"""Where the dots, the quartiles and the axis of a metric lie."""

from __future__ import annotations

import pytest

from sdseg_cli.report.distribution import BASE, LEFT, RIGHT, TOP, distribution, ticks


def test_a_metric_without_values_has_no_plot():
    assert distribution([None, None]) is None
    assert distribution([]) is None


def test_values_lie_on_the_axis_in_proportion():
    plot = distribution([0.0, 1.0, 0.5, None, 0.25, 0.75])
    assert plot is not None
    middle = (LEFT + RIGHT) / 2
    assert {dot.index: dot.x for dot in plot.dots} == {0: 14, 1: 346, 2: 180, 4: 97, 5: 263}
    assert plot.median == middle
    assert plot.quartiles == (97, 263)  # of five values the second and the fourth
    assert (plot.ticks[0].x, plot.ticks[-1].x) == (LEFT, RIGHT)


def test_fewer_than_four_cases_have_no_quartiles():
    plot = distribution([1.0, 2.0, 3.0])
    assert plot is not None
    assert plot.quartiles is None


@pytest.mark.parametrize("count", [1, 2, 30, 1000])
def test_equal_values_are_all_dots_inside_the_plot(count):
    plot = distribution([0.9] * count)
    assert plot is not None
    assert len({dot.y for dot in plot.dots}) == count
    assert all(TOP + plot.radius <= dot.y <= BASE - plot.radius for dot in plot.dots)
    assert all(LEFT < dot.x < RIGHT for dot in plot.dots)


@pytest.mark.parametrize(
    ("low", "high", "marks", "decimals"),
    [
        (0.0, 1.0, (0.0, 0.5, 1.0), 1),
        (0.0, 4.0, (0, 1, 2, 3, 4), 0),
        (-168.0, 22.0, (-200, -150, -100, -50, 0, 50), 0),
        (0.81, 0.89, (0.8, 0.82, 0.84, 0.86, 0.88, 0.9), 2),
        (5.0, 5.0, (4.6, 4.8, 5.0, 5.2, 5.4), 1),
        (0.0, 0.0, (-0.05, 0.0, 0.05), 2),
    ],
)
def test_ticks_are_round_and_hold_all_values(low, high, marks, decimals):
    found, places = ticks(low, high)
    assert found == pytest.approx(marks)
    assert places == decimals
