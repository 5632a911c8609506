"""One optimiser step and one validation of SDSeg."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdseg_cli.config import THRESHOLD, RunConfig, SampleConfig, TrainConfig
from sdseg_cli.errors import RunError
from sdseg_cli.model import diffusion
from sdseg_cli.model.sdseg import as_three_channels, build_sdseg, foreground_weight
from sdseg_cli.model.seeds import seeded_generator
from sdseg_cli.model.tensor_files import load_strictly
from sdseg_cli.training.batches import (
    Batch,
    PreparedSlices,
    draw_positions,
    flipped,
    spread,
)
from sdseg_cli.training.checkpoint import Checkpoint, config_values, halved
from sdseg_cli.training.runtime import Ema, placed, predict_planes, reduced_precision

VALIDATION_SEED = 0


@dataclass(frozen=True, eq=False)
class Validation:
    """What the averaged model reaches."""

    dice: float
    """Mean over the cases."""
    planes: NDArray[np.float32]
    """(K,H,W) in [0,1]: the probabilities of the slices that were to be kept, in their order."""


class Trainer:
    """What changes from step to step: networks, average, optimiser, step number.

    Args:
        config: Every setting.
        state: Where to begin: step 0, or a resumed checkpoint.
        device: Where to compute.

    Raises:
        WeightsError: The state does not fit the configured networks.
    """

    def __init__(self, config: RunConfig, state: Checkpoint, device: torch.device) -> None:
        self.config, self.device = config, device
        self.step, self.best, self.origin = state.step, dict(state.best), state.origin
        self.model = build_sdseg(config.model)
        load_strictly(self.model, state.weights, source="checkpoint")
        self.model.latent_scale = state.latent_scale
        placed(self.model, device).train()
        self.ema = Ema(self.model.unet, config.train.ema_decay)
        load_strictly(self.ema.unet, state.ema, source="checkpoint (averaged U-Net)")
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        recipe = config.train
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        if state.optimizer:
            self.optimizer.load_state_dict(state.optimizer)
        self.row: dict[str, float] = {}

    def train_step(self, slices: PreparedSlices) -> dict[str, float]:
        """One optimiser step.

        Args:
            slices: The training slices.

        Returns:
            Its line of the log: step, loss, loss_noise, loss_latent, lr.

        Raises:
            RunError: The loss is not finite.
        """
        recipe, seed = self.config.train, self.config.seed
        positions = draw_positions(
            slices,
            seed=seed,
            step=self.step,
            batch_size=recipe.batch_size,
            foreground_fraction=recipe.foreground_fraction,
        )
        generator = seeded_generator("step", seed, self.step)
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))  # dropout
        batch = flipped(slices.batch(positions), recipe.flips, generator)
        rate = learning_rate(recipe, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss_noise, loss_latent = self._losses(batch, generator)
        loss = recipe.noise_loss_weight * loss_noise + recipe.latent_loss_weight * loss_latent
        if not math.isfinite(loss.item()):
            raise RunError(
                f"the loss is {loss.item()} at step {self.step + 1}.",
                "Lower train.learning_rate; the last checkpoint is kept.",
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if recipe.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.trained, recipe.clip_norm)
        self.optimizer.step()
        self.step += 1
        self.ema.update(self.model.unet, self.step)
        self.row = {
            "step": self.step,
            "loss": loss.item(),
            "loss_noise": loss_noise.item(),
            "loss_latent": loss_latent.item(),
            "lr": rate,
        }
        return self.row

    def _losses(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        recipe, model, count = self.config.train, self.model, len(batch.image)
        image = as_three_channels(batch.image.to(self.device, non_blocking=True))
        foreground = batch.foreground.to(self.device, non_blocking=True)[:, None].float()
        mask = as_three_channels(foreground[:, 0] * 2 - 1)
        with reduced_precision(self.device, model.config.precision):
            moments = model.mask_moments(mask.contiguous(memory_format=torch.channels_last))
            zc = model.encode_image(image.contiguous(memory_format=torch.channels_last))
        z0 = model.sample_latent(moments.float(), generator)
        noise = torch.randn(z0.shape, generator=generator).to(self.device)
        if recipe.timesteps == "uniform":
            t = torch.randint(diffusion.TIMESTEPS, (count,), generator=generator).to(self.device)
        else:
            t = torch.full((count,), diffusion.LAST, device=self.device)
        estimate = model.denoise(diffusion.add_noise(z0, noise, t), t, zc.float())
        weight = None
        if recipe.foreground_weight:
            factor = self.config.model.autoencoder.factor
            weight = foreground_weight(foreground, factor, recipe.foreground_weight)
        squared = recipe.latent_loss == "l2"
        return diffusion.loss_terms(estimate, noise, z0, weight, squared=squared)

    def validate(self, slices: PreparedSlices, keep: Sequence[int] = ()) -> Validation:
        """Mean Dice per case of the averaged model on the model's plane: one reverse step and one
        sample, whatever `[sample]` says.

        Args:
            slices: The validation slices.
            keep: Positions whose probabilities are handed over; of those that are validated.
        """
        positions = spread(slices, self.config.train.validation_slices)
        overlap: dict[int, float] = {}
        size: dict[int, float] = {}
        kept: dict[int, Tensor] = {}
        with self.ema.in_place_of(self.model):
            for start in range(0, len(positions), self.config.train.batch_size):
                chosen = positions[start : start + self.config.train.batch_size]
                batch = slices.batch(chosen)
                probability = predict_planes(
                    self.model,
                    batch.image,
                    chosen,
                    seed=VALIDATION_SEED,
                    sample=SampleConfig(),
                )
                kept |= {p: probability[n] for n, p in enumerate(chosen) if p in keep}
                found = probability > THRESHOLD
                for position, one, truth in zip(chosen, found, batch.foreground, strict=True):
                    case = slices.places[position][0]
                    overlap[case] = overlap.get(case, 0.0) + 2 * float((one & truth).sum())
                    size[case] = size.get(case, 0.0) + float(one.sum() + truth.sum())
        scored = [overlap[case] / size[case] for case in size if size[case] > 0]
        planes = np.array([kept[position].numpy() for position in keep], np.float32)
        return Validation(sum(scored) / len(scored) if scored else 0.0, planes)

    def checkpoint(self, data: dict[str, Any], *, resumable: bool) -> Checkpoint:
        """The run as it stands: all of it to resume, or only what prediction needs."""
        state = Checkpoint(
            step=self.step,
            config=config_values(self.config),
            data=data,
            latent_scale=self.model.latent_scale,
            weights=self.model.state_dict(),
            ema=self.ema.unet.state_dict(),
            optimizer=self.optimizer.state_dict(),
            best=self.best,
            origin=self.origin,
        )
        if resumable:
            return state
        return replace(state, weights=halved(state.prediction_weights()), ema={}, optimizer={})


def learning_rate(recipe: TrainConfig, step: int) -> float:
    """Linear warm-up, then constant or a cosine down to a hundredth. `step` counts from 0."""
    rate = recipe.learning_rate * min(1.0, (step + 1) / max(1, recipe.warmup_steps))
    if recipe.schedule == "cosine":
        done = min(1.0, step / recipe.steps)
        rate *= 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))
    return rate
