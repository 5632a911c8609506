"""Slices of any number -> probabilities, as fast as a device allows and free of how it was shared.

`predict_planes` samples a batch, for prediction and validation alike; `Inference` shares any number
of slices among batches and cores.

On a CPU each slice has one core: the networks' operations are small, and shared among cores they
mostly wait for each other. Convolution kernels also round a slice differently in different company
and among different numbers of cores, so that this is the only way to a result free of both.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sdseg_cli.core.config import THRESHOLD, SampleConfig
from sdseg_cli.core.errors import ConfigError, RunError
from sdseg_cli.model.interface import SliceModel
from sdseg_cli.model.mask_decoder import MaskDecoder
from sdseg_cli.model.runtime import ran_out_of_memory
from sdseg_cli.model.sdseg import SDSeg
from sdseg_cli.model.winograd import use_winograd

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Of <malloc.h>."""
DEFAULT_BATCH = {"cpu": 8, "mps": 8, "cuda": 32}
"""Slices that are read, computed and restored at a time."""
KEPT_BYTES = 128 * 2**20
"""More than any tensor between two operations on a slice, and less than most scans."""
_RUNTIME_BYTES = 50_000_000
"""What the libraries keep for themselves, whatever the model."""
_PLANES_PER_CHANNEL = 12
"""As many planes of the model's size are held at once for each of the autoencoder's channels, all
networks together: 414 MB a slice of the `sd` preset.
"""
NAMED_AT_MOST = 5
"""So many slices without an answer are spelled out in a message."""
Compute = Callable[..., Tensor]
"""`predict_planes` or `predict_draws`."""

_FLIP_AXIS = {"h": -1, "v": -2}


@torch.inference_mode()
def predict_planes(
    model: SliceModel, pixels: Tensor, slices: Sequence[int], *, seed: int, sample: SampleConfig
) -> Tensor:
    """The mean of all draws of the noise.

    Args:
        model: In eval mode, on the device that computes.
        pixels: (B,H,W), of pictures (B,3,H,W), float32 in [-1,1].
        slices: B numbers; with the seed they name each slice's own noise.
        seed: Of all noise.
        sample: Reverse steps, and how many draws of the noise and which flips are averaged.

    Returns:
        (B,K,H,W) float32 in [0,1], K classes, on the CPU.
    """
    classes = model.config.classes
    total = torch.zeros((len(pixels), classes, *pixels.shape[-2:]), device=model.device)
    for probability in draws(model, pixels, slices, seed=seed, sample=sample):
        total += probability
    return (total / sample.samples).cpu()


@torch.inference_mode()
def predict_draws(
    model: SliceModel, pixels: Tensor, slices: Sequence[int], *, seed: int, sample: SampleConfig
) -> Tensor:
    """The draws whose mean `predict_planes` is: (B,draws,K,H,W) float32 in [0,1], on the CPU."""
    each = draws(model, pixels, slices, seed=seed, sample=sample)
    return torch.stack([probability.cpu() for probability in each], dim=1)


def draws(
    model: SliceModel, pixels: Tensor, slices: Sequence[int], *, seed: int, sample: SampleConfig
) -> Iterator[Tensor]:
    """One probability for each draw of the noise; the image is encoded once for all of them.

    For the arguments see `predict_planes`.

    Returns:
        `sample.samples` times (B,K,H,W) float32 in [0,1], on the device that computes.

    Raises:
        ConfigError: More steps or draws of noise than one, of a baseline, which answers at once.
    """

    def answers(seen: Tensor) -> Iterator[Tensor]:
        drawn = model.probabilities(seen, slices, seed=seed, sample=sample)
        return (shifted(each, model.threshold, union_of(each, model)) for each in drawn)

    return flip_average(answers, pixels, sample.flips, model.mirrored)


def union_of(probabilities: Tensor, model: SliceModel) -> Tensor | None:
    """(B,1,H,W), probability of any class where K > 1 exclude each other; else None: each class is
    by itself.
    """
    alone = model.config.classes == 1 or model.config.overlapping
    return None if alone else probabilities.sum(dim=1, keepdim=True)


def shifted(probability: Tensor, threshold: float, union: Tensor | None = None) -> Tensor:
    """Probabilities whose odds are divided by those of the threshold: it comes to lie at 0.5, 0 and
    1 stay where they are, and so does the order. With a `union`, of all classes together: that is
    what the threshold holds for.
    """
    if threshold == THRESHOLD:
        return probability
    union = probability if union is None else union
    above, below = union * (1 - threshold), (1 - union) * threshold
    return probability * (1 - threshold) / (above + below)


@contextmanager
def decoded_by(model: SliceModel, decoder: MaskDecoder | None) -> Iterator[None]:
    """Within the block `model` draws masks by this decoder, on its device; None: the exact one."""
    before, model.mask_decoder = model.mask_decoder, decoder
    try:
        yield
    finally:
        model.mask_decoder = before


@torch.inference_mode()
def predict_latents(
    model: SDSeg, pixels: Tensor, slices: Sequence[int], *, seed: int
) -> tuple[Tensor, Tensor]:
    """The fast decoder's inputs, and what it should draw of them.

    For the arguments see `predict_planes`.

    Returns:
        The unscaled latents (BK,4,h,w) of one reverse step, and the exact decoder's probabilities
        of each class by itself (BK,H,W), both on the model's device.
    """
    latents: list[Tensor] = []

    def look(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        latents.append(arguments[0])

    on_step = model.autoencoder.post_quant_conv.register_forward_pre_hook(look)
    try:
        with decoded_by(model, None):
            (drawn,) = model.probabilities(pixels, slices, seed=seed, sample=SampleConfig())
    finally:
        on_step.remove()
    if model.config.classes == 1:
        return latents[0].float(), drawn[:, 0]
    with torch.no_grad():  # before classes compete
        alone = ((model.autoencoder.decode(latents[0]).float() + 1) / 2).clamp(0, 1).mean(dim=1)
    return latents[0].float(), alone


def flip_average(
    predict: Callable[[Tensor], Iterator[Tensor]],
    pixels: Tensor,
    flips: str,
    mirrored: Sequence[int] = (),
) -> Iterator[Tensor]:
    """Test-time augmentation: the mean over planes and their flips, each answer flipped back.

    Args:
        predict: Gives one or more answers (B,K,H,W) for pixels as below.
        pixels: (B,H,W) or (B,3,H,W).
        flips: Letters of `SampleConfig.flips`.
        mirrored: What each class is called in a left-right mirror image, as
            `SliceModel.mirrored`; nothing where classes keep their names.

    Yields:
        (B,K,H,W), as often as `predict` answers.
    """
    allowed = {_FLIP_AXIS[letter] for letter in flips}
    ways = [axes for axes in ((), (-1,), (-2,), (-2, -1)) if allowed.issuperset(axes)]
    for answers in zip(*(predict(pixels.flip(axes)) for axes in ways), strict=True):
        back = [
            answer.flip(axes)[:, list(mirrored)] if mirrored and -1 in axes else answer.flip(axes)
            for answer, axes in zip(answers, ways, strict=True)
        ]
        yield torch.stack(back).mean(dim=0)


def optimize_for_inference(model: SliceModel) -> None:
    """On a CPU, wide convolutions with fewer multiplications, in the parts that bear it."""
    if model.device.type == "cpu":
        for part in model.winograd_parts():
            use_winograd(part)


def compile_networks(model: SliceModel) -> None:
    """Compile those that predict, when they first compute. Needs a C compiler."""
    for network in model.predicting_parts():
        network.compile()


class Inference:
    """A model on its device, asked about slices.

    Args:
        model: In eval mode, placed.
        batch_size: Slices at a time; None is what suits the device. A GPU whose memory is too small
            for it halves it.
        threads: Cores of the CPU; None is what torch would use for one operation.
        others: Give the other members of an ensemble, held or loaded anew at each call: answers are
            then the mean over all members, batch by batch.

    Raises:
        ConfigError: The batch size or the number of threads is below 1.
    """

    def __init__(
        self,
        model: SliceModel,
        *,
        batch_size: int | None = None,
        threads: int | None = None,
        others: Sequence[Callable[[], SliceModel]] = (),
    ) -> None:
        self.others = tuple(others)
        self.model, self.device = model, next(model.parameters()).device
        for option, value in (("--batch-size", batch_size), ("--threads", threads)):
            if value is not None and value < 1:
                raise ConfigError(f"{option} is {value}.", "Give at least 1.")
        self.threads = threads or torch.get_num_threads()
        cpu = self.device.type == "cpu"
        least = self.threads if cpu else 1  # a core without a slice would have nothing to do
        self.is_asked_for = batch_size is not None
        """Whether somebody chose the batch size."""
        self.batch_size = batch_size or max(DEFAULT_BATCH[self.device.type], least)
        self._lanes: ThreadPoolExecutor | None = None
        if cpu:
            keep_freed_memory(KEPT_BYTES)

    def __call__(
        self,
        compute: Compute,
        pixels: NDArray[np.float32],
        slices: Sequence[int],
        *,
        seed: int,
        sample: SampleConfig,
    ) -> NDArray[np.float32]:
        """The answers of `compute`, slice by slice.

        Args:
            compute: As `predict_planes`.
            pixels: (n,H,W) or (n,3,H,W) float32 in [-1,1], n >= 1.
            slices: Their n numbers.
            seed: Of all noise.
            sample: How it is sampled.

        Returns:
            (n,...) float32.

        Raises:
            RunError: Not even one slice fits into the GPU's memory.
        """
        found = self._of(self.model, compute, pixels, slices, seed=seed, sample=sample)
        for member in self.others:
            found += self._of(member(), compute, pixels, slices, seed=seed, sample=sample)
        return found / np.float32(1 + len(self.others)) if self.others else found

    def _of(
        self,
        model: SliceModel,
        compute: Compute,
        pixels: NDArray[np.float32],
        slices: Sequence[int],
        *,
        seed: int,
        sample: SampleConfig,
    ) -> NDArray[np.float32]:
        """The answers of one member."""

        def part(first: int, count: int) -> NDArray[np.float32]:
            some, names = torch.from_numpy(pixels[first : first + count]), slices[first:][:count]
            return compute(model, some, names, seed=seed, sample=sample).numpy()

        if self.device.type == "cpu":
            return np.concatenate(self._side_by_side(lambda k: part(k, 1), len(slices)))
        while True:
            size = self.batch_size
            try:
                return np.concatenate([part(k, size) for k in range(0, len(slices), size)])
            except RuntimeError as error:
                if not ran_out_of_memory(error):
                    raise
                if size == 1:
                    raise RunError(
                        "one slice does not fit into the GPU's memory.",
                        "Free the GPU, or use --device cpu.",
                    ) from error
            # Outside of the handler, which holds on to the tensors of the attempt.
            self.batch_size = size // 2
            torch.cuda.empty_cache()

    def batch_bytes(self, plane_px: int, draws: int = 1, batch_size: int | None = None) -> int:
        """About how much of the machine's memory a batch takes; the GPU's is not counted.

        Args:
            plane_px: Pixels of the model's plane, all colours.
            draws: What is given per slice: planes of probabilities for each class.
            batch_size: In place of its own.
        """
        size = batch_size or self.batch_size
        # Two batches of pixels, for the next one is made ahead; and the answers of each slice, of
        # all together, in their place among those of air, and those of the batch before.
        # Of an ensemble also the sum over the members that have answered.
        answers = 4 if not self.others else 5
        held = size * (2 + answers * draws * self.model.config.classes) * plane_px
        channels = self.model.config.autoencoder.channels
        at_once = {"cpu": min(size, self.threads), "cuda": 0}.get(self.device.type, size)
        return _RUNTIME_BYTES + 4 * (held + at_once * _PLANES_PER_CHANNEL * channels * plane_px)

    def _side_by_side(
        self, work: Callable[[int], NDArray[np.float32]], count: int
    ) -> list[NDArray[np.float32]]:
        """`[work(0), work(1), ...]`, each on one core; the first error is raised."""
        if self._lanes is None:
            self._lanes = ThreadPoolExecutor(
                self.threads, "lane", initializer=torch.set_num_threads, initargs=(1,)
            )
        with cores(1):
            return list(self._lanes.map(work, range(count)))


def require_numbers(found: NDArray[np.float32], start: int, scan: str) -> None:
    """Refuse probabilities that are NaN: above no threshold, they would pass for background.

    Args:
        found: (n,...) of the slices from `start` on.
        start: Number of the first slice, from 0.
        scan: Where it lies.

    Raises:
        RunError: Naming the scan and its slices, counted from 1 as a person does.
    """
    # A sum with a NaN in it is NaN, and costs less than asking every pixel.
    sums = found.sum(axis=tuple(range(1, found.ndim)))
    wrong = [str(start + int(k) + 1) for k in np.flatnonzero(~np.isfinite(sums))]
    if wrong:
        more = f" and {len(wrong) - NAMED_AT_MOST} more" if len(wrong) > NAMED_AT_MOST else ""
        raise RunError(
            f"{scan}: the model answers NaN on slice {', '.join(wrong[:NAMED_AT_MOST])}{more}.",
            "Its weights have diverged, or a number overflowed: train again, or try --device cpu.",
        )


@contextmanager
def cores(count: int | None) -> Iterator[None]:
    """Within the block one operation has so many cores; None changes nothing."""
    # What a thread may use is its own setting, but for matrix products, where it is the process's.
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _glibc(function: str) -> Any:
    """A function of the C library; None where it has none of this name."""
    return getattr(ctypes.CDLL(None), function, None) if os.name == "posix" else None


def keep_freed_memory(most: int) -> None:
    """Let freed memory wait for the next operation.

    By default glibc gives blocks above 32 MiB back at once, and the system clears them before it
    hands them out again: a quarter of the time of the paper's decoder. All threads share one arena,
    for others hold no large block. Where the C library is another one, nothing happens.

    Args:
        most: Size of the largest block that is kept, in bytes; of all together up to 8 times that.
    """
    if (set_option := _glibc("mallopt")) is not None:
        set_option(M_ARENA_MAX, 1)
        set_option(M_MMAP_THRESHOLD, most)
        set_option(M_TRIM_THRESHOLD, 8 * most)


def give_memory_back() -> None:
    """Let the system have what was kept for the next operation; with glibc alone."""
    if (trim := _glibc("malloc_trim")) is not None:
        trim(0)
