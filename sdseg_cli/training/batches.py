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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sdseg_cli.core.config import RunConfig
from sdseg_cli.core.errors import DataError
from sdseg_cli.data.manifest import Manifest, open_array
from sdseg_cli.data.spec import ClassRule, side_of
from sdseg_cli.model import diffusion
from sdseg_cli.model.diffusion import seeded_generator
from sdseg_cli.model.distributed import Ranks
from sdseg_cli.training import augment

if TYPE_CHECKING:
    from sdseg_cli.training.latents import MaskLatents

FLIPS = (("h", 1, -1), ("v", 2, -2))
"""Letter of `train.flips`, its code, and the axis it turns."""
NOT_KEPT = -1
"""Row of a mask that is drawn once only, so that its moments are not kept."""


@dataclass(frozen=True)
class Batch:
    """One batch on the CPU."""

    image: Tensor
    """(B,H,W), of pictures (B,3,H,W), float32 in [-1,1]."""
    labels: Tensor
    """(B,H,W) uint8 or int32, as prepared; `PreparedSlices.masks` turns them into masks."""


class PreparedSlices:
    """The slices of some cases, memory-mapped: opening them reads only headers.

    Args:
        folders: One per case: `pixels.npy` (S,H,W) or (S,3,H,W) float16, `labels.npy` (S,H,W)
            integer.
        classes: The K classes of the labels.
        class_slices: Per case and class, the numbers of the slices that have the class.
        labelled: Per case, the names of the classes that were drawn in it, None where all were;
            None = all in all of them.

    Raises:
        DataError: An array is missing or damaged, or there is no case.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        classes: ClassRule,
        class_slices: Sequence[Sequence[Sequence[int]]],
        labelled: Sequence[Sequence[str] | None] | None = None,
    ) -> None:
        if not folders:
            raise DataError("no case to read slices from.", "Check the split in the manifest.")
        self.classes = classes
        self._drawn: Tensor | None = None
        if labelled is not None and any(names is not None for names in labelled):
            self._drawn = torch.tensor(
                [[names is None or one in names for one in classes.names] for names in labelled]
            )
        self._names = [folder.name for folder in folders]
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
        found = [[set(slices) for slices in case] for case in class_slices]
        self.nonempty = [
            (position, number)
            for position, (case, k) in enumerate(self.places)
            for number in range(len(classes))
            if k in found[case][number]
        ]
        """(position, class) of each mask that has foreground, ascending."""
        self.with_class = [
            [position for position, each in self.nonempty if each == number]
            for number in range(len(classes))
        ]
        """Per class, the positions of the slices that have it."""
        self.with_foreground = sorted({position for position, _ in self.nonempty})
        """Positions of the slices that have any class."""

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
        labels = np.stack([self._labels[c][k] for c, k in places])
        # torch can neither flip nor compare uint16.
        labels = labels if labels.dtype == np.uint8 else labels.astype(np.int32)
        return Batch(torch.from_numpy(image), torch.from_numpy(labels))

    def masks(self, labels: Tensor) -> Tensor:
        """Labels (B,H,W) on the CPU -> the mask of each class, (B,K,H,W) bool."""
        return torch.from_numpy(self.classes.masks(labels.numpy())).movedim(0, 1).contiguous()

    def class_shares(self) -> Tensor:
        """Each class's share of the pixels of which that is known, (K,) float64; reads all labels
        once.
        """
        each = self.classes.each()
        pixels = np.zeros((2, len(self.classes)), np.int64)  # of the class; known
        for case, labels in enumerate(self._labels):
            drawn = np.ones(len(self.classes), bool)
            if self._drawn is not None:
                drawn = self._drawn[case].numpy()
            for plane in labels:
                numbers = np.bincount(plane.ravel())
                if self.classes.ignore is not None:
                    numbers[self.classes.ignore : self.classes.ignore + 1] = 0
                values = np.arange(len(numbers))
                found = [numbers[rule.masks(values)[0]].sum() for rule in each]
                pixels += drawn * np.stack([found, np.full(len(drawn), numbers.sum())])
        return torch.from_numpy(pixels[0] / np.maximum(pixels[1], 1))

    def counts(self, positions: Sequence[int], labels: Tensor) -> Tensor | None:
        """Where the truth is known, (B,K,H,W) bool: not at pixels of the label to ignore, and
        nowhere for a class that was not drawn in the slice's case. None: everywhere.

        Args:
            positions: Of the slices.
            labels: Theirs, (B,H,W).
        """
        ignore, drawn = self.classes.ignore, self._drawn
        if ignore is None and drawn is None:
            return None
        counts = torch.ones((len(labels), len(self.classes), *labels.shape[1:]), dtype=torch.bool)
        if ignore is not None:
            counts &= (labels != ignore)[:, None]
        if drawn is not None:
            counts &= drawn[[self.places[i][0] for i in positions]][:, :, None, None]
        return counts

    def drawn_alike(self, one: int, other: int) -> bool:
        """Whether the same classes were drawn in the cases of two slices."""
        if self._drawn is None:
            return True
        return torch.equal(*(self._drawn[self.places[i][0]] for i in (one, other)))


def draw_positions(
    slices: PreparedSlices, *, seed: int, step: int, batch_size: int, foreground_fraction: float
) -> list[int]:
    """Which slices make up the batch of step `step` (from 0).

    With `foreground_fraction` 0 every slice comes once per epoch, in an order shuffled by (seed,
    epoch). Otherwise each place in the batch has that probability of a slice with foreground: a
    class is drawn, then a slice that has it. The others are drawn from all slices.
    """
    classes = [positions for positions in slices.with_class if positions]
    if foreground_fraction == 0 or not classes:
        return _epoch_positions(len(slices), seed, step, batch_size)
    generator = seeded_generator("slices", seed, step)

    def drawn(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    chosen = []
    for _ in range(batch_size):
        pool: Sequence[int] = range(len(slices))
        if torch.rand((), generator=generator).item() < foreground_fraction:
            # A single class is not drawn for, so that its slices are those of earlier versions.
            pool = classes[drawn(len(classes)) if len(classes) > 1 else 0]
        chosen.append(pool[drawn(len(pool))])
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
    """How each of `count` slices is flipped, (count,) int64: 1 for h (left-right), plus 2 for v
    (up-down); each letter of `directions` with probability 1/2.
    """
    codes = torch.zeros(count, dtype=torch.int64)
    for letter, code, _ in FLIPS:
        if letter in directions:
            codes += code * (torch.rand(count, generator=generator) < 0.5)
    return codes


def flipped(batch: Batch, codes: Tensor) -> Batch:
    """Each slice flipped as its code of `flip_codes` says."""
    image, labels = batch.image, batch.labels
    for _, code, axis in FLIPS:
        turn = (codes & code).bool()[:, None, None]
        if turn.any():
            image = torch.where(turn if image.ndim == 3 else turn[:, None], image.flip(axis), image)
            labels = torch.where(turn, labels.flip(axis), labels)
    return Batch(image, labels)


def source_classes(codes: Tensor, mirrored: Sequence[int], classes: int) -> Tensor:
    """The class each was before its slice was flipped, (B,K) int64.

    Args:
        codes: (B,), of `flip_codes`.
        mirrored: As `ClassRule.mirrored`.
        classes: K.
    """
    plain = torch.arange(classes)
    turned = torch.tensor(mirrored) if mirrored else plain
    return torch.where((codes & 1).bool()[:, None], turned, plain)


def evenly_spaced(slices: PreparedSlices, limit: int) -> list[int]:
    """At most `limit` positions, evenly over all: the fixed validation slices."""
    count = len(slices)
    if count <= limit:
        return list(range(count))
    return [int((i + 0.5) * count / limit) for i in range(limit)]


def open_split(manifest: Manifest, split: str) -> PreparedSlices:
    """The slices of the cases of a split: "train", "val" or "test".

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
        manifest.classes,
        [manifest.class_slices(case) for case in cases],
        [case.labelled for case in cases],
    )


@dataclass(frozen=True)
class StepInputs:
    """One batch of K classes, or one process's share of it, with all that is random about it."""

    step: int
    """From 0."""
    positions: list[int]
    """Which slices these are."""
    rows: list[list[int]]
    """Of each slice and class, where the mask's moments are kept, or `NOT_KEPT`."""
    image: Tensor
    """(B,H,W), of pictures (B,3,H,W), float32 in [-1,1]."""
    masks: Tensor
    """(B,K,H,W) bool."""
    moments: Tensor
    """(B,8K,h,w) float32; meaningless where not `known`."""
    known: Tensor
    """(B,K) bool: the mask's moments were computed before. Stays on the CPU."""
    posterior_noise: Tensor
    """(B,4K,h,w), for the draw of z0."""
    noise: Tensor
    """(B,4K,h,w), n of Eq. 1."""
    t: Tensor
    """(B,) int64."""
    importance: Tensor
    """(B,) float32: how much each sample counts."""
    counts: Tensor | None = None
    """(B,K,H,W) bool, where the truth is known; None: everywhere."""

    def pinned(self) -> StepInputs:
        """In page-locked memory, from where a GPU copies without the CPU waiting."""
        return self._each(lambda v: v.pin_memory() if isinstance(v, Tensor) else v)

    def to(self, device: torch.device) -> StepInputs:
        """On the device, but for `known`; pinned inputs are not waited for."""
        moved = self._each(
            lambda v: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v
        )
        return replace(moved, known=self.known)

    def parts(self, count: int) -> list[StepInputs]:
        """Split into equal parts, for one optimiser step over all of them."""
        size = len(self.positions) // count
        return [self._cut(slice(size * i, size * (i + 1))) for i in range(count)]

    def _cut(self, places: slice) -> StepInputs:
        """Views, so that a GPU is not waited for."""
        return self._each(lambda v: v if v is None or isinstance(v, int) else v[places])

    def chosen(self, places: Sequence[int]) -> StepInputs:
        """The samples at these places of the batch."""

        def taken(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value[list(places)]
            return [value[i] for i in places] if isinstance(value, list) else value

        return self._each(taken)

    def _each(self, change: Callable[[Any], Any]) -> StepInputs:
        return StepInputs(**{f.name: change(getattr(self, f.name)) for f in fields(self)})


@dataclass(frozen=True)
class AugmentedPlanes:
    """Slices as a step sees them: mirrored, moved, recoloured."""

    image: Tensor
    """(B,H,W), of pictures (B,3,H,W), float32 in [-1,1]."""
    masks: Tensor
    """(B,K,H,W) bool."""
    counts: Tensor | None
    """(B,K,H,W) bool, where the truth is known; None: everywhere."""
    moved: list[int]
    """Places of the slices whose masks are no longer those of their case."""


def augmented(
    slices: PreparedSlices,
    config: RunConfig,
    step: int,
    positions: Sequence[int],
    flips: Tensor,
    mine: slice = slice(None),
) -> AugmentedPlanes:
    """Some slices of a batch, changed as `train.augment` and `train.cutmix` say.

    Args:
        slices: The training slices.
        config: Seed and recipe.
        step: From 0; what is drawn is a function of it and of the seed.
        positions: Of the whole batch.
        flips: Likewise, of `flip_codes`.
        mine: Places of the batch that are wanted.
    """
    recipe, seed, count = config.train, config.seed, len(positions)
    plain = flipped(slices.batch(positions[mine]), flips[mine])
    drawn = seeded_generator("augment", seed, step)
    changes = augment.draw_changes(
        recipe.augment,
        count,
        drawn,
        colour=plain.image.ndim == 4,
        sided=any(side_of(name) for name in slices.classes.names),
    )
    pastes = augment.draw_pastes(recipe.cutmix, count, seeded_generator("cutmix", seed, step))
    images, labels, moved = [], [], []
    for at, place in enumerate(range(count)[mine]):
        one, change = Batch(plain.image[at], plain.labels[at]), changes[place]
        over = _pasted(slices, one, positions, place, flips[place], pastes[place])
        if over is not one or augment.moves(change):
            moved.append(at)
        image, numbers = augment.changed(over.image, over.labels, change)
        images.append(image)
        labels.append(numbers)
    batch = Batch(torch.stack(images), torch.stack(labels))
    masks, counts = slices.masks(batch.labels), slices.counts(positions[mine], batch.labels)
    if mirrored := slices.classes.mirrored:
        # What was the right one is the left one in a mirror image.
        each, source = torch.arange(len(masks))[:, None], flips[mine]
        source = source_classes(source, mirrored, masks.shape[1])
        masks, counts = masks[each, source], None if counts is None else counts[each, source]
    return AugmentedPlanes(batch.image, masks, counts, moved)


def _pasted(
    slices: PreparedSlices,
    one: Batch,
    positions: Sequence[int],
    place: int,
    flip: Tensor,
    paste: augment.Paste | None,
) -> Batch:
    """A slice with foreground of another one; itself where nothing is pasted.

    The other one is mirrored as this one is, so that the labels of both mean the same.
    """
    if paste is None:
        return one
    here, there = positions[place], positions[paste.source]
    if here == there or not slices.drawn_alike(here, there):
        return one
    other = flipped(slices.batch([there]), flip[None])
    region = augment.pasted_region(slices.masks(other.labels)[0], paste)
    if not region.any():
        return one
    return Batch(
        torch.where(region, other.image[0], one.image),
        torch.where(region, other.labels[0], one.labels),
    )


class StepSource:
    """Makes the inputs of any step.

    Args:
        config: Seed and recipe.
        slices: The training slices.
        latents: Their masks' moments.
        latent_shape: (4K,h,w).
        ranks: The processes that share each batch.
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
        recipe = config.train
        self._timestep_weights = diffusion.timestep_weights(
            config.model.parameterisation, recipe.noise_loss_weight, recipe.latent_loss_weight
        )

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
        planes = augmented(self._slices, self._config, step, positions, flips, mine)
        positions, flips = positions[mine], flips[mine]
        rows = self._latents.rows(positions, flips)
        if self._slices.classes.mirrored and len(rows[0]) > 1:  # no latents, no rows
            source = source_classes(flips, self._slices.classes.mirrored, len(rows[0])).tolist()
            rows = [[row[k] for k in numbers] for row, numbers in zip(rows, source, strict=True)]
        found = planes.masks.flatten(2).any(dim=2).tolist()
        for place in planes.moved:
            rows[place] = [NOT_KEPT if one else 0 for one in found[place]]
        moments, known = self._latents.read(rows)
        return StepInputs(
            step=step,
            positions=positions,
            rows=rows,
            image=planes.image,
            masks=planes.masks,
            moments=moments,
            known=known,
            posterior_noise=posterior_noise[mine],
            noise=noise[mine],
            t=t[mine],
            importance=importance[mine],
            counts=planes.counts,
        )

    def prefetch(
        self, first: int, stop: int, *, workers: int | None = None, pin: bool = False
    ) -> Generator[StepInputs, None, None]:
        """The inputs of the steps `first` to `stop` - 1, made ahead by threads.

        Args:
            first: First step.
            stop: One past the last.
            workers: Threads, each two steps ahead; None for `default_workers`.
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
    """Threads that make inputs, unless a number is set."""
    return max(1, min(4, (os.cpu_count() or 1) // 2))


def draw_timesteps(
    rule: str, weights: Tensor, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Timesteps, and how much each sample counts so that the mean loss stays that of uniform t.

    Args:
        rule: "uniform", "latent-weighted" or "last".
        weights: (1000,) of `diffusion.timestep_weights`.
        count: Number of timesteps.
        generator: CPU generator.

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
