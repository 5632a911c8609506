"""Parameter names: ours, those of official checkpoints, and those of diffusers.

Our modules carry the CompVis names, so an official checkpoint needs no table, only its three
prefixes. Only diffusers calls the autoencoder's parts otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

OFFICIAL_PREFIX = {
    "unet.": "model.diffusion_model.",
    "autoencoder.": "first_stage_model.",
    "vision_encoder.": "cond_stage_model.",
}


def official_name(key: str) -> str:
    """`unet.out.0.bias` -> `model.diffusion_model.out.0.bias`, and so on."""
    part, rest = key.split(".", 1)
    return OFFICIAL_PREFIX[f"{part}."] + rest


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
