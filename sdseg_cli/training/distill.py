"""Train the fast mask decoder of an autoencoder, once, and measure what it costs a run.

A U-Net's latent is not a mask's latent: where it is unsure, it lies between those of all masks that
might be, and has an error of its own. So the examples are latents of procedural (and, if given,
prepared) masks, blended with those of the same mask moved, grown or shrunk and with that of the
empty plane, and disturbed; what the decoder makes of them is the target.

The loss is a cross-entropy alone: a Dice term would draw whatever it is not sure of, for half of
the Dice it reaches is enough of a probability to gain by it.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from sdseg_cli.core.errors import ConfigError, WeightsError
from sdseg_cli.core.files import replacing
from sdseg_cli.core.presets import preset
from sdseg_cli.core.progress import Progress, no_op
from sdseg_cli.data.manifest import Manifest
from sdseg_cli.inference.decoders import DecoderCheck, read_check, stored_decoder
from sdseg_cli.model.autoencoder import Autoencoder
from sdseg_cli.model.diffusion import seeded_generator
from sdseg_cli.model.mask_decoder import MaskDecoder, autoencoder_hash, build_mask_decoder
from sdseg_cli.model.runtime import choose_device, gflop, stop_signals, to_device
from sdseg_cli.model.sdseg import SDSeg, build_sdseg
from sdseg_cli.model.starts import start_autoencoder
from sdseg_cli.model.tensor_files import check_tensors, load_strictly, unpickled, write_tensors
from sdseg_cli.model.weights import WeightStore
from sdseg_cli.runs.checkpoint import Checkpoint, restore_optimizer
from sdseg_cli.runs.package import sdseg_of
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training.batches import flip_codes, flipped, open_split
from sdseg_cli.training.calibration import BATCH, Examples, Learner, cosine, measure_run
from sdseg_cli.training.shapes import random_masks

SIDE = 256
RADIUS_PX = (1.5, 80.0)
POOL, RENEW_EVERY = 384, 4
"""Examples that are kept; every so many steps one is renewed, which costs as much as they do."""
LEARNING_RATE, WARMUP, AVERAGE_DECAY, CLIP_NORM = 2e-3, 100, 0.998, 1.0
SAVE_EVERY, HELD_OUT = 250, 32
REAL_SHARE = 0.5
"""Of the masks, where prepared ones are given."""
MOST_MASKS, FARTHEST_PX = 4, 12
"""So many masks are blended, and so far one is moved; it grows or shrinks by half as much."""
WITH_EMPTY = 0.5
"""Of the examples, blended with the empty plane too."""
MOST_NOISE = 0.2
"""Standard deviation of an error, over that of the latents."""

Masks = Callable[[int, Generator], Tensor]
"""Gives so many masks (n,1,256,256), 0 or 1, drawn by the generator."""


def procedural(count: int, generator: Generator) -> Tensor:
    """`Masks` that need no data."""
    masks = random_masks(count, SIDE, generator, radius_px=RADIUS_PX)[:, :1]
    return (masks > 0).float()


def mixed(prepared: Masks) -> Masks:
    """Half of the masks prepared, half procedural."""

    def some(count: int, generator: Generator) -> Tensor:
        real = torch.rand(count, generator=generator) < REAL_SHARE
        masks = procedural(count, generator)
        if real.any():
            found = prepared(int(real.sum()), generator)
            masks[real] = F.interpolate(found, size=(SIDE, SIDE), mode="nearest")
        return masks

    return some


def prepared_masks(manifest: Manifest) -> Masks:
    """Procedural masks and those of the training cases, flipped at random, half each."""
    slices = open_split(manifest, "train")

    def prepared(count: int, generator: Generator) -> Tensor:
        places = torch.randint(len(slices.nonempty), (count,), generator=generator)
        positions, classes = zip(*(slices.nonempty[int(place)] for place in places), strict=True)
        turned = flipped(slices.batch(positions), flip_codes(count, "hv", generator))
        return slices.masks(turned.labels)[range(count), classes][:, None].float()

    return mixed(prepared) if slices.nonempty else procedural


class Teacher:
    """A frozen autoencoder in eval mode, which makes examples: latents of masks, and how it decodes
    them.
    """

    def __init__(self, autoencoder: Autoencoder, masks: Masks = procedural) -> None:
        self.autoencoder, self.masks = autoencoder, masks
        self.device = next(autoencoder.parameters()).device
        empty = self.encode(torch.zeros(1, 1, SIDE, SIDE))
        self.empty = empty
        """(1,4,32,32)"""
        self.spread = float(self.encode(procedural(4, seeded_generator("spread", 0))).std())

    @torch.inference_mode()
    def encode(self, masks: Tensor) -> Tensor:
        """(n,1,256,256), 0 or 1 -> posterior means (n,4,32,32)."""
        planes = (masks * 2 - 1).expand(-1, 3, -1, -1).to(self.device)
        one_by_one = torch.split(planes.contiguous(memory_format=torch.channels_last), 1)
        return torch.cat([self.autoencoder.moments(one).chunk(2, dim=1)[0] for one in one_by_one])

    @torch.inference_mode()
    def decode(self, latent: Tensor) -> Tensor:
        """(n,4,32,32) -> probability (n,256,256) in [0,1], as `SDSeg.probability`."""
        planes = torch.cat([self.autoencoder.decode(one) for one in torch.split(latent, 1)])
        return ((planes.float() + 1) / 2).clamp(0, 1).mean(dim=1)

    def example(self, generator: Generator) -> Examples:
        """A fresh one, n = 1."""
        mask = self.masks(1, generator)
        far = int(torch.randint(1, FARTHEST_PX + 1, (), generator=generator))
        count = int(torch.randint(1, MOST_MASKS + 1, (), generator=generator))
        others = [changed(mask[0], far, generator) for _ in range(count - 1)]
        latent = blend(self.encode(torch.stack([mask[0], *others])), generator)
        if _uniform(generator) < WITH_EMPTY:
            missing = _uniform(generator) * _smooth(1, 3, latent.shape[-2:], generator)
            latent = latent + missing.to(self.device) * (self.empty - latent)
        noise = torch.randn(latent.shape, generator=generator) * _uniform(generator) ** 2
        latent = latent + MOST_NOISE * self.spread * noise.to(self.device)
        return Examples(latent.clone(), self.decode(latent).clone())


def changed(mask: Tensor, far: int, generator: Generator) -> Tensor:
    """A mask (1,H,W) that might be meant: moved by up to `far` px, grown or shrunk by half that."""
    down, right = torch.randint(-far, far + 1, (2,), generator=generator)
    growth = int(torch.randint(-(far // 2), far // 2 + 1, (), generator=generator))
    moved = mask.roll((int(down), int(right)), dims=(1, 2))
    sign, side = (1 if growth >= 0 else -1), 2 * abs(growth) + 1
    return sign * F.max_pool2d(sign * moved, side, stride=1, padding=side // 2)


def blend(latents: Tensor, generator: Generator) -> Tensor:
    """The mean (1,4,h,w) of latents (n,4,h,w), here more of the one, there more of the other."""
    shares = _smooth(len(latents), 4, latents.shape[-2:], generator) ** 2 + 1e-3
    shares = (shares / shares.sum(dim=0, keepdim=True)).to(latents.device)
    return (shares * latents).sum(dim=0, keepdim=True)


class Distiller(Learner):
    """Trains a mask decoder on a teacher's examples, step by step; all that is drawn is a function
    of (seed, step). `steps` is the length of the learning rate's cosine.
    """

    def __init__(
        self, decoder: MaskDecoder, teacher: Teacher, *, steps: int, seed: int = 0
    ) -> None:
        decoder = decoder.to(teacher.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        super().__init__(decoder, LEARNING_RATE)
        self.teacher, self.steps, self.seed = teacher, steps, seed
        self.pool: Examples | None = None
        self.step = 0

    def fill(self) -> Examples:
        """The examples to begin with."""
        generator = seeded_generator("pool", self.seed, self.step)
        made = [self.teacher.example(generator) for _ in range(POOL)]
        return Examples(
            torch.cat([one.latent for one in made]), torch.cat([one.target for one in made])
        )

    def train_step(self) -> float:
        """One step; its loss."""
        self.pool = self.pool or self.fill()
        generator = seeded_generator("distillation", self.seed, self.step)
        count = len(self.pool.latent)
        if self.step % RENEW_EVERY == 0:
            fresh, place = self.teacher.example(generator), self.step // RENEW_EVERY % count
            self.pool.latent[place], self.pool.target[place] = fresh.latent[0], fresh.target[0]
        chosen = torch.randint(count, (BATCH,), generator=generator)
        share = cosine(self.step, self.steps, warmup=WARMUP)
        loss = self.learn(self.pool, chosen, share, CLIP_NORM)
        self.step += 1
        self.follow(self.step, AVERAGE_DECAY)
        return loss

    def state(self) -> dict[str, Any]:
        """All that is needed to resume from here, but the examples, which are made anew."""
        return {
            "step": self.step,
            "decoder": self.decoder.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Take in a `state`.

        Raises:
            KeyError: It lacks a part.
            TypeError: A part is something else.
            WeightsError: It is of another decoder.
        """
        if not 0 <= operator.index(state["step"]) <= self.steps:
            raise WeightsError("its step is none of this distillation.", "Delete it.")
        shapes = {key: value.shape for key, value in self.decoder.state_dict().items()}
        for name in ("decoder", "average"):  # all or nothing
            check_tensors(dict(state[name]), shapes, source=name)
        restore_optimizer(self.optimizer, dict(state["optimizer"]), source="optimizer")
        load_strictly(self.decoder, state["decoder"], source="decoder")
        load_strictly(self.average, state["average"], source="average")
        self.step = operator.index(state["step"])


def _uniform(generator: Generator) -> float:
    return float(torch.rand((), generator=generator))


def _smooth(count: int, knots: int, size: Sequence[int], generator: Generator) -> Tensor:
    """(count,1,h,w) in [0,1], varying slowly."""
    coarse = torch.rand(count, 1, knots, knots, generator=generator)
    return F.interpolate(coarse, tuple(size), mode="bicubic").clamp(0, 1)


@dataclass(frozen=True)
class DistillOptions:
    """Options of a mask decoder's training, and its destination."""

    preset_name: str = "tiny"
    """Without a run: the preset of the pretrained autoencoder."""
    output: Path | None = None
    """The file; by default in the weight store, where predictions find it."""
    steps: int = 10_000
    seed: int = 0
    """Of all examples."""
    device: str = "auto"
    """"auto", "cpu", "cuda", "cuda:N" or "mps"."""
    store: WeightStore | None = None
    """By default the user's."""


@dataclass(frozen=True)
class DistillReport:
    """The result of `distill`."""

    decoder: Path
    autoencoder: str
    """Its hash."""
    steps: int
    seconds: float
    parameters: int
    gflop: float
    """Per 256x256 slice."""
    exact_gflop: float
    """Of the decoder it stands in for."""
    agreement: float
    """Mean Dice with the exact decoder's masks, on latents it has not seen."""
    check: DecoderCheck | None
    """What it costs the run, where one was named."""

    def to_json(self) -> dict[str, Any]:
        """The object of `--json`."""
        return {
            "decoder": str(self.decoder),
            "autoencoder": self.autoencoder,
            "steps": self.steps,
            "seconds": round(self.seconds, 3),
            "parameters": self.parameters,
            "gflop": round(self.gflop, 4),
            "exact_gflop": round(self.exact_gflop, 4),
            "agreement": round(self.agreement, 4),
            "check": self.check and self.check.to_json(),
        }


def distill(
    options: DistillOptions,
    *,
    run: RunDir | None = None,
    manifest: Manifest | None = None,
    masks: Manifest | None = None,
    progress: Progress = no_op,
) -> DistillReport:
    """Train the mask decoder that stands in for an autoencoder's decoder.

    Killed or stopped, the same call resumes from the last 250 steps.

    Args:
        options: Of the training.
        run: Its autoencoder is taken, and the cost for its predictions is measured afterwards.
        manifest: The set it was trained on, whose validation cases that is measured on.
        masks: A prepared set whose training masks are half of the examples.
        progress: Called after each step.

    Raises:
        WeightsError: The autoencoder is missing or damaged.
        ConfigError: A step count below 1, or the run has the decoder it was trained through.
        RunError: The disk refused.
        KeyboardInterrupt: The user stopped it; the steps so far are kept.
    """
    started, steps, seed = time.monotonic(), options.steps, options.seed
    own, store = choose_device(options.device), options.store or WeightStore.default()
    if steps < 1:
        raise ConfigError(f"--steps is {steps}.", "Give at least 1.")
    if run is not None and (kept := read_check(run.path)) and kept.trained_through:
        raise ConfigError(
            f"{run.path}: trained through its own fast decoder, which another cannot replace.",
            "It predicts with that one already: there is nothing to do.",
        )
    model = to_device(_model(run, options.preset_name, store), own)
    key = autoencoder_hash(model.autoencoder)
    file = options.output or stored_decoder(store, key)
    teacher = Teacher(model.autoencoder, procedural if masks is None else prepared_masks(masks))
    torch.manual_seed(seed)
    decoder = build_mask_decoder(model.config.autoencoder)
    distiller = Distiller(decoder, teacher, steps=steps, seed=seed)
    _train(
        distiller,
        file.with_suffix(".state.pt"),
        f"{key} {steps} {seed} {masks and masks.cases()}",
        progress,
    )
    trained = distiller.average
    tensors = {name: value.cpu().contiguous() for name, value in trained.state_dict().items()}
    with replacing(file) as temporary:
        write_tensors(tensors, temporary, metadata={"autoencoder": key})
    with suppress(OSError):
        file.with_suffix(".state.pt").unlink()
    check = None
    if run is not None and manifest is not None:
        training, validating = open_split(manifest, "train"), open_split(manifest, "val")
        check = measure_run(run, training, validating, own, store, trained)
    latent = torch.zeros(1, *model.latent_shape(SIDE, SIDE), device=own)
    return DistillReport(
        decoder=file,
        autoencoder=key,
        steps=steps,
        seconds=time.monotonic() - started,
        parameters=sum(value.numel() for value in trained.parameters()),
        gflop=gflop(lambda: trained(latent)),
        exact_gflop=gflop(lambda: model.autoencoder.decode(latent)),
        agreement=agreement(trained, teacher, HELD_OUT),
        check=check,
    )


@torch.inference_mode()
def agreement(decoder: torch.nn.Module, teacher: Teacher, count: int) -> float:
    """Mean Dice of the two decoders' masks over latents of a stream of its own; pairs of empty
    masks are left out.
    """
    found = []
    for k in range(count):
        one = teacher.example(seeded_generator("held out", k))
        fast, exact = decoder(one.latent) > 0.5, one.target > 0.5
        if both := int(fast.sum() + exact.sum()):
            found.append(2 * int((fast & exact).sum()) / both)
    return sum(found) / max(1, len(found))


def _model(run: RunDir | None, preset_name: str, store: WeightStore) -> SDSeg:
    if run is not None:
        best = Checkpoint.load(run.best)
        return sdseg_of(best, torch.device("cpu"), source=str(run.best))
    model = build_sdseg(preset(preset_name).model)
    start_autoencoder(model, store)
    return model.eval().requires_grad_(False)


def _train(distiller: Distiller, state: Path, identity: str, progress: Progress) -> None:
    """All steps, from where the same call stopped."""
    if state.is_file():
        # Any other file is not of this call: begin anew.
        with suppress(WeightsError, OSError, KeyError, TypeError, ValueError, AttributeError):
            values = unpickled(state)
            if values.pop("identity") == identity:
                distiller.resume(values)

    def save() -> None:
        with replacing(state) as temporary:
            torch.save({**distiller.state(), "identity": identity}, temporary)

    with stop_signals() as stop:
        while distiller.step < distiller.steps:
            distiller.train_step()
            progress(distiller.step, distiller.steps, "distilling")
            if stop.is_set():
                save()
                raise KeyboardInterrupt
            if distiller.step % SAVE_EVERY == 0:
                save()
