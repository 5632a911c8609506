"""PSNR, SSIM and MS-SSIM against formulas and an independent implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.signal import fftconvolve
from skimage.metrics import structural_similarity

from sdseg_cli.metrics.lpips import Lpips
from sdseg_cli.metrics.similarity import compare, grey, ms_ssim, psnr, ssim
from tests.parity.fill import alexnet, lpips_heads

C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def disk(radius: float, shift: int = 0, size: int = 256) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - size // 2
    return (np.hypot(y, x - shift) < radius).astype(np.float32) * 255


def noisy(seed: int, size: int = 256) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 255, (size, size)).astype(np.float32)


def test_psnr_of_one_wrong_pixel_in_a_hundred_is_twenty_db():
    first = np.zeros((10, 10), np.uint8)
    other = first.copy()
    other[3, 4] = 255
    assert psnr(first, other) == pytest.approx([20.0])


def test_psnr_does_not_wrap_around_in_uint8():
    first, other = np.full((4, 4), 1, np.uint8), np.full((4, 4), 2, np.uint8)
    assert psnr(first, other) == pytest.approx([20 * math.log10(255)])
    assert psnr(other, first) == pytest.approx([20 * math.log10(255)])


def test_psnr_of_identical_planes_is_infinite():
    planes = np.stack([disk(10, size=32), disk(5, size=32)])
    assert psnr(planes, planes).tolist() == [math.inf, math.inf]


def test_identical_planes_are_wholly_similar():
    assert ssim(disk(20), disk(20)).tolist() == [1.0]
    assert ms_ssim(disk(20), disk(20)).tolist() == [1.0]


@pytest.mark.slow
def test_ssim_of_constant_planes_is_the_luminance_term():
    first, other = np.full((16, 16), 50.0), np.full((16, 16), 200.0)
    expected = (2 * 50 * 200 + C1) / (50**2 + 200**2 + C1)
    assert ssim(first, other) == pytest.approx([expected], abs=2e-4)


def test_ms_ssim_of_constant_planes_is_the_luminance_term_of_the_last_scale():
    first, other = np.full((176, 176), 50.0), np.full((176, 176), 200.0)
    expected = ((2 * 50 * 200 + C1) / (50**2 + 200**2 + C1)) ** SCALE_WEIGHTS[-1]
    assert ms_ssim(first, other) == pytest.approx([expected], abs=2e-4)


def test_ssim_agrees_with_scikit_image():
    pairs = [(disk(30), disk(30, shift=3)), (noisy(0), noisy(1)), (disk(12), noisy(2))]
    found = ssim(np.stack([a for a, _ in pairs]), np.stack([b for _, b in pairs]))
    expected = [
        structural_similarity(
            a.astype(np.float64),
            b.astype(np.float64),
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for a, b in pairs
    ]
    assert found == pytest.approx(expected, abs=1e-4)


def ms_ssim_by_definition(x: np.ndarray, y: np.ndarray) -> float:
    """Wang, Simoncelli and Bovik 2003, in float64."""
    taps = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(taps, taps) / taps.sum() ** 2

    def mean(plane: np.ndarray) -> np.ndarray:
        return fftconvolve(plane, window, mode="valid")

    x, y, value = x.astype(np.float64), y.astype(np.float64), 1.0
    for scale, weight in enumerate(SCALE_WEIGHTS):
        mx, my = mean(x), mean(y)
        vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
        term = (2 * cov + C2) / (vx + vy + C2)
        if scale == 4:
            term = term * (2 * mx * my + C1) / (mx**2 + my**2 + C1)
        value *= max(float(term.mean()), 0.0) ** weight
        half = x.shape[0] // 2
        x, y = (p.reshape(half, 2, half, 2).mean(axis=(1, 3)) for p in (x, y))
    return value


def test_ms_ssim_agrees_with_its_definition():
    pairs = [(disk(30), disk(30, shift=3)), (noisy(0), noisy(1)), (disk(12), noisy(2))]
    found = ms_ssim(np.stack([a for a, _ in pairs]), np.stack([b for _, b in pairs]))
    assert found == pytest.approx([ms_ssim_by_definition(a, b) for a, b in pairs], abs=1e-4)


def test_each_plane_keeps_its_place_among_identical_ones():
    first = np.stack([disk(30), disk(30), disk(9)])
    other = np.stack([disk(30), disk(30, shift=5), disk(9)])
    values = ssim(first, other)
    assert values[0] == values[2] == 1.0
    assert values[1] == pytest.approx(ssim(first[1], other[1])[0], abs=1e-6)


def test_batching_changes_nothing():
    first = np.stack([noisy(n, 32) for n in range(20)])
    other = first[::-1]
    assert ssim(first, other) == pytest.approx(
        [ssim(a, b)[0] for a, b in zip(first, other, strict=True)], abs=1e-6
    )


def test_planes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        psnr(np.zeros((4, 4)), np.zeros((4, 5)))
    with pytest.raises(ValueError, match="176 px"):
        ms_ssim(np.zeros((128, 128)), np.zeros((128, 128)))


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
