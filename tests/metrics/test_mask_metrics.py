"""Overlaps, volumes and lesions of masks counted by hand, and the table of metrics."""

from __future__ import annotations

import numpy as np
import pytest

from sdseg_cli.core.errors import ConfigError
from sdseg_cli.metrics import ScoringOptions
from sdseg_cli.metrics.mask_metrics import (
    METRICS,
    Lesions,
    MaskPair,
    detection_f1,
    dice,
    iou,
    match_lesions,
    precision,
    recall,
    volume_difference,
)

SPACING = (2.0, 5.0, 10.0)  # 0.1 ml a voxel


def mask(*voxels: int, size: int = 8) -> np.ndarray:
    filled = np.zeros(size, bool)
    filled[list(voxels)] = True
    return filled.reshape(2, 2, 2)


def pair(pred: np.ndarray, label: np.ndarray) -> MaskPair:
    return MaskPair(pred, label, SPACING)


@pytest.mark.parametrize(
    ("predicted", "reference", "scores"),
    [
        ((0, 1), (1, 2), (1 / 2, 1 / 3, 1 / 2, 1 / 2)),
        ((0, 1), (1, 2, 3, 4), (1 / 3, 1 / 5, 1 / 2, 1 / 4)),
        ((3, 5), (3, 5), (1, 1, 1, 1)),
        ((), (1,), (0, 0, None, 0)),
        ((1,), (), (0, 0, 0, None)),
        ((), (), (None, None, None, None)),
        ((), range(8), (0, 0, None, 0)),
    ],
)
def test_dice_iou_precision_and_recall_of_a_few_voxels(predicted, reference, scores):
    found = pair(mask(*predicted), mask(*reference))
    expected = [None if score is None else pytest.approx(score) for score in scores]
    assert [metric(found) for metric in (dice, iou, precision, recall)] == expected


def test_official_protocol_rewards_a_prediction_on_an_empty_reference():
    for name, metric in {one.name: one for one in METRICS[:2]}.items():
        assert name in ("dice", "iou")
        assert metric.of(pair(mask(1), mask()), "official") == 1.0
        assert metric.of(pair(mask(), mask()), "official") == 0.0
        assert metric.of(pair(mask(1), mask(2)), "official") == 0.0
        assert metric.of(pair(mask(1), mask(1)), "official") == 1.0
        assert metric.of(pair(mask(1), mask()), "standard") == 0.0


def test_the_official_rule_is_for_dice_and_iou_alone():
    found = {one.name: one.of(pair(mask(1), mask()), "official") for one in METRICS}
    ones = [name for name, value in found.items() if value == 1.0]
    assert ones == ["dice", "iou"]
    assert (found["precision"], found["recall"], found["surface_dice"]) == (0.0, None, 0.0)


def test_the_columns_stand_in_this_order():
    assert [one.column for one in METRICS] == [
        "dice",
        "iou",
        "precision",
        "recall",
        "hd95_mm",
        "assd_mm",
        "surface_dice",
        "volume_difference_ml",
        "detection_f1",
    ]


def test_pixels_have_no_volume_and_the_models_planes_no_length():
    units = {
        length: {one.name: one.unit_in(length) for one in METRICS} for length in ("mm", "px", None)
    }
    assert (units["mm"]["hd95"], units["mm"]["volume_difference"]) == ("mm", "ml")
    assert (units["px"]["hd95"], units["px"]["volume_difference"]) == ("px", None)
    kept = [name for name, unit in units[None].items() if unit]
    assert kept == ["dice", "iou", "precision", "recall"]


def test_a_metric_of_lengths_has_no_value_where_there_are_none():
    found = {one.name: one.of(MaskPair(mask(0), mask(0), None)) for one in METRICS}
    kept = [name for name, value in found.items() if value is not None]
    assert kept == ["dice", "iou", "precision", "recall"]


@pytest.mark.parametrize(
    ("predicted", "reference", "ml"),
    [
        ((0, 1, 2), (0,), 0.2),
        ((0,), (0, 1, 2), -0.2),
        ((0, 1, 2), (5, 6, 7), 0.0),
        ((), range(8), -0.8),
        ((), (), 0.0),
    ],
)
def test_the_difference_is_prediction_less_reference_in_ml(predicted, reference, ml):
    assert volume_difference(pair(mask(*predicted), mask(*reference))) == pytest.approx(ml)


def row(*spans: tuple[int, int]) -> np.ndarray:
    """A line of 40 voxels, filled from the first to before the second of each span."""
    mask = np.zeros((40, 1, 1), bool)
    for start, stop in spans:
        mask[start:stop] = True
    return mask


def f1(pred: np.ndarray, label: np.ndarray, least_iou: float = 0.1) -> float | None:
    options = ScoringOptions(detection_iou=least_iou)
    return detection_f1(MaskPair(pred, label, (1.0,) * 3, options=options))


def test_a_lesion_that_is_found_one_missed_and_one_made_up():
    pred, label = row((0, 4), (30, 32)), row((1, 5), (20, 22))
    assert match_lesions(pred, label, 0.1) == Lesions(reference=2, predicted=2, matched=1)
    assert f1(pred, label) == 2 * 1 / (2 * 1 + 1 + 1)


def test_one_prediction_over_two_lesions_finds_one_of_them():
    # IoU 4/12 with each of both.
    pred, label = row((0, 12)), row((0, 4), (8, 12))
    assert match_lesions(pred, label, 0.1) == Lesions(reference=2, predicted=1, matched=1)
    assert f1(pred, label) == pytest.approx(2 / 3)


def test_as_many_are_paired_as_can_be():
    # The first prediction overlaps both lesions, the second only the first one: taking the largest
    # IoU first would leave one of each alone.
    pred, label = row((3, 14), (0, 2)), row((0, 10), (12, 20))
    assert match_lesions(pred, label, 0.1).matched == 2


def test_an_iou_of_exactly_the_least_is_enough():
    pred, label = row((0, 1)), row((0, 10))
    assert match_lesions(pred, label, 0.1).matched == 1
    assert match_lesions(pred, label, 0.11).matched == 0


def test_voxels_that_touch_by_a_corner_are_one_lesion():
    corner = np.zeros((4, 4, 4), bool)
    corner[0, 0, 0] = corner[1, 1, 1] = True
    assert match_lesions(corner, corner, 0.1) == Lesions(1, 1, 1)
    plane = np.zeros((4, 4, 1), bool)
    plane[0, 0] = plane[1, 1] = True
    assert match_lesions(plane, plane, 0.1) == Lesions(1, 1, 1)
    apart = corner.copy()
    apart[1, 1, 1], apart[2, 2, 2] = False, True
    assert match_lesions(apart, apart, 0.1) == Lesions(2, 2, 2)


def test_an_empty_mask_finds_nothing():
    empty, one = row(), row((0, 3))
    assert match_lesions(empty, one, 0.1) == Lesions(reference=1, predicted=0, matched=0)
    assert match_lesions(one, empty, 0.1) == Lesions(reference=0, predicted=1, matched=0)
    assert f1(empty, one) == f1(one, empty) == 0.0
    assert f1(empty, empty) is None


def test_equal_masks_and_one_voxel_against_one_voxel():
    mask = row((0, 1), (5, 9), (39, 40))  # touching both ends
    assert f1(mask, mask, 1.0) == 1.0
    assert f1(row((3, 4)), row((3, 4)), 1.0) == 1.0
    assert f1(row((3, 4)), row((4, 5))) == 0.0


def test_a_pair_is_judged_by_its_options():
    strict = MaskPair(
        row((0, 5)), row((0, 10)), (1.0,) * 3, options=ScoringOptions(detection_iou=0.6)
    )
    loose = MaskPair(row((0, 5)), row((0, 10)), (1.0,) * 3)
    assert (strict.lesions.matched, loose.lesions.matched) == (0, 1)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"tolerance": -1.0}, "--tolerance is -1"),
        ({"tolerance": float("nan")}, "--tolerance is nan"),
        ({"detection_iou": 0.0}, "--detection-iou is 0"),
        ({"detection_iou": 1.5}, "--detection-iou is 1.5"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong, named):
    with pytest.raises(ConfigError, match=named):
        ScoringOptions(**wrong)
