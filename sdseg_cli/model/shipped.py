"""Weights that come with the package: those of the `tiny` preset.

Made by `scripts/` from procedural images alone: no patient and no downloaded weight is in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from sdseg_cli.core.config import ModelConfig
from sdseg_cli.core.presets import PRESETS
from sdseg_cli.model.autoencoder import Autoencoder
from sdseg_cli.model.naming import below
from sdseg_cli.model.sdseg import SDSeg
from sdseg_cli.model.tensor_files import load_strictly, read_tensors

TINY = PRESETS["tiny"].model
ORIGIN = "shipped with sdseg"
WARM_ORIGIN = "shipped with sdseg, warmed up on procedural scenes"

WARM_PARTS = ("vision_encoder", "unet")


def load_tiny_autoencoder(autoencoder: Autoencoder) -> None:
    """The autoencoder of the `tiny` preset, by `scripts/train_tiny_autoencoder.py`."""
    load_strictly(autoencoder, _read("tiny_autoencoder"), source="tiny autoencoder")


def warm_networks_fit(sizes: ModelConfig) -> bool:
    """Whether the warm vision encoder and U-Net are of these sizes, and mean the same by what they
    say; dropout, precision and what is trained may differ.
    """
    same = replace(
        sizes,
        unet=replace(sizes.unet, dropout=TINY.unet.dropout),
        encoder_dropout=TINY.encoder_dropout,
        train_encoder=TINY.train_encoder,
        precision=TINY.precision,
        tf32=TINY.tf32,
    )
    return same == TINY


def load_warm_networks(model: SDSeg) -> None:
    """Vision encoder and U-Net that have drawn other masks before, by `scripts/warm_up_tiny.py`.

    Args:
        model: To be filled; `warm_networks_fit` its sizes. It has its latent scale already.
    """
    fill_warm(model, _read("tiny_warm"), source="tiny warm networks")


def fill_warm(
    model: SDSeg,
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    parts: Sequence[str] = WARM_PARTS,
) -> None:
    """Warm networks, as `scripts/warm_up_tiny.py` writes them, in a model with a latent scale.

    Args:
        model: To be filled.
        tensors: `vision_encoder.*` and `unet.*`; the U-Net answers with latents of scale 1.
        source: Their name, for messages.
        parts: Those to fill.

    Raises:
        WeightsError: They are of other sizes.
    """
    for name in parts:
        load_strictly(getattr(model, name), below(tensors, f"{name}."), source=source)
    if "unet" in parts:
        # z0 is the latent times the scale: the same masks are drawn at any.
        with torch.no_grad():
            for value in model.unet.out[-1].parameters():
                value.mul_(model.latent_scale)


def shipped_file(name: str) -> AbstractContextManager[Path]:
    """A file of weights that comes with the package, within a block."""
    return resources.as_file(resources.files("sdseg_cli.model") / "shipped_files" / name)


def _read(name: str) -> Mapping[str, Tensor]:
    with shipped_file(f"{name}.safetensors") as path:
        return read_tensors(path)
