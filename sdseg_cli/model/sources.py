"""Which of the known kinds a file of weights is, and its tensors in our names.

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
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Size, Tensor, nn

from sdseg_cli.core.config import AutoencoderConfig
from sdseg_cli.core.errors import WeightsError
from sdseg_cli.metrics.lpips import BACKBONE, HEADS, backbone_shapes, linear_shapes
from sdseg_cli.model.autoencoder import Autoencoder
from sdseg_cli.model.pretrained import (
    autoencoder_sizes,
    below,
    from_diffusers,
    official_model,
    unet_sizes,
)
from sdseg_cli.model.tensor_files import check_tensors
from sdseg_cli.model.unet import UNet

FACTOR, LATENT_CHANNELS = 8, 4
FIRST_CONVOLUTION = "input_blocks.0.0.weight"


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


def recognise(tensors: Mapping[str, Tensor], *, source: str) -> Source:
    """Tell what these weights are, and check every name, shape and value.

    Args:
        tensors: As the file has them.
        source: The file, for messages.

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


def _autoencoder(tensors: Mapping[str, Tensor], source: str) -> Source:
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


def _sdseg(tensors: Mapping[str, Tensor], source: str) -> Source:
    model = official_model(tensors, ema=True, source=source)
    _require_factor(model.config.autoencoder, source)
    sizes = model.config
    widths = {"autoencoder": sizes.autoencoder.channels, "unet": sizes.unet.model_channels}
    return Source("sdseg", model.state_dict(), widths, model.latent_scale)


def _alexnet(tensors: Mapping[str, Tensor], source: str) -> Source:
    shapes = backbone_shapes()
    first = tuple(tensors["features.0.weight"].shape)
    if first != shapes["features.0.weight"]:
        raise WeightsError(
            f"{source}: features.* of another network than AlexNet, its first layer is {first}.",
            "LPIPS is measured with AlexNet: take torchvision's alexnet-owt-7be5be79.pth.",
        )
    # The rest is the classifier, which looks for dogs and cats.
    features = {k: v for k, v in tensors.items() if k.startswith("features.")}
    check_tensors(features, _sizes(shapes), source=source)
    return Source(BACKBONE, _prefixed("", features), {})


def _lpips_heads(tensors: Mapping[str, Tensor], source: str) -> Source:
    shapes = _sizes(linear_shapes())
    if {key: value.shape for key, value in tensors.items()} != shapes:
        channels = [str(v.shape[1]) for v in tensors.values() if v.ndim == 4]
        network = {7: "SqueezeNet", 5: "VGG"}.get(len(channels) if "128" in channels else 0)
        if network is not None:
            raise WeightsError(
                f"{source}: LPIPS heads for {network}, with {', '.join(channels)} channels.",
                "LPIPS is measured with AlexNet here, as in the paper's Table 5: take alex.pth.",
            )
    check_tensors(tensors, shapes, source=source)
    return Source(HEADS, _prefixed("", tensors), {})


def _sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Size]:
    return {key: Size(shape) for key, shape in shapes.items()}


def _require_factor(sizes: AutoencoderConfig, source: str) -> None:
    if (sizes.factor, sizes.latent_channels) != (FACTOR, LATENT_CHANNELS):
        raise WeightsError(
            f"{source}: an autoencoder of factor {sizes.factor} with {sizes.latent_channels} latent"
            f" channels; SDSeg needs factor {FACTOR} and {LATENT_CHANNELS}.",
            "Take kl-f8 or an SD VAE.",
        )


def _shapes(network: nn.Module) -> dict[str, Size]:
    return {key: value.shape for key, value in network.state_dict().items()}


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value.float().contiguous() for key, value in tensors.items()}
