"""Prepared slices -> batches. Everything drawn is a function of (seed, step), so a resumed run
draws the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdseg_cli.core.errors import DataError
from sdseg_cli.data.manifest import open_array
from sdseg_cli.model.seeds import seeded_generator

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
