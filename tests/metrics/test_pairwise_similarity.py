from __future__ import annotations

import math

import numpy as np
import pytest

from sdseg_cli.metrics.lpips import Lpips
from sdseg_cli.metrics.pairwise_similarity import compare, grey
from tests.parity.fill import alexnet, lpips_heads


def test_grey_maps_span_the_data_range() -> None:
    probability = np.array([0.0, 0.4, 0.6, 1.0], np.float32)
    assert grey("seg", probability).tolist() == [0, 0, 255, 255]
    assert grey("score", probability).tolist() == pytest.approx([0, 102, 153, 255])


def results() -> np.ndarray:
    """Three results of two slices: the third differs in half of slice 1, by 0.6."""
    planes = np.zeros((3, 2, 176, 176), np.float32)
    planes[2, 1, :88] = 0.6
    return planes


def test_each_pair_has_a_value_per_slice_with_a_reference() -> None:
    found = compare(results(), [(0, 1), (0, 2)], np.array([False, True]))
    assert set(found) == {(0, 1), (0, 2)}
    assert found[0, 1]["seg", "psnr"].tolist() == [math.inf]
    # Half of the pixels differ by all of the range: 10 log10 2; the scores by 0.6 of it.
    assert found[0, 2]["seg", "psnr"] == pytest.approx([10 * math.log10(2)])
    expected = 10 * math.log10(2) - 20 * math.log10(0.6)
    assert found[0, 2]["score", "psnr"] == pytest.approx([expected], abs=1e-5)
    assert found[0, 1]["seg", "ssim"].tolist() == found[0, 1]["seg", "ms_ssim"].tolist() == [1.0]
    assert ("seg", "lpips") not in found[0, 1]


def test_lpips_sees_the_slices_without_a_reference_too() -> None:
    features = {k: v for k, v in alexnet().items() if k.startswith("features.")}
    lpips = Lpips.of(features, lpips_heads())
    found = compare(results(), [(0, 2)], np.array([True, False]), lpips=lpips)[0, 2]
    assert found["seg", "psnr"].shape == (1,)
    same, apart = found["seg", "lpips"]
    assert same == 0 < apart
