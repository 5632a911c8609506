"""Weights that others trained, in our networks: their names, their sizes, their numbers.

Our modules carry the CompVis names, so an official checkpoint needs no table, only its three
prefixes; only diffusers calls the autoencoder's parts otherwise. Each width is looked up in several
places and the majority counts, so that one missing or damaged tensor does not hide behind wrong
sizes: the check that follows names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from statistics import mode
from typing import Any

import torch
from torch import Size, Tensor

from sdseg_cli.core.config import AutoencoderConfig, ModelConfig, UNetConfig
from sdseg_cli.core.errors import ConfigError, WeightsError
from sdseg_cli.model.diffusion import ALPHA_BAR, TIMESTEPS
from sdseg_cli.model.sdseg import SDSeg, unfilled_sdseg
from sdseg_cli.model.tensor_files import (
    check_tensors,
    load_strictly,
    positive_scale,
    read_tensors,
    state_dict_of,
)

OFFICIAL_PREFIX = {
    "unet.": "model.diffusion_model.",
    "autoencoder.": "first_stage_model.",
    "vision_encoder.": "cond_stage_model.",
}

Tensors = Mapping[str, Tensor]

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


def autoencoder_sizes(tensors: Tensors, *, source: str) -> AutoencoderConfig:
    """Sizes of an autoencoder in CompVis names; groups of the norms are kl-f8's.

    Args:
        tensors: `encoder.*`, `decoder.*`, `quant_conv.*`, `post_quant_conv.*`.
        source: The file, for the message.

    Raises:
        WeightsError: They are the weights of something else.
    """
    levels = _count(tensors, r"encoder\.down\.(\d+)\.")
    try:
        channels = _agreed(
            tensors, "encoder.conv_in.bias", "decoder.norm_out.weight", "decoder.norm_out.bias"
        )
        widths = [
            _agreed(
                tensors,
                *(f"encoder.down.{i}.block.0.{key}" for key in ("conv1.bias", "norm2.weight")),
                f"encoder.down.{i}.block.0.conv2.bias",
            )
            for i in range(levels)
        ]
        latent = _agreed(
            tensors, "post_quant_conv.bias", "post_quant_conv.weight", "decoder.conv_in.weight/1"
        )
        return AutoencoderConfig(
            channels=channels,
            channel_mult=tuple(width // channels for width in widths),
            blocks_per_level=_count(tensors, r"encoder\.down\.0\.block\.(\d+)\."),
            latent_channels=latent,
        )
    except (ConfigError, LookupError, ZeroDivisionError) as error:
        raise _unknown("an autoencoder (kl-f8)", source) from error


def unet_sizes(tensors: Tensors, *, source: str) -> UNetConfig:
    """Sizes of a concatenating U-Net in CompVis names; heads and dropout are the paper's.

    Args:
        tensors: `input_blocks.*`, `middle_block.*`, `output_blocks.*`, `time_embed.*`, `out.*`.
        source: The file, for the message.

    Raises:
        WeightsError: They are the weights of something else.
    """
    # Every level but the lowest is reached by a residual block that doubles the plane, the only one
    # that is not the first in its stage.
    levels = 1 + _count(tensors, r"output_blocks\.(\d+)\.[12]\.in_layers")
    stages = _count(tensors, r"output_blocks\.(\d+)\.")
    per_level = stages // levels
    first = [1 + level * per_level for level in range(levels)]
    try:
        channels = _agreed(
            tensors, "input_blocks.0.0.bias", "time_embed.0.weight/1", "out.0.weight", "out.0.bias"
        )
        keys = ("in_layers.2.bias", "out_layers.0.weight", "out_layers.3.bias")
        widths = [_agreed(tensors, *(f"input_blocks.{i}.0.{key}" for key in keys)) for i in first]
        return UNetConfig(
            model_channels=channels,
            channel_mult=tuple(width // channels for width in widths),
            blocks_per_level=per_level - 1,
            attention_levels=tuple(
                level
                for level, i in enumerate(first)
                if any(key.startswith(f"input_blocks.{i}.1.") for key in tensors)
            ),
        )
    except (ConfigError, LookupError, ZeroDivisionError) as error:
        raise _unknown("a U-Net (LDM-8)", source) from error


def _count(tensors: Tensors, pattern: str) -> int:
    """How many different numbers stand in the pattern's group."""
    found = (re.match(pattern, key) for key in tensors)
    return len({match.group(1) for match in found if match})


def _agreed(tensors: Tensors, *places: str) -> int:
    """What most of the places say: `key` means the first axis of its shape, `key/1` the second."""
    said = []
    for place in places:
        key, _, axis = place.partition("/")
        if key in tensors and tensors[key].ndim > int(axis or 0):
            said.append(tensors[key].shape[int(axis or 0)])
    if not said:
        raise LookupError(places[0])
    return mode(said)


def _unknown(what: str, source: str) -> WeightsError:
    return WeightsError(
        f"{source}: these are not the weights of {what}.",
        "See `sdseg weights list` for what is known.",
    )


def official_name(key: str) -> str:
    """`unet.out.0.bias` -> `model.diffusion_model.out.0.bias`, and so on."""
    part, rest = key.split(".", 1)
    return OFFICIAL_PREFIX[f"{part}."] + rest


def our_name(key: str) -> str:
    """Undoes `official_name`."""
    ours = next(ours for ours, prefix in OFFICIAL_PREFIX.items() if key.startswith(prefix))
    return ours + key.removeprefix(OFFICIAL_PREFIX[ours])


def official_ema_name(key: str) -> str:
    """`unet.out.0.bias` -> `model_ema.diffusion_modelout0bias`: the dots are gone."""
    return "model_ema.diffusion_model" + key.removeprefix("unet.").replace(".", "")


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


_DIFFUSERS_PARTS = [
    (r"\bmid_block\.resnets\.0\.", "mid.block_1."),
    (r"\bmid_block\.resnets\.1\.", "mid.block_2."),
    (r"\bmid_block\.attentions\.0\.", "mid.attn_1."),
    (r"\bdown_blocks\.", "down."),
    (r"\.resnets\.", ".block."),
    (r"\.downsamplers\.0\.conv\.", ".downsample.conv."),
    (r"\.upsamplers\.0\.conv\.", ".upsample.conv."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"(?<=attn_1\.)group_norm\.", "norm."),
    (r"(?<=attn_1\.)(to_q|query)\.", "q."),
    (r"(?<=attn_1\.)(to_k|key)\.", "k."),
    (r"(?<=attn_1\.)(to_v|value)\.", "v."),
    (r"(?<=attn_1\.)(to_out\.0|proj_attn)\.", "proj_out."),
]


def from_diffusers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An autoencoder of diffusers (`AutoencoderKL`) in CompVis names.

    Its decoder counts levels from the lowest resolution, CompVis from the highest; its attention
    has matrices where CompVis has 1x1 convolutions.
    """
    levels = len({k.split(".")[2] for k in tensors if k.startswith("decoder.up_blocks.")})
    renamed = {}
    for key, value in tensors.items():
        for pattern, name in _DIFFUSERS_PARTS:
            key = re.sub(pattern, name, key)
        key = re.sub(
            r"\bup_blocks\.(\d+)\.", lambda match: f"up.{levels - 1 - int(match[1])}.", key
        )
        if ".attn_1." in key and value.ndim == 2:
            value = value[:, :, None, None]
        renamed[key] = value
    return renamed
