"""Trainings for benchmarks: on made-up slices, where only speed and memory matter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from sdseg_cli.core.config import RunConfig
from sdseg_cli.data.spec import ClassRule
from sdseg_cli.model.baselines import build_model
from sdseg_cli.model.interface import SliceModel
from sdseg_cli.model.sdseg import has_latents
from sdseg_cli.runs.checkpoint import Checkpoint
from sdseg_cli.training.batches import FLIPS, PreparedSlices, StepSource, flipped
from sdseg_cli.training.latents import MaskLatents, encode_masks, open_latents
from sdseg_cli.training.step import StepResult, Trainer

SIZE = 256


def made_up_slices(folder: Path, count: int) -> PreparedSlices:
    """Discs in noise, `count` slices, every second one empty; written to a folder."""
    axis = np.arange(SIZE) - SIZE / 2
    distance = np.hypot(axis[:, None], axis[None])
    radius = np.array([0 if i % 2 else 20 + 80 * i / count for i in range(count)])
    labels = (distance[None] < radius[:, None, None]).astype(np.uint8)
    noise = np.random.default_rng(0).random(labels.shape, dtype=np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "labels.npy", labels)
    np.save(folder / "pixels.npy", (labels * 0.5 + noise - 0.5).astype(np.float16))
    return PreparedSlices([folder], ClassRule(), [[list(range(0, count, 2))]])


def initial_checkpoint(config: RunConfig, model: SliceModel | None = None) -> Checkpoint:
    """Where a run begins, with random weights unless a model is given."""
    torch.manual_seed(0)
    model = model or build_model(config.model)
    return Checkpoint.begin(config, model)


def stepper(
    config: RunConfig,
    slices: PreparedSlices,
    folder: Path,
    state: Checkpoint,
    device: torch.device,
    *,
    compiled: bool = False,
    kept: bool = False,
    steps: int = 1_000_000,
) -> tuple[Trainer, Callable[[], StepResult]]:
    """A trainer, and what does its next step as `sdseg train` does it; `kept`: as it does after the
    first epochs, when the moments of all masks are there.
    """
    trainer = Trainer(config, state, device, compiled=compiled)
    latents = open_latents([folder], slices, trainer.model, {}, device)
    if kept:
        keep_all_latents(trainer.model, slices, latents, config.train.flips)
    source = StepSource(config, slices, latents, trainer.model.latent_shape(*slices.plane))
    ahead = source.prefetch(0, steps, pin=device.type == "cuda")
    return trainer, lambda: trainer.train_step(next(ahead), latents)


def keep_all_latents(
    model: SliceModel, slices: PreparedSlices, latents: MaskLatents, flips: str
) -> None:
    """As after the first epochs of a run: the moments of all masks are computed.

    Args:
        model: On the device that computes.
        slices: The training slices.
        latents: Where the moments are kept.
        flips: `train.flips`.
    """
    if not has_latents(model):
        return
    device = next(model.parameters()).device
    codes = torch.arange(4)
    for letter, code, _ in FLIPS:
        if letter not in flips:
            codes = codes[codes & code == 0]
    empty = sorted(set(range(len(slices))) - set(slices.with_foreground))
    for position in [*slices.with_foreground, *empty[:1]]:
        rows = latents.rows([position] * len(codes), codes)
        if not latents.read(rows)[1].all():
            labels = flipped(slices.batch([position] * len(codes)), codes).labels
            masks = slices.masks(labels).flatten(0, 1)
            flat = [row for of_slice in rows for row in of_slice]
            latents.write(flat, encode_masks(model, masks.to(device)))
