"""LPIPS with made-up weights: what can be known without the real ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sdseg_cli.metrics.lpips import Lpips, backbone_shapes, linear_shapes
from tests.parity.fill import alexnet, lpips_heads


def backbone() -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in alexnet().items() if name in backbone_shapes()}


@pytest.fixture(scope="module")
def measure() -> Lpips:
    return Lpips.of(backbone(), lpips_heads())


def planes(seed: int, count: int = 2, size: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 255, (count, size, size)).astype(np.float32)


def test_feature_maps_have_alexnet_sizes(measure):
    maps = measure.features(torch.from_numpy(planes(0, 1, 256))[:, None])
    assert [tuple(m.shape) for m in maps] == [
        (1, 64, 63, 63),
        (1, 192, 31, 31),
        (1, 384, 15, 15),
        (1, 256, 15, 15),
        (1, 256, 15, 15),
    ]


def test_smallest_plane_leaves_one_pixel(measure):
    assert measure.features(torch.zeros(1, 1, 31, 31))[-1].shape[-2:] == (1, 1)
    with pytest.raises(ValueError, match="LPIPS of planes"):
        measure(planes(0, size=30), planes(1, size=30))


def test_identical_planes_are_at_distance_zero(measure):
    assert measure(planes(0), planes(0)).tolist() == [0.0, 0.0]
    same = torch.from_numpy(planes(0))[:, None]
    assert measure.distance(same, same).tolist() == [0.0, 0.0]


def test_distance_is_symmetric_and_positive(measure):
    there, back = measure(planes(0), planes(1)), measure(planes(1), planes(0))
    assert there == pytest.approx(back, rel=1e-5)
    assert (there > 0).all()


def test_distance_of_black_and_white_by_hand():
    # The first convolution sees the red channel in feature 0 and a constant 1 in feature 1; only
    # the first head counts, as a plain sum. White is (2.2489, 1) before normalisation, for
    # (1 - -0.030) / 0.458 = 2.2489; black is (0, 1) after the rectifier. The squared distance of
    # two unit vectors is 2 - 2 cos, and cos = 1 / |(2.2489, 1)|.
    weights = {name: torch.zeros(shape) for name, shape in backbone_shapes().items()}
    weights["features.0.weight"][0, 0, 5, 5] = 1
    weights["features.0.bias"][1] = 1
    weights |= {name: torch.zeros(shape) for name, shape in linear_shapes().items()}
    weights["lin0.model.1.weight"][:] = 1
    black, white = np.zeros((1, 64, 64), np.float32), np.full((1, 64, 64), 255, np.float32)
    expected = 2 - 2 / math.hypot(1.03 / 0.458, 1)
    assert Lpips(weights)(black, white) == pytest.approx([expected], rel=1e-5)


def test_a_difference_in_the_last_stage_is_the_mean_over_its_pixels_by_hand():
    # Every convolution passes on its middle pixel: feature 0 is the red channel as it was sampled,
    # feature 1 a constant 1. Of 63 px the stages see 15, 7, 3, 3 and 3. The left half is black, so
    # red is -(0 - 1 + 0.030) / 0.458 below zero there, and the rectifier makes it 0; right of that
    # both planes are white. Only one of the planes has the black half.
    weights = {name: torch.zeros(shape) for name, shape in backbone_shapes().items()}
    for name in ("features.0", "features.3", "features.6", "features.8", "features.10"):
        weight = weights[f"{name}.weight"]
        middle = weight.shape[-1] // 2
        weight[0, 0, middle, middle] = 1
        weights[f"{name}.bias"][1] = 1
    weights |= {name: torch.zeros(shape) for name, shape in linear_shapes().items()}
    weights["lin4.model.1.weight"][:] = 0.5
    white = np.full((1, 63, 63), 255, np.float32)
    half = white.copy()
    half[:, :, :32] = 0
    # The first convolution samples columns 3, 7, ..., 59. Pooling 3 by 2 takes the larger of
    # columns 0-2, 2-4, ..., 12-14, then of 0-2, 2-4 and 4-6 of those: so columns 3-27, 11-43 and
    # 27-59 of the plane. Only the first of three columns stays black: a third of the pixels.
    apart = 2 - 2 / math.hypot(1.03 / 0.458, 1)
    assert Lpips(weights)(white, half) == pytest.approx([0.5 * apart / 3], rel=1e-5)


def test_weights_that_are_not_of_this_network_are_a_programming_error():
    with pytest.raises(ValueError, match="wrong names or shapes"):
        Lpips.of(lpips_heads(), backbone())
    with pytest.raises(ValueError, match="wrong names or shapes"):
        Lpips.of(backbone(), {**lpips_heads(), "lin0.model.1.weight": torch.zeros(1, 8, 1, 1)})
