"""Sizes of the networks, read off the shapes of their weights.

Each width is looked up in several places and the majority counts, so that one missing or damaged
tensor does not hide behind wrong sizes: the check that follows names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from statistics import mode

from torch import Tensor

from sdseg_cli.core.config import AutoencoderConfig, UNetConfig
from sdseg_cli.core.errors import ConfigError, WeightsError

Tensors = Mapping[str, Tensor]


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
