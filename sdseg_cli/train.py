"""The training loop, in order: data, networks, step, validation, checkpoint.

To resume, run the same command again: all that is drawn in a step is a function of (seed, step).
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.atomic import replacing
from sdseg_cli.config import RunConfig
from sdseg_cli.config_file import differing_keys, to_toml
from sdseg_cli.datasets.manifest import Manifest
from sdseg_cli.errors import ConfigError, DataError
from sdseg_cli.model.store import WeightStore
from sdseg_cli.progress import TrainProgress, Watch, unwatched
from sdseg_cli.training.batches import PreparedSlices, spread
from sdseg_cli.training.checkpoint import Checkpoint, RunDir, config_values, truncate_log
from sdseg_cli.training.initialise import initial_model
from sdseg_cli.training.log import open_log, require_tensorboard
from sdseg_cli.training.runtime import choose_device, peak_gpu_bytes, stop_signals
from sdseg_cli.training.shown import shown_slices
from sdseg_cli.training.trainer import Trainer

if TYPE_CHECKING:
    from sdseg_cli.report.validation_picture import ValidationHistory


@dataclass(frozen=True)
class TrainReport:
    """How a call of `train` ended."""

    run: Path
    step: int
    seconds: float
    """Of this call."""
    best: dict[str, Any]
    """`{"step": ..., "val_dice": ...}`."""
    state: str
    """"finished" or "stopped"."""
    origin: dict[str, str]
    """Part of the model -> the weights it started from."""

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
        }


def train(
    config: RunConfig,
    manifest: Manifest,
    run: RunDir,
    *,
    device: str = "auto",
    store: WeightStore | None = None,
    tensorboard: bool = False,
    watch: Watch = unwatched,
) -> TrainReport:
    """Train SDSeg on a prepared set, or go on where the run stopped.

    Args:
        config: Every setting.
        manifest: The prepared set; only its train and val cases are read.
        run: Where to write; a run that is there is resumed if it has the same settings.
        device: "auto", "cpu", "cuda" or "mps".
        store: Where `train.init` finds pretrained weights; the user's own by default. A resumed run
            needs none.
        tensorboard: Write the log for TensorBoard too.
        watch: Told before the first step and after each.

    Returns:
        What was reached. SIGINT and SIGTERM save and return with state "stopped".

    Raises:
        ConfigError: The run folder holds a run with other settings; TensorBoard is not installed.
        DataError: The prepared set lacks train or val cases, or is damaged.
        WeightsError: Pretrained weights are missing, or the checkpoint is damaged.
        RunError: The loss became NaN or infinite.
    """
    started = time.monotonic()
    if tensorboard:
        require_tensorboard()
    target_device = choose_device(device)
    slices = _open_split(manifest, "train")
    fixed = _open_split(manifest, "val")
    state = _resume(config, manifest, run) or _start(
        config, manifest, slices, store or WeightStore.default()
    )
    loop = Trainer(config, state, target_device)
    truncate_log(run.log_file, state.step)
    with replacing(run.config_file) as temporary:
        temporary.write_text(to_toml(config), encoding="utf-8")
    _write_status(run, "running", state)
    history = _history(config, manifest, run, fixed, state.step)
    now = _begun(config, state)
    watch(now)
    board = run.tensorboard if tensorboard else None
    begun = time.monotonic()
    with stop_signals() as stop, open_log(run.log_file, after=state.step, tensorboard=board) as log:
        while loop.step < config.train.steps and not stop.is_set():
            log.write(loop.train_step(slices))
            last = loop.step == config.train.steps
            if loop.step % config.train.validate_every == 0 or last:
                validation = loop.validate(fixed, history.positions)
                row = {"step": loop.step, "val_dice": validation.dice}
                log.write(row)
                # While nothing is found yet, later weights are better than earlier ones.
                if validation.dice >= loop.best.get("val_dice", 0.0):
                    loop.best = row
                    loop.checkpoint(state.data, resumable=False).save(run.best)
                _draw(run, history, loop.step, validation.planes)
                now = replace(now, validation=row, best=loop.best)
            if loop.step % config.train.checkpoint_every == 0 or last:
                loop.checkpoint(state.data, resumable=True).save(run.last)
                _write_status(run, "running", loop)
                now = replace(now, checkpoint=loop.step)
            now = replace(
                now,
                step=loop.step,
                row=loop.row,
                seconds=time.monotonic() - begun,
                peak_gpu_bytes=peak_gpu_bytes(target_device),
            )
            watch(now)
        if stop.is_set():
            loop.checkpoint(state.data, resumable=True).save(run.last)
    finished = "finished" if loop.step >= config.train.steps else "stopped"
    _write_status(run, finished, loop)
    seconds = time.monotonic() - started
    return TrainReport(run.path, loop.step, seconds, loop.best, finished, state.origin)


def _open_split(manifest: Manifest, split: str) -> PreparedSlices:
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


def _start(
    config: RunConfig, manifest: Manifest, slices: PreparedSlices, store: WeightStore
) -> Checkpoint:
    """Step 0."""
    model, origin = initial_model(config, store, slices)
    return Checkpoint(
        step=0,
        config=config_values(config),
        data=manifest.inference_settings(),
        latent_scale=model.latent_scale,
        weights=model.state_dict(),
        ema=model.unet.state_dict(),
        origin=origin,
    )


def _resume(config: RunConfig, manifest: Manifest, run: RunDir) -> Checkpoint | None:
    if not run.last.exists():
        return None
    changed = [k for k in differing_keys(run.config(), config) if k != "train.steps"]
    checkpoint = Checkpoint.load(run.last)
    if checkpoint.data != manifest.inference_settings():
        changed.append("the prepared data")
    if changed:
        raise ConfigError(
            f"{run.path} holds a run with other settings: {', '.join(changed)}.",
            "Give a new folder with --run; to go on, train and prepare with the old settings.",
        )
    if config.train.steps < checkpoint.step:
        raise ConfigError(
            f"{run.path} is at step {checkpoint.step}, past the {config.train.steps} asked for.",
            "Give a new folder with --run, or more --steps.",
        )
    return checkpoint


def _write_status(run: RunDir, state: str, at: Trainer | Checkpoint) -> None:
    with replacing(run.status_file) as temporary:
        values = {"state": state, "step": at.step, "best": at.best}
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _begun(config: RunConfig, state: Checkpoint) -> TrainProgress:
    """What can be told before the first step of this call."""
    return TrainProgress(
        step=state.step,
        steps=config.train.steps,
        slices_per_step=config.train.batch_size,
        validate_every=config.train.validate_every,
        best=state.best,
        checkpoint=state.step,
    )


def _history(
    config: RunConfig, manifest: Manifest, run: RunDir, fixed: PreparedSlices, step: int
) -> ValidationHistory:
    """The validation slices to show, and what is known of them up to `step`."""
    from sdseg_cli.report.validation_picture import ShownSlice, ValidationHistory

    positions = shown_slices(fixed, spread(fixed, config.train.validation_slices))
    shown, cases = [], manifest.cases("val")
    for position in positions:
        batch, (case, k) = fixed.batch([position]), fixed.places[position]
        place = f", slice {k + 1}" if cases[case].slices > 1 else ""
        image = batch.image[0].numpy()
        image = image.transpose(1, 2, 0) if image.ndim == 3 else image
        shown.append(ShownSlice(f"{cases[case].id}{place}", image, batch.foreground[0].numpy()))
    history = ValidationHistory(run.history, tuple(positions), tuple(shown))
    history.read(after=step)
    return history


def _draw(run: RunDir, history: ValidationHistory, step: int, planes: NDArray[np.float32]) -> None:
    """The pictures of the run as it stands after a validation."""
    from sdseg_cli.report.training_curve import training_curve
    from sdseg_cli.report.validation_picture import validation_picture

    lines = run.log_file.read_text(encoding="utf-8").splitlines()
    training_curve([json.loads(line) for line in lines], run.curve)
    if history.shown:
        history.add(step, planes)
        validation_picture(run.validation_picture, history)
