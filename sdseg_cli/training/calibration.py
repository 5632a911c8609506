"""The last stage of a training: the fast decoder gets used to the run, and its cost is measured.

Training is over then: the run is finished and predicts with the exact decoder until this ends, or
for good where it is skipped.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import torch

from sdseg_cli.core.config import RunConfig
from sdseg_cli.core.errors import SdsegError
from sdseg_cli.core.findings import WARNING, Finding
from sdseg_cli.core.locks import locked
from sdseg_cli.core.networks import SDSEG
from sdseg_cli.core.progress import Progress, no_op
from sdseg_cli.data.manifest import Manifest
from sdseg_cli.inference.decoders import (
    DecoderCheck,
    find_mask_decoder,
    keep_with_run,
    kept_for_training,
    read_check,
)
from sdseg_cli.inference.sampling import decoded_by
from sdseg_cli.model.distributed import Ranks
from sdseg_cli.model.mask_decoder import MaskDecoder
from sdseg_cli.model.runtime import choose_device, ran_out_of_memory, stop_signals
from sdseg_cli.model.sdseg import SDSeg, has_latents
from sdseg_cli.model.weights import WeightStore
from sdseg_cli.runs.checkpoint import Checkpoint
from sdseg_cli.runs.package import networks_of
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training.batches import PreparedSlices, evenly_spaced, open_split
from sdseg_cli.training.distillation import ADAPT_STEPS, adapted, own_latents
from sdseg_cli.training.validation import validation

ADAPT_SLICES = 96
"""Training slices from which a decoder gets used to a run."""
WHAT = "calibrating the fast decoder"
STEP_COST = 0.3
"""A step of getting used to the run takes as long as so many validation slices: 0.08 s to 0.25 s,
`tiny` on a CPU core. With a larger autoencoder it takes less."""


class _Skipped(Exception):  # noqa: N818, nothing went wrong
    """It was asked to stop."""


class _Told:
    """One count over all parts of the calibration; each part also looks whether to stop."""

    def __init__(self, total: int, progress: Progress, stop: threading.Event) -> None:
        self._done, self._total, self._progress, self._stop = 0, total, progress, stop

    def __call__(self, count: int = 1) -> None:
        if self._stop.is_set():
            raise _Skipped
        self._done += count
        self._progress(self._done, self._total, WHAT)


def work_in_validations(config: RunConfig) -> float:
    """How many validations a calibration takes about as long as, to tell the time left."""
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
        run: Finished; its best weights have to have found something, or nothing is measured.
        manifest: The set it was trained on.
        device: "auto", "cpu", "cuda" or "mps".
        store: Where mask decoders are; by default the user's.
        anew: False for a run that has not been trained since: what it keeps is enough.
        progress: Told after each slice and each step.
        on_warning: Told of what went wrong.
        on_stop: Told at once of the signal to stop, in its handler: it may neither wait nor print.

    Returns:
        What the fast decoder costs; None where nothing was measured: no fast decoder, nothing to
        decode, or skipped.

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
    """Let a run keep the mask decoder of its autoencoder, used to the run's own latents, and what
    that costs its best weights.

    Args:
        run: Its best weights have to have found something, or nothing is measured.
        training: Slices of the training cases, for getting used to.
        validation_slices: Of the validation cases.
        device: That computes.
        store: Where mask decoders are.
        decoder: In place of the one that is found there. A run that was trained through one keeps
            that.
        progress: Told after each slice and each step.
        stop: Once set, nothing more is done and nothing is kept.

    Returns:
        What it costs; None where nothing was measured: no mask decoder, or nothing to decode.
    """
    if not run.best.is_file():
        return None
    best = Checkpoint.load(run.best)
    if not best.best.get("val_dice"):
        return None
    model, recipe = networks_of(best, device, source=str(run.best)), run.config().train
    if not has_latents(model):
        return None
    meant = kept_for_training(run, model.config.autoencoder)
    found = (
        meant or decoder or find_mask_decoder(model.autoencoder, model.config.autoencoder, store)
    )
    if found is None:
        return None
    adapts = evenly_spaced(training, 0 if meant else min(ADAPT_SLICES, recipe.validation_slices))
    judged = evenly_spaced(validation_slices, recipe.validation_slices)
    total = len(adapts) + (0 if meant else ADAPT_STEPS) + 2 * len(judged)
    tell = _Told(total, progress, stop or threading.Event())
    own = found
    if not meant:
        latents = own_latents(model, training, adapts, tell)
        own = adapted(found, latents, tell=tell)
    check = measure(
        model,
        own,
        validation_slices,
        judged,
        step=best.step,
        batch_size=recipe.batch_size,
        tell=tell,
    )
    check = replace(check, trained_through=meant is not None)
    keep_with_run(run, own, check)
    return check


def measure(
    model: SDSeg,
    decoder: MaskDecoder,
    slices: PreparedSlices,
    positions: list[int],
    *,
    step: int,
    batch_size: int,
    tell: Callable[[int], None] = lambda count: None,
) -> DecoderCheck:
    """Validate with both decoders.

    Args:
        model: As it predicts, without a mask decoder, in eval mode.
        decoder: On any device.
        slices: Of the validation cases.
        positions: Which of them.
        step: Of the model's weights.
        batch_size: Slices at a time.
        tell: Told how many slices each batch had.
    """
    dice = {}
    for name, each in (("exact", None), ("fast", decoder.to(next(model.parameters()).device))):
        with decoded_by(model, each):
            found = validation(
                model, slices, positions, (), Ranks(), batch_size=batch_size, tell=tell
            )
        dice[name] = found.dice
    return DecoderCheck(step, len(positions), dice["exact"], dice["fast"])
