"""Weights that others trained: which kind a file holds, checked, in our names and sizes.

autoencoder   kl-f8; SD VAE in CompVis or diffusers names; any checkpoint of Stable Diffusion
                  gives autoencoder.*
ldm           LDM-8 (LSUN churches)
                  gives unet.*, with 4 input channels, and its own autoencoder.*
sdseg         an official SDSeg checkpoint
                  gives unet.*, the averaged one, autoencoder.* and vision_encoder.*
lpips-alexnet the ImageNet AlexNet of torchvision
                  gives features.*, its convolutions
lpips-linear  the heads of LPIPS v0.1 for AlexNet
                  gives lin0.* to lin4.*

Our modules carry the CompVis names, so an official checkpoint needs no table, only its three
prefixes; only diffusers calls the autoencoder's parts otherwise. Each width is looked up in several
places and the majority counts, so that one missing or damaged tensor does not hide behind wrong
sizes: the check that follows names it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mode
from typing import Any

import torch
from torch import Size, Tensor, nn

from sdseg_cli.core.config import AutoencoderConfig, ModelConfig, UNetConfig
from sdseg_cli.core.errors import ConfigError, WeightsError
from sdseg_cli.metrics.lpips import BACKBONE, HEADS, backbone_shapes, linear_shapes
from sdseg_cli.model.autoencoder import Autoencoder
from sdseg_cli.model.diffusion import ALPHA_BAR, TIMESTEPS
from sdseg_cli.model.sdseg import SDSeg, unfilled_sdseg
from sdseg_cli.model.tensor_files import (
    check_tensors,
    load_strictly,
    positive_scale,
    read_tensors,
    state_dict_of,
)
from sdseg_cli.model.unet import UNet

Tensors = Mapping[str, Tensor]

FACTOR, LATENT_CHANNELS = 8, 4
FIRST_CONVOLUTION = "input_blocks.0.0.weight"
LAST_CONVOLUTION = ("out.2.weight", "out.2.bias")
OFFICIAL_PREFIX = {
    "unet.": "model.diffusion_model.",
    "autoencoder.": "first_stage_model.",
    "vision_encoder.": "cond_stage_model.",
}

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
        return _official_model(tensors, ema=ema, source=str(state_dict_or_path))
    tensors = state_dict_of(state_dict_or_path, source="state_dict")
    return _official_model(tensors, ema=ema, source="state_dict")


def _official_model(tensors: Tensors, *, ema: bool, source: str) -> SDSeg:
    """Like `load_official`, from tensors already read; `source` names them in messages."""
    # What a GAN loss left behind is no part of the model.
    tensors = {k: v for k, v in tensors.items() if not k.startswith("first_stage_model.loss.")}
    prefixes = tuple(OFFICIAL_PREFIX.values())
    ours = {our_name(key): value for key, value in tensors.items() if key.startswith(prefixes)}
    config = official_config(ours, source=source)
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


def official_config(tensors: Tensors, *, source: str) -> ModelConfig:
    """Sizes of an official model, read off the shapes of its weights in our names.

    Raises:
        WeightsError: They are the weights of something else.
    """
    return ModelConfig(
        autoencoder=autoencoder_sizes(below(tensors, "autoencoder."), source=source),
        unet=unet_sizes(below(tensors, "unet."), source=source),
    )


def _official_shapes(model: SDSeg, tensors: Tensors, ema: bool) -> dict[str, Size]:
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


@dataclass(frozen=True)
class Source:
    """Weights of a known kind."""

    kind: str
    """"autoencoder", "ldm", "sdseg", "lpips-alexnet" or "lpips-linear"."""
    tensors: dict[str, Tensor]
    """In our names."""
    widths: dict[str, int]
    """`{"autoencoder": 128, "unet": 192}`: channels of the highest resolution of what is there;
    empty for LPIPS, which has but one size."""
    latent_scale: float | None = None
    """Of "sdseg"."""


def recognise(tensors: Tensors, *, source: str) -> Source:
    """The kind of these weights, every name, shape and value checked; `source` is for messages.

    Raises:
        WeightsError: They are of no known kind, or incomplete, or damaged.
    """
    if any(key.startswith("cond_stage_model.encoder.") for key in tensors):
        return _sdseg(tensors, source)
    unet = below(tensors, "model.diffusion_model.")
    if unet and not any("transformer_blocks" in key for key in unet):
        return _ldm(unet, below(tensors, "first_stage_model."), source)
    if any(key.startswith("first_stage_model.") for key in tensors):
        return _autoencoder(below(tensors, "first_stage_model."), source)
    if any(key.startswith("decoder.up_blocks.") for key in tensors):
        return _autoencoder(from_diffusers(tensors), source)
    if any(key.startswith("decoder.up.") for key in tensors):
        return _autoencoder(tensors, source)
    if "features.0.weight" in tensors:
        return _alexnet(tensors, source)
    if "lin0.model.1.weight" in tensors:
        return _lpips_heads(tensors, source)
    raise WeightsError(
        f"{source}: these weights are of no kind that is known here.",
        "Known are kl-f8, LDM-8, SD VAE, official SDSeg checkpoints, AlexNet and the LPIPS heads; "
        "of a run, use --init RUN.",
    )


def _autoencoder(tensors: Tensors, source: str) -> Source:
    # What a GAN loss and an average during training left behind are no part of the network.
    tensors = {k: v for k, v in tensors.items() if not k.startswith(("loss.", "model_ema."))}
    sizes = autoencoder_sizes(tensors, source=source)
    _require_factor(sizes, source)
    with torch.device("meta"):
        network = Autoencoder(sizes)
    check_tensors(tensors, _shapes(network), source=source)
    return Source(
        "autoencoder", _prefixed("autoencoder.", tensors), {"autoencoder": sizes.channels}
    )


def _ldm(unet: dict[str, Tensor], own_autoencoder: dict[str, Tensor], source: str) -> Source:
    sizes = unet_sizes(unet, source=source)
    with torch.device("meta"):
        shapes = _shapes(UNet(sizes, LATENT_CHANNELS))
    width = shapes[FIRST_CONVOLUTION][0]
    shapes[FIRST_CONVOLUTION] = Size((width, LATENT_CHANNELS, 3, 3))  # unconditional
    check_tensors(unet, shapes, source=source)
    held = _prefixed("unet.", unet)
    widths = {"unet": sizes.model_channels}
    if own_autoencoder:
        own = _autoencoder(own_autoencoder, source)
        held |= own.tensors
        widths |= own.widths
    return Source("ldm", held, widths)


def _sdseg(tensors: Tensors, source: str) -> Source:
    model = _official_model(tensors, ema=True, source=source)
    _require_factor(model.config.autoencoder, source)
    channels, base = model.config.autoencoder.channels, model.config.unet.model_channels
    widths = {"autoencoder": channels, "unet": base}
    return Source("sdseg", model.state_dict(), widths, model.latent_scale)


def _alexnet(tensors: Tensors, source: str) -> Source:
    shapes = backbone_shapes()
    first = tuple(tensors["features.0.weight"].shape)
    if first != shapes["features.0.weight"]:
        raise WeightsError(
            f"{source}: features.* of another network than AlexNet, its first layer is {first}.",
            "LPIPS is measured with AlexNet: take torchvision's alexnet-owt-7be5be79.pth.",
        )
    # The rest is the classifier, which looks for dogs and cats.
    features = {k: v for k, v in tensors.items() if k.startswith("features.")}
    check_tensors(features, shapes, source=source)
    return Source(BACKBONE, _prefixed("", features), {})


def _lpips_heads(tensors: Tensors, source: str) -> Source:
    shapes = linear_shapes()
    if {key: tuple(value.shape) for key, value in tensors.items()} != shapes:
        channels = [str(v.shape[1]) for v in tensors.values() if v.ndim == 4]
        network = {7: "SqueezeNet", 5: "VGG"}.get(len(channels) if "128" in channels else 0)
        if network is not None:
            raise WeightsError(
                f"{source}: LPIPS heads for {network}, with {', '.join(channels)} channels.",
                "LPIPS is measured with AlexNet here, as in the paper's Table 5: take alex.pth.",
            )
    check_tensors(tensors, shapes, source=source)
    return Source(HEADS, _prefixed("", tensors), {})


def _require_factor(sizes: AutoencoderConfig, source: str) -> None:
    if (sizes.factor, sizes.latent_channels) != (FACTOR, LATENT_CHANNELS):
        raise WeightsError(
            f"{source}: an autoencoder of factor {sizes.factor} with {sizes.latent_channels} latent"
            f" channels; SDSeg needs factor {FACTOR} and {LATENT_CHANNELS}.",
            "Take kl-f8 or an SD VAE.",
        )


def _shapes(network: nn.Module) -> dict[str, Size]:
    return {key: value.shape for key, value in network.state_dict().items()}


def _prefixed(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value.float().contiguous() for key, value in tensors.items()}


def autoencoder_sizes(tensors: Tensors, *, source: str) -> AutoencoderConfig:
    """Sizes of an autoencoder (`encoder.*`, `decoder.*`, ...); groups of the norms are kl-f8's.

    Raises:
        WeightsError: They are the weights of something else.
    """
    levels = _count(tensors, r"encoder\.down\.(\d+)\.")
    with _refusing_others("an autoencoder (kl-f8)", source):
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


def unet_sizes(tensors: Tensors, *, source: str) -> UNetConfig:
    """Sizes of a concatenating U-Net (`input_blocks.*`, ...); heads and dropout are the paper's.

    Raises:
        WeightsError: They are the weights of something else.
    """
    # Every level but the lowest is reached by a residual block that doubles the plane, the only one
    # that is not the first in its stage.
    levels = 1 + _count(tensors, r"output_blocks\.(\d+)\.[12]\.in_layers")
    stages = _count(tensors, r"output_blocks\.(\d+)\.")
    per_level = stages // levels
    first = [1 + level * per_level for level in range(levels)]
    with _refusing_others("a U-Net (LDM-8)", source):
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


def _count(tensors: Tensors, pattern: str) -> int:
    """Count of different numbers in the pattern's group."""
    found = (re.match(pattern, key) for key in tensors)
    return len({match.group(1) for match in found if match})


def _agreed(tensors: Tensors, *places: str) -> int:
    """The majority's size: `key` means the first axis of its shape, `key/1` the second."""
    said = []
    for place in places:
        key, _, axis = place.partition("/")
        if key in tensors and tensors[key].ndim > int(axis or 0):
            said.append(tensors[key].shape[int(axis or 0)])
    if not said:
        raise LookupError(places[0])
    return mode(said)


@contextmanager
def _refusing_others(what: str, source: str) -> Iterator[None]:
    """Sizes that cannot be read off within the block are one clear error."""
    try:
        yield
    except (ConfigError, LookupError, ZeroDivisionError) as error:
        raise WeightsError(
            f"{source}: these are not the weights of {what}.",
            "See `sdseg weights list` for what is known.",
        ) from error


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


def below(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
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


def from_diffusers(tensors: Tensors) -> dict[str, Tensor]:
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
