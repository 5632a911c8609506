"""Where the points of a sweep lie."""

from __future__ import annotations

from sdseg_cli.report.sweep_chart import BASE, LEFT, RIGHT, TOP, sweep_chart


def _row(steps, mean, sd=None, eta=0):
    return {"steps": steps, "eta": eta, "samples": 1, "dice": {"mean": mean, "sd": sd}}


def test_steps_are_evenly_apart_and_dice_is_to_scale():
    chart = sweep_chart([_row(10, 1.0), _row(1, 0.0), _row(2, 0.5, 0.25)])
    assert chart is not None
    third = (RIGHT - LEFT) / 3
    (line,) = chart.lines
    assert [mark.value for mark in chart.steps] == [1, 2, 10]
    assert [round(p.x - LEFT, 1) for p in line.points] == [
        round(third * half / 2, 1) for half in (1, 3, 5)
    ]
    middle, quarter = (TOP + BASE) / 2, (BASE - TOP) / 4
    assert [p.y for p in line.points] == [BASE, middle, TOP]
    assert (line.points[1].low, line.points[1].high) == (middle + quarter, middle - quarter)
    assert line.points[1].text == "eta 0, samples 1, steps 2: 0.5000"


def test_each_eta_is_a_line_of_its_own():
    chart = sweep_chart([_row(s, 0.5, eta=eta) for s in (1, 2) for eta in (0, 1)])
    assert chart is not None
    assert [line.label for line in chart.lines] == ["eta 0, samples 1", "eta 1, samples 1"]


def test_one_number_of_steps_or_no_dice_is_no_curve():
    assert sweep_chart([_row(1, 0.5), _row(1, 0.6, eta=1)]) is None
    assert sweep_chart([_row(1, None), _row(2, None), {}]) is None
