"""Prepared slices -> batches, and all that is random about a step: slices, flips, timesteps, noise.

It is a function of (seed, step), so that a resumed run draws the same, and of the whole batch, so
that processes sharing a batch draw parts of the same.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdseg_cli.core.config import RunConfig
from sdseg_cli.model import diffusion
from sdseg_cli.model.distributed import Ranks

if TYPE_CHECKING:
    from sdseg_cli.training.latents import MaskLatents
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.errors import DataError
from sdseg_cli.data.manifest import Manifest, open_array
from sdseg_cli.model.diffusion import seeded_generator

ForegroundRule = Callable[[NDArray[np.integer]], NDArray[np.bool_]]
FLIPS = (("h", 1, -1), ("v", 2, -2))
"""Letter of `train.flips`, its code, and the axis it turns."""


@dataclass(frozen=True)
class Batch:
    """One batch on the CPU."""

    image: Tensor
    """(B,H,W), of pictures (B,3,H,W), float32 in [-1,1]."""
    foreground: Tensor
    """(B,H,W) bool."""


class PreparedSlices:
    """The slices of some cases, memory-mapped: opening them reads only headers.

    Args:
        folders: One per case: `pixels.npy` (S,H,W) or (S,3,H,W) float16, `labels.npy` (S,H,W)
            integer.
        is_foreground: Labels -> bool, same shape: the manifest's rule.
        foreground_slices: Per case, the numbers of the slices that have foreground.

    Raises:
        DataError: An array is missing or damaged, or there is no case.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        is_foreground: ForegroundRule,
        foreground_slices: Sequence[Sequence[int]],
    ) -> None:
        if not folders:
            raise DataError("no case to read slices from.", "Check the split in the manifest.")
        self._names = [folder.name for folder in folders]
        self._is_foreground = is_foreground
        self._pixels = [open_array(folder / "pixels.npy") for folder in folders]
        self._labels = [open_array(folder / "labels.npy") for folder in folders]
        for folder, pixels, labels in zip(folders, self._pixels, self._labels, strict=True):
            whole = pixels.dtype.kind == "f" and labels.dtype.kind in "ui" and pixels.ndim in (3, 4)
            if not whole or labels.shape != (len(pixels), *pixels.shape[-2:]):
                raise DataError(
                    f"{folder}: its arrays do not go together: {pixels.shape} {pixels.dtype}, "
                    f"{labels.shape} {labels.dtype}.",
                    "Run the same `sdseg prepare` command again; it redoes what is damaged.",
                )
        self.places = [(c, k) for c, pixels in enumerate(self._pixels) for k in range(len(pixels))]
        """Position in this sequence -> (case, slice)."""
        wanted = {(c, k) for c, found in enumerate(foreground_slices) for k in found}
        self.with_foreground = [i for i, place in enumerate(self.places) if place in wanted]
        """Positions of the slices that have foreground."""

    def __len__(self) -> int:
        return len(self.places)

    @property
    def cases(self) -> int:
        """Number of cases."""
        return len(self._pixels)

    @property
    def plane(self) -> tuple[int, int]:
        """(H,W) of every slice."""
        height, width = self._pixels[0].shape[-2:]
        return height, width

    def names(self, positions: Sequence[int]) -> str:
        """For people: which slices these are."""
        return ", ".join(
            f"{self._names[case]} slice {k}" for case, k in (self.places[i] for i in positions)
        )

    def batch(self, positions: Sequence[int]) -> Batch:
        """The slices at these positions."""
        places = [self.places[i] for i in positions]
        image = np.stack([self._pixels[c][k] for c, k in places]).astype(np.float32)
        foreground = np.stack([self._is_foreground(self._labels[c][k]) for c, k in places])
        return Batch(torch.from_numpy(image), torch.from_numpy(foreground))


def draw_positions(
    slices: PreparedSlices, *, seed: int, step: int, batch_size: int, foreground_fraction: float
) -> list[int]:
    """Which slices make up the batch of step `step` (from 0).

    With `foreground_fraction` 0 every slice comes once per epoch, in an order shuffled by (seed,
    epoch). Otherwise each place in the batch is drawn from the slices with foreground with that
    probability, from all others else.
    """
    if foreground_fraction == 0 or not slices.with_foreground:
        return _epoch_positions(len(slices), seed, step, batch_size)
    generator = seeded_generator("slices", seed, step)
    chosen = []
    for _ in range(batch_size):
        foreground = torch.rand((), generator=generator).item() < foreground_fraction
        pool: Sequence[int] = slices.with_foreground if foreground else range(len(slices))
        chosen.append(pool[int(torch.randint(len(pool), (), generator=generator))])
    return chosen


def _epoch_positions(count: int, seed: int, step: int, batch_size: int) -> list[int]:
    orders: dict[int, list[int]] = {}
    chosen = []
    for drawn in range(step * batch_size, (step + 1) * batch_size):
        epoch, place = divmod(drawn, count)
        if epoch not in orders:
            shuffle = seeded_generator("epoch", seed, epoch)
            orders[epoch] = torch.randperm(count, generator=shuffle).tolist()
        chosen.append(orders[epoch][place])
    return chosen


def flip_codes(count: int, directions: str, generator: torch.Generator) -> Tensor:
    """For each of `count` slices, which way it is flipped, each letter with probability 1/2.

    Args:
        count: Number of slices.
        directions: Letters of "hv": h left-right, v up-down.
        generator: Source of the draw.

    Returns:
        (count,) int64: 1 for h, plus 2 for v.
    """
    codes = torch.zeros(count, dtype=torch.int64)
    for letter, code, _ in FLIPS:
        if letter in directions:
            codes += code * (torch.rand(count, generator=generator) < 0.5)
    return codes


def flipped(batch: Batch, codes: Tensor) -> Batch:
    """Each slice flipped as its code of `flip_codes` says."""
    image, foreground = batch.image, batch.foreground
    for _, code, axis in FLIPS:
        turn = (codes & code).bool()[:, None, None]
        if turn.any():
            turned = turn if image.ndim == 3 else turn[:, None]
            image = torch.where(turned, image.flip(axis), image)
            foreground = torch.where(turn, foreground.flip(axis), foreground)
    return Batch(image, foreground)


def evenly_spaced(slices: PreparedSlices, limit: int) -> list[int]:
    """At most `limit` positions, evenly over all: the fixed validation slices."""
    count = len(slices)
    if count <= limit:
        return list(range(count))
    return [int((i + 0.5) * count / limit) for i in range(limit)]


def open_split(manifest: Manifest, split: str) -> PreparedSlices:
    """The slices of a split's cases.

    Args:
        manifest: The prepared set.
        split: "train", "val" or "test".

    Raises:
        DataError: It has no such case, or its arrays are missing or damaged.
    """
    cases = manifest.cases(split)
    if not cases:
        raise DataError(
            f"{manifest.name}: no {split} case.", "Prepare it again with at least 3 cases."
        )
    return PreparedSlices(
        [manifest.root / case.folder for case in cases],
        manifest.is_foreground,
        [manifest.foreground_slices(case) for case in cases],
    )


@dataclass(frozen=True)
class StepInputs:
    """One batch, or one process's share of it, with all that is random about its step."""

    step: int
    """From 0."""
    positions: list[int]
    """Which slices these are."""
    rows: list[int]
    """Where their masks' moments are kept."""
    image: Tensor
    """(B,H,W), of pictures (B,3,H,W), float32 in [-1,1]."""
    foreground: Tensor
    """(B,H,W) bool."""
    moments: Tensor
    """(B,8,h,w) float32; meaningless where not `known`."""
    known: Tensor
    """(B,) bool: the mask's moments were computed before."""
    posterior_noise: Tensor
    """(B,4,h,w), for the draw of z0."""
    noise: Tensor
    """(B,4,h,w), n of Eq. 1."""
    t: Tensor
    """(B,) int64."""
    importance: Tensor
    """(B,) float32: what each sample counts."""

    def pinned(self) -> StepInputs:
        """In page-locked memory, from where a GPU copies without the CPU waiting."""
        return self._each(lambda v: v.pin_memory() if isinstance(v, Tensor) else v)

    def to(self, device: torch.device) -> StepInputs:
        """On the device, but for `known`, which the CPU asks; pinned inputs are not waited for."""
        moved = self._each(
            lambda v: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v
        )
        return replace(moved, known=self.known)

    def parts(self, count: int) -> list[StepInputs]:
        """Split into equal parts, for one optimiser step over all of them."""
        if count == 1:
            return [self]
        size = len(self.positions) // count

        cuts = [slice(size * i, size * (i + 1)) for i in range(count)]
        return [self._each(partial(_cut, cut)) for cut in cuts]  # views: a GPU is not waited for

    def chosen(self, places: Sequence[int]) -> StepInputs:
        """The samples at these places of the batch."""

        def taken(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value[list(places)]
            return [value[i] for i in places] if isinstance(value, list) else value

        return self._each(taken)

    def _each(self, change: Callable[[Any], Any]) -> StepInputs:
        return StepInputs(**{f.name: change(getattr(self, f.name)) for f in fields(self)})


class StepSource:
    """Makes the inputs of any step.

    Args:
        config: Seed and recipe.
        slices: The training slices.
        latents: Their masks' moments.
        latent_shape: (4,h,w).
        ranks: Who shares each batch.
    """

    def __init__(
        self,
        config: RunConfig,
        slices: PreparedSlices,
        latents: MaskLatents,
        latent_shape: tuple[int, int, int],
        ranks: Ranks | None = None,
    ) -> None:
        self._config, self._slices, self._latents = config, slices, latents
        self._shape, self._ranks = latent_shape, ranks or Ranks()
        self._timestep_weights = _timestep_weights(config)

    def inputs(self, step: int) -> StepInputs:
        """The inputs of step number `step`, from 0."""
        recipe, seed = self._config.train, self._config.seed
        positions = draw_positions(
            self._slices,
            seed=seed,
            step=step,
            batch_size=recipe.batch_size,
            foreground_fraction=recipe.foreground_fraction,
        )
        generator = seeded_generator("step", seed, step)
        shape = (len(positions), *self._shape)
        flips = flip_codes(len(positions), recipe.flips, generator)
        posterior_noise = torch.randn(shape, generator=generator)
        noise = torch.randn(shape, generator=generator)
        t, importance = draw_timesteps(
            recipe.timesteps, self._timestep_weights, len(positions), generator
        )
        mine = slice(self._ranks.rank, None, self._ranks.world)
        positions, flips = positions[mine], flips[mine]
        batch = flipped(self._slices.batch(positions), flips)
        rows = self._latents.rows(positions, flips)
        moments, known = self._latents.read(rows)
        return StepInputs(
            step=step,
            positions=positions,
            rows=rows,
            image=batch.image,
            foreground=batch.foreground,
            moments=moments,
            known=known,
            posterior_noise=posterior_noise[mine],
            noise=noise[mine],
            t=t[mine],
            importance=importance[mine],
        )

    def prefetch(
        self, first: int, stop: int, *, workers: int | None = None, pin: bool = False
    ) -> Generator[StepInputs, None, None]:
        """The inputs of the steps `first` to `stop` - 1, made by threads before they are asked for.

        Args:
            first: First step.
            stop: One past the last.
            workers: Threads, each two steps ahead; None for one per two CPU cores, at most 4.
            pin: Put them into page-locked memory.
        """

        def made(step: int) -> StepInputs:
            return self.inputs(step).pinned() if pin else self.inputs(step)

        workers = workers or default_workers()
        waiting: deque[Future[StepInputs]] = deque()
        with ThreadPoolExecutor(workers) as threads:
            try:
                for step in range(first, stop):
                    waiting.append(threads.submit(made, step))
                    if len(waiting) > 2 * workers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                threads.shutdown(cancel_futures=True)


def default_workers() -> int:
    """Threads that make inputs where nobody says how many."""
    return max(1, min(4, (os.cpu_count() or 1) // 2))


def draw_timesteps(
    rule: str, weights: Tensor, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Timesteps, and what each sample counts so that the mean loss stays that of uniform t.

    Args:
        rule: "uniform", "latent-weighted" or "last".
        weights: (1000,) of `diffusion.timestep_weights`.
        count: How many.
        generator: Source of the draw.

    Returns:
        (count,) int64 and (count,) float32: ones, but for "latent-weighted" the mean weight over
        the weight of t.
    """
    ones = torch.ones(count)
    if rule == "uniform":
        return torch.randint(diffusion.TIMESTEPS, (count,), generator=generator), ones
    if rule == "last":
        return torch.full((count,), diffusion.LAST), ones
    t = torch.multinomial(weights, count, replacement=True, generator=generator)
    return t, (weights.mean() / weights[t]).float()


def _cut(places: slice, value: Any) -> Any:
    return value if isinstance(value, int) else value[places]


def _timestep_weights(config: RunConfig) -> Tensor:
    recipe = config.train
    return diffusion.timestep_weights(
        config.model.parameterisation, recipe.noise_loss_weight, recipe.latent_loss_weight
    )
