"""The runs of a workspace: how far each is, how good, and which of them `predict` would take."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sdseg_cli.core.config_file import read_toml
from sdseg_cli.core.errors import ConfigError, SdsegError
from sdseg_cli.runs.log import last_step
from sdseg_cli.runs.run_folder import RunDir, find_run


@dataclass(frozen=True)
class RunSummary:
    """One run; None where its files do not say."""

    path: Path
    dataset: str
    """Folder below `runs/`."""
    preset: str | None
    step: int | None
    """Of the last checkpoint; while it trains, of the last line in the log."""
    steps: int | None
    best_dice: float | None
    """Best validation Dice."""
    best_step: int | None
    state: str
    """"running", "interrupted" (killed: no one works on it), "stopped", "finished", "failed" or
    "damaged"."""
    bytes: int
    """On disk."""
    written: datetime
    """When training last wrote to it."""
    default: bool = False
    """Whether `predict` takes it where no run is named."""

    def to_json(self) -> dict[str, Any]:
        """An entry of `sdseg runs --json`."""
        return {
            "run": str(self.path),
            "dataset": self.dataset,
            "preset": self.preset,
            "step": self.step,
            "steps": self.steps,
            "best": {"step": self.best_step, "val_dice": self.best_dice},
            "state": self.state,
            "bytes": self.bytes,
            "written": self.written.isoformat(timespec="seconds"),
            "default": self.default,
        }


def list_runs(workspace: Path) -> list[RunSummary]:
    """Every run in `workspace/runs`, the newest first.

    A folder counts where it holds a file of settings or of state; what is damaged is listed as
    such, and anything else passed by.
    """
    folders = [path for path in (workspace / "runs").glob("*/*") if path.is_dir()]
    runs = [run for run in map(RunDir, folders) if _is_run(run)]
    chosen: Path | None = None
    with suppress(SdsegError, OSError):  # none can predict yet
        chosen = find_run(workspace, None).path
    found = [_listed(run, default=run.path == chosen) for run in runs]
    return sorted(found, key=lambda one: (one.written, str(one.path)), reverse=True)


def _is_run(run: RunDir) -> bool:
    try:
        return run.config_file.exists() or run.status_file.exists()
    except OSError:  # a folder that may not be read may well be one
        return True


def _listed(run: RunDir, *, default: bool) -> RunSummary:
    """What its files say; a run whose files may not even be looked at is "damaged" as well."""
    try:
        return _summary(run, default=default)
    except OSError:
        name, never = run.path.parent.name, datetime.fromtimestamp(0, UTC)
        return RunSummary(run.path, name, None, None, None, None, None, "damaged", 0, never)


def _summary(run: RunDir, *, default: bool) -> RunSummary:
    settings, status = _settings(run), run.status()
    best = status.get("best", {})
    train = settings.get("train")
    dice = best.get("val_dice")
    state = _state(run, settings, status)
    step = _count(status.get("step", None if state == "damaged" else 0))
    if state == "running" and (now := last_step(run.log_file)) is not None:
        step = now
    return RunSummary(
        path=run.path,
        dataset=run.path.parent.name,
        preset=preset if isinstance(preset := settings.get("preset"), str) else None,
        step=step,
        steps=_count(train.get("steps") if isinstance(train, dict) else None),
        best_dice=None if dice is None else float(dice),
        best_step=_count(best.get("step")),
        state=state,
        bytes=sum(_size(path) for path in run.path.rglob("*")),
        written=_written(run),
        default=default,
    )


def _state(run: RunDir, settings: dict[str, Any], status: dict[str, Any]) -> str:
    if not settings or (run.status_file.exists() and not status):
        return "damaged"
    said = str(status.get("state", "running"))
    if run.is_locked() and said != "finished":  # a finished one may be calibrating its decoder
        return "running"
    return "interrupted" if said == "running" else said


def _settings(run: RunDir) -> dict[str, Any]:
    """As the file has them, so that a run of another version is listed too; {} if unreadable."""
    try:
        return read_toml(run.config_file)
    except ConfigError:
        return {}


def _written(run: RunDir) -> datetime:
    """Evaluating a run does not make it newer."""
    times = []
    for path in (run.config_file, run.log_file, run.status_file, run.last, run.best):
        with suppress(OSError):  # not there, or replaced just now
            times.append(path.stat().st_mtime)
    return datetime.fromtimestamp(max(times, default=0.0), UTC)


def _size(path: Path) -> int:
    try:  # a running training replaces files meanwhile
        return path.lstat().st_size if path.is_file() else 0
    except OSError:
        return 0


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
