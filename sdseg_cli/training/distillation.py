"""Training of the fast mask decoder against the autoencoder's decoder.

A U-Net's latent is not a mask's latent: where it is unsure, it lies between those of all masks that
might be, and has an error of its own. So the examples are latents of procedural (and, if given,
prepared) masks, blended with those of the same mask moved, grown or shrunk and with that of the
empty plane, and disturbed; what the decoder makes of them is the target.

The loss is a cross-entropy alone: a Dice term would draw whatever it is not sure of, for half of
the Dice it reaches is enough of a probability to gain by it.
"""

from __future__ import annotations

import copy
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from sdseg_cli.core.errors import WeightsError
from sdseg_cli.inference.engine import predict_latents
from sdseg_cli.model.autoencoder import Autoencoder
from sdseg_cli.model.diffusion import seeded_generator
from sdseg_cli.model.mask_decoder import MaskDecoder
from sdseg_cli.model.sdseg import SDSeg
from sdseg_cli.model.tensor_files import check_tensors, load_strictly
from sdseg_cli.runs.checkpoint import restore_optimizer
from sdseg_cli.training.batches import PreparedSlices
from sdseg_cli.training.shapes import random_masks
from sdseg_cli.training.validation import SEED

SIDE = 256
RADIUS_PX = (1.5, 80.0)
POOL, RENEW_EVERY, BATCH = 384, 4, 4
"""Examples that are kept; every so many steps one is renewed, which costs as much as these steps;
and how many a step learns from."""
LEARNING_RATE, WARMUP, AVERAGE_DECAY = 2e-3, 100, 0.998
ADAPT_STEPS, ADAPT_RATE, ADAPT_WARMUP, ADAPT_DECAY = 200, 1e-3, 30, 0.98
"""How a decoder gets used to the latents of one run."""
REAL_SHARE = 0.5
"""Of the masks, where prepared ones are given."""
MOST_MASKS, FARTHEST_PX = 4, 12
"""So many masks are blended, and so far one is moved; it grows or shrinks by half as much."""
WITH_EMPTY = 0.5
"""Of the examples, blended with the empty plane too."""
MOST_NOISE = 0.2
"""Standard deviation of an error, over that of the latents."""

Masks = Callable[[int, Generator], Tensor]
"""Gives so many masks (n,1,256,256), 0 or 1, drawn by the generator."""


def procedural(count: int, generator: Generator) -> Tensor:
    """`Masks` that need no data."""
    masks = random_masks(count, SIDE, generator, radius_px=RADIUS_PX)[:, :1]
    return (masks > 0).float()


def mixed(prepared: Masks) -> Masks:
    """Half of the masks prepared, half procedural."""

    def some(count: int, generator: Generator) -> Tensor:
        real = torch.rand(count, generator=generator) < REAL_SHARE
        masks = procedural(count, generator)
        if real.any():
            found = prepared(int(real.sum()), generator)
            masks[real] = F.interpolate(found, size=(SIDE, SIDE), mode="nearest")
        return masks

    return some


@dataclass(frozen=True)
class Examples:
    """Latents and what the decoder makes of them."""

    latent: Tensor
    """(n,4,32,32) float32, unscaled."""
    target: Tensor
    """(n,256,256) float32 in [0,1]."""


class Teacher:
    """An autoencoder, asked what it makes of latents.

    Args:
        autoencoder: Frozen, in eval mode, on the device that computes.
        masks: Where masks come from.
    """

    def __init__(self, autoencoder: Autoencoder, masks: Masks = procedural) -> None:
        self.autoencoder, self.masks = autoencoder, masks
        self.device = next(autoencoder.parameters()).device
        empty = self.encode(torch.zeros(1, 1, SIDE, SIDE))
        self.empty = empty
        """(1,4,32,32)"""
        self.spread = float(self.encode(procedural(4, seeded_generator("spread", 0))).std())

    @torch.inference_mode()
    def encode(self, masks: Tensor) -> Tensor:
        """(n,1,256,256), 0 or 1 -> posterior means (n,4,32,32)."""
        planes = (masks * 2 - 1).expand(-1, 3, -1, -1).to(self.device)
        one_by_one = torch.split(planes.contiguous(memory_format=torch.channels_last), 1)
        return torch.cat([self.autoencoder.moments(one).chunk(2, dim=1)[0] for one in one_by_one])

    @torch.inference_mode()
    def decode(self, latent: Tensor) -> Tensor:
        """(n,4,32,32) -> probability (n,256,256) in [0,1], as `SDSeg.probability`."""
        planes = torch.cat([self.autoencoder.decode(one) for one in torch.split(latent, 1)])
        return ((planes.float() + 1) / 2).clamp(0, 1).mean(dim=1)

    def example(self, generator: Generator) -> Examples:
        """A fresh one, n = 1."""
        mask = self.masks(1, generator)
        far = int(torch.randint(1, FARTHEST_PX + 1, (), generator=generator))
        count = int(torch.randint(1, MOST_MASKS + 1, (), generator=generator))
        others = [changed(mask[0], far, generator) for _ in range(count - 1)]
        latent = blend(self.encode(torch.stack([mask[0], *others])), generator)
        if _uniform(generator) < WITH_EMPTY:
            missing = _uniform(generator) * _smooth(1, 3, latent.shape[-2:], generator)
            latent = latent + missing.to(self.device) * (self.empty - latent)
        noise = torch.randn(latent.shape, generator=generator) * _uniform(generator) ** 2
        latent = latent + MOST_NOISE * self.spread * noise.to(self.device)
        return Examples(latent.clone(), self.decode(latent).clone())


def changed(mask: Tensor, far: int, generator: Generator) -> Tensor:
    """A mask (1,H,W) that might be meant: moved by up to `far` px, grown or shrunk by half that."""
    down, right = torch.randint(-far, far + 1, (2,), generator=generator)
    growth = int(torch.randint(-(far // 2), far // 2 + 1, (), generator=generator))
    moved = mask.roll((int(down), int(right)), dims=(1, 2))
    sign, side = (1 if growth >= 0 else -1), 2 * abs(growth) + 1
    return sign * F.max_pool2d(sign * moved, side, stride=1, padding=side // 2)


def blend(latents: Tensor, generator: Generator) -> Tensor:
    """The mean (1,4,h,w) of latents (n,4,h,w), here more of the one, there more of the other."""
    shares = _smooth(len(latents), 4, latents.shape[-2:], generator) ** 2 + 1e-3
    shares = (shares / shares.sum(dim=0, keepdim=True)).to(latents.device)
    return (shares * latents).sum(dim=0, keepdim=True)


def distillation_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy with the decoder's probability; planes with little on them count for more.

    Args:
        logits: (B,H,W).
        target: (B,H,W) in [0,1].
    """
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=(1, 2))
    return (each * torch.rsqrt(target.mean(dim=(1, 2)) + 0.01)).mean()


def adapted(
    decoder: MaskDecoder,
    examples: Examples,
    *,
    steps: int = ADAPT_STEPS,
    tell: Callable[[], None] = lambda: None,
) -> MaskDecoder:
    """A mask decoder that has got used to the latents of one run.

    Args:
        decoder: Of the run's autoencoder; stays as it is.
        examples: Latents that the run predicts of its training slices.
        steps: Of training.
        tell: Called after each step.

    Returns:
        The average over the steps, in eval mode, on the examples' device.
    """
    device = examples.latent.device
    learning = copy.deepcopy(decoder).to(device).train().requires_grad_(True)
    average = copy.deepcopy(learning).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(learning.parameters(), lr=ADAPT_RATE, weight_decay=0.01)
    for step in range(steps):
        generator = seeded_generator("adaptation", step)
        chosen = torch.randint(len(examples.latent), (BATCH,), generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = ADAPT_RATE * cosine(step, steps, warmup=ADAPT_WARMUP)
        logits = learning.logits(examples.latent[chosen])
        optimizer.zero_grad(set_to_none=True)
        distillation_loss(logits, examples.target[chosen]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        follow(average, learning, min(ADAPT_DECAY, (1 + step) / (10 + step)))
        tell()
    return average


def cosine(step: int, steps: int, *, warmup: int) -> float:
    """Share of the learning rate: a linear warm-up, then half a cosine to a fiftieth."""
    half = 0.5 * (1 + math.cos(math.pi * min(1, step / steps)))
    return min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * half)


@torch.no_grad()
def follow(average: MaskDecoder, decoder: MaskDecoder, decay: float) -> None:
    """Move an average towards the weights."""
    torch._foreach_lerp_(list(average.parameters()), list(decoder.parameters()), 1 - decay)


class Distiller:
    """Trains a mask decoder step by step; all that is drawn is a function of (seed, step).

    Args:
        decoder: Trains.
        teacher: Knows the answers.
        steps: Length of the learning rate's cosine.
        seed: Of all examples.
    """

    def __init__(
        self, decoder: MaskDecoder, teacher: Teacher, *, steps: int, seed: int = 0
    ) -> None:
        self.decoder = decoder.to(teacher.device).train()
        self.decoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.teacher, self.steps, self.seed = teacher, steps, seed
        self.optimizer = torch.optim.AdamW(
            decoder.parameters(), lr=LEARNING_RATE, weight_decay=0.01
        )
        self.average = copy.deepcopy(decoder).eval().requires_grad_(False)
        self.pool: Examples | None = None
        self.step = 0

    def fill(self) -> None:
        """Make the examples to begin with."""
        generator = seeded_generator("pool", self.seed, self.step)
        made = [self.teacher.example(generator) for _ in range(POOL)]
        self.pool = Examples(
            torch.cat([one.latent for one in made]), torch.cat([one.target for one in made])
        )

    def train_step(self) -> float:
        """One step; its loss."""
        if self.pool is None:
            self.fill()
        assert self.pool is not None
        generator = seeded_generator("distillation", self.seed, self.step)
        count = len(self.pool.latent)
        if self.step % RENEW_EVERY == 0:
            fresh, place = self.teacher.example(generator), self.step // RENEW_EVERY % count
            self.pool.latent[place], self.pool.target[place] = fresh.latent[0], fresh.target[0]
        chosen = torch.randint(count, (BATCH,), generator=generator)
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * cosine(self.step, self.steps, warmup=WARMUP)
        logits = self.decoder.logits(self.pool.latent[chosen])
        loss = distillation_loss(logits, self.pool.target[chosen])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        follow(self.average, self.decoder, min(AVERAGE_DECAY, (1 + self.step) / (10 + self.step)))
        return loss.item()

    def state(self) -> dict[str, Any]:
        """All that goes on from here, but the examples, which are made anew."""
        return {
            "step": self.step,
            "decoder": self.decoder.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def go_on(self, state: dict[str, Any]) -> None:
        """Take in a `state`.

        Raises:
            KeyError: It lacks a part.
            TypeError: A part is something else.
            WeightsError: It is of another decoder.
        """
        if not 0 <= operator.index(state["step"]) <= self.steps:
            raise WeightsError("its step is none of this distillation.", "Delete it.")
        shapes = {key: value.shape for key, value in self.decoder.state_dict().items()}
        for name in ("decoder", "average"):  # all or nothing
            check_tensors(dict(state[name]), shapes, source=name)
        restore_optimizer(self.optimizer, dict(state["optimizer"]), source="optimizer")
        load_strictly(self.decoder, state["decoder"], source="decoder")
        load_strictly(self.average, state["average"], source="average")
        self.step = operator.index(state["step"])


def _uniform(generator: Generator) -> float:
    return float(torch.rand((), generator=generator))


def _smooth(count: int, knots: int, size: Sequence[int], generator: Generator) -> Tensor:
    """(count,1,h,w) in [0,1], varying slowly."""
    coarse = torch.rand(count, 1, knots, knots, generator=generator)
    return F.interpolate(coarse, tuple(size), mode="bicubic").clamp(0, 1)


def own_latents(
    model: SDSeg,
    slices: PreparedSlices,
    positions: Sequence[int],
    tell: Callable[[], None] = lambda: None,
) -> Examples:
    """What a model predicts of slices, one after the other, and how the exact decoder draws it.

    `tell` is called after each.
    """
    pairs = []
    for k in positions:
        pairs.append(predict_latents(model, slices.batch([k]).image, [k], seed=SEED))
        tell()
    # Not of inference mode, so that a decoder can learn from them.
    return Examples(
        torch.cat([latent for latent, _ in pairs]).clone(),
        torch.cat([drawn for _, drawn in pairs]).clone(),
    )
