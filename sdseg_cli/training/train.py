"""The training loop, in order: data, networks, step, validation, checkpoint.

To resume, run the same command again. All that is drawn in a step is a function of (seed, step), so
the checkpoint's step is the state of every random generator and the position in the data: a resumed
run is the uninterrupted one, on a CPU to the last bit.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdseg_cli.core.config import RunConfig
from sdseg_cli.core.errors import ConfigError
from sdseg_cli.core.findings import WARNING, Finding
from sdseg_cli.core.locks import locked
from sdseg_cli.core.progress import OnStep, TrainProgress, no_op
from sdseg_cli.data.manifest import Manifest
from sdseg_cli.data.spec import ClassRule
from sdseg_cli.model.distributed import ranks_of, training_together
from sdseg_cli.model.runtime import choose_device, peak_gpu_bytes, stop_signals
from sdseg_cli.model.sdseg import has_latents
from sdseg_cli.model.weights import WeightStore
from sdseg_cli.runs.checkpoint import refuse_foreign, resumed
from sdseg_cli.runs.log import require_tensorboard
from sdseg_cli.runs.run_folder import RunDir, require_settled
from sdseg_cli.training.batches import (
    PreparedSlices,
    StepInputs,
    StepSource,
    default_workers,
    open_split,
)
from sdseg_cli.training.fit_batch import require_batch_memory
from sdseg_cli.training.initialise import initial_checkpoint
from sdseg_cli.training.latents import MaskLatents, open_latents
from sdseg_cli.training.objective import decoder_to_train_through, keep_for_training
from sdseg_cli.training.run_files import RunFiles, TrainPictures
from sdseg_cli.training.step import StepResult, Trainer

OnWarning = Callable[[Finding], None]
"""Called with each finding that stops nothing."""


@dataclass(frozen=True)
class TrainOptions:
    """Options of a training: computation, other outputs, pretrained weights."""

    workers: int | None = None
    """Threads that read slices ahead; None for what suits the machine."""
    compiled: bool = False
    """Compile the networks first."""
    adapts: bool = False
    """Where memory runs out, go on with batches in smaller parts."""
    tensorboard: bool = False
    """Write the log for TensorBoard too."""
    store: WeightStore | None = None
    """Where `train.init` finds pretrained weights; the user's own by default. A resumed run needs
    none.
    """


@dataclass(frozen=True)
class TrainReport:
    """The result of a call of `train`."""

    run: Path
    step: int
    begun: int
    """The step from which this call resumed; 0 for a new run."""
    seconds: float
    """Of this call."""
    best: dict[str, Any]
    """`{"step": ..., "val_dice": ...}`; of several classes the rest of that line of the log."""
    state: str
    """"finished" or "stopped"."""
    origin: dict[str, str]
    """Part of the model -> the weights it started from."""
    warnings: tuple[Finding, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The object of `--json`."""
        best = self.best or {"step": None, "val_dice": None}
        return {
            "run": str(self.run),
            "step": self.step,
            "seconds": round(self.seconds, 3),
            "best": best,
            "state": self.state,
            "origin": self.origin,
            "warnings": [finding.to_json() for finding in self.warnings],
        }


def train(
    config: RunConfig,
    manifest: Manifest,
    run: RunDir,
    *,
    device: str = "auto",
    options: TrainOptions = TrainOptions(),
    on_step: OnStep = no_op,
    on_warning: OnWarning = no_op,
    on_stop: Callable[[], None] = no_op,
) -> TrainReport:
    """Train SDSeg on a prepared set, or go on where the run stopped.

    Under torchrun or srun the processes share every batch, and the first writes all files.

    Args:
        config: Every setting.
        manifest: The prepared set; only its train and val cases are read.
        run: Where to write; a run that is there is resumed if it has the same settings.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        options: How it computes, and where it finds pretrained weights.
        on_step: Called before the first step and after each.
        on_warning: Called at once with a damaged checkpoint that is passed over.
        on_stop: Called by the signal handler, so it may neither wait nor print.

    Returns:
        How it ended. SIGINT, SIGTERM and SIGUSR1 save and return with state "stopped".

    Raises:
        ConfigError: The run folder holds a run with other settings, or other things and no run;
            TensorBoard is not installed; the mask counts, and its autoencoder has no fast decoder.
        DataError: The prepared set lacks train or val cases, or is damaged.
        WeightsError: Pretrained weights are missing, or no checkpoint is whole.
        RunError: The loss became NaN or infinite, memory ran out, the disk refused, or another
            process trains in this folder or prepares the set.
        KeyboardInterrupt: A second SIGINT; nothing is saved then, and nothing is lost either.
    """
    started = time.monotonic()
    if options.tensorboard:
        require_tensorboard()
    refuse_foreign(run)
    config, mirror_off = without_side_mirror(config, manifest.classes)
    if config.model.classes != len(manifest.classes):
        raise ConfigError(
            f"model.classes is {config.model.classes}, and {manifest.name} has "
            f"{len(manifest.classes)}.",
            "Leave model.classes out: the prepared set says it.",
        )
    ranks = ranks_of(os.environ)
    with (
        locked(run.lock_file) if ranks.writes else nullcontext(),
        stop_signals(on_stop if ranks.writes else no_op) as stop,
        training_together(ranks, choose_device(device)) as own,
    ):
        slices, fixed = open_split(manifest, "train"), open_split(manifest, "val")
        waiting = min(2 * (options.workers or default_workers()) + 1, config.train.steps)
        require_batch_memory(config, math.prod(slices.batch([0]).image.shape), own, ranks, waiting)
        data = manifest.inference_settings()
        found = resumed(config, data, run)
        require_settled(manifest)
        state = found.checkpoint if found else None
        store = options.store or WeightStore.default()
        state = state or initial_checkpoint(config, data, slices, store)
        decoder = decoder_to_train_through(config, state.weights, run, store)
        loop = Trainer(
            config,
            state,
            own,
            ranks=ranks,
            compiled=options.compiled,
            adapts=options.adapts,
            decoder=decoder,
        )
        begun, origin = state.step, state.origin
        # All have then read what the first will now change.
        scale = loop.model.scale() if has_latents(loop.model) else loop.model.latent_scale
        ranks.require_same(loop.step, scale, own)
        warnings = (*mirror_off, *RunFiles.begin(run, loop, found))
        if decoder is not None and ranks.writes:
            keep_for_training(run, decoder)
        for finding in warnings:
            on_warning(finding)
        del state, found  # gigabytes that the trainer has copied
        pictures = TrainPictures(run, fixed, manifest.cases("val"), recipe=config.train, at=begun)
        folders = (manifest.root / "latents", run.path / "latents")
        shape, shown_to = loop.model.latent_shape(*slices.plane), on_step if ranks.writes else no_op
        with RunFiles(run, loop, data, tensorboard=options.tensorboard) as files:
            latents = open_latents(folders, slices, loop.model, data, own, ranks)
            source = StepSource(config, slices, latents, shape, ranks)
            steps = source.prefetch(
                begun, config.train.steps, workers=options.workers, pin=own.type == "cuda"
            )
            with closing(steps) as ahead:
                reached = _all_steps(loop, ahead, latents, slices, files, pictures, stop, shown_to)
    return TrainReport(
        run=run.path,
        step=loop.step,
        begun=begun,
        seconds=time.monotonic() - started,
        best=loop.best,
        state=reached,
        origin=origin,
        warnings=warnings,
    )


def without_side_mirror(
    config: RunConfig, classes: ClassRule
) -> tuple[RunConfig, tuple[Finding, ...]]:
    """The settings without the left-right mirror where it would turn a class into another one, and
    a finding that says so.
    """
    recipe = config.train
    if "h" not in recipe.flips or classes.mirror_safe:
        return config, ()
    off = Finding(
        code="mirror-off",
        level=WARNING,
        case=", ".join(classes.names),
        measured="names say left and right: no left-right mirrors in this training",
        fix="Pair what changes sides by `sdseg prepare --mirror-pairs`.",
    )
    left = recipe.flips.replace("h", "")
    return replace(config, train=replace(recipe, flips=left)), (off,)


def _all_steps(
    loop: Trainer,
    ahead: Iterable[StepInputs],
    latents: MaskLatents,
    slices: PreparedSlices,
    files: RunFiles,
    pictures: TrainPictures,
    stop: threading.Event,
    on_step: OnStep,
) -> str:
    """All steps to the end ("finished"), or until it is stopped ("stopped"); then all is saved."""
    recipe, on_gpu = loop.config.train, loop.device.type == "cuda"
    now = TrainProgress(
        step=loop.step,
        steps=recipe.steps,
        slices_per_step=recipe.batch_size,
        validate_every=recipe.validate_every,
        best=loop.best,
        checkpoint=loop.step,
    )
    on_step(now)
    started = time.monotonic()
    pending: deque[StepResult] = deque()
    stopping = False
    for inputs in ahead:
        # One process alone need not wait for the others to agree.
        if stopping or loop.exhausted or (loop.ranks.world == 1 and stop.is_set()):
            break
        pending.append(loop.train_step(inputs, latents, stop_requested=stop.is_set()))
        last = loop.step == recipe.steps
        validates = last or loop.step % recipe.validate_every == 0
        saves = last or loop.step % recipe.checkpoint_every == 0
        # A step's numbers are fetched from a GPU while it computes the next.
        while len(pending) > (on_gpu and not (validates or saves)):
            stopping |= files.log(pending.popleft(), slices)
        if validates:
            validation = loop.validate(pictures.slices, pictures.positions)
            now = replace(now, validation=files.log_validation(validation, slices.classes.names))
            if loop.ranks.writes:
                pictures.draw(loop.step, validation.planes)
        if saves:
            files.save("running")
        now = replace(
            now,
            step=loop.step,
            row=files.row,
            best=loop.best,
            checkpoint=files.saved,
            seconds=time.monotonic() - started,
            peak_gpu_bytes=peak_gpu_bytes(loop.device),
        )
        on_step(now)
    while pending:
        files.log(pending.popleft(), slices)
    reached = "finished" if loop.exhausted or loop.step >= recipe.steps else "stopped"
    files.save(reached)
    return reached
