"""A run on disk: its files, and how it is found.

RunDir/
  config.toml        every setting
  log.jsonl          one line per optimiser step, and one per validation
  status.json        state (running, stopped, finished, failed), step, best
  checkpoints/       step-N.pt (everything, to resume; the last two), best.pt (what prediction
                     needs), each with its .sha256
  predictions/  report/
  .lock              while a process trains here
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdseg_cli.core.config import RunConfig
from sdseg_cli.core.config_file import load_toml
from sdseg_cli.core.errors import ConfigError, DataError
from sdseg_cli.core.filenames import PACKAGE_FILE
from sdseg_cli.core.json_files import read_object
from sdseg_cli.core.locks import is_locked

STATES = ("running", "stopped", "finished", "failed")
STEP_FILE = re.compile(r"step-\d+\.pt")


@dataclass(frozen=True)
class RunDir:
    """Where a run keeps its files."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.toml"

    @property
    def log_file(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def status_file(self) -> Path:
        return self.path / "status.json"

    @property
    def lock_file(self) -> Path:
        return self.path / ".lock"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def step_file(self, step: int) -> Path:
        """The checkpoint of a step, from which training goes on."""
        return self.checkpoints / f"step-{step:08d}.pt"

    def step_files(self) -> list[Path]:
        """All checkpoints to go on from that are there, newest first."""
        found = [p for p in self.checkpoints.glob("step-*.pt") if STEP_FILE.fullmatch(p.name)]
        found.sort(key=lambda path: int(path.stem.removeprefix("step-")), reverse=True)
        before = self.checkpoints / "last.pt"  # of the format before, which kept one
        return [*found, *([before] if before.is_file() else [])]

    @property
    def last(self) -> Path:
        """The newest checkpoint to go on from; before there is one, that of step 0."""
        return next(iter(self.step_files()), self.step_file(0))

    @property
    def best(self) -> Path:
        return self.checkpoints / "best.pt"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions"

    @property
    def report(self) -> Path:
        return self.path / "report"

    @property
    def curve(self) -> Path:
        return self.report / "training.png"

    @property
    def validation_picture(self) -> Path:
        return self.report / "validation.png"

    @property
    def history(self) -> Path:
        return self.report / "validation.npz"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    def is_locked(self) -> bool:
        """Whether a living process trains here: a run whose status says "running" while this is
        False was interrupted.
        """
        return is_locked(self.lock_file)

    def config(self) -> RunConfig:
        """The settings this run was started with."""
        return load_toml(self.config_file, RunConfig())

    def status(self) -> dict[str, Any]:
        """`{"state": ..., "step": ..., "best": {...}}`, of these types where they are there; empty
        if the run has not saved yet, or the file is damaged.

        `best` is empty, or has `step` and a finite `val_dice`, as far as the file says them.
        """
        try:
            status = read_object(self.status_file)
        except DataError:
            return {}
        return status if _is_status(status) else {}

    @property
    def is_finished(self) -> bool:
        """Whether it was trained to its end."""
        return self.status().get("state") == "finished"

    def best_validation(self) -> tuple[float | None, int | None]:
        """Best validation Dice and its step; None where the status does not say."""
        best = self.status().get("best", {})
        dice = best.get("val_dice")
        known = dice is not None and 0 <= dice <= 1
        return float(dice) if known else None, best.get("step")


def _is_status(status: dict[str, Any]) -> bool:
    best = status.get("best", {})
    if status.get("state", STATES[0]) not in STATES or not isinstance(best, dict):
        return False
    if any(type(each.get("step", 0)) is not int for each in (status, best)):
        return False
    return all(type(best[key]) in (int, float) for key in best.keys() & {"val_dice", "threshold"})


def words_of(text: str) -> list[str]:
    """What `--run` is made of, where it may be a name: `WORD` or `DATASET/WORD`.

    Empty for `./x`, `../x`, `x/` and `/x`, which can only be paths. Needs the text as typed: a Path
    has lost that.
    """
    words = re.split(r"[/\\]", text)
    return [] if {"", ".", ".."} & set(words) else words


def find_run(workspace: Path, run: Path | str | None) -> RunDir:
    """The run asked for, or the newest finished one, or the newest stopped one.

    Args:
        workspace: Folder that holds `runs/`.
        run: A run folder, a path below `runs/`, or None; as text, `./x` is a path only.

    Raises:
        ConfigError: There is no such run, or none yet.
    """
    runs = workspace / "runs"
    if run is not None:
        return _named_run(workspace, run)
    if found := default_runs(workspace):
        return found[0]
    if begun := sorted(runs.glob("*/*/config.toml")):
        raise ConfigError(
            f"no run yet with a checkpoint to predict with; begun: {begun[0].parent}.",
            "Run the same `sdseg train` command again, to its first validation.",
        )
    raise ConfigError(
        f"no run yet in {runs.absolute()}.",
        "Train one (sdseg train --dataset NAME), or set SDSEG_HOME to your workspace.",
    )


def default_runs(workspace: Path) -> list[RunDir]:
    """The runs that can predict, first the one that is taken where none is named: finished ones
    before others, and of these the newest first.
    """
    best = (workspace / "runs").glob("*/*/checkpoints/best.pt")

    def rank(candidate: RunDir) -> tuple[bool, float, str]:
        try:
            written = candidate.best.stat().st_mtime
        except OSError:  # a training replaces it just now
            written = float("inf")
        return candidate.is_finished, written, str(candidate.path)

    return sorted((RunDir(path.parent.parent) for path in best), key=rank, reverse=True)


def run_folder(workspace: Path, run: Path | str) -> Path | None:
    """The run at a path, or of a name: at a path below `runs`, or a bare word in any set.

    Raises:
        ConfigError: Several runs have that name.
    """
    runs, words = workspace / "runs", words_of(str(run))
    places = [Path(run), *([runs / run] if words else [])]
    there = [path for path in places if RunDir(path).config_file.is_file()]
    if not there and len(words) == 1:
        there = sorted(p for p in runs.glob(f"*/{run}") if RunDir(p).config_file.is_file())
        if len(there) > 1:
            names = ", ".join(str(path.relative_to(runs)) for path in there)
            raise ConfigError(
                f"several runs are called {run}: {names}.", "Give --run one of these."
            )
    return there[0] if there else None


def _named_run(workspace: Path, run: Path | str) -> RunDir:
    found, runs = run_folder(workspace, run), workspace / "runs"
    if found is None:
        if (Path(run) / PACKAGE_FILE).is_file():
            raise ConfigError(f"{run}: a package, no run.", "Give it to predict with --model.")
        made = ", ".join(
            sorted(str(p.parent.relative_to(runs)) for p in runs.glob("*/*/config.toml"))
        )
        raise ConfigError(
            f"{run}: no run there.",
            f"Runs here: {made}." if made else "Give --run a folder that `sdseg train` made.",
        )
    if not RunDir(found).best.is_file():
        raise ConfigError(
            f"run {found} has no checkpoint to predict with yet.",
            "Let it reach its first validation, or run the same `sdseg train` command again.",
        )
    return RunDir(found)
