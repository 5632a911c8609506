"""Everything a step draws: slices, flips, timesteps, noise. All of it is a function of (seed,
step), so that a resumed run draws the same, and of the whole batch, so that processes sharing a
batch draw parts of the same.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sdseg_cli.core.config import RunConfig
from sdseg_cli.model import diffusion
from sdseg_cli.model.distributed import Ranks
from sdseg_cli.model.seeds import seeded_generator
from sdseg_cli.training.batches import PreparedSlices, draw_positions, flip_codes, flipped
from sdseg_cli.training.latents import MaskLatents


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
