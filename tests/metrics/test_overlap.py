"""Overlaps of masks small enough to count by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sdseg_cli.metrics import METRICS, mask_metrics, metric, official_overlap
from sdseg_cli.metrics.overlap import dice, iou, precision, recall


def mask(*voxels: int, size: int = 8) -> np.ndarray:
    filled = np.zeros(size, bool)
    filled[list(voxels)] = True
    return filled.reshape(2, 2, 2)


def test_dice_of_two_voxels_sharing_one_is_a_half():
    assert dice(mask(0, 1), mask(1, 2)) == 0.5


def test_iou_of_two_voxels_sharing_one_is_a_third():
    assert iou(mask(0, 1), mask(1, 2)) == pytest.approx(1 / 3)


def test_equal_masks_score_one():
    assert dice(mask(3, 5), mask(3, 5)) == 1.0
    assert iou(mask(3, 5), mask(3, 5)) == 1.0


def test_one_empty_mask_scores_zero():
    assert dice(mask(), mask(1)) == 0.0
    assert iou(mask(1), mask()) == 0.0


def test_two_empty_masks_have_no_score():
    assert dice(mask(), mask()) is None
    assert iou(mask(), mask()) is None


def test_precision_is_of_the_prediction_and_recall_of_the_reference():
    assert precision(mask(0, 1), mask(1, 2, 3, 4)) == 0.5
    assert recall(mask(0, 1), mask(1, 2, 3, 4)) == 0.25
    assert precision(mask(3), mask(3)) == recall(mask(3), mask(3)) == 1.0


def test_precision_needs_a_prediction_and_recall_a_reference():
    assert precision(mask(), mask(1)) is None
    assert precision(mask(1), mask()) == 0.0
    assert recall(mask(1), mask()) is None
    assert recall(mask(), mask(1)) == 0.0
    full = mask(*range(8))
    assert precision(mask(), full) is None and recall(mask(), full) == 0.0


def test_masks_of_other_shape_or_type_are_refused():
    with pytest.raises(ValueError, match="shape"):
        dice(mask(0), mask(0).reshape(8))
    with pytest.raises(ValueError, match="bool"):
        iou(mask(0).astype(np.uint8), mask(0))


def test_official_protocol_rewards_a_prediction_on_an_empty_reference():
    assert official_overlap(mask(1), mask()) == 1.0
    assert official_overlap(mask(), mask()) == 0.0
    assert official_overlap(mask(1), mask(2)) is None
    scorer = {found.name: found for found in mask_metrics()}["dice"]
    assert scorer.measure(mask(1), mask(), None, "official") == 1.0
    assert scorer.measure(mask(1), mask(), None, "standard") == 0.0


def test_the_official_rule_is_for_dice_and_iou_alone():
    found = {
        one.name: one.measure(mask(1), mask(), (1.0, 1.0, 1.0), "official")
        for one in mask_metrics()
    }
    ones = [name for name, value in found.items() if value == 1.0]
    assert ones == ["dice", "iou"]
    assert (found["precision"], found["recall"], found["surface_dice"]) == (0.0, None, 0.0)


def test_the_columns_stand_in_this_order():
    assert [one.column for one in mask_metrics()] == [
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
        length: {one.name: one.unit_in(length) for one in mask_metrics()}
        for length in ("mm", "px", None)
    }
    assert (units["mm"]["hd95"], units["mm"]["volume_difference"]) == ("mm", "ml")
    assert (units["px"]["hd95"], units["px"]["volume_difference"]) == ("px", None)
    kept = [name for name, unit in units[None].items() if unit]
    assert kept == ["dice", "iou", "precision", "recall"]


def test_a_registered_metric_is_measured_with_the_spacing_it_asks_for(monkeypatch):
    monkeypatch.setattr("sdseg_cli.metrics.METRICS", dict(METRICS))

    @metric(unit="mm", better="lower")
    def first_axis_step(pred, label, spacing_mm):
        return spacing_mm[0]

    found = mask_metrics()[-1]
    assert found.column == "first_axis_step_mm"
    assert found.measure(mask(0), mask(0), (2.5, 1.0, 1.0)) == 2.5
    assert found.measure(mask(0), mask(0), None) is None


def test_a_metric_name_is_registered_once():
    with pytest.raises(ValueError, match="twice"):

        @metric(unit="1", better="higher")
        def dice(pred, label):
            return 1.0


def test_a_metric_that_asks_for_what_no_case_has_is_refused():
    with pytest.raises(ValueError, match="asks for 'patient'"):

        @metric(unit="1", better="higher")
        def wisdom(pred, patient):
            return 1.0
