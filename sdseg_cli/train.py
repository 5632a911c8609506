"""The training loop, in order: data, networks, step, validation, checkpoint.

To resume, run the same command again: all that is drawn in a step is a function of (seed, step).
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sdseg_cli.atomic import replacing
from sdseg_cli.config import RunConfig
from sdseg_cli.config_file import differing_keys, to_toml
from sdseg_cli.datasets.manifest import Manifest
from sdseg_cli.errors import ConfigError, DataError, RunError
from sdseg_cli.model.store import WeightStore
from sdseg_cli.progress import Progress, silent
from sdseg_cli.training.batches import PreparedSlices
from sdseg_cli.training.checkpoint import Checkpoint, RunDir, config_values, truncate_log
from sdseg_cli.training.distributed import training_together
from sdseg_cli.training.initialise import initial_model
from sdseg_cli.training.latents import open_latents
from sdseg_cli.training.runtime import choose_device, stop_signals
from sdseg_cli.training.steps import StepSource
from sdseg_cli.training.trainer import StepResult, Trainer


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
    workers: int | None = None,
    compiled: bool = False,
    adapts: bool = False,
    store: WeightStore | None = None,
    progress: Progress = silent,
) -> TrainReport:
    """Train SDSeg on a prepared set, or go on where the run stopped.

    Under torchrun or srun the processes share every batch, and the first writes all files.

    Args:
        config: Every setting.
        manifest: The prepared set; only its train and val cases are read.
        run: Where to write; a run that is there is resumed if it has the same settings.
        device: "auto", "cpu", "cuda" or "mps".
        workers: Threads that read slices ahead; None for what suits the device.
        compiled: Compile the networks first.
        adapts: Where memory runs out, compute batches in smaller parts.
        store: Where `train.init` finds pretrained weights; the user's own by default. A resumed run
            needs none.
        progress: Told after each step.

    Returns:
        What was reached. SIGINT and SIGTERM save and return with state "stopped".

    Raises:
        ConfigError: The run folder holds a run with other settings.
        DataError: The prepared set lacks train or val cases, or is damaged.
        WeightsError: Pretrained weights are missing, or the checkpoint is damaged.
        RunError: The loss became NaN or infinite, or memory ran out.
    """
    started = time.monotonic()
    with training_together(choose_device(device)) as (ranks, own):
        slices, fixed = _open_split(manifest, "train"), _open_split(manifest, "val")
        state = _resume(config, manifest, run) or _start(
            config, manifest, slices, store or WeightStore.default()
        )
        loop = Trainer(config, state, own, ranks=ranks, compiled=compiled, adapts=adapts)
        folders = (manifest.root / "latents", run.path / "latents")
        latents = open_latents(folders, slices, loop.model, state.data, own)
        ranks.wait()  # until each has read what the first will overwrite
        files = _RunFiles(run, loop, state.data)
        files.begin(config)
        source = StepSource(config, slices, latents, loop.model.latent_shape(*slices.plane), ranks)
        ahead = source.ahead(loop.step, config.train.steps, workers=workers, pin=own.type == "cuda")
        pending: deque[StepResult] = deque()
        stopping = False
        with stop_signals() as stop, closing(ahead), files:
            for inputs in ahead:
                # One process alone need not ask the others.
                if stopping or loop.exhausted or (ranks.world == 1 and stop.is_set()):
                    break
                pending.append(loop.train_step(inputs, latents, asked_to_stop=stop.is_set()))
                last = loop.step == config.train.steps
                validates = last or loop.step % config.train.validate_every == 0
                saves = last or loop.step % config.train.checkpoint_every == 0
                # A GPU is asked for a step's numbers while it computes the next.
                while len(pending) > (own.type == "cuda" and not (validates or saves)):
                    stopping |= files.log(pending.popleft(), slices)
                if validates:
                    files.log_validation(loop.validate(fixed))
                if saves:
                    files.save("running")
                if files.row:
                    progress(loop.step, config.train.steps, loop.summary(files.row))
            while pending:
                files.log(pending.popleft(), slices)
        done = loop.exhausted or loop.step >= config.train.steps
        reached = "finished" if done else "stopped"
        files.save(reached)
    seconds = time.monotonic() - started
    return TrainReport(run.path, loop.step, seconds, loop.best, reached, state.origin)


class _RunFiles:
    """What a training leaves in its run folder; only the first of several processes writes.

    Args:
        run: The folder.
        loop: What is trained.
        data: `Manifest.inference_settings`.
    """

    def __init__(self, run: RunDir, loop: Trainer, data: dict[str, Any]) -> None:
        self._run, self._loop, self._data = run, loop, data
        self._writes = loop.ranks.writes
        self._log: IO[str] | None = None
        self._saved = loop.step if run.last.exists() else -1
        self.row: dict[str, float] = {}
        """The last step's line of the log."""

    def begin(self, config: RunConfig) -> None:
        """Cut the log back to the step where the run goes on, and write the settings."""
        if self._writes:
            truncate_log(self._run.log_file, self._loop.step)
            with replacing(self._run.config_file) as temporary:
                temporary.write_text(to_toml(config), encoding="utf-8")
            self._write_status("running")

    def __enter__(self) -> _RunFiles:
        if self._writes:
            self._log = self._run.log_file.open("a", encoding="utf-8")
        return self

    def __exit__(self, *raised: object) -> None:
        if self._log is not None:
            self._log.close()

    def log(self, result: StepResult, slices: PreparedSlices) -> bool:
        """Write a step's line.

        Returns:
            Whether a process was asked to stop.

        Raises:
            RunError: The loss is not finite.
        """
        self.row = result.row()
        if not math.isfinite(self.row["loss"]):
            saved = f"{self._run.last}, step {self._saved}" if self._saved >= 0 else "none yet"
            raise RunError(
                f"the loss is {self.row['loss']} at step {result.step}, of "
                f"{slices.names(result.positions)}.",
                f"Lower train.learning_rate or set train.clip_norm; last checkpoint: {saved}.",
            )
        self._write(self.row)
        return result.asked_to_stop

    def log_validation(self, dice: float) -> None:
        """Write a validation's line; keep the weights if they are the best so far."""
        loop = self._loop
        self._write({"step": loop.step, "val_dice": dice})
        # While nothing is found yet, later weights are better than earlier ones.
        if dice >= loop.best.get("val_dice", 0.0):
            loop.best = {"step": loop.step, "val_dice": dice}
            if self._writes:
                loop.checkpoint(self._data, resumable=False).save(self._run.best)
        if self._writes:
            _draw_curve(self._run)

    def save(self, state: str) -> None:
        """Write a checkpoint to resume from, and how the run stands."""
        if not self._writes:
            return
        if self._saved != self._loop.step:
            self._loop.checkpoint(self._data, resumable=True).save(self._run.last)
            self._saved = self._loop.step
        self._write_status(state)

    def _write(self, row: dict[str, float]) -> None:
        if self._log is not None:
            self._log.write(json.dumps(row) + "\n")
            self._log.flush()

    def _write_status(self, state: str) -> None:
        with replacing(self._run.status_file) as temporary:
            values = {"state": state, "step": self._loop.step, "best": self._loop.best}
            temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


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


def _draw_curve(run: RunDir) -> None:
    from sdseg_cli.report.pictures import training_curve

    lines = run.log_file.read_text(encoding="utf-8").splitlines()
    training_curve([json.loads(line) for line in lines], run.curve)
