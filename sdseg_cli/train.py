"""The training loop, in order: data, networks, step, validation, checkpoint.

To resume, run the same command again. All that is drawn in a step is a function of (seed, step), so
the checkpoint's step is the state of every random generator and the position in the data: a resumed
run is the uninterrupted one, on a CPU to the last bit.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdseg_cli.atomic import remove_leftovers, replacing
from sdseg_cli.config import RunConfig
from sdseg_cli.config_file import differing_keys, from_dict, to_toml
from sdseg_cli.datasets.manifest import Manifest
from sdseg_cli.errors import ConfigError, DataError
from sdseg_cli.findings import WARNING, Finding
from sdseg_cli.model.store import WeightStore
from sdseg_cli.progress import Progress, silent
from sdseg_cli.training.batches import PreparedSlices
from sdseg_cli.training.checkpoint import Checkpoint, config_values
from sdseg_cli.training.initialise import initial_model
from sdseg_cli.training.resume import keep, newest_whole, set_aside
from sdseg_cli.training.run_folder import RunDir
from sdseg_cli.training.run_lock import locked
from sdseg_cli.training.run_log import RunLog, truncate_log
from sdseg_cli.training.runtime import choose_device, stop_signals
from sdseg_cli.training.trainer import Trainer

MAY_CHANGE = ("train.steps", "train.accumulate")
"""Settings in which the command that resumes may differ; fewer steps than were done are refused."""

Warn = Callable[[Finding], None]
"""Told what is odd and stops nothing."""


def unheard(finding: Finding) -> None:
    """The default: the report has it too."""


@dataclass(frozen=True)
class TrainReport:
    """How a call of `train` ended."""

    run: Path
    step: int
    begun: int
    """The step where this call went on from; 0 for a new run."""
    seconds: float
    """Of this call."""
    best: dict[str, Any]
    """`{"step": ..., "val_dice": ...}`."""
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
    store: WeightStore | None = None,
    progress: Progress = silent,
    warn: Warn = unheard,
) -> TrainReport:
    """Train SDSeg on a prepared set, or go on where the run stopped.

    Args:
        config: Every setting.
        manifest: The prepared set; only its train and val cases are read.
        run: Where to write; a run that is there is resumed if it has the same settings.
        device: "auto", "cpu", "cuda" or "mps".
        store: Where `train.init` finds pretrained weights; the user's own by default. A resumed run
            needs none.
        progress: Told after each step.
        warn: Told at once of a damaged checkpoint that is passed over.

    Returns:
        What was reached. SIGINT, SIGTERM and SIGUSR1 save and return with state "stopped".

    Raises:
        ConfigError: The run folder holds a run with other settings.
        DataError: The prepared set lacks train or val cases, or is damaged.
        WeightsError: Pretrained weights are missing, or no checkpoint is whole.
        RunError: The loss became NaN or infinite, the disk refused, or another process trains in
            this folder.
        KeyboardInterrupt: A second SIGINT; nothing is saved then, and nothing is lost either.
    """
    with locked(run.lock_file), stop_signals() as stop:
        store = store or WeightStore.default()
        return _train(config, manifest, run, device, store, stop, progress, warn)


def _train(
    config: RunConfig,
    manifest: Manifest,
    run: RunDir,
    device: str,
    store: WeightStore,
    stop: threading.Event,
    progress: Progress,
    warn: Warn,
) -> TrainReport:
    started = time.monotonic()
    target_device = choose_device(device)
    slices = _open_split(manifest, "train")
    fixed = _open_split(manifest, "val")
    state, warnings = _resume(config, manifest, run)
    for finding in warnings:
        warn(finding)
    state = state or _start(config, manifest, slices, store)
    loop = Trainer(config, state, target_device)
    for folder in (run.path, run.checkpoints, run.report):
        remove_leftovers(folder)
    truncate_log(run.log_file, state.step)
    with replacing(run.config_file) as temporary:
        temporary.write_text(to_toml(config), encoding="utf-8")
    _write_status(run, "running", state)
    with RunLog(run.log_file) as log:
        while loop.step < config.train.steps and not stop.is_set():
            log.write(loop.train_step(slices))
            last = loop.step == config.train.steps
            if loop.step % config.train.validate_every == 0 or last:
                dice = loop.validate(fixed)
                log.write({"step": loop.step, "val_dice": dice})
                # While nothing is found yet, later weights are better than earlier ones.
                if dice >= loop.best.get("val_dice", 0.0):
                    loop.best = {"step": loop.step, "val_dice": dice}
                    loop.checkpoint(state.data, resumable=False).save(run.best)
                _draw_curve(run)
            if loop.step % config.train.checkpoint_every == 0 or last:
                log.sync()
                keep(run, loop.checkpoint(state.data, resumable=True))
                _write_status(run, "running", loop)
            progress(loop.step, config.train.steps, loop.summary())
        if stop.is_set() and run.last != run.step_file(loop.step):
            log.sync()
            keep(run, loop.checkpoint(state.data, resumable=True))
    finished = "finished" if loop.step >= config.train.steps else "stopped"
    _write_status(run, finished, loop)
    seconds = time.monotonic() - started
    return TrainReport(
        run=run.path,
        step=loop.step,
        begun=state.step,
        seconds=seconds,
        best=loop.best,
        state=finished,
        origin=state.origin,
        warnings=warnings,
    )


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


def _resume(
    config: RunConfig, manifest: Manifest, run: RunDir
) -> tuple[Checkpoint | None, tuple[Finding, ...]]:
    """The checkpoint to go on from, if there is one, and what was wrong with newer ones."""
    found = newest_whole(run)
    if found is None:
        return None, ()
    checkpoint = found.checkpoint
    before = from_dict(checkpoint.config, RunConfig(), source=str(found.path))
    data = manifest.inference_settings()
    changed = [key for key in differing_keys(before, config) if key not in MAY_CHANGE]
    changed += [
        f"{key} of the prepared data"
        for key in sorted(checkpoint.data.keys() | data.keys())
        if checkpoint.data.get(key) != data.get(key)
    ]
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
    kept = set_aside(run, found.damaged)
    if kept is None:
        return checkpoint, ()
    names = ", ".join(path.name for path in found.damaged)
    damage = Finding(
        code="checkpoint-damaged",
        level=WARNING,
        case=run.path.name,
        measured=f"{names} damaged, kept as {kept.name}; going on from step {checkpoint.step}",
        fix="Nothing is lost but time; check the disk.",
    )
    return checkpoint, (damage,)


def _write_status(run: RunDir, state: str, at: Trainer | Checkpoint) -> None:
    with replacing(run.status_file) as temporary:
        values = {"state": state, "step": at.step, "best": at.best}
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _draw_curve(run: RunDir) -> None:
    from sdseg_cli.report.pictures import training_curve

    lines = run.log_file.read_text(encoding="utf-8").splitlines()
    training_curve([json.loads(line) for line in lines], run.curve)
