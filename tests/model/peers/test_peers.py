"""What all networks of `model/peers` have in common."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from sdseg_cli.core.config import BASELINES, ModelConfig
from sdseg_cli.demo.phantom import make_phantom
from sdseg_cli.imaging.intensity import CT_WINDOW_HU
from sdseg_cli.model.baselines import Baseline, build_baseline
from sdseg_cli.training.objective import MaskLoss

PEERS = [name for name, network in BASELINES.items() if "model.peers" in network.source]
SIDE, SLICES, MOST_STEPS = 64, 4, 300


def built(name: str) -> Baseline:
    """The tiny network, or a skip where a package it needs is absent."""
    absent = [package for package in BASELINES[name].needs if find_spec(package) is None]
    if absent:
        pytest.skip(f"{name} needs {', '.join(absent)}")
    torch.manual_seed(0)
    return build_baseline(ModelConfig(network=name, scale="tiny"))


def test_the_papers_four_networks_that_monai_does_not_have_are_there() -> None:
    assert PEERS == ["transunet", "swinunet", "ssformer", "li-segpnet"]


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("side", [32, 40, 72])
@pytest.mark.parametrize("name", PEERS)
def test_planes_of_every_size_that_prepare_makes_are_answered(name: str, side: int) -> None:
    model = built(name)  # in training, where norms are stricter
    assert model.logits(torch.zeros(1, 3, side, side)).shape == (1, 1, 1, side, side)


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
def test_every_weight_learns_as_several_processes_require(name: str) -> None:
    model = built(name)
    model.logits(torch.randn(1, 3, SIDE, SIDE)).sum().backward()
    assert [key for key, value in model.named_parameters() if value.grad is None] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
def test_four_slices_are_learnt_by_heart(name: str) -> None:
    """Takes 6 to 21 s of a core: the network has to be a real one."""
    image, masks = phantom_slices()
    model, loss = built(name), MaskLoss()
    rate = BASELINES[name].learning_rate
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    worst = 0.0
    for step in range(1, MOST_STEPS + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, step / 50)
        optimizer.zero_grad()
        loss(model.logits(image)[:, 0], masks).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0:
            worst = min(dice(model, image, masks))
            if worst >= 0.95:
                break
    assert worst >= 0.95


def phantom_slices() -> tuple[torch.Tensor, torch.Tensor]:
    """(4,3,64,64) in [-1,1] and (4,1,64,64) bool: the slices of a CT phantom with most organ."""
    phantom = make_phantom(0, 1, (SIDE, SIDE, 12), (6.0, 6.0, 16.0))
    masks = phantom.labels.array.transpose(2, 0, 1) > 0
    most = np.argsort(-masks.sum(axis=(1, 2)))[:SLICES]
    low, high = CT_WINDOW_HU
    hu = phantom.scan.array.transpose(2, 0, 1)[most].clip(low, high).astype(np.float32)
    image = torch.from_numpy(2 * (hu - low) / (high - low) - 1)
    return image[:, None].expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(masks[most])[:, None]


@torch.no_grad()
def dice(model: Baseline, image: torch.Tensor, masks: torch.Tensor) -> list[float]:
    """Of each slice, by the model as it predicts."""
    model.eval()
    found = model.probability(image) > 0.5
    model.train()
    each = (1, 2, 3)
    both = found.sum(each) + masks.sum(each)
    return (2 * (found & masks).sum(each) / both).tolist()
