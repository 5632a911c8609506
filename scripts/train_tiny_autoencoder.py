"""Train the autoencoder of the `tiny` preset on procedural masks and textures.

    python scripts/train_tiny_autoencoder.py --out FILE   # sdseg_cli/model/shipped_files/tiny_...

The same command resumes from the state file beside the output. Loss on masks: binary cross-entropy
+ soft Dice of the decoded map and a little L1 to keep it at -1 and +1; on textures: L1; on both: KL
to a unit normal, as weak as kl-f8's (a narrow posterior, so that a mask has one latent), and a
penalty that keeps the latent near unit size. Extra noise on the latent teaches the decoder to
forgive the denoiser's errors.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from sdseg_cli.core.presets import PRESETS
from sdseg_cli.model.autoencoder import Autoencoder, sample_posterior
from sdseg_cli.training.shapes import (
    MAX_SHAPES,
    closed_curves,
    random_masks,
    smooth_noise,
    uniform,
)

SHARPNESS = 4.0  # the decoded map times this is the logit of the cross-entropy


def random_textures(batch: int, size: int, generator: torch.Generator) -> Tensor:
    """Grey images with the edges and grain of a scan: shapes over smooth and fine noise.

    Args:
        batch: Number of images.
        size: Side of the plane, px, a multiple of 8.
        generator: CPU generator, the only source of randomness.

    Returns:
        (batch,3,size,size) float32 in [-1,1], three equal channels.
    """
    shapes = closed_curves(batch, size, generator, radius_px=(3.0, size * 0.4)).float()
    grey = uniform(generator, (batch, MAX_SHAPES, 1, 1), -0.6, 0.6)
    image = (shapes * grey).sum(dim=1, keepdim=True)
    image += uniform(generator, (batch, 1, 1, 1), -0.8, 0.4)
    for cell, strength in ((32, 0.15), (8, 0.08), (2, 0.06)):
        image += strength * smooth_noise(batch, size, generator, cell)
    return image.clamp(-1, 1).expand(-1, 3, -1, -1)


def mask_loss(decoded: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy + soft Dice + 0.2 L1, all on the channel mean. Both (B,3,S,S)."""
    x = decoded.mean(dim=1)
    y = (mask[:, 0] + 1) / 2
    logit = SHARPNESS * x
    p = torch.sigmoid(logit)
    overlap = (p * y).sum(dim=(1, 2))
    dice = (2 * overlap + 20) / (p.sum(dim=(1, 2)) + y.sum(dim=(1, 2)) + 20)
    # Edges are few: weigh each mask's cross-entropy by how much foreground it has to get right.
    entropy = F.binary_cross_entropy_with_logits(logit, y)
    return 5 * entropy + (1 - dice).mean() + 0.2 * F.l1_loss(decoded, mask)


def losses(
    model: Autoencoder, batch: int, size: int, generator: torch.Generator, noise: float
) -> dict[str, Tensor]:
    """Loss terms of one batch of masks and textures."""
    textures = max(1, batch // 4)
    radius = (1.5, 40.0 if size <= 128 else 80.0)
    mask = random_masks(batch - textures, size, generator, radius_px=radius)
    texture = random_textures(textures, size, generator)
    x = torch.cat([mask, texture]).contiguous(memory_format=torch.channels_last)
    moments = model.moments(x)
    mean, logvar = moments.chunk(2, dim=1)
    z = sample_posterior(moments, torch.randn_like(mean))
    decoded = model.decode(z + noise * torch.randn_like(z))
    cut = len(mask)
    return {
        "mask": mask_loss(decoded[:cut], mask),
        "texture": F.l1_loss(decoded[cut:], texture),
        "scale": (mean**2).mean(),
        "kl": 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean(),
    }


@torch.no_grad()
def dice_by_radius(model: Autoencoder) -> dict[float, float]:
    """Dice of one decoded disk per radius, averaged over 16 positions, at 256x256."""
    axis = torch.arange(256.0)
    found = {}
    for radius in (2.0, 3.0, 5.0, 8.0, 16.0, 40.0):
        scores = []
        for i in range(16):
            cy, cx = 60.3 + 8.4 * i, 180.1 - 7.7 * i
            disk = (axis[:, None] - cy) ** 2 + (axis[None] - cx) ** 2 < radius**2
            x = (disk.float() * 2 - 1).expand(1, 3, 256, 256)
            out = model.decode(model.moments(x).chunk(2, dim=1)[0]).mean(dim=1)[0] > 0
            scores.append(2 * (out & disk).sum().item() / max(1, (out.sum() + disk.sum()).item()))
        found[radius] = sum(scores) / len(scores)
    return found


def main() -> None:
    """Train until the steps or the minutes are over."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--steps", type=int, default=5000, help="length of the cosine")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--noise", type=float, default=0.15)
    parser.add_argument(
        "--scale", type=float, default=1e-3, help="weight of the mean squared latent"
    )
    parser.add_argument("--kl", type=float, default=1e-6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model = Autoencoder(PRESETS["tiny"].model.autoencoder)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    averaged = copy.deepcopy(model).eval()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4
    )
    state_file = args.out.with_suffix(".state.pt")
    step = 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    start = last = time.monotonic()
    while step < args.steps:
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            cosine = 0.5 * (1 + math.cos(math.pi * step / args.steps))
            group["lr"] = args.lr * min(1.0, (step + 1) / 200) * (0.01 + 0.99 * cosine)
        batch, size = (4, 256) if step % 4 == 3 else (16, 128)
        part = losses(model, batch, size, generator, args.noise)
        loss = part["mask"] + part["texture"] + args.scale * part["scale"] + args.kl * part["kl"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(0.999, (1 + step) / (10 + step))
        with torch.no_grad():
            for a, p in zip(averaged.parameters(), model.parameters(), strict=True):
                a.lerp_(p, 1 - decay)
        step += 1
        done = step == args.steps or time.monotonic() - start > args.minutes * 60
        if step % 25 == 0:
            pieces = " ".join(f"{k} {v.item():.4f}" for k, v in part.items())
            print(f"step {step} {time.monotonic() - last:.1f}s {pieces}", flush=True)
            last = time.monotonic()
        if step % 250 == 0 or done:
            print(
                f"step {step} disks",
                {k: round(v, 4) for k, v in dice_by_radius(averaged).items()},
                flush=True,
            )
            state = {
                "model": model.state_dict(),
                "averaged": averaged.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
            }
            torch.save(state, f"{state_file}.tmp")
            Path(f"{state_file}.tmp").replace(state_file)
            half = {k: v.to(torch.float16).contiguous() for k, v in averaged.state_dict().items()}
            save_file(half, f"{args.out}.tmp")
            Path(f"{args.out}.tmp").replace(args.out)
        if done:
            break


if __name__ == "__main__":
    main()
