"""Speed and time left of a training, from its reports."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sdseg_cli.core.progress import Pace, TrainProgress

BEGUN = TrainProgress(step=1000, steps=1010, slices_per_step=4, validate_every=5)


def after(*reports: tuple[int, float, bool]) -> Pace:
    """After the report before the first step, these: step, seconds, whether it validated."""
    pace, now = Pace(), BEGUN
    pace.take(now)
    for step, seconds, validated in reports:
        row = {"step": step, "val_dice": 0.5} if validated else now.validation
        now = replace(now, step=step, seconds=seconds, validation=row)
        pace.take(now)
    return pace


def test_right_after_a_resume_nothing_is_known() -> None:
    assert after().seconds_left is None
    assert after((1001, 60.0, False)).seconds_left is None  # loading and warming up
    assert after((1001, 60.0, False)).slices_per_second is None


def test_the_steps_of_this_call_say_how_long_the_rest_takes() -> None:
    pace = after((1001, 60.0, False), (1002, 62.0, False), (1003, 64.0, False))
    assert pace.seconds_left == pytest.approx(7 * 2.0)
    assert pace.slices_per_second == pytest.approx(4 / 2.0)


def test_validations_to_come_are_counted_at_what_the_last_ones_took() -> None:
    steps = [(1000 + n, 60 + 2.0 * (n - 1), False) for n in range(1, 5)]
    pace = after(*steps, (1005, 66.0 + 2.0 + 30.0, True))  # a step of 2 s, then 30 s
    assert pace.seconds_left == pytest.approx(5 * 2.0 + 1 * 30.0)
    assert pace.slices_per_second == pytest.approx(2.0), "validations do not slow the steps"


def test_the_end_is_validated_wherever_it_falls_and_then_nothing_is_left() -> None:
    pace, now = Pace(), replace(BEGUN, step=0, steps=7, validate_every=3)
    reports = [(1, 1.0), (2, 2.0), (3, 13.0), (4, 14.0)]
    pace.take(now)
    for step, seconds in reports:
        row = {"step": 3, "val_dice": 0.1} if step >= 3 else {}
        now = replace(now, step=step, seconds=seconds, validation=row)
        pace.take(now)
    assert pace.seconds_left == pytest.approx(3 * 1.0 + 2 * 10.0)  # at steps 6 and 7
    now = replace(now, step=7, seconds=40.0, validation={"step": 7, "val_dice": 0.1})
    pace.take(now)
    assert pace.seconds_left == 0


def test_a_training_that_validates_each_step_has_a_time_left_as_well() -> None:
    pace, now = Pace(), replace(BEGUN, step=0, steps=10, validate_every=1)
    pace.take(now)
    for step in (1, 2):
        row = {"step": step, "val_dice": 0.0}
        now = replace(now, step=step, seconds=3.0 * step, validation=row)
        pace.take(now)
    assert pace.seconds_left == pytest.approx(8 * 3.0)
