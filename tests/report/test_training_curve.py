"""The curves of a run."""

from __future__ import annotations

import numpy as np
import pytest

from sdseg_cli.report.drawing import PREDICTION_COLOUR, class_colour, rgb
from sdseg_cli.report.training_curve import _envelope, _thinned, smoothed, training_curve
from tests.report.test_pictures import pixels, shows


def test_smoothing_is_a_centred_mean_that_narrows_at_the_ends():
    assert smoothed(np.arange(5.0)).tolist() == [0, 1, 2, 3, 4]  # too short to smooth
    values = np.zeros(100)
    values[50] = 3
    assert smoothed(values)[48:53] == pytest.approx([0, 1, 1, 1, 0])
    values[0] = 3
    assert smoothed(values)[0] == pytest.approx(1.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "rows",
    [
        [
            *({"step": n, "loss": 1 / n, "loss_noise": 0.0, "loss_latent": 1 / n} for n in (1, 2)),
            {"step": 2, "val_dice": 0.4},
            {"step": 3, "val_dice": None},
        ],
        [{"step": 1, "loss": 0.5, "lr": 0.0}, {"step": 1, "val_dice": 0.0}],  # a best of zero
        [],
    ],
)
def test_the_training_curve_takes_log_lines_as_they_come(tmp_path, rows):
    training_curve(rows, tmp_path / "curve.png")
    assert shows(pixels(tmp_path / "curve.png"), PREDICTION_COLOUR) == bool(rows)


def test_a_long_curve_keeps_its_peaks_and_both_ends() -> None:
    steps, values = np.arange(6000.0), np.zeros(6000)
    values[1234], values[4321] = 7, -7
    at, drawn = _envelope((steps, values))
    assert len(at) == len(drawn) == 1200  # two for each of 600 stretches of ten steps
    assert (drawn.min(), drawn.max()) == (-7, 7)
    assert at[drawn == 7].tolist() == [1230]
    few, _ = _thinned((steps, values))
    assert (len(few), few[0], few[-1]) == (600, 0, 5999)


def test_a_short_curve_is_drawn_as_it_is() -> None:
    curve = np.arange(900.0), np.ones(900)
    assert _envelope(curve) is curve
    assert _thinned(curve) is curve


def test_a_single_validation_is_a_dot_that_is_seen_on_an_axis_of_whole_steps(tmp_path) -> None:
    rows = [{"step": 1, "loss": 0.5, "loss_noise": 0.4, "lr": 1e-4}, {"step": 1, "val_dice": 0.6}]
    training_curve(rows, tmp_path / "curve.png")
    picture = pixels(tmp_path / "curve.png")
    at = np.argwhere(np.abs(picture - rgb(PREDICTION_COLOUR)).max(axis=2) < 40)
    assert np.ptp(at, axis=0).min() >= 9  # pixels across; a line of one point has none
    # The axis begins at 0: step 1 lies near its right end, not in the middle.
    assert at[:, 1].mean() > 0.9 * picture.shape[1]


def test_each_class_has_a_line_of_its_colour_beside_the_mean(tmp_path) -> None:
    rows = [
        {"step": n, "val_dice": 0.5, "val_dice_classes": {"a": 0.3, "b $": 0.1 * n, "c": None}}
        for n in (1, 2, 3)
    ]
    training_curve(rows, tmp_path / "curve.png")
    picture = pixels(tmp_path / "curve.png")
    assert all(shows(picture, class_colour(number), 90) for number in (1, 2))
