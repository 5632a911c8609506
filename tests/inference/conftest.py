"""Models that answer loudly: fresh ones, and four steps of training, predict next to nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sdseg_cli.core.config import VisionConfig
from sdseg_cli.core.presets import PRESETS
from sdseg_cli.inference.predictor import Predictor
from sdseg_cli.model.sdseg import SDSeg, build_sdseg
from tests.conftest import Workspace


def lively(predictor: Predictor) -> Predictor:
    """With a last layer that answers loudly."""
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(predictor.model.unet.out[2].weight, std=0.3, generator=generator)
    return predictor


@pytest.fixture(scope="session")
def predictor(shared_run: Workspace) -> Predictor:
    """Of the shared run. Read-only."""
    return lively(Predictor(shared_run.run.path, device="cpu"))


@pytest.fixture(scope="module")
def model() -> SDSeg:
    """The tiny networks with random weights and four channels of condition, so that the answer
    depends on the noise.
    """
    sizes = replace(PRESETS["tiny"].model, vision=VisionConfig(), condition_channels=4)
    built = build_sdseg(sizes).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for value in built.parameters():
        torch.nn.init.normal_(value, std=0.1, generator=generator)
    return built
