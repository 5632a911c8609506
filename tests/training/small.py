"""A training small enough for a test: four slices of 32 px, the tiny networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sdseg_cli.core.config import RunConfig
from sdseg_cli.core.config_file import from_dict
from sdseg_cli.core.presets import PRESETS
from sdseg_cli.data.spec import ClassRule
from sdseg_cli.model import sdseg
from sdseg_cli.model.distributed import Ranks
from sdseg_cli.model.sdseg import SDSeg, build_sdseg
from sdseg_cli.runs.checkpoint import Checkpoint
from sdseg_cli.training.batches import PreparedSlices, StepInputs, StepSource
from sdseg_cli.training.latents import MaskLatents
from sdseg_cli.training.step import Trainer

SIZE = 32
ROW = (8, SIZE // 8, SIZE // 8)


def small_slices(folder: Path) -> PreparedSlices:
    """Slices 1 and 3 of four have foreground, each a square of its own."""
    labels = np.zeros((4, SIZE, SIZE), np.uint8)
    labels[1, 4:12, 6:20] = 1
    labels[3, 20:28, 2:8] = 1
    noise = np.random.default_rng(0).uniform(-1, 1, labels.shape)
    case = folder / "case_a"
    case.mkdir(parents=True, exist_ok=True)
    np.save(case / "labels.npy", labels)
    np.save(case / "pixels.npy", noise.astype(np.float16))
    return PreparedSlices([case], ClassRule(), [[[1, 3]]])


def small_config(**train_settings: object) -> RunConfig:
    """The tiny preset; keywords are keys of `[train]`."""
    return from_dict({"train": train_settings}, PRESETS["tiny"], source="test")


def small_latents(folder: Path) -> MaskLatents:
    """An empty file of moments for `small_slices`."""
    return MaskLatents(folder / "latents.npy", small_slices(folder), ROW)


def small_trainer(
    config: RunConfig, device: str = "cpu", *, ranks: Ranks | None = None, adapts: bool = False
) -> Trainer:
    """At step 0, with weights drawn from seed 0."""
    torch.manual_seed(0)
    model = build_sdseg(config.model)
    model.latent_scale = 0.5
    state = Checkpoint.begin(config, model)
    return Trainer(config, state, torch.device(device), ranks=ranks, adapts=adapts)


def small_inputs(
    config: RunConfig, folder: Path, step: int = 0, ranks: Ranks | None = None
) -> tuple[StepInputs, MaskLatents]:
    """The inputs of a step, and where the moments of their masks are kept."""
    latents = small_latents(folder)
    shape = (ROW[0] // 2, *ROW[1:])
    return StepSource(config, small_slices(folder), latents, shape, ranks).inputs(step), latents


def lower_as_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What CUDA gets of `reduced_precision`, on the CPU."""

    def lowered(device: torch.device, precision: str = "mixed") -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16)

    monkeypatch.setattr(sdseg, "reduced_precision", lowered)


def parts_lowered(model: SDSeg) -> dict[str, bool]:
    """Filled while the model computes: whether each part did so under autocast."""
    lowered: dict[str, bool] = {}
    parts = {
        "mask encoder": model.autoencoder.encoder,
        "vision encoder": model.vision_encoder,
        "unet": model.unet,
        "decoder": model.autoencoder.decoder,
    }
    for name, part in parts.items():
        part.register_forward_pre_hook(
            lambda *_, name=name: lowered.update({name: torch.is_autocast_enabled("cpu")})
        )
    return lowered
