"""Volumes of a few voxels."""

from __future__ import annotations

import numpy as np
import pytest

from sdseg_cli.metrics.volume import volume_difference

SPACING = (2.0, 5.0, 10.0)  # 0.1 ml a voxel


def mask(count: int) -> np.ndarray:
    return (np.arange(8) < count).reshape(2, 2, 2)


def test_the_difference_is_prediction_less_reference_in_ml():
    assert volume_difference(mask(3), mask(1), SPACING) == pytest.approx(0.2)
    assert volume_difference(mask(1), mask(3), SPACING) == pytest.approx(-0.2)


def test_equal_sizes_differ_by_nothing_wherever_they_lie():
    assert volume_difference(mask(3), mask(3)[::-1], SPACING) == 0.0


def test_an_empty_mask_has_no_volume():
    assert volume_difference(mask(0), mask(8), SPACING) == pytest.approx(-0.8)
    assert volume_difference(mask(0), mask(0), SPACING) == 0.0
