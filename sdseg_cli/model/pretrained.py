"""Weights that others trained, in our networks."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Size, Tensor

from sdseg_cli.config import ModelConfig
from sdseg_cli.errors import WeightsError
from sdseg_cli.model.autoencoder import Autoencoder
from sdseg_cli.model.diffusion import ALPHA_BAR, TIMESTEPS
from sdseg_cli.model.naming import below, official_ema_name, official_name
from sdseg_cli.model.sdseg import SDSeg, unfilled_sdseg
from sdseg_cli.model.sizes import autoencoder_sizes, unet_sizes
from sdseg_cli.model.tensor_files import (
    check_tensors,
    load_strictly,
    read_tensors,
    state_dict_of,
)

SCHEDULE_BUFFERS = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)
"""The schedule as official checkpoints carry it, each (1000,)."""


def load_official(state_dict_or_path: Mapping[str, Any] | str | Path, *, ema: bool = True) -> SDSeg:
    """The model of an official SDSeg checkpoint, number for number.

    Args:
        state_dict_or_path: The checkpoint's `state_dict`, a dictionary that holds it, or a `.ckpt`
            or `.safetensors` file. The widths are worked out from the shapes.
        ema: Take the averaged U-Net, as the official prediction does; else the raw one.

    Returns:
        The model, float32, in eval mode, on the CPU.

    Raises:
        WeightsError: A key is missing, unexpected or of another shape, a value is not finite, or
            the noise schedule is another one.
    """
    if isinstance(state_dict_or_path, (str, Path)):
        source = str(state_dict_or_path)
        tensors = read_tensors(Path(state_dict_or_path))
    else:
        source = "state_dict"
        tensors = state_dict_of(state_dict_or_path, source=source)
    # What a GAN loss left behind is no part of the model.
    tensors = {k: v for k, v in tensors.items() if not k.startswith("first_stage_model.loss.")}
    config = ModelConfig(
        autoencoder=autoencoder_sizes(below(tensors, "first_stage_model."), source=source),
        unet=unet_sizes(below(tensors, "model.diffusion_model."), source=source),
    )
    model = unfilled_sdseg(config)
    check_tensors(tensors, _official_shapes(model, tensors, ema), source=source)
    _check_schedule(tensors["alphas_cumprod"], source)
    chosen = {
        key: tensors[
            official_ema_name(key) if ema and key.startswith("unet.") else official_name(key)
        ]
        for key in model.state_dict()
    }
    load_strictly(model, chosen, source=source)
    model.latent_scale = float(tensors["scale_factor"])
    return model.eval()


def _official_shapes(model: SDSeg, tensors: Mapping[str, Tensor], ema: bool) -> dict[str, Size]:
    """Every key of an official checkpoint of this model. The average may be left out only where it
    is not asked for.
    """
    ours = {key: value.shape for key, value in model.state_dict().items()}
    shapes = {official_name(key): shape for key, shape in ours.items()}
    if ema or any(key.startswith("model_ema.") for key in tensors):
        shapes |= {official_ema_name(k): s for k, s in ours.items() if k.startswith("unet.")}
        shapes |= {"model_ema.decay": Size(), "model_ema.num_updates": Size()}
    shapes |= {name: Size([TIMESTEPS]) for name in SCHEDULE_BUFFERS}
    return {**shapes, "scale_factor": Size()}


def _check_schedule(alpha_bar: Tensor, source: str) -> None:
    if not torch.allclose(alpha_bar.double(), ALPHA_BAR, rtol=1e-5, atol=0):
        raise WeightsError(
            f"{source}: trained with another noise schedule than SDSeg's.",
            "Only beta = linspace(sqrt(0.0015), sqrt(0.0155), 1000)^2 is known here.",
        )


def load_tiny_autoencoder(autoencoder: Autoencoder) -> None:
    """The autoencoder of the `tiny` preset, shipped with the package.

    Made by `scripts/train_tiny_autoencoder.py`; no downloaded weight or image went into it.
    """
    shipped = resources.files("sdseg_cli") / "shipped" / "tiny_autoencoder.safetensors"
    with resources.as_file(shipped) as path:
        load_strictly(autoencoder, read_tensors(path), source="tiny autoencoder")
