"""How fast this machine predicts: each stage, and whole slices in every way there is, against a
plain loop and against the arithmetic.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdseg_cli.core.config import THRESHOLD, SampleConfig
from sdseg_cli.core.errors import ConfigError
from sdseg_cli.core.presets import preset
from sdseg_cli.core.processes import available_bytes, largest_that_fits
from sdseg_cli.core.progress import Progress, no_op
from sdseg_cli.data.manifest import Manifest
from sdseg_cli.demo.phantom import make_phantom
from sdseg_cli.imaging.intensity import CT_WINDOW_HU, Normalisation
from sdseg_cli.imaging.slices import SliceStack, to_stack
from sdseg_cli.inference.decoders import choose_decoder
from sdseg_cli.inference.engine import (
    Inference,
    cores,
    keep_freed_memory,
    optimize_for_inference,
    predict_planes,
    shifted,
    union_of,
)
from sdseg_cli.model import diffusion
from sdseg_cli.model.interface import as_three_channels
from sdseg_cli.model.mask_decoder import MaskDecoder, build_mask_decoder
from sdseg_cli.model.runtime import choose_device, gflop, matrix_rate, seconds_of, to_device
from sdseg_cli.model.sdseg import SDSeg, build_sdseg, full_precision
from sdseg_cli.model.weights import WeightStore
from sdseg_cli.runs.checkpoint import Checkpoint
from sdseg_cli.runs.package import read_trained, sdseg_of
from sdseg_cli.training.batches import evenly_spaced, open_split

SIDE, CPU = 256, torch.device("cpu")
ROUNDS = 2
"""Ways are compared in turn, so often; the shortest time counts."""
SLICE_BYTES = 3 * 4 * SIDE**2 + 40 * SIDE**2
"""Three colours, and the answers and masks of about ten ways."""
GLIBC_KEEPS = 32 * 2**20
GPU_BATCHES = (1, 8, 32, 128)
PLAIN = "plain"
"""One slice at a time, every core for each operation, float32, default layout, exact decoder."""


@dataclass(frozen=True)
class Stage:
    """One part of a prediction, of one slice."""

    name: str
    seconds: float
    gflop: float | None = None
    """None where there is no arithmetic to speak of."""

    def floor_s(self, gflop_per_s: float) -> float | None:
        """Seconds its arithmetic alone would take at the rate of matrix products."""
        return None if self.gflop is None else self.gflop / gflop_per_s


@dataclass(frozen=True)
class Tier:
    """One way to predict."""

    name: str
    decoder: str
    precision: str
    batch: int
    slices_per_s: float
    gflop: float
    dice: float | None
    """Mean Dice with the plain masks; None for networks that were not trained."""


@dataclass(frozen=True)
class BenchReport:
    """The measurements of `bench`."""

    model: str
    device: str
    threads: int
    gflop_per_s: float
    """Of products of float32 matrices, all cores or the GPU together."""
    slices: int
    stages: tuple[Stage, ...]
    tiers: tuple[Tier, ...]

    def to_json(self) -> dict[str, Any]:
        """The object of `--json`."""
        values = asdict(self)
        for stage, row in zip(self.stages, values["stages"], strict=True):
            row["floor_s"] = stage.floor_s(self.gflop_per_s)
        for tier, row in zip(self.tiers, values["tiers"], strict=True):
            row["floor_slices_per_s"] = self.gflop_per_s / tier.gflop
        return values


def bench(
    model: Path | None = None,
    *,
    preset_name: str = "tiny",
    workspace: Path | None = None,
    slices: int = 8,
    device: str = "auto",
    threads: int | None = None,
    progress: Progress = no_op,
) -> BenchReport:
    """Measure every stage and every way to predict.

    Args:
        model: A run folder or a package; None for the preset's networks, untrained.
        preset_name: Without a model, whose sizes.
        workspace: Where the model's prepared set may be, whose validation slices are taken; else
            slices of a phantom are.
        slices: How many are predicted in each way.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        threads: Cores of a CPU; None as torch chooses.
        progress: Called after each part.

    Raises:
        WeightsError: The model cannot be loaded.
        ConfigError: There is no such preset or device, or fewer than one slice or thread.
    """
    if slices < 1:
        raise ConfigError(f"--slices is {slices}.", "Give at least 1.")
    if threads is not None and threads < 1:
        raise ConfigError(f"--threads is {threads}.", "Give at least 1.")
    own = choose_device(device)
    most = largest_that_fits(lambda count: count * SLICE_BYTES, slices, available_bytes())
    if most < slices:
        raise ConfigError(
            f"--slices {slices}: they take {slices * SLICE_BYTES / 1e9:.2f} GB of memory, more "
            "than is free.",
            f"It fits with --slices {most}; 8 are enough to compare ways.",
        )
    with cores(threads):
        checkpoint = None if model is None else read_trained(model)
        networks, trained = _networks(model, checkpoint, preset_name, own)
        decoder = trained or build_mask_decoder(networks.config.autoencoder)
        decoder = to_device(decoder.eval().requires_grad_(False), own)
        pixels = _pixels(checkpoint, workspace, slices)
        simple = copy.deepcopy(networks)
        simple.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        optimize_for_inference(networks)
        jobs = list(_tiers(simple, networks, decoder, len(pixels)))
        total = 1 + ROUNDS * len(jobs)
        stages = _stages(simple, networks, decoder)
        progress(1, total, "measured")
        best = [float("inf")] * len(jobs)
        masks: list[NDArray[np.bool_]] = [np.zeros(0, bool)] * len(jobs)
        for turn in range(ROUNDS):
            for k, (_, predict) in enumerate(jobs):
                predict(pixels[:1])  # the first one prepares
                started = time.perf_counter()
                masks[k] = predict(pixels) > THRESHOLD  # on the CPU, so a GPU has ended
                best[k] = min(best[k], time.perf_counter() - started)
                progress(2 + turn * len(jobs) + k, total, "measured")
        meant = () if model is None else ("exact", "fast") if trained else ("exact",)
        tiers = [
            replace(
                tier,
                slices_per_s=len(pixels) / seconds,
                dice=_mean_dice(found, masks[0]) if tier.decoder in meant else None,
            )
            for (tier, _), seconds, found in zip(jobs, best, masks, strict=True)
        ]
        return BenchReport(
            model=preset_name if model is None else str(model),
            device=torch.cuda.get_device_name(own) if own.type == "cuda" else own.type,
            threads=torch.get_num_threads(),
            gflop_per_s=matrix_rate(own),
            slices=len(pixels),
            stages=stages,
            tiers=tuple(tiers),
        )


@torch.inference_mode()
@full_precision()
def _stages(simple: SDSeg, model: SDSeg, decoder: MaskDecoder) -> tuple[Stage, ...]:
    """One slice through each part alone, in float32, all cores for one operation."""
    image, latent, zc, each = _inputs(model)

    def computed(name: str, work: Callable[[SDSeg], object]) -> Stage:
        seconds = seconds_of(lambda: work(model), image.device)
        return Stage(name, seconds, gflop(lambda: work(simple)))

    stack, plane = _phantom(), np.zeros((SIDE, SIDE), np.float32)
    return (
        Stage("slice from the scan", seconds_of(lambda: stack.pixels(0, 1), CPU)),
        computed("vision encoder", lambda networks: networks.encode_image(image)),
        computed("U-Net, one step", lambda networks: networks.denoise(latent, 999, zc)),
        computed("exact decoder", lambda networks: networks.decode(each)),
        computed("fast decoder", lambda _: decoder(each)),
        Stage("back to its grid", seconds_of(lambda: stack.restore.to_native(plane, 0), CPU)),
    )


def _inputs(model: SDSeg) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """An image (1,3,256,256), a latent (1,4K,32,32), its condition (1,C,32,32) and the latents of
    the K classes (K,4,32,32), on the model's device.
    """
    device = next(model.parameters()).device
    image = torch.zeros(1, 3, SIDE, SIDE, device=device)
    latent = torch.zeros(1, *model.latent_shape(SIDE, SIDE), device=device)
    each = latent.reshape(model.config.classes, -1, *latent.shape[-2:])
    zc = torch.zeros(1, model.config.condition_channels, *latent.shape[-2:], device=device)
    return image.contiguous(memory_format=torch.channels_last), latent, zc, each


Predict = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""(n,256,256) pixels -> probabilities."""


def _tiers(
    simple: SDSeg, model: SDSeg, decoder: MaskDecoder, count: int
) -> Iterator[tuple[Tier, Predict]]:
    """Every way to predict on this device, the plain one first, and what does it."""
    image, latent, zc, each = _inputs(simple)
    shared = gflop(lambda: (simple.encode_image(image), simple.denoise(latent, 999, zc)))
    whole = shared + gflop(lambda: simple.decode(each))
    yield Tier(PLAIN, "exact", "float32", 1, 0.0, whole, None), partial(_plain, simple)
    gpu = image.device.type == "cuda"
    batches = [batch for batch in GPU_BATCHES if batch <= count] if gpu else [count]
    for name, head in (("exact", None), ("fast", decoder)):
        cost = whole if head is None else shared + gflop(partial(head, each))
        for precision in ("float32", "mixed", "mixed-float16") if gpu else ("float32",):
            for batch in batches:
                title = f"{name}, {precision}, {batch} at a time" if gpu else name
                tier = Tier(title, name, precision, batch, 0.0, cost, None)
                yield tier, partial(_ours, model, head, precision, batch)


@torch.inference_mode()
@full_precision()
def _plain(model: SDSeg, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    keep_freed_memory(GLIBC_KEEPS)  # glibc's own default
    found = []
    for k, plane in enumerate(torch.from_numpy(pixels)):
        image = as_three_channels(plane[None].to(next(model.parameters()).device))
        zc = model.encode_image(image.contiguous())
        noise = diffusion.seeded_noise(0, [k], model.latent_shape(*plane.shape[-2:])).to(zc.device)
        z0 = diffusion.single_step(model.denoise, noise, zc)
        drawn = model.class_probabilities(z0)
        found.append(shifted(drawn, model.threshold, union_of(drawn, model)).cpu())
    return torch.cat(found).numpy()


def _ours(
    model: SDSeg, head: MaskDecoder | None, precision: str, batch: int, pixels: NDArray[np.float32]
) -> NDArray[np.float32]:
    before = model.config
    model.config, model.mask_decoder = replace(before, precision=precision), head
    try:
        infer, slices = Inference(model, batch_size=batch), range(len(pixels))
        return infer(predict_planes, pixels, slices, seed=0, sample=SampleConfig())
    finally:
        model.config, model.mask_decoder = before, None


def _mean_dice(masks: NDArray[np.bool_], others: NDArray[np.bool_]) -> float:
    """Over slices and classes that are not empty in both; 1 where there is none."""
    both = masks.sum(axis=(-2, -1)) + others.sum(axis=(-2, -1))
    overlap = (masks & others).sum(axis=(-2, -1))[both > 0]
    return float((2 * overlap / both[both > 0]).mean()) if (both > 0).any() else 1.0


def _networks(
    model: Path | None, checkpoint: Checkpoint | None, preset_name: str, device: torch.device
) -> tuple[SDSeg, MaskDecoder | None]:
    """With the mask decoder that `--decoder fast` takes, where there is one."""
    torch.manual_seed(0)
    if model is None or checkpoint is None:
        built = build_sdseg(preset(preset_name).model).eval().requires_grad_(False)
        return to_device(built, device), None
    networks = sdseg_of(checkpoint, device, source=str(model))
    with suppress(ConfigError):
        return networks, choose_decoder("fast", model, checkpoint, networks, WeightStore.default())
    return networks, None


def _pixels(
    checkpoint: Checkpoint | None, workspace: Path | None, count: int
) -> NDArray[np.float32]:
    """(count,256,256), of a run on pictures (count,3,256,256), in [-1,1]."""
    if checkpoint is not None and workspace is not None:
        with suppress(ConfigError):  # the set may be elsewhere
            manifest = Manifest.find(workspace, str(checkpoint.data.get("dataset")))
            slices = open_split(manifest, "val")
            return slices.batch(evenly_spaced(slices, count)[:count]).image.numpy()
    once = (stack := _phantom()).pixels(0, len(stack))
    return np.resize(once, (count, *once.shape[1:]))  # cut, or again and again


def _phantom() -> SliceStack:
    scan = make_phantom(0, 1, (128, 128, 16), (2.9, 2.9, 10.0)).scan
    return to_stack(scan, Normalisation("window", *CT_WINDOW_HU), size=SIDE)
