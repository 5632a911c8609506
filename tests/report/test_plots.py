"""Where dots, quartiles, points and axes of the page's plots lie."""

from __future__ import annotations

import math

import pytest

from sdseg_cli.report.plots import Dot, Plot, distribution, sweep_chart, ticks

LEFT, RIGHT, TOP, BASE = 14, 346, 10, 84
"""Of a distribution."""


def plot_of(values, **options) -> Plot:
    plot = distribution([Dot(str(n), value, "") for n, value in enumerate(values)], **options)
    assert plot is not None
    return plot


def shapes(plot: Plot, tag: str, style: str | None = None) -> list[dict]:
    """Attributes of the shapes of a kind."""
    return [
        {**shape.attributes, "text": shape.text, "case": shape.case_id}
        for shape in plot.shapes
        if shape.tag == tag and style in (None, shape.attributes.get("class"))
    ]


def test_a_metric_without_values_has_no_plot():
    assert distribution([]) is None


def test_values_lie_on_the_axis_in_proportion():
    plot = plot_of([0.0, 1.0, 0.5, 0.25, 0.75])
    assert {dot["case"]: dot["cx"] for dot in shapes(plot, "circle")} == {
        "0": 14, "1": 346, "2": 180, "3": 97, "4": 263,
    }  # fmt: skip
    (median,) = shapes(plot, "line", "median")
    assert median["x1"] == median["x2"] == (LEFT + RIGHT) / 2
    (box,) = shapes(plot, "rect", "box")
    assert (box["x"], box["width"]) == (97, 263 - 97)  # of five the second and the fourth
    marks = [(mark["x"], mark["text"]) for mark in shapes(plot, "text", "tick")]
    assert marks == [(LEFT, "0.0"), ((LEFT + RIGHT) / 2, "0.5"), (RIGHT, "1.0")]


def test_fewer_than_four_cases_have_no_quartiles():
    assert not shapes(plot_of([1.0, 2.0, 3.0]), "rect")


@pytest.mark.parametrize("count", [1, 2, 30, 1000])
def test_equal_values_are_all_dots_inside_the_plot(count):
    dots = shapes(plot_of([0.9] * count), "circle")
    assert len({dot["cy"] for dot in dots}) == count
    assert all(TOP + dot["r"] <= dot["cy"] <= BASE - dot["r"] for dot in dots)
    assert all(LEFT < dot["cx"] < RIGHT for dot in dots)


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


@pytest.mark.parametrize(("value", "limits"), [(0, (0, 1)), (1, (0, 1)), (0, (0, math.inf))])
def test_an_axis_around_one_value_ends_where_no_value_can_lie(value, limits):
    marks, _ = ticks(value, value, limits)
    assert limits[0] <= marks[0] and marks[-1] <= limits[1]
    assert value in marks


def test_steps_are_evenly_apart_and_dice_is_to_scale():
    plot = sweep_chart({"eta 0": {10: (1.0, 0.0), 1: (0.0, 0.0), 2: (0.5, 0.25)}})
    assert plot is not None
    left, right, top, base = 52, 545, 12, 180
    third, middle, quarter = (right - left) / 3, (top + base) / 2, (base - top) / 4
    squares = shapes(plot, "rect")
    assert [round(point["x"] + 4 - left, 1) for point in squares] == [
        round(third * half / 2, 1) for half in (1, 3, 5)
    ]
    assert [point["y"] + 4 for point in squares] == [base, middle, top]
    assert squares[1]["text"] == "eta 0, steps 2: 0.5000"
    spread = shapes(plot, "line", "line line-0")[1]
    assert (spread["y1"], spread["y2"]) == (middle + quarter, middle - quarter)
    assert [mark["text"] for mark in shapes(plot, "text", "tick")] == ["1", "2", "10"]


def test_each_eta_is_a_line_of_its_own():
    lines = {f"eta {eta}": {1: (0.5, 0.0), 2: (0.5, 0.0)} for eta in (0, 1)}
    plot = sweep_chart(lines)
    assert plot is not None
    assert plot.keys == ("eta 0", "eta 1")
    assert [line["class"] for line in shapes(plot, "polyline")] == ["line line-0", "line line-1"]


def test_one_number_of_steps_is_no_curve():
    assert sweep_chart({"eta 0": {1: (0.5, 0.0)}, "eta 1": {1: (0.6, 0.0)}}) is None
    assert sweep_chart({}) is None
