"""Warm up the vision encoder and the U-Net of the `tiny` preset on procedural scenes.

    python scripts/warm_up_tiny.py --state warm.pt --out warm.safetensors

The same command resumes from the state file. Each sample is a scene and one of the rules by which
its mask is made (`training/scenes.py`). The rules share the vision encoder's trunk and the U-Net;
each has its own last layers of the vision encoder, `conv_out` and `out`, so that no rule need be
guessed and none unlearns another. What is written is the averaged trunk and U-Net with the last
layers of the rule "any". Timestep and optimiser are the preset's; the loss is the preset's and the
mask's own (`train.mask_loss_weight`), through the fast decoder that ships.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sdseg_cli.model import diffusion
from sdseg_cli.model.pretrained import load_tiny_autoencoder
from sdseg_cli.model.sdseg import SDSeg, as_three_channels, build_sdseg, foreground_weight
from sdseg_cli.model.store import WeightStore
from sdseg_cli.model.tensor_files import write_tensors
from sdseg_cli.presets import PRESETS
from sdseg_cli.training.fast_decoder import find_mask_decoder
from sdseg_cli.training.mask_loss import DecodedMaskLoss
from sdseg_cli.training.scenes import RULES, random_scene

TINY = PRESETS["tiny"]
NAMES = tuple(RULES)
WRITTEN_RULE = "any"
WARMUP, DECAY = 100, 0.998
LARGE_EVERY, LARGE, SMALL = 4, (4, 256), (8, 128)
"""Every fourth step sees whole planes, (batch, side); the others see parts, at half the cost."""


class Heads(nn.Module):
    """The vision encoder's last layers, once per rule.

    Args:
        width: Channels of the trunk.
        latent: Channels of a latent.
    """

    def __init__(self, width: int, latent: int) -> None:
        super().__init__()
        self.latent, rules = latent, len(NAMES)
        self.conv_out = nn.Conv2d(width, 2 * latent * rules, 3, padding=1)
        self.out = nn.Conv2d(2 * latent * rules, latent * rules, 1, groups=rules)

    def forward(self, trunk: Tensor, rule: Tensor) -> Tensor:
        """(B,width,h,w) and (B,) numbers of rules -> zc (B,4,h,w)."""
        every: Tensor = self.out(self.conv_out(trunk))
        batch, _, height, width = every.shape
        split = every.reshape(batch, len(NAMES), self.latent, height, width)
        return split[torch.arange(batch), rule]

    def of(self, rule: str) -> dict[str, Tensor]:
        """The layers of one rule, in the vision encoder's names."""
        number = NAMES.index(rule)
        found = {}
        for name, layer, width in (
            ("encoder.conv_out", self.conv_out, 2 * self.latent),
            ("out", self.out, self.latent),
        ):
            mine = slice(width * number, width * (number + 1))
            assert layer.bias is not None
            found[f"{name}.weight"], found[f"{name}.bias"] = layer.weight[mine], layer.bias[mine]
        return found


class Student(nn.Module):
    """What is trained: trunk, heads and U-Net."""

    def __init__(self, model: SDSeg) -> None:
        super().__init__()
        trunk = copy.deepcopy(model.vision_encoder.encoder)
        self.heads = Heads(trunk.conv_out.in_channels, model.config.autoencoder.latent_channels)
        trunk.conv_out = nn.Identity()  # type: ignore[assignment]
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
        encoder = {f"encoder.{key}": value for key, value in self.trunk.state_dict().items()}
        encoder |= self.heads.of(WRITTEN_RULE)
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
    decoder = find_mask_decoder(model.autoencoder, TINY.model.autoencoder, WeightStore.default())
    assert decoder is not None
    return DecodedMaskLoss(decoder, model.latent_scale)


def begun(args: argparse.Namespace) -> tuple[SDSeg, Student, Student, torch.optim.AdamW, int]:
    """Frozen model, student, its average, optimiser and step: fresh, or of the state file."""
    torch.manual_seed(args.seed)
    model = build_sdseg(TINY.model).eval()
    load_tiny_autoencoder(model.autoencoder)
    model.vision_encoder.encoder.load_state_dict(model.autoencoder.encoder.state_dict())
    student = Student(model)
    student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    averaged = copy.deepcopy(student).eval()
    optimizer = torch.optim.AdamW(
        student.parameters(), lr=args.lr, weight_decay=TINY.train.weight_decay, fused=True
    )
    if not args.state.exists():
        model.latent_scale = latent_scale(model, args.seed)
        return model, student, averaged, optimizer, 0
    state = torch.load(args.state, weights_only=True)
    student.load_state_dict(state["student"])
    averaged.load_state_dict(state["averaged"])
    optimizer.load_state_dict(state["optimizer"])
    model.latent_scale = state["latent_scale"]
    return model, student, averaged, optimizer, state["step"]


def save(
    args: argparse.Namespace,
    model: SDSeg,
    student: Student,
    averaged: Student,
    optimizer: torch.optim.AdamW,
    step: int,
) -> None:
    """The state to go on from, and the networks as they would ship now."""
    state = {
        "student": student.state_dict(),
        "averaged": averaged.state_dict(),
        "optimizer": optimizer.state_dict(),
        "latent_scale": model.latent_scale,
        "step": step,
    }
    torch.save(state, f"{args.state}.tmp")
    Path(f"{args.state}.tmp").replace(args.state)
    half = {k: v.detach().half().contiguous() for k, v in averaged.networks().items()}
    told = {
        "latent_scale": str(model.latent_scale),
        "made_by": f"scripts/warm_up_tiny.py, seed {args.seed}, step {step} of {args.steps}",
    }
    write_tensors(half, Path(f"{args.out}.tmp"), told=told)
    Path(f"{args.out}.tmp").replace(args.out)


def main() -> None:
    """Train until the steps are over."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000, help="length of the cosine")
    parser.add_argument("--stop", type=int, default=0, help="end earlier, at this step")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--mask-loss", type=float, default=1.0, help="weight of the masks' loss")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--state", type=Path, required=True, help="kept to go on from")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model, student, averaged, optimizer, step = begun(args)
    of_masks, last, seen = mask_loss_of(model), time.monotonic(), 0.0
    end = args.stop or args.steps
    while step < end:
        cosine = 0.5 * (1 + math.cos(math.pi * step / args.steps))
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, (step + 1) / WARMUP) * (0.01 + 0.99 * cosine)
        loss, z0_pred, mask, _ = loss_of(student, model, step, args.seed)
        loss = loss + args.mask_loss * of_masks(z0_pred, mask[:, 0] > 0)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), TINY.train.clip_norm)
        optimizer.step()
        step += 1
        decay = min(DECAY, (1 + step) / (10 + step))
        with torch.no_grad():
            for a, p in zip(averaged.parameters(), student.parameters(), strict=True):
                a.lerp_(p, 1 - decay)
        seen += loss.item()
        if step % 50 == 0:
            print(f"step {step} loss {seen / 50:.4f} {time.monotonic() - last:.0f}s", flush=True)
            last, seen = time.monotonic(), 0.0
        if step % args.save_every == 0 or step == end:
            print(f"step {step}", dice_by_rule(averaged, model), flush=True)
            save(args, model, student, averaged, optimizer, step)


if __name__ == "__main__":
    main()
