"""The last stage of a training: the fast decoder adapts to the run, and its cost is measured.

Training is over then: the run is finished and predicts with the exact decoder until this ends, or
for good where it is skipped.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sdseg_cli.core.config import SDSEG, RunConfig
from sdseg_cli.core.errors import SdsegError
from sdseg_cli.core.findings import WARNING, Finding
from sdseg_cli.core.locks import locked
from sdseg_cli.core.progress import Progress, no_op
from sdseg_cli.data.manifest import Manifest
from sdseg_cli.inference.decoders import (
    DecoderCheck,
    find_mask_decoder,
    keep_with_run,
    kept_for_training,
    read_check,
)
from sdseg_cli.inference.engine import decoded_by, predict_latents
from sdseg_cli.model.diffusion import seeded_generator
from sdseg_cli.model.distributed import Ranks
from sdseg_cli.model.mask_decoder import MaskDecoder
from sdseg_cli.model.runtime import choose_device, ran_out_of_memory, stop_signals
from sdseg_cli.model.sdseg import SDSeg, has_latents
from sdseg_cli.model.weights import WeightStore
from sdseg_cli.runs.checkpoint import Checkpoint
from sdseg_cli.runs.package import networks_of
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training.batches import PreparedSlices, evenly_spaced, open_split
from sdseg_cli.training.step import SEED, validation

BATCH = 4
"""Examples of a step."""
ADAPT_SLICES, ADAPT_STEPS, ADAPT_RATE, ADAPT_WARMUP, ADAPT_DECAY = 96, 200, 1e-3, 30, 0.98
"""How a decoder adapts to a run: from so many training slices, in so many steps."""
WHAT = "calibrating the fast decoder"
STEP_COST = 0.3
"""A step of adapting takes as long as so many validation slices: 0.08 s to 0.25 s, `tiny` on a CPU
core. With a larger autoencoder it takes less."""


@dataclass(frozen=True)
class Examples:
    """Latents, and how the exact decoder draws them."""

    latent: Tensor
    """(n,4,h,w) float32, unscaled."""
    target: Tensor
    """(n,H,W) float32 in [0,1]."""


class Learner:
    """A mask decoder in training, and the running average of its weights.

    Args:
        decoder: Trains, on the device of its examples.
        rate: Largest learning rate.
    """

    def __init__(self, decoder: MaskDecoder, rate: float) -> None:
        self.decoder, self.rate = decoder.train().requires_grad_(True), rate
        self.average = copy.deepcopy(decoder).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(decoder.parameters(), lr=rate, weight_decay=0.01)

    def learn(
        self, examples: Examples, chosen: Tensor, share: float, clip_norm: float | None = None
    ) -> float:
        """One step on the chosen examples, at this share of the learning rate; its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * share
        logits = self.decoder.logits(examples.latent[chosen])
        loss = distillation_loss(logits, examples.target[chosen])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), clip_norm)
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def follow(self, step: int, largest: float) -> None:
        """Move the average towards the weights: by more in the first steps."""
        decay = min(largest, (1 + step) / (10 + step))
        average = list[Tensor](self.average.parameters())
        torch._foreach_lerp_(average, list[Tensor](self.decoder.parameters()), 1 - decay)


def distillation_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy with the decoder's probability; planes with little on them count for more.

    Args:
        logits: (B,H,W).
        target: (B,H,W) in [0,1].
    """
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(dim=(1, 2))
    return (each * torch.rsqrt(target.mean(dim=(1, 2)) + 0.01)).mean()


def cosine(step: int, steps: int, *, warmup: int) -> float:
    """Share of the learning rate: a linear warm-up, then half a cosine to a fiftieth."""
    half = 0.5 * (1 + math.cos(math.pi * min(1, step / steps)))
    return min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * half)


def adapted(
    decoder: MaskDecoder,
    examples: Examples,
    *,
    steps: int = ADAPT_STEPS,
    on_step: Callable[[], None] = no_op,
) -> MaskDecoder:
    """A mask decoder adapted to the latents of one run.

    Args:
        decoder: Of the run's autoencoder; stays as it is.
        examples: Latents that the run predicts of its training slices.
        steps: Of training.
        on_step: Called after each step.

    Returns:
        The average over the steps, in eval mode, on the examples' device.
    """
    learner = Learner(copy.deepcopy(decoder).to(examples.latent.device), ADAPT_RATE)
    for step in range(steps):
        generator = seeded_generator("adaptation", step)
        chosen = torch.randint(len(examples.latent), (BATCH,), generator=generator)
        learner.learn(examples, chosen, cosine(step, steps, warmup=ADAPT_WARMUP))
        learner.follow(step, ADAPT_DECAY)
        on_step()
    return learner.average


def own_latents(
    model: SDSeg,
    slices: PreparedSlices,
    positions: Sequence[int],
    on_slice: Callable[[], None] = no_op,
) -> Examples:
    """A model's predicted latents of slices, one after the other, and how the exact decoder draws
    them. `on_slice` is called after each.
    """
    pairs = []
    for k in positions:
        pairs.append(predict_latents(model, slices.batch([k]).image, [k], seed=SEED))
        on_slice()
    # Not of inference mode, so that a decoder can learn from them.
    return Examples(
        torch.cat([latent for latent, _ in pairs]).clone(),
        torch.cat([drawn for _, drawn in pairs]).clone(),
    )


class _Skipped(Exception):  # noqa: N818, nothing went wrong
    """The user skips the calibration."""


class _Counter:
    """One count over all parts of the calibration, each of which ends where it is to stop."""

    def __init__(self, total: int, progress: Progress, stop: threading.Event) -> None:
        self._done, self._total, self._progress, self._stop = 0, total, progress, stop

    def __call__(self, count: int = 1) -> None:
        if self._stop.is_set():
            raise _Skipped
        self._done += count
        self._progress(self._done, self._total, WHAT)


def work_in_validations(config: RunConfig) -> float:
    """The time of a calibration in validations, to show the time left."""
    if config.model.network != SDSEG:
        return 0.0
    slices, learns = config.train.validation_slices, config.train.mask_loss_weight == 0
    learning = ADAPT_STEPS * STEP_COST + min(ADAPT_SLICES, slices) if learns else 0.0
    return (learning + 2 * slices) / slices


def calibrate(
    run: RunDir,
    manifest: Manifest,
    *,
    device: str = "auto",
    store: WeightStore | None = None,
    anew: bool = True,
    progress: Progress = no_op,
    on_warning: Callable[[Finding], None],
    on_stop: Callable[[], None] = no_op,
) -> DecoderCheck | None:
    """Calibrate the fast decoder of a finished run, which is whole without.

    What goes wrong is a warning. SIGINT, SIGTERM and SIGUSR1 skip it.

    Args:
        run: Finished.
        manifest: The set it was trained on.
        device: "auto", "cpu", "cuda" or "mps".
        store: Where mask decoders are; by default the user's.
        anew: False for a run that has not been trained since: the check it keeps is enough.
        progress: Called after each slice and each step.
        on_warning: Called with what went wrong.
        on_stop: Called by the signal handler, so it may neither wait nor print.

    Returns:
        The cost of the fast decoder; None where nothing was measured: as `measure_run`, or skipped.

    Raises:
        RunError: Another process trains in this folder.
    """
    try:
        kept = None if anew else read_check(run.path)
        if kept is not None and kept.slices:
            return kept
        with locked(run.lock_file), stop_signals(on_stop) as stop:
            splits = open_split(manifest, "train"), open_split(manifest, "val")
            own, store = choose_device(device), store or WeightStore.default()
            return measure_run(run, *splits, own, store, progress=progress, stop=stop)
    except _Skipped:
        return None
    except (SdsegError, RuntimeError, MemoryError) as error:
        if not (isinstance(error, SdsegError) or ran_out_of_memory(error)):
            raise
        why = error.message if isinstance(error, SdsegError) else "out of memory"
        through = run.config().train.mask_loss_weight > 0
        finding = Finding(
            code="fast-decoder-unmeasured",
            level=WARNING,
            case=run.path.name,
            measured=f"predictions will use the {'fast' if through else 'exact'} decoder ({why})",
            fix="None needed: the run was trained through it."
            if through
            else "To try again: sdseg distill --run RUN.",
        )
        on_warning(finding)
        return None


def measure_run(
    run: RunDir,
    training: PreparedSlices,
    validation_slices: PreparedSlices,
    device: torch.device,
    store: WeightStore,
    decoder: MaskDecoder | None = None,
    *,
    progress: Progress = no_op,
    stop: threading.Event | None = None,
) -> DecoderCheck | None:
    """Let a run keep the mask decoder of its autoencoder, adapted to the run's own latents, and
    what that costs its best weights.

    Args:
        run: A run.
        training: Slices of the training cases, to adapt to.
        validation_slices: Of the validation cases.
        device: That computes.
        store: Where mask decoders are.
        decoder: In place of the one that is found there. A run that was trained through one keeps
            that.
        progress: Called after each slice and each step.
        stop: Once set, nothing more is done and nothing is kept.

    Returns:
        Its cost; None where nothing was measured: there is no mask decoder, or the best weights
        have found nothing yet.
    """
    if not run.best.is_file():
        return None
    best = Checkpoint.load(run.best)
    if not best.best.get("val_dice"):
        return None
    model, recipe = networks_of(best, device, source=str(run.best)), run.config().train
    if not has_latents(model):
        return None
    sizes = model.config.autoencoder
    meant = kept_for_training(run, sizes)
    found = meant or decoder or find_mask_decoder(model.autoencoder, sizes, store)
    if found is None:
        return None
    adapts = evenly_spaced(training, 0 if meant else min(ADAPT_SLICES, recipe.validation_slices))
    judged = evenly_spaced(validation_slices, recipe.validation_slices)
    total = len(adapts) + (0 if meant else ADAPT_STEPS) + 2 * len(judged)
    count = _Counter(total, progress, stop or threading.Event())
    if not meant:
        found = adapted(found, own_latents(model, training, adapts, count), on_step=count)
    exact, fast = (
        _dice(model, each, validation_slices, judged, recipe.batch_size, count)
        for each in (None, found.to(device))
    )
    check = DecoderCheck(best.step, len(judged), exact, fast, trained_through=meant is not None)
    keep_with_run(run, found, check)
    return check


def _dice(
    model: SDSeg,
    decoder: MaskDecoder | None,
    slices: PreparedSlices,
    positions: list[int],
    batch_size: int,
    on_batch: Callable[[int], None],
) -> float:
    """Validation Dice with a mask decoder, or with the exact one."""
    with decoded_by(model, decoder):
        return validation(
            model, slices, positions, (), Ranks(), batch_size=batch_size, on_batch=on_batch
        ).dice
