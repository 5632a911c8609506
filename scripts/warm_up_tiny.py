"""Warm up the vision encoder and the U-Net of the `tiny` preset on procedural scenes.

    python -m scripts.warm_up_tiny --state warm.pt --out warm.safetensors

The same command resumes from the state file. Each sample is a scene and one of the rules by which
its mask is made (`scenes.py`). The rules share the vision encoder's trunk and the U-Net;
each has its own last layer of the vision encoder, `out`, so that no rule need be guessed and none
unlearns another. What is written lies between the start and the averaged trunk and U-Net, with the
last layer of the rule "any". Timestep and optimiser are the preset's; the loss is
the preset's and the mask's own (`train.mask_loss_weight`), through the fast decoder that ships.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from scripts.scenes import RULES, random_scene
from sdseg_cli.core.presets import PRESETS
from sdseg_cli.inference.decoders import find_mask_decoder
from sdseg_cli.model import diffusion
from sdseg_cli.model.interface import as_three_channels
from sdseg_cli.model.sdseg import SDSeg, build_sdseg, foreground_weight
from sdseg_cli.model.starts import load_tiny_autoencoder
from sdseg_cli.model.tensor_files import write_tensors
from sdseg_cli.model.weights import WeightStore
from sdseg_cli.training.objective import DecodedMaskLoss

TINY = PRESETS["tiny"]
NAMES = tuple(RULES)
WRITTEN_RULE = "any"
SCALED = ("unet.out.2.weight", "unet.out.2.bias")
"""Divided by the latent scale on writing; a model multiplies them by its own."""
LAST_LAYERS = ("unet.out.2.", "vision_encoder.out.")
KEPT = 0.3
"""Of the way. Weights grow in training, and the same learning rate then turns them less: networks
that kept the whole way started sooner and were overtaken (docs/PERFORMANCE.md).
"""
WARMUP, DECAY = 100, 0.998
LARGE_EVERY, LARGE, SMALL = 4, (4, 256), (8, 128)
"""Every fourth step sees whole planes, (batch, side); the others see parts, at half the cost."""


class Heads(nn.Module):
    """The vision encoder's last layer, once per rule.

    Args:
        width: Channels of the trunk.
        condition: Channels of the condition.
    """

    def __init__(self, width: int, condition: int) -> None:
        super().__init__()
        self.out = nn.Conv2d(width, condition * len(NAMES), 1)

    def forward(self, trunk: Tensor, rule: Tensor) -> Tensor:
        """(B,width,h,w) and (B,) numbers of rules -> zc (B,C,h,w)."""
        every: Tensor = self.out(trunk)
        split = every.reshape(len(trunk), len(NAMES), -1, *trunk.shape[2:])
        return split[torch.arange(len(trunk)), rule]

    def of(self, rule: str) -> dict[str, Tensor]:
        """The layer of one rule, in the vision encoder's names."""
        number = NAMES.index(rule)
        return {
            f"out.{name}": value.reshape(len(NAMES), -1, *value.shape[1:])[number]
            for name, value in self.out.state_dict().items()
        }


class Student(nn.Module):
    """What is trained: trunk, heads and U-Net."""

    def __init__(self, model: SDSeg) -> None:
        super().__init__()
        trunk = copy.deepcopy(model.vision_encoder)
        self.heads = Heads(model.config.vision.widths[-1], model.config.condition_channels)
        trunk.out = nn.Identity()
        self.trunk, self.unet = trunk, copy.deepcopy(model.unet)

    def forward(self, image: Tensor, rule: Tensor, zt: Tensor) -> Tensor:
        """(B,3,S,S), (B,), (B,4,S/8,S/8) -> z0_pred (B,4,S/8,S/8)."""
        zc = self.heads(self.trunk(image), rule)
        output = self.unet(zt, diffusion.LAST, zc)
        return diffusion.read_output(
            output, zt, diffusion.LAST, TINY.model.parameterisation
        ).z0_pred

    def networks(self) -> dict[str, Tensor]:
        """Weights in the names of SDSeg."""
        encoder = dict(self.trunk.state_dict()) | self.heads.of(WRITTEN_RULE)
        named = {f"vision_encoder.{key}": value for key, value in encoder.items()}
        return named | {f"unet.{key}": value for key, value in self.unet.state_dict().items()}


def scenes(step: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images (B,3,S,S), masks (B,1,S,S) float32 0 or 1, and the numbers of their rules (B,)."""
    batch, size = LARGE if step % LARGE_EVERY == LARGE_EVERY - 1 else SMALL
    rng = np.random.default_rng([seed, step])
    rules = rng.choice(len(NAMES), batch, replace=False)
    drawn = [random_scene(size, rng, NAMES[rule]) for rule in rules]
    image = torch.stack([one for one, _ in drawn]).contiguous(memory_format=torch.channels_last)
    mask = torch.stack([one for _, one in drawn])[:, None].float()
    return image, mask, torch.from_numpy(rules)


def loss_of(
    student: Student, model: SDSeg, step: int, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The latent loss of a step's batch, with z0_pred, masks and rules."""
    image, mask, rule = scenes(step, seed)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    side = image.shape[-1] // 8
    posterior_noise, noise = torch.randn(2, len(image), 4, side, side, generator=generator)
    moments = model.mask_moments(as_three_channels(mask[:, 0] * 2 - 1))
    z0 = model.sample_latent(moments, posterior_noise)
    zt = diffusion.add_noise(z0, noise, diffusion.LAST)
    weight = foreground_weight(mask, 8, TINY.train.foreground_weight)
    z0_pred = student(image, rule, zt)
    loss = ((z0_pred - z0).square() * weight / weight.mean()).mean()
    return loss, z0_pred, mask, rule


@torch.no_grad()
def dice_by_rule(student: Student, model: SDSeg, batches: int = 13) -> dict[str, float]:
    """Dice of scenes never trained on, at 128x128, over all pixels of a rule."""
    counts = torch.zeros(len(NAMES), 2)
    for i in range(batches):
        _, z0_pred, mask, rule = loss_of(student, model, LARGE_EVERY * i, 10_007)
        found = model.probability(z0_pred) > 0.5
        truth = mask[:, 0] > 0
        for number, one, other in zip(rule, found, truth, strict=True):
            counts[number, 0] += 2 * (one & other).sum()
            counts[number, 1] += one.sum() + other.sum()
    return {
        name: round(both / max(1.0, sizes), 3)
        for name, (both, sizes) in zip(NAMES, counts.tolist(), strict=True)
    }


@torch.no_grad()
def latent_scale(model: SDSeg, seed: int) -> float:
    """One over the standard deviation of the mask latents of the first large batches."""
    masks = torch.cat([scenes(LARGE_EVERY * i - 1, seed)[1] for i in range(1, 9)])
    latents = [
        model.mask_moments(as_three_channels(mask * 2 - 1)).chunk(2, dim=1)[0] for mask in masks
    ]
    return 1 / float(torch.cat(latents).std())


def mask_loss_of(model: SDSeg) -> DecodedMaskLoss:
    """The loss of the masks, through the decoder that ships."""
    empty = WeightStore(Path("no-such-store"))  # another machine has none of its own either
    decoder = find_mask_decoder(model.autoencoder, TINY.model.autoencoder, empty)
    assert decoder is not None
    return DecodedMaskLoss(decoder, model)


@dataclass
class WarmUp:
    """What goes on from step to step."""

    model: SDSeg
    """Frozen: of it the autoencoder and the latent scale are used."""
    student: Student
    averaged: Student
    optimizer: torch.optim.AdamW
    start: dict[str, Tensor]
    """The networks before the first step."""
    step: int = 0

    @classmethod
    def begin(cls, args: argparse.Namespace) -> WarmUp:
        """Fresh, or where the state file ends."""
        torch.manual_seed(args.seed)
        model = build_sdseg(TINY.model).eval()
        load_tiny_autoencoder(model.autoencoder)
        student = Student(model)
        student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        start = {name: value.detach().clone() for name, value in student.networks().items()}
        optimizer = torch.optim.AdamW(
            student.parameters(), lr=args.lr, weight_decay=TINY.train.weight_decay, fused=True
        )
        found = cls(model, student, copy.deepcopy(student).eval(), optimizer, start)
        if not args.state.exists():
            model.latent_scale = latent_scale(model, args.seed)
            return found
        state = torch.load(args.state, weights_only=True)
        if state["seed"] != args.seed:
            raise SystemExit(f"{args.state} is of seed {state['seed']}: its start was another.")
        for name in ("student", "averaged", "optimizer"):
            getattr(found, name).load_state_dict(state[name])
        model.latent_scale, found.step = state["latent_scale"], state["step"]
        return found

    def networks(self, kept_share: float) -> dict[str, Tensor]:
        """As they ship: this share of the way from the start to the average; the last layers all of
        it, for they began at random or at zero.
        """
        kept = {}
        for name, value in self.averaged.networks().items():
            last = name.startswith(LAST_LAYERS)
            kept[name] = value if last else self.start[name].lerp(value.detach(), kept_share)
        for name in SCALED:
            kept[name] = kept[name] / self.model.latent_scale
        return {name: value.detach().half().contiguous() for name, value in kept.items()}

    def save(self, args: argparse.Namespace) -> None:
        """The state to go on from, and the networks as they would ship now."""
        state = {
            "student": self.student.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "latent_scale": self.model.latent_scale,
            "seed": args.seed,
            "step": self.step,
        }
        torch.save(state, f"{args.state}.tmp")
        Path(f"{args.state}.tmp").replace(args.state)
        made_by = (
            f"scripts/warm_up_tiny.py, seed {args.seed}, step {self.step} of {args.steps}, "
            f"mask loss {args.mask_loss:g}, {args.kept:g} of the way"
        )
        write_tensors(
            self.networks(args.kept), Path(f"{args.out}.tmp"), metadata={"made_by": made_by}
        )
        Path(f"{args.out}.tmp").replace(args.out)


def main() -> None:
    """Train until the steps are over."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000, help="length of the cosine")
    parser.add_argument("--stop", type=int, default=0, help="end earlier, at this step")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--mask-loss", type=float, default=1.0, help="weight of the masks' loss")
    parser.add_argument("--kept", type=float, default=KEPT, help="of the way that is written")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--state", type=Path, required=True, help="kept to go on from")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    now = WarmUp.begin(args)
    of_masks, last, seen = mask_loss_of(now.model), time.monotonic(), 0.0
    end = args.stop or args.steps
    if now.step >= end:
        now.save(args)
    while now.step < end:
        cosine = 0.5 * (1 + math.cos(math.pi * now.step / args.steps))
        for group in now.optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, (now.step + 1) / WARMUP) * (0.01 + 0.99 * cosine)
        loss, z0_pred, mask, _ = loss_of(now.student, now.model, now.step, args.seed)
        loss = loss + args.mask_loss * of_masks(z0_pred, mask > 0)
        now.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(now.student.parameters(), TINY.train.clip_norm)
        now.optimizer.step()
        now.step += 1
        decay = min(DECAY, (1 + now.step) / (10 + now.step))
        with torch.no_grad():
            pairs = zip(now.averaged.parameters(), now.student.parameters(), strict=True)
            for average, value in pairs:
                average.lerp_(value, 1 - decay)
        seen += loss.item()
        if now.step % 50 == 0:
            print(
                f"step {now.step} loss {seen / 50:.4f} {time.monotonic() - last:.0f}s", flush=True
            )
            last, seen = time.monotonic(), 0.0
        if now.step % args.save_every == 0 or now.step == end:
            print(f"step {now.step}", dice_by_rule(now.averaged, now.model), flush=True)
            now.save(args)


if __name__ == "__main__":
    main()
