"""Weights that others trained, in our networks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Size, Tensor

from sdseg_cli.core.config import ModelConfig
from sdseg_cli.core.errors import WeightsError
from sdseg_cli.model.diffusion import ALPHA_BAR, TIMESTEPS
from sdseg_cli.model.naming import (
    OFFICIAL_PREFIX,
    below,
    official_ema_name,
    official_name,
    our_name,
)
from sdseg_cli.model.sdseg import SDSeg, unfilled_sdseg
from sdseg_cli.model.sizes import autoencoder_sizes, unet_sizes
from sdseg_cli.model.tensor_files import (
    check_tensors,
    load_strictly,
    positive_scale,
    read_tensors,
    state_dict_of,
)

_NETWORKS = tuple(OFFICIAL_PREFIX.values())
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
        tensors = read_tensors(Path(state_dict_or_path))
        return official_model(tensors, ema=ema, source=str(state_dict_or_path))
    tensors = state_dict_of(state_dict_or_path, source="state_dict")
    return official_model(tensors, ema=ema, source="state_dict")


def official_model(tensors: Mapping[str, Tensor], *, ema: bool, source: str) -> SDSeg:
    """As `load_official`, of tensors read already; `source` names them in messages."""
    # What a GAN loss left behind is no part of the model.
    tensors = {k: v for k, v in tensors.items() if not k.startswith("first_stage_model.loss.")}
    ours = {key: value for key, value in tensors.items() if key.startswith(_NETWORKS)}
    config = official_config({our_name(key): value for key, value in ours.items()}, source=source)
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
    model.latent_scale = positive_scale(tensors["scale_factor"].item(), source=source)
    return model.eval()


def official_config(tensors: Mapping[str, Tensor], *, source: str) -> ModelConfig:
    """Sizes of an official model, read off the shapes of its weights in our names.

    Raises:
        WeightsError: They are the weights of something else.
    """
    return ModelConfig(
        autoencoder=autoencoder_sizes(below(tensors, "autoencoder."), source=source),
        unet=unet_sizes(below(tensors, "unet."), source=source),
    )


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
    # A checkpoint in half precision holds its schedule rounded, the last values as subnormals.
    limits = torch.finfo(alpha_bar.dtype)
    tolerance, smallest = max(1e-5, 2 * limits.eps), 2 * limits.smallest_normal * limits.eps
    if not torch.allclose(alpha_bar.double(), ALPHA_BAR, rtol=tolerance, atol=smallest):
        raise WeightsError(
            f"{source}: trained with another noise schedule than SDSeg's.",
            "Only beta = linspace(sqrt(0.0015), sqrt(0.0155), 1000)^2 is known here.",
        )
