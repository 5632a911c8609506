"""LPIPS with made-up weights: what can be known without the real ones."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sdseg_cli.errors import WeightsError
from sdseg_cli.metrics.lpips import Lpips, backbone_shapes, linear_shapes

HEADS = Path(__file__).resolve().parents[2] / "../shared/data/lpips-linear"


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("lpips")
    backbone = random_weights(backbone_shapes(), 0)
    classifier = {"classifier.6.bias": torch.zeros(1000)}  # a whole AlexNet file has more in it
    torch.save({**backbone, **classifier}, folder / "alexnet.pth")
    heads = {name: w.abs() for name, w in random_weights(linear_shapes(), 1).items()}
    save_file(heads, folder / "alex.safetensors")
    return folder / "alexnet.pth", folder / "alex.safetensors"


@pytest.fixture(scope="module")
def measure(files: tuple[Path, Path]) -> Lpips:
    return Lpips.load(*files)


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


def test_missing_and_damaged_weights_are_named(files, tmp_path):
    backbone, heads = files
    with pytest.raises(WeightsError, match=r"nowhere\.pth: no such file"):
        Lpips.load(tmp_path / "nowhere.pth", heads)
    torn = tmp_path / "torn.pth"
    torn.write_bytes(backbone.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="not a weight file"):
        Lpips.load(torn, heads)
    with pytest.raises(WeightsError, match=r"features\.0\.weight is missing"):
        Lpips.load(heads, heads)
    other = tmp_path / "vgg.safetensors"
    save_file({name: torch.zeros(1, 8, 1, 1) for name in linear_shapes()}, other)
    with pytest.raises(WeightsError, match=r"shape \(1, 8, 1, 1\), expected \(1, 64, 1, 1\)"):
        Lpips.load(backbone, other)


def test_weights_that_would_run_code_are_refused(files, tmp_path):
    path = tmp_path / "code.pth"
    torch.save({"features.0.weight": print}, path)
    with pytest.raises(WeightsError, match="read safely"):
        Lpips.load(path, files[1])


@pytest.mark.data
@pytest.mark.skipif(not HEADS.is_dir(), reason="the LPIPS heads are not beside the checkout")
def test_the_published_heads_load_and_are_not_negative(files):
    measure = Lpips.load(files[0], HEADS / "alex.pth")
    assert all((measure.weights[name] >= 0).all() for name in linear_shapes())
    assert (measure(planes(0), planes(1)) > 0).all()
    with pytest.raises(WeightsError, match="shape"):
        Lpips.load(files[0], HEADS / "vgg.pth")
