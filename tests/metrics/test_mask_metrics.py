"""Overlaps and volumes of masks small enough to count by hand, and the table of metrics."""

from __future__ import annotations

import numpy as np
import pytest

from sdseg_cli.metrics.mask_metrics import METRICS, dice, iou, precision, recall, volume_difference
from sdseg_cli.metrics.pair import MaskPair

SPACING = (2.0, 5.0, 10.0)  # 0.1 ml a voxel


def mask(*voxels: int, size: int = 8) -> np.ndarray:
    filled = np.zeros(size, bool)
    filled[list(voxels)] = True
    return filled.reshape(2, 2, 2)


def pair(pred: np.ndarray, label: np.ndarray) -> MaskPair:
    return MaskPair(pred, label, SPACING)


def test_dice_of_two_voxels_sharing_one_is_a_half():
    assert dice(pair(mask(0, 1), mask(1, 2))) == 0.5


def test_iou_of_two_voxels_sharing_one_is_a_third():
    assert iou(pair(mask(0, 1), mask(1, 2))) == pytest.approx(1 / 3)


def test_equal_masks_score_one():
    assert dice(pair(mask(3, 5), mask(3, 5))) == 1.0
    assert iou(pair(mask(3, 5), mask(3, 5))) == 1.0


def test_one_empty_mask_scores_zero():
    assert dice(pair(mask(), mask(1))) == 0.0
    assert iou(pair(mask(1), mask())) == 0.0


def test_two_empty_masks_have_no_score():
    assert dice(pair(mask(), mask())) is None
    assert iou(pair(mask(), mask())) is None


def test_precision_is_of_the_prediction_and_recall_of_the_reference():
    assert precision(pair(mask(0, 1), mask(1, 2, 3, 4))) == 0.5
    assert recall(pair(mask(0, 1), mask(1, 2, 3, 4))) == 0.25
    assert precision(pair(mask(3), mask(3))) == recall(pair(mask(3), mask(3))) == 1.0


def test_precision_needs_a_prediction_and_recall_a_reference():
    assert precision(pair(mask(), mask(1))) is None
    assert precision(pair(mask(1), mask())) == 0.0
    assert recall(pair(mask(1), mask())) is None
    assert recall(pair(mask(), mask(1))) == 0.0
    full = mask(*range(8))
    assert precision(pair(mask(), full)) is None and recall(pair(mask(), full)) == 0.0


def test_masks_of_other_shape_or_type_are_refused():
    with pytest.raises(ValueError, match="shape"):
        pair(mask(0), mask(0).reshape(8))
    with pytest.raises(ValueError, match="bool"):
        pair(mask(0).astype(np.uint8), mask(0))


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


def test_a_metric_name_stands_once():
    assert len({one.name for one in METRICS}) == len(METRICS)


def test_the_difference_is_prediction_less_reference_in_ml():
    assert volume_difference(pair(mask(0, 1, 2), mask(0))) == pytest.approx(0.2)
    assert volume_difference(pair(mask(0), mask(0, 1, 2))) == pytest.approx(-0.2)


def test_equal_sizes_differ_by_nothing_wherever_they_lie():
    assert volume_difference(pair(mask(0, 1, 2), mask(0, 1, 2)[::-1])) == 0.0


def test_an_empty_mask_has_no_volume():
    assert volume_difference(pair(mask(), mask(*range(8)))) == pytest.approx(-0.8)
    assert volume_difference(pair(mask(), mask())) == 0.0
