"""One scan -> probability -> mask on the scan's own grid.

Slices stream through in batches: the scan is held once, at its stored type, and so is the mask;
nothing else grows with the number of slices. Each slice has its own noise, so the result depends on
neither batch size nor neighbours.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdseg_cli.core.config import THRESHOLD, RunConfig, SampleConfig
from sdseg_cli.core.config_file import differing_keys, from_dict
from sdseg_cli.core.errors import ConfigError, DataError, RunError, WeightsError
from sdseg_cli.core.processes import available_bytes, require_batch_fits
from sdseg_cli.core.progress import Progress, no_op
from sdseg_cli.data.spec import ClassRule
from sdseg_cli.imaging.intensity import PHOTOGRAPH, Normalisation
from sdseg_cli.imaging.io.picture import Picture
from sdseg_cli.imaging.slices import CROPS, SliceStack, SliceTransform, shows_body, to_stack
from sdseg_cli.imaging.volume import Array, Segment, Volume
from sdseg_cli.inference.decoders import choose_decoder
from sdseg_cli.inference.engine import (
    Compute,
    Inference,
    compile_networks,
    optimize_for_inference,
    predict_draws,
    predict_planes,
    require_numbers,
)
from sdseg_cli.inference.options import PredictorOptions
from sdseg_cli.model.interface import SliceModel
from sdseg_cli.model.runtime import choose_device, to_device
from sdseg_cli.model.weights import WeightStore
from sdseg_cli.report.drawing import class_colour, rgb
from sdseg_cli.runs.package import networks_of, read_trained


@dataclass(frozen=True)
class Prediction:
    """A model's answer for one scan."""

    case_id: str
    probabilities: NDArray[np.float32]
    """(K,S,256,256) in [0,1], of each class, on the model's planes."""
    restore: SliceTransform
    """The way back to the scan's grid."""
    seed: int
    seconds: float
    classes: ClassRule = field(default_factory=ClassRule)

    @property
    def probability(self) -> NDArray[np.float32]:
        """(S,256,256) in [0,1], the Score map; of several classes the probability of any."""
        return self.classes.union(self.probabilities)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The classes as `write_mask` names them; () of one class."""
        return segments_of(self.classes)

    def held(self, *, threshold: float = THRESHOLD) -> NDArray[Any]:
        """(I,J,K): the classes of each voxel as `ClassRule.hold` says them. Probabilities are
        restored to the scan's own grid, then decided there.
        """
        found = np.zeros(self.restore.planes.stored_shape, self.classes.held_type)
        for k in range(self.probabilities.shape[1]):
            planes = self.probabilities[:, k]
            _, plane = decided_plane(self.classes, planes, self.restore, k, threshold)
            self.restore.place(found, plane, k)
        return found

    def held_planes(self) -> NDArray[Any]:
        """(S,256,256): likewise on the model's planes, decided before the way back."""
        planes = (self.probabilities[:, k] for k in range(self.probabilities.shape[1]))
        decided = (self.classes.decide(plane, THRESHOLD) for plane in planes)
        return np.stack([self.classes.hold(masks) for masks in decided])

    def labels(self, *, threshold: float = THRESHOLD) -> NDArray[Any]:
        """(I,J,K) uint8, or above 255 uint16: the value of each voxel's class, 0 where there is
        none; of one class 1. See `held`.
        """
        return self.classes.label_map(self.held(threshold=threshold))

    def mask(self, *, threshold: float = THRESHOLD) -> NDArray[Any]:
        """`labels`, which of one class are a mask of 0 and 1."""
        return self.labels(threshold=threshold)


def decided_plane(
    rule: ClassRule,
    planes: NDArray[np.float32],
    restore: SliceTransform,
    k: int,
    threshold: float,
) -> tuple[NDArray[np.float32], Array]:
    """A slice's classes on the scan's own plane.

    As `ClassRule.decide` of all planes restored there, but only those of classes that can win
    anywhere are: where any class lies above the threshold, the likeliest has its Kth part at least,
    and restoring raises no maximum.

    Args:
        rule: The K classes.
        planes: (K,256,256) in [0,1].
        restore: The way back.
        k: Number of the slice.
        threshold: A voxel has a class where the probability of any is above it.

    Returns:
        The probability of any class and what is held of each voxel (see `ClassRule.hold`), both
        (rows,columns).
    """
    if rule.overlapping and len(rule) > 1:
        natives = np.stack([restore.to_native(plane, k) for plane in planes])
        return natives.max(axis=0), rule.hold(natives > threshold)
    union = restore.to_native(rule.union(planes), k)
    there = union > threshold
    held = there.astype(rule.held_type)
    if len(rule) == 1 or not there.any():
        return union, held
    least = 0.99 * threshold / len(rule)  # a sum of float32 is not exact
    highest = np.full(union.shape, -1, np.float32)
    for value, plane in zip(rule.values, planes, strict=True):
        if plane.max() > least:
            native = restore.to_native(plane, k)
            wins = native > highest
            highest[wins], held[wins] = native[wins], value
    held[~there] = 0
    return union, held


def segments_of(rule: ClassRule) -> tuple[Segment, ...]:
    """The classes with their values and the colours of every picture; () of one class."""
    if len(rule) == 1:
        return ()
    pairs = zip(rule.names, rule.values, strict=True)
    colours = (rgb(class_colour(number)) for number in range(1, len(rule) + 1))
    return tuple(
        Segment(name, value, (red, green, blue))
        for (name, value), (red, green, blue) in zip(pairs, colours, strict=True)
    )


LARGEST_PLANE = 4096
"""Side of the squares a model may say it was trained on, px; ours are 256."""


def shared_config(configs: Mapping[Path, RunConfig]) -> RunConfig:
    """The settings with which runs predict together: those of the first, and of the mirrors those
    that all were trained with.

    Raises:
        ConfigError: They do not sample alike.
    """
    (first, config), *others = configs.items()
    for path, other in others:
        if other.sample != config.sample:
            raise ConfigError(
                f"{first} and {path} cannot predict together: they differ in how they sample "
                f"({', '.join(differing_keys(replace(config, sample=other.sample), config))}).",
                "Give runs with the same [sample] settings.",
            )
    if not others:
        return config
    flips = "".join(
        one for one in config.train.flips if all(one in each.train.flips for _, each in others)
    )
    return replace(config, train=replace(config.train, flips=flips))


@dataclass(frozen=True)
class _Loaded:
    """A run or package, read and on its device."""

    config: RunConfig
    step: int
    data: dict[str, Any]
    normalisation: Normalisation
    crop: str
    size: int
    classes: ClassRule
    model: SliceModel
    decoder: str

    def require_like(self, first: _Loaded, names: tuple[Path, Path]) -> None:
        """Refuse a member of an ensemble whose slices or classes are not the first's."""
        same = {
            "classes": self.classes == first.classes,
            "size of slices": self.size == first.size,
            "window": self.normalisation == first.normalisation,
            "crop": self.crop == first.crop,
            "kind of images": self.data.get("modality") == first.data.get("modality"),
        }
        unlike = [what for what, alike in same.items() if not alike]
        if unlike:
            raise ConfigError(
                f"{names[0]} and {names[1]} cannot predict together: they differ in "
                f"{', '.join(unlike)}.",
                "Give runs of one prepared set, or of sets prepared alike.",
            )


class Predictor:
    """A trained run, ready to predict; or several, whose mean probability is the answer.

    Args:
        run_or_package: A run folder, or a package made by `sdseg weights export`; or several, the
            members of an ensemble. Where not all of their weights fit into memory, they are loaded
            one after the other for each batch of slices.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        batch_size: Slices at a time; by default what suits the device. It changes speed and memory,
            not the mask.
        threads: Cores of a CPU; likewise. By default as torch chooses.
        decoder: "exact", the autoencoder's own; "fast", the mask decoder; "auto", the fast one
            where the run measured it to be harmless, or was trained through it.
        crop: "none" or "body", in place of how the run's slices were cropped.
        compiled: Compile the networks first, for a GPU: slow to start, then faster.
        skip_air: CT slices without a body are not computed, for nothing is in them.

    Raises:
        WeightsError: The checkpoint is missing or damaged.
        ConfigError: The device, the decoder or the crop is not there, a CPU is to compile, the
            batch size or threads are below 1, or the members of an ensemble differ in classes,
            slices or sampling.
    """

    def __init__(
        self,
        run_or_package: Path | str | Sequence[Path | str],
        *,
        device: str = "auto",
        batch_size: int | None = None,
        threads: int | None = None,
        decoder: str = "auto",
        crop: str | None = None,
        compiled: bool = False,
        skip_air: bool = True,
    ) -> None:
        self.runs = _members(run_or_package)
        self.run = self.runs[0]
        self.device = choose_device(device)
        if compiled and self.device.type == "cpu":
            raise ConfigError(
                "--compile is for a GPU: on a CPU compiling takes longer than most scans.",
                "Leave it out; --decoder fast is faster.",
            )
        load = partial(_load, device=self.device, decoder=decoder, compiled=compiled)
        first = load(self.run)
        self.step, self.data = first.step, first.data
        self.normalisation, self.size, self.classes = first.normalisation, first.size, first.classes
        self.crop = first.crop
        if crop is not None:
            self.crop = checked_crop(crop, pictures=self._of_pictures)
        self.model = first.model
        configs, decoders = {self.run: first.config}, {first.decoder}
        others: list[Callable[[], SliceModel]] = []
        weights = sum(one.nbytes for one in itertools.chain(*_tensors(first.model)))
        self.in_turn = len(self.runs) > 1 and (len(self.runs) - 1) * weights > free_bytes(
            self.device
        )
        """Whether the members of an ensemble are loaded one after the other."""
        self._loading_bytes = weights if self.in_turn else 0
        for run in self.runs[1:]:
            member = load(run)
            member.require_like(first, (self.run, run))
            configs[run], decoders = member.config, decoders | {member.decoder}
            others.append(
                partial(_same_again, load, run, member.step)
                if self.in_turn
                else partial(_held, member.model)
            )
        self.config = shared_config(configs)
        self.decoder = decoders.pop() if len(decoders) == 1 else "mixed"
        """Which draws the mask: "exact" or "fast"; "mixed" of an ensemble whose members differ."""
        self.skip_air = skip_air and self.normalisation.hides_air and not self._of_pictures
        self._inference = Inference(
            self.model, batch_size=batch_size, threads=threads, others=others
        )

    @property
    def _of_pictures(self) -> bool:
        """True if the run was trained on pictures, not on volumes."""
        return self.data.get("modality") == PHOTOGRAPH

    @property
    def run_threshold(self) -> float | None:
        """The threshold that the run's validation chose; None of 0.5, which is everyone's."""
        return None if self.model.threshold == THRESHOLD else self.model.threshold

    def stack(self, volume: Volume) -> SliceStack:
        """The scan's slices, made as those the run was trained on.

        Raises:
            DataError: It is a picture and the run was trained on volumes, or the other way round.
        """
        self.require_kind(volume.name, picture=isinstance(volume, Picture))
        return to_stack(volume, self.normalisation, size=self.size, crop=self.crop)

    @property
    def batch_size(self) -> int:
        """Slices at a time, where a scan has as many."""
        return self._inference.batch_size

    def require_kind(self, name: str, *, picture: bool) -> None:
        """Refuse a picture for a run of volumes, or the other way round; its name tells which.

        Raises:
            DataError: It is of the other kind.
        """
        if picture != self._of_pictures:
            kinds = ("a picture", "volumes") if picture else ("a volume", "pictures")
            raise DataError(
                f"{name} is {kinds[0]}, and {self.run} was trained on {kinds[1]}.",
                f"Choose a run of {'pictures' if picture else 'volumes'} with --run.",
            )

    def mirror_safe(self, sample: SampleConfig) -> SampleConfig:
        """The same without the left-right mirror, where classes have sides that it would swap."""
        if self.classes.mirror_safe or "h" not in sample.flips:
            return sample
        return replace(sample, flips=sample.flips.replace("h", ""))

    def batch_bytes(self, draws: int = 1, batch_size: int | None = None) -> int:
        """The machine's memory that a batch takes, about; see `Inference.batch_bytes`."""
        colours = 3 if self._of_pictures else 1
        held = self._inference.batch_bytes(colours * self.size**2, draws, batch_size)
        return held + self._loading_bytes

    def planes(
        self,
        stack: SliceStack,
        *,
        seed: int = 0,
        sample: SampleConfig | None = None,
        progress: Progress = no_op,
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Probabilities, batch by batch.

        Args:
            stack: Of `stack`.
            seed: Of all noise.
            sample: Reverse steps and samples; None is the run's setting.
            progress: Called after each batch.

        Yields:
            Number of the first slice, and (n,K,256,256) float32 in [0,1], K classes.

        Raises:
            RunError: A probability is no number, a slice does not fit into the GPU's memory, or a
                batch that was asked for not into the machine's.
        """
        yield from self._batches(predict_planes, stack, seed, sample, progress)

    def plane(
        self, stack: SliceStack, k: int, *, seed: int = 0, sample: SampleConfig | None = None
    ) -> NDArray[np.float32]:
        """Slice k alone, (K,256,256): as among all others, for its noise depends on its number.

        See `planes` for the arguments.
        """
        pixels, sample = stack.pixels(k, k + 1), self.mirror_safe(sample or self.config.sample)
        planes = self._computed(predict_planes, stack, k, pixels, seed, sample)
        return planes.reshape(planes.shape[1:])

    def draws(
        self,
        stack: SliceStack,
        *,
        seed: int = 0,
        sample: SampleConfig | None = None,
        progress: Progress = no_op,
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Like `planes`, but each of the `sample.samples` noise draws on its own.

        Yields:
            Number of the first slice, and (n,draws,K,256,256) float32 in [0,1].
        """
        yield from self._batches(predict_draws, stack, seed, sample, progress)

    def _batches(
        self,
        compute: Compute,
        stack: SliceStack,
        seed: int,
        sample: SampleConfig | None,
        progress: Progress,
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        sample = self.mirror_safe(sample or self.config.sample)
        draws = sample.samples if compute is predict_draws else 1
        size = min(self.batch_size, len(stack))
        if self._inference.is_asked_for:
            require_batch_fits(lambda count: self.batch_bytes(draws, count), size)
        with closing(self._squares(stack)) as squares:
            for start, pixels in squares:
                yield start, self._computed(compute, stack, start, pixels, seed, sample)
                progress(start + len(pixels), len(stack), "predicting slices")

    def _computed(
        self,
        compute: Compute,
        stack: SliceStack,
        start: int,
        pixels: NDArray[np.float32],
        seed: int,
        sample: SampleConfig,
    ) -> NDArray[np.float32]:
        """Answers of `compute` for the slices from `start` on; zeros where there is only air."""
        shape: tuple[int, ...] = (sample.samples,) if compute is predict_draws else ()
        shape += (self.config.model.classes, self.size, self.size)
        found = np.zeros((len(pixels), *shape), np.float32)
        shown = np.flatnonzero(shows_body(pixels)) if self.skip_air else np.arange(len(pixels))
        if len(shown):
            slices = [start + int(k) for k in shown]
            found[shown] = self._inference(compute, pixels[shown], slices, seed=seed, sample=sample)
        require_numbers(found, start, str(stack.volume.source or stack.volume.name))
        return found

    def _squares(self, stack: SliceStack) -> Generator[tuple[int, NDArray[np.float32]]]:
        """Number of the first slice and pixels, batch by batch, each made during the one before."""
        size, count = self.batch_size, len(stack)
        with ThreadPoolExecutor(1) as maker:
            ahead = maker.submit(stack.pixels, 0, min(size, count))
            for start in range(0, count, size):
                pixels, after = ahead.result(), start + size
                if after < count:
                    ahead = maker.submit(stack.pixels, after, min(after + size, count))
                yield start, pixels

    def predict(
        self,
        volume: Volume,
        *,
        case_id: str = "scan",
        seed: int = 0,
        sample: SampleConfig | None = None,
        progress: Progress = no_op,
    ) -> Prediction:
        """Predict a scan in memory; see `planes` for the arguments."""
        started = time.monotonic()
        stack = self.stack(volume)
        shape = len(self.classes), len(stack), self.size, self.size
        found = np.empty(shape, np.float32)
        for start, planes in self.planes(stack, seed=seed, sample=sample, progress=progress):
            found[:, start : start + len(planes)] = planes.swapaxes(0, 1)
        seconds = time.monotonic() - started
        return Prediction(case_id, found, stack.restore, seed, seconds, self.classes)


def _members(given: Path | str | Sequence[Path | str]) -> tuple[Path, ...]:
    """The runs and packages, each once."""
    paths = tuple(map(Path, [given] if isinstance(given, str | Path) else given))
    if not paths:
        raise ConfigError("There is no run to predict with.", "Give one, or several.")
    real = [path.resolve() for path in paths]
    for number, path in enumerate(paths):
        if real[number] in real[:number]:
            raise ConfigError(f"{path} is given twice.", "Give each run once: all count alike.")
    return paths


def _load(run: Path, *, device: torch.device, decoder: str, compiled: bool) -> _Loaded:
    """One run or package on the device; for errors see `Predictor`."""
    checkpoint = read_trained(run)
    config = from_dict(checkpoint.config, RunConfig(), source=str(run))
    try:
        normalisation = Normalisation.from_dict(checkpoint.data["normalisation"])
        crop, size = str(checkpoint.data["crop"]), int(checkpoint.data["size"])
        classes = ClassRule.of_settings(checkpoint.data)
        if len(classes) != config.model.classes:
            raise ValueError(f"{len(classes)} classes for {config.model.classes}")
        if crop not in CROPS or not 0 < size <= LARGEST_PLANE:
            raise ValueError(f"crop {crop!r}, size {size}")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise WeightsError(
            f"{run}: does not say how its slices are made ({error!r}).",
            "Export it again from its run.",
        ) from error
    model = networks_of(checkpoint, device, source=str(run))
    fast = choose_decoder(decoder, run, checkpoint, model, WeightStore.default())
    model.mask_decoder = None if fast is None else to_device(fast, device)
    optimize_for_inference(model)
    if compiled:
        compile_networks(model)
    return _Loaded(
        config,
        checkpoint.step,
        checkpoint.data,
        normalisation,
        crop,
        size,
        classes,
        model,
        "exact" if fast is None else "fast",
    )


def _tensors(model: SliceModel) -> tuple[Iterator[Tensor], Iterator[Tensor]]:
    return model.parameters(), model.buffers()


def _held(model: SliceModel) -> SliceModel:
    return model


def _same_again(load: Callable[[Path], _Loaded], run: Path, step: int) -> SliceModel:
    """A member loaded anew. Raises RunError where its run has replaced its weights meanwhile."""
    member = load(run)
    if member.step != step:
        raise RunError(
            f"{run}: its weights were replaced while it predicted.", "The run trains: call again."
        )
    return member.model


def free_bytes(device: torch.device) -> int:
    """Half of the memory that is free for further models."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 2
    return available_bytes() // 2


def load_predictor(model: Path | Sequence[Path], options: PredictorOptions) -> Predictor:
    """A run or package, or several, loaded as the options say; for errors see `Predictor`."""
    return Predictor(
        model,
        device=options.device,
        batch_size=options.batch_size,
        threads=options.threads,
        decoder=options.decoder,
        crop=options.crop,
        compiled=options.compiled,
    )


def checked_crop(crop: str, *, pictures: bool) -> str:
    """The crop, if there is one of that name. Raises ConfigError."""
    if crop not in CROPS:
        raise ConfigError(f"--crop {crop} is unknown.", f"Use one of {', '.join(CROPS)}.")
    if pictures and crop != "none":
        raise ConfigError(
            f"--crop {crop} does not go with pictures.", "Leave it out: it looks for a body."
        )
    return crop
