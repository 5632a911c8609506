"""`--batch-size auto`: the batch that a GPU trains fastest with and that fits its memory."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from sdseg_cli.core.config import SDSEG, RunConfig
from sdseg_cli.core.errors import ConfigError, RunError
from sdseg_cli.core.processes import require_batch_fits
from sdseg_cli.data.manifest import Manifest
from sdseg_cli.model.baselines import build_model
from sdseg_cli.model.distributed import Ranks, ranks_of
from sdseg_cli.model.mask_decoder import build_mask_decoder
from sdseg_cli.model.runtime import choose_device, ran_out_of_memory
from sdseg_cli.runs.checkpoint import Checkpoint, refuse_foreign
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training.batches import PreparedSlices, StepSource, open_split
from sdseg_cli.training.latents import open_latents
from sdseg_cli.training.step import Trainer

LARGEST = 256
WORTH_IT = 1.05
"""A batch twice as large must be so much faster per slice."""
MEMORY_SHARE = 0.9
"""What a measured step may take of a GPU's memory: later ones may need a little more."""
TRIES = 3
PLANES_PER_CHANNEL = 25
"""As many planes of the model's size a training step on a CPU holds for each of the autoencoder's
channels: 52 MB a slice of the `tiny` preset.
"""
PLANES_PER_CLASS = 28
"""And for each class whose mask counts in pixels: 7 MB a slice of 256x256."""


def require_batch_memory(
    config: RunConfig, plane_px: int, device: torch.device, ranks: Ranks, waiting: int
) -> None:
    """Refuse a batch that this machine's memory cannot hold, before anything is begun.

    Args:
        config: Every setting.
        plane_px: Pixels of a slice, all colours.
        device: Where it trains; what a GPU holds is not counted.
        ranks: Who shares each batch.
        waiting: So many steps' inputs are held at once.

    Raises:
        RunError: It does not fit; the hint names the largest that does.
    """
    own = config.model.network == SDSEG
    channels = config.model.autoencoder.channels if own and device.type == "cpu" else 0
    classes = config.model.classes
    planes = PLANES_PER_CHANNEL * channels
    if channels and config.train.mask_loss_weight:
        planes += PLANES_PER_CLASS * classes

    def taken(size: int) -> int:
        mine = -(-size // ranks.world)
        # As stored and as float32, with its masks; and what the networks keep for the gradient.
        inputs = mine * plane_px * (2 + 4 + 1 + classes) * waiting
        at_once = -(-mine // config.train.accumulate)
        return inputs + at_once * 4 * planes * plane_px

    require_batch_fits(taken, config.train.batch_size, "train")


def fastest_batch_size(slices_per_s: Callable[[int], float | None], largest: int = LARGEST) -> int:
    """The batch size after doubling it, up to `largest`, for as long as that is worth it; 1 where
    not even that fits. `slices_per_s` measures a batch size: None where it does not fit.
    """
    size, rate = 1, slices_per_s(1)
    while rate is not None and 2 * size <= largest:
        faster = slices_per_s(2 * size)
        if faster is None or faster < WORTH_IT * rate:
            break
        size, rate = 2 * size, faster
    return size


def fitting_batch_size(
    config: RunConfig, slices: PreparedSlices, folder: Path, device: torch.device
) -> int:
    """The batch size for this GPU, measured on whole training steps with fresh weights. `folder`
    takes a file of latents of a few hundred kilobytes.
    """
    config = replace(config, train=replace(config.train, batch_size=1, accumulate=1))
    model = build_model(config.model)
    decoder = build_mask_decoder(config.model.autoencoder).eval()  # any takes as long
    trainer = Trainer(config, Checkpoint.begin(config, model), device, decoder=decoder)
    latents = open_latents([folder], slices, model, {}, device)
    source = StepSource(config, slices, latents, model.latent_shape(*slices.plane))
    trainer.train_step(source.inputs(0), latents)
    one = source.inputs(0)  # its mask's moments are kept by now, as most are in a training

    def slices_per_s(size: int) -> float | None:
        inputs = one.chosen([0] * size)
        try:
            trainer.train_step(inputs, latents)  # to warm up
            torch.cuda.reset_peak_memory_stats(device)
            started = time.perf_counter()
            for _ in range(TRIES):
                trainer.train_step(inputs, latents).row()
            taken = time.perf_counter() - started
        except (RunError, RuntimeError, MemoryError) as error:
            if not ran_out_of_memory(error.__cause__ or error):
                raise
            return None
        whole = torch.cuda.get_device_properties(device).total_memory
        fits = torch.cuda.max_memory_allocated(device) <= MEMORY_SHARE * whole
        return TRIES * size / taken if fits else None

    size = fastest_batch_size(slices_per_s, min(LARGEST, len(slices)))
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)  # the peak of the training to come is its own
    return size


def fitted(config: RunConfig, manifest: Manifest, run: RunDir, device: str) -> RunConfig:
    """`--batch-size auto`: the settings with the batch that suits this machine.

    A run that was begun keeps its batch. A GPU is measured; a CPU, as fast with any batch, keeps
    the one that is set.

    Raises:
        ConfigError: Several processes train together, or the folder holds no run but other things.
    """
    refuse_foreign(run)
    size, own = config.train.batch_size, choose_device(device)
    if ranks_of(os.environ).world > 1:
        raise ConfigError(
            "--batch-size auto is for one process.",
            "Find the batch with one GPU first, then give it times the number of GPUs.",
        )
    if run.config_file.is_file():
        size = run.config().train.batch_size
    elif own.type == "cuda":
        with tempfile.TemporaryDirectory() as folder:
            slices = open_split(manifest, "train")
            size = fitting_batch_size(config, slices, Path(folder), own)
    return replace(config, train=replace(config.train, batch_size=size, accumulate=1))
