"""The model a run begins with: `train.init`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdseg_cli.core.config import SDSEG, RunConfig
from sdseg_cli.core.config_file import differing_keys, from_dict
from sdseg_cli.core.errors import ConfigError
from sdseg_cli.core.presets import PRESETS
from sdseg_cli.data.spec import ClassRule
from sdseg_cli.model.autoencoder import sample_posterior
from sdseg_cli.model.baselines import build_model
from sdseg_cli.model.diffusion import seeded_generator
from sdseg_cli.model.interface import SliceModel, as_three_channels
from sdseg_cli.model.pretrained import below, official_config
from sdseg_cli.model.sdseg import SDSeg, has_latents
from sdseg_cli.model.starts import (
    Origin,
    for_classes,
    require_pretrained,
    start_autoencoder,
    start_baseline,
    start_networks,
    start_vision_encoder,
)
from sdseg_cli.model.tensor_files import load_strictly
from sdseg_cli.model.weights import WeightStore
from sdseg_cli.runs.checkpoint import Checkpoint
from sdseg_cli.runs.package import is_package, read_trained
from sdseg_cli.runs.run_folder import RunDir, run_folder
from sdseg_cli.training.batches import PreparedSlices, draw_positions
from sdseg_cli.training.latents import encode_masks

SCALE_SLICES = 16
"""So many slices of each of several classes say how large its latents are."""
KEYWORDS = ("pretrained", "autoencoder", "scratch")
MAY_DIFFER = {
    "model.unet.dropout",
    "model.encoder_dropout",
    "model.train_encoder",
    "model.precision",
}
"""Settings of the model that change no weight's meaning."""


def initial_checkpoint(
    config: RunConfig, data: dict[str, Any], slices: PreparedSlices, store: WeightStore
) -> Checkpoint:
    """A run before its first step: as `initial_model`; `data` is `Manifest.inference_settings`."""
    model, origin = initial_model(config, store, slices)
    return Checkpoint.begin(config, model, data, origin)


def initial_model(
    config: RunConfig, store: WeightStore, slices: PreparedSlices
) -> tuple[SliceModel, Origin]:
    """The model at step 0, with its latent scale.

    Args:
        config: `train.init` is "pretrained" (the paper's start, or the warm networks of `tiny`),
            "scratch" (only the frozen autoencoder is pretrained), "autoencoder" (and the vision
            encoder's trunk is its encoder), the folder of a run or package, or the name of an
            official SDSeg model in the store.
        store: Where pretrained weights are.
        slices: The training slices; the first batch gives the latent scale, unless a model brings
            its own.

    Returns:
        The model, and where its weights came from.

    Raises:
        WeightsError: Weights are missing, damaged or of other sizes.
        ConfigError: The model named by `train.init` has other settings, or there is none.
    """
    torch.manual_seed(config.seed)
    model = build_model(config.model)
    if config.train.init not in KEYWORDS:
        return model, _start_from_model(model, config, store, slices)
    if not has_latents(model):
        origin = start_baseline(config.model.network, config.train.init)
        if config.model.classes > 1:
            model.start_at(slices.class_shares())
            origin["network"] += ", its last biases at the classes' shares of the pixels"
        return model, origin
    if config.train.init == "pretrained":
        require_pretrained(model, store)
    origin = start_autoencoder(model, store)
    if config.model.classes == 1:
        model.latent_scale = _latent_scale(model, config, slices)
    else:
        model.class_scale.copy_(_class_scales(model, config, slices))
    if config.train.init == "pretrained":
        origin = start_networks(model, store, origin)
    elif config.train.init == "autoencoder":
        origin = start_vision_encoder(model, origin)
    return model, origin


def _latent_scale(model: SDSeg, config: RunConfig, slices: PreparedSlices) -> float:
    """One over the standard deviation of the first batch's mask latents, as the official code."""
    positions = draw_positions(
        slices,
        seed=config.seed,
        step=0,
        batch_size=config.train.batch_size,
        foreground_fraction=config.train.foreground_fraction,
    )
    masks = slices.masks(slices.batch(positions).labels).flatten(0, 1)
    planes = as_three_channels(masks.float() * 2 - 1)
    generator = seeded_generator("latent scale", config.seed)
    moments = torch.cat([model.mask_moments(one) for one in torch.split(planes, 1)])  # few at once
    noise = torch.randn(moments.chunk(2, dim=1)[0].shape, generator=generator)
    return 1 / max(float(model.sample_latent(moments, noise).std()), 1e-6)


def _class_scales(model: SDSeg, config: RunConfig, slices: PreparedSlices) -> Tensor:
    """(K,), as `_latent_scale` of each class by itself, over some slices that have it."""
    generator = seeded_generator("latent scale", config.seed)
    scales = []
    for number, positions in enumerate(slices.with_class):
        count = min(len(positions), SCALE_SLICES)
        chosen = [positions[int((i + 0.5) * len(positions) / count)] for i in range(count)]
        masks = slices.masks(slices.batch(chosen).labels)[:, number]
        moments = encode_masks(model, masks)
        noise = torch.randn(moments.chunk(2, dim=1)[0].shape, generator=generator)
        scales.append(1 / max(float(sample_posterior(moments, noise).std()), 1e-6))
    return torch.tensor(scales)


def _start_from_model(
    model: SliceModel, config: RunConfig, store: WeightStore, slices: PreparedSlices
) -> Origin:
    init = config.train.init
    entry = store.find(init)
    if entry is not None:
        if entry.kind != "sdseg" or entry.latent_scale is None:
            raise ConfigError(
                f"--init {init}: in the weight store, but of kind {entry.kind}, no whole model.",
                "`--init pretrained` starts from such parts.",
            )
        tensors = store.load(entry)
        sizes = replace(PRESETS["sd"], model=official_config(tensors, source=init))
        _require_same_model(sizes, config, init)
        _fill(model, tensors, entry.latent_scale, config, slices)
        return {"model": f"{entry.source}, sha256 {entry.source_sha256}"}
    path = Path(init)
    if not (is_package(path) or RunDir(path).best.is_file()):
        raise ConfigError(
            f"--init {init}: no run, no package, and not in the weight store.",
            f"Give {', '.join(KEYWORDS)}, a run, a package, or a model of `sdseg weights list`; "
            "`sdseg weights add` takes a file.",
        )
    trained = read_trained(path)
    theirs = from_dict(trained.config, RunConfig(), source=init)
    names = ClassRule.of_settings(trained.data).names
    if theirs.model.classes > 1 and names != slices.classes.names:
        raise ConfigError(
            f"--init {init}: draws {', '.join(names)}; "
            f"this set has {', '.join(slices.classes.names)}.",
            "Start from a run of the same classes, or of one.",
        )
    _require_same_model(theirs, config, init)
    _fill(model, trained.prediction_weights(), trained.latent_scale, config, slices)
    before = trained.origin.get("model")
    story = f"{path.name}, step {trained.step}, trained on {trained.data.get('dataset')}"
    return {**trained.origin, "model": f"{story}; before that {before}" if before else story}


def _fill(
    model: SliceModel,
    weights: Mapping[str, Tensor],
    latent_scale: float,
    config: RunConfig,
    slices: PreparedSlices,
) -> None:
    """The weights of a model; those of one class in a model of several draw each as the one."""
    source, classes = config.train.init, config.model.classes
    if not has_latents(model) or classes == 1 or "class_scale" in weights:
        load_strictly(model, weights, source=source)
        model.latent_scale = latent_scale
        return
    own = {key: value for key, value in weights.items() if not key.startswith("unet.")}
    fresh = {k: v for k, v in model.state_dict().items() if k in ("class_scale", "background")}
    unet = {f"unet.{k}": v for k, v in for_classes(model.unet, below(weights, "unet.")).items()}
    load_strictly(model, {**fresh, **own, **unet}, source=source)
    model.class_scale.copy_(_class_scales(model, config, slices))
    if config.model.parameterisation == "z0":
        # Its U-Net answers with latents of its own scale.
        with torch.no_grad():
            channels = model.config.autoencoder.latent_channels
            scale = model.class_scale.repeat_interleave(channels) / latent_scale
            for value in model.unet.out[-1].parameters():
                value.mul_(scale.view(-1, *[1] * (value.ndim - 1)))


def _require_same_model(theirs: RunConfig, config: RunConfig, init: str) -> None:
    differing = [key for key in differing_keys(theirs, config) if key.startswith("model.")]
    begins = theirs.model.classes == 1 and config.model.network == SDSEG
    allowed = MAY_DIFFER | ({"model.classes", "model.overlapping"} if begins else set())
    if changed := [key for key in differing if key not in allowed]:
        raise ConfigError(
            f"--init {init}: its model has other settings: {', '.join(changed)}.",
            f"Train with --preset {theirs.preset}, or with the same settings by --set.",
        )


def resolved_start(init: str, workspace: Path, store: WeightStore) -> str:
    """`train.init` so that it means the same from any folder: a run or package by its full path.

    `init` may be a keyword, a name in the store, a run as `--run` takes it, or a package.

    Raises:
        ConfigError: It is empty, or several runs have that name.
    """
    if not init.strip():
        raise ConfigError("--init is empty.", f"Give {', '.join(KEYWORDS)}, a run or a package.")
    if init in KEYWORDS or store.find(init) is not None:
        return init
    path = Path(init)
    if not is_package(path) and (run := run_folder(workspace, init)) is not None:
        path = run
    # A link stays a link: what it names today is the run, what it points to may change.
    return os.path.normpath(path.absolute())
