"""Parameters anyone can regenerate from (name, shape, seed): numpy alone, bit for bit.

Only the raw stream of Philox-4x64-10 is used, IEEE-754 multiplications and additions, and one cast
to float32; so the same numbers come out of every numpy.
"""

from __future__ import annotations

import hashlib
import json
import math
from functools import cache
from pathlib import Path

import numpy as np
import torch

from sdseg_cli.metrics.lpips import backbone_shapes, linear_shapes

HERE = Path(__file__).parent
SCALE_FACTOR = np.float32(0.125)


def stream(name: str, count: int, seed: int) -> np.ndarray:
    """(count,) float64, uniform on [-1,1), keyed by `sha256(f"{seed}:{name}")`."""
    key = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], "little")
    bits = np.random.Philox(key=key).random_raw(count)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0


def fill(name: str, shape: tuple[int, ...], seed: int = 1) -> np.ndarray:
    """A parameter: matrices and kernels by fan-in, norm weights 1 + 0.2 u, biases 0.1 u."""
    values = stream(name, math.prod(shape), seed)
    if len(shape) >= 2:
        gain = 2.0 if "time_embed" in name or "emb_layers" in name else 1.0
        values *= math.sqrt(3) * gain / math.sqrt(math.prod(shape[1:]))
    elif name.endswith("weight"):
        values = 1.0 + 0.2 * values
    else:
        values = 0.1 * values
    return values.astype(np.float32).reshape(shape)


def schedule() -> dict[str, np.ndarray]:
    """The twelve buffers of an official checkpoint, float32."""
    betas = np.linspace(0.0015**0.5, 0.0155**0.5, 1000) ** 2
    kept = np.cumprod(1 - betas)
    before = np.append(1.0, kept[:-1])
    variance = betas * (1 - before) / (1 - kept)
    buffers = {
        "betas": betas,
        "alphas_cumprod": kept,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": np.sqrt(kept),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - kept),
        "log_one_minus_alphas_cumprod": np.log(1 - kept),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / kept),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / kept - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(before) / (1 - kept),
        "posterior_mean_coef2": (1 - before) * np.sqrt(1 - betas) / (1 - kept),
    }
    return {name: np.asarray(value).astype(np.float32) for name, value in buffers.items()}


def manifest(name: str) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of `manifest_<name>.json`."""
    entries = json.loads((HERE / f"manifest_{name}.json").read_text(encoding="utf-8"))
    return {key: tuple(entry["shape"]) for key, entry in entries.items()}


def state_dict(shapes: dict[str, tuple[int, ...]], seed: int = 1) -> dict[str, torch.Tensor]:
    """The checkpoint with these keys and shapes, filled."""
    buffers: dict[str, np.ndarray] = {
        **schedule(),
        "scale_factor": np.asarray(SCALE_FACTOR),
        "model_ema.decay": np.asarray(np.float32(0.9999)),
        "model_ema.num_updates": np.asarray(np.int32(1000)),
    }
    return {
        name: torch.from_numpy(buffers[name].copy() if name in buffers else fill(name, shape, seed))
        for name, shape in shapes.items()
    }


@cache
def _tiny(name: str) -> dict[str, torch.Tensor]:
    return state_dict(manifest(name))


def tiny_checkpoint() -> dict[str, torch.Tensor]:
    """The small official SDSeg checkpoint; a new dictionary of tensors not to be written to."""
    return dict(_tiny("sdseg_tiny"))


def tiny_ldm() -> dict[str, torch.Tensor]:
    """A small unconditional LDM-8: no vision encoder, four channels in; as `tiny_checkpoint`."""
    # What a parameter holds depends on its own name and shape alone.
    tensors = {k: v for k, v in tiny_checkpoint().items() if not k.startswith("cond_stage")}
    for key in (
        "model.diffusion_model.input_blocks.0.0.weight",
        "model_ema.diffusion_modelinput_blocks00weight",
    ):
        tensors |= state_dict({key: (len(tensors[key]), 4, 3, 3)})
    return tensors


def tiny_autoencoder() -> dict[str, torch.Tensor]:
    """A small kl-f8; as `tiny_checkpoint`."""
    return dict(_tiny("klf8_tiny"))


def alexnet() -> dict[str, torch.Tensor]:
    """An AlexNet in torchvision's names, with a stub of its classifier."""
    filled = {
        name: torch.from_numpy(fill(name, shape)) for name, shape in backbone_shapes().items()
    }
    return {**filled, "classifier.6.weight": torch.zeros(1000, 1)}


def lpips_heads() -> dict[str, torch.Tensor]:
    """Heads of LPIPS for AlexNet, none negative."""
    return {
        name: torch.from_numpy(abs(fill(name, shape))) for name, shape in linear_shapes().items()
    }


def inputs(size: int, seed: int = 1) -> dict[str, torch.Tensor]:
    """`image` and `mask` (1,3,size,size), `noise` and `latent` (1,4,size/8,size/8), float32."""
    latent = size // 8
    row, column = size // 2 + 5 * seed, size // 2 - 9 * seed
    i = np.arange(size)
    disk = (i[:, None] - row) ** 2 + (i[None] - column) ** 2 < (size // 5 + seed) ** 2
    mask = np.where(disk, np.float32(1), np.float32(-1))[None, None].repeat(3, 1)

    def unit(name: str) -> np.ndarray:
        values = stream(name, 4 * latent * latent, seed) * math.sqrt(3)
        return values.astype(np.float32).reshape(1, 4, latent, latent)

    image = stream("input.image", 3 * size * size, seed).astype(np.float32)
    arrays = {
        "image": image.reshape(1, 3, size, size),
        "mask": np.ascontiguousarray(mask),
        "noise": unit("input.noise"),
        "latent": unit("input.latent"),
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
