"""Starting weights of a training: pretrained parts in a new model.

The paper's start: kl-f8 is the autoencoder and the vision encoder's trunk, the unconditional LDM-8
is the U-Net, its first convolution padded with zeros for the condition. The autoencoder is frozen,
so it is never left random; `out` of the vision encoder always is. `tiny` has networks of its own.

Those ship with the package, made by `scripts/` from procedural images alone: no patient and no
downloaded weight is in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from sdseg_cli.core.config import BASELINES, ModelConfig
from sdseg_cli.core.errors import ConfigError, WeightsError
from sdseg_cli.core.presets import PRESETS
from sdseg_cli.model.autoencoder import Autoencoder
from sdseg_cli.model.pretrained import FIRST_CONVOLUTION, LAST_CONVOLUTION, below
from sdseg_cli.model.sdseg import SDSeg
from sdseg_cli.model.tensor_files import load_strictly, read_tensors
from sdseg_cli.model.unet import UNet
from sdseg_cli.model.weights import Entry, WeightStore

TINY = PRESETS["tiny"].model
ORIGIN = "shipped with sdseg"
WARM_ORIGIN = "shipped with sdseg, warmed up on procedural scenes"

WARM_PARTS = ("vision_encoder", "unet")

THE_PAPERS = {"autoencoder": "kl-f8", "unet": "ldm-8"}
"""Taken where several entries of the store fit."""

Origin = dict[str, str]
"""Part of the model -> the weights it started from, with the sha256 of their file."""


def start_autoencoder(model: SDSeg, store: WeightStore) -> Origin:
    """The frozen autoencoder, which every start has.

    Raises:
        WeightsError: The store has none of these sizes.
    """
    if _autoencoder_ships(model):
        load_tiny_autoencoder(model.autoencoder)
        return {"autoencoder": ORIGIN}
    entry = _fitting(store, "autoencoder", model.config.autoencoder.channels)
    if entry is None:
        raise _missing(model, store, ["kl-f8 (autoencoder)"])
    tensors = below(store.load(entry), "autoencoder.")
    load_strictly(model.autoencoder, tensors, source=entry.name)
    return {"autoencoder": _named(entry)}


def require_pretrained(model: SDSeg, store: WeightStore) -> None:
    """Before anything is loaded: the store has what the paper's start takes.

    Raises:
        WeightsError: It lacks a part; all that is missing is named.
    """
    if _autoencoder_ships(model):
        return
    widths = model.config.autoencoder.channels, model.config.unet.model_channels
    needed = (
        ("autoencoder", widths[0], "kl-f8 (autoencoder and vision encoder)"),
        ("unet", widths[1], "ldm-8 (U-Net)"),
    )
    if absent := [name for part, width, name in needed if _fitting(store, part, width) is None]:
        raise _missing(model, store, absent)


def start_vision_encoder(model: SDSeg, origin: Origin) -> Origin:
    """The autoencoder's encoder as the vision encoder's trunk; the U-Net stays random.

    Args:
        model: With its autoencoder.
        origin: Where that came from.
    """
    model.vision_encoder.encoder.load_state_dict(model.autoencoder.encoder.state_dict())
    return origin | {"vision_encoder": origin["autoencoder"]}


def start_networks(model: SDSeg, store: WeightStore, origin: Origin) -> Origin:
    """Vision encoder and U-Net: the paper's, or the warm ones of the `tiny` preset. With its
    autoencoder and other sizes, fusion or parameterisation, the U-Net stays random: none ships.

    Args:
        model: With its autoencoder and its latent scale.
        store: Where LDM-8 is.
        origin: Where the autoencoder came from.

    Raises:
        WeightsError: LDM-8 is missing, damaged or of other sizes.
    """
    if _warm_networks_fit(model.config):
        fill_warm(model, _read("tiny_warm"), source="tiny warm networks")
        return origin | {"vision_encoder": WARM_ORIGIN, "unet": WARM_ORIGIN}
    origin = start_vision_encoder(model, origin)
    if _autoencoder_ships(model):
        return origin
    entry = _fitting(store, "unet", model.config.unet.model_channels)
    if entry is None:
        raise _missing(model, store, ["ldm-8 (U-Net)"])
    start_unet(model.unet, below(store.load(entry), "unet."), source=entry.name)
    return origin | {"unet": _named(entry)}


def start_baseline(network: str, init: str) -> Origin:
    """A baseline's weights stay random, and the record says so.

    Raises:
        ConfigError: Pretrained ones are asked for: none come with sdseg.
    """
    if init != "scratch":
        raise ConfigError(
            f"--init {init}: there are no pretrained weights for {network}.",
            "Give --init scratch, or a run of it.",
        )
    return {"network": BASELINES[network].start}


def start_unet(unet: UNet, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """The unconditional LDM-8 U-Net as SDSeg's.

    Args:
        unet: To be filled.
        tensors: Of LDM-8, whose first convolution sees 4 channels of noise only. Where `unet`
            concatenates, zeros are put for the condition, so that at the start the image does not
            count; where it attends to the condition, its transformers stay random in place of
            LDM-8's attention blocks.
        source: The weights' name, for messages.

    Raises:
        WeightsError: They are of other sizes.
    """
    start, fresh = dict(tensors), unet.state_dict()
    for attention in {key.rsplit(".qkv.", 1)[0] for key in tensors if ".qkv." in key}:
        if f"{attention}.qkv.weight" not in fresh:
            start = {k: v for k, v in start.items() if not k.startswith(f"{attention}.")}
            start |= {k: v for k, v in fresh.items() if k.startswith(f"{attention}.")}
    first = start.get(FIRST_CONVOLUTION)
    channels = unet.latent_channels * (2 if unet.concat else 1)
    if first is not None and first.ndim == 4 and first.shape[1] < channels:
        missing = channels - first.shape[1]
        start[FIRST_CONVOLUTION] = torch.cat([first, torch.zeros_like(first[:, :missing])], dim=1)
    load_strictly(unet, for_classes(unet, start), source=source)


def for_classes(unet: UNet, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The weights of a U-Net of one class as those of K: each sees and draws what the one did.

    The first convolution is repeated for each class and divided by K, the last one repeated. Where
    the last level has to be wider for its 4K channels, its weights stay as `unet` has them.

    Args:
        unet: Of K classes.
        tensors: Of one class.
    """
    if unet.classes == 1:
        return tensors
    fresh, start = unet.state_dict(), dict(tensors)
    first, noisy = start.get(FIRST_CONVOLUTION), unet.latent_channels
    if first is not None and first.ndim == 4:
        noise = first[:, :noisy].repeat(1, unet.classes, 1, 1) / unet.classes
        start[FIRST_CONVOLUTION] = torch.cat([noise, first[:, noisy:]], dim=1)
    for key in LAST_CONVOLUTION:
        if key in start:
            start[key] = start[key].repeat(unet.classes, *[1] * (start[key].ndim - 1))
    widened = fresh[LAST_CONVOLUTION[0]].shape[1] > unet.config.model_channels
    if widened:
        # A block that does not change the width has no convolution beside it.
        beside = {key for key in fresh.keys() ^ start.keys() if ".skip_connection." in key}
        start = {key: value for key, value in start.items() if key not in beside}
        start |= {
            key: value
            for key, value in fresh.items()
            if key.startswith(("output_blocks.", "out."))
            and (key in beside or (key in start and value.shape != start[key].shape))
        }
    return start


def _autoencoder_ships(model: SDSeg) -> bool:
    return model.config.autoencoder == PRESETS["tiny"].model.autoencoder


def _fitting(store: WeightStore, part: str, channels: int) -> Entry | None:
    """The entry that holds a part of this width; official SDSeg models are starts of their own.

    Raises:
        WeightsError: Several do, and none has the name of a known one.
    """
    fitting = [
        entry
        for entry in store.entries()
        if entry.kind != "sdseg" and entry.widths.get(part) == channels
    ]
    own = [entry for entry in fitting if part == "unet" or entry.kind == "autoencoder"]
    candidates = {entry.name: entry for entry in own or fitting}
    if len(candidates) < 2 or THE_PAPERS[part] in candidates:
        return candidates.get(THE_PAPERS[part]) or next(iter(candidates.values()), None)
    names = ", ".join(candidates)
    raise WeightsError(
        f"the weight store holds several to start from ({part}): {names}.",
        f"Add the one you mean as `--name {THE_PAPERS[part]}`.",
    )


def _missing(model: SDSeg, store: WeightStore, absent: list[str]) -> WeightsError:
    sizes, damaged = model.config, store.damaged()
    fewer = "; or --init autoencoder, which needs kl-f8 alone" if "ldm" in absent[-1] else ""
    return WeightsError(
        f"training starts from {' and '.join(absent)} of widths {sizes.autoencoder.channels} and "
        f"{sizes.unet.model_channels}, not in the weight store {store.folder}"
        f"{f' (damaged there: {names})' if (names := ', '.join(damaged)) else ''}.",
        f"Run `sdseg weights fetch NAME` or `sdseg weights add FILE`; or use --preset tiny{fewer}.",
    )


def _named(entry: Entry) -> str:
    return f"{entry.name}, {entry.source}, sha256 {entry.source_sha256}"


def load_tiny_autoencoder(autoencoder: Autoencoder) -> None:
    """The autoencoder of the `tiny` preset, by `scripts/train_tiny_autoencoder.py`."""
    load_strictly(autoencoder, _read("tiny_autoencoder"), source="tiny autoencoder")


def _warm_networks_fit(sizes: ModelConfig) -> bool:
    """Whether the warm vision encoder and U-Net are of these sizes, and mean the same by what they
    say; dropout, precision and what is trained may differ.
    """
    same = replace(
        sizes,
        classes=1,
        overlapping=False,
        unet=replace(sizes.unet, dropout=TINY.unet.dropout),
        encoder_dropout=TINY.encoder_dropout,
        train_encoder=TINY.train_encoder,
        precision=TINY.precision,
        tf32=TINY.tf32,
    )
    return same == TINY


def fill_warm(
    model: SDSeg,
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    parts: Sequence[str] = WARM_PARTS,
) -> None:
    """Warm networks, which have drawn other masks before (`scripts/warm_up_tiny.py`).

    Args:
        model: To be filled; it has its latent scale already.
        tensors: `vision_encoder.*` and `unet.*`; the U-Net answers with latents of scale 1.
        source: Their name, for messages.
        parts: Those to fill.

    Raises:
        WeightsError: They are of other sizes.
    """
    for name in parts:
        own = below(tensors, f"{name}.")
        start = for_classes(model.unet, own) if name == "unet" else own
        load_strictly(getattr(model, name), start, source=source)
    if "unet" in parts:
        # z0 is the latent times the scale: the same masks are drawn at any.
        scale = model.scale()
        with torch.no_grad():
            for value in model.unet.out[-1].parameters():
                if isinstance(scale, Tensor):
                    value.mul_(scale.view(-1, *[1] * (value.ndim - 1)))
                else:
                    value.mul_(scale)


def shipped_file(name: str) -> AbstractContextManager[Path]:
    """A file of weights that comes with the package, within a block."""
    return resources.as_file(resources.files("sdseg_cli.model") / "shipped_files" / name)


def _read(name: str) -> Mapping[str, Tensor]:
    with shipped_file(f"{name}.safetensors") as path:
        return read_tensors(path)
