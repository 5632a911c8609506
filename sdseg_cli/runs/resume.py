"""Which checkpoints a run keeps, and which one it goes on from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdseg_cli.core.config import RunConfig
from sdseg_cli.core.config_file import differing_keys, from_dict
from sdseg_cli.core.errors import ConfigError, RunError, WeightsError
from sdseg_cli.runs.checkpoint import Checkpoint, DamagedError, hash_file
from sdseg_cli.runs.run_folder import RunDir

KEPT = 2
NOTHING_YET = re.compile(r"\.lock|latents|\..*\.part\..*")
"""What a process may leave that was ended before its run began."""
MAY_CHANGE = ("train.steps", "train.accumulate", "train.patience")
"""Settings in which the command that resumes may differ; fewer steps than were done are refused."""


@dataclass(frozen=True)
class Resumed:
    """Where a run goes on, and what was wrong on the way there."""

    checkpoint: Checkpoint
    path: Path
    damaged: tuple[Path, ...]
    """Newer ones that are not as they were written, under their old names, newest first."""


def keep(run: RunDir, checkpoint: Checkpoint) -> None:
    """Save the newest checkpoint of a run; once it is whole, all but the last two go.

    Raises:
        RunError: The disk refused; the checkpoints before are still there.
    """
    checkpoint.save(run.step_file(checkpoint.step))
    try:
        for old in run.step_files()[KEPT:]:
            # The file first: a hash without a file is nothing, a file without a hash is unproved.
            old.unlink()
            hash_file(old).unlink(missing_ok=True)
    except OSError as error:
        raise _refused(run, error) from error


def newest_whole(run: RunDir) -> Resumed | None:
    """The checkpoint to go on from: the newest that is as it was written.

    Nothing is changed on disk: see `set_aside`.

    Returns:
        None where no checkpoint was saved yet.

    Raises:
        WeightsError: None is whole, or they are of another format.
    """
    damaged: list[Path] = []
    for path in run.step_files():
        try:
            return Resumed(Checkpoint.load(path), path, tuple(damaged))
        except DamagedError:
            damaged.append(path)
    if damaged:
        names = ", ".join(path.name for path in damaged)
        raise WeightsError(
            f"{run.checkpoints}: no checkpoint to go on from is whole ({names}).",
            "Copy one back if you have a copy; else delete the run folder, and the same command "
            "begins anew.",
        )
    return None


def refuse_foreign(run: RunDir) -> None:
    """Refuse a folder in which a new run would replace files of others; nothing is written.

    A run that was interrupted before its first checkpoint left a `status.json`, and settings that
    can be read.

    Raises:
        ConfigError: The folder is not empty and holds no run.
    """
    try:
        names = [path.name for path in run.path.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return  # new, or refused when the lock is made
    except OSError as error:
        raise ConfigError(
            f"{run.path}: cannot be read ({error.strerror}).", "Give --run a new folder."
        ) from error
    empty = all(NOTHING_YET.fullmatch(name) for name in names)
    if not (empty or run.step_files() or _is_begun(run)):
        raise ConfigError(f"{run.path} is not empty and holds no run.", "Give --run a new folder.")


def _is_begun(run: RunDir) -> bool:
    """Whether `status.json` is a run's, and so are its settings, where there are any yet."""
    if not run.status().keys() >= {"state", "step", "best"}:
        return False
    try:
        if run.config_file.exists():
            run.config()
    except ConfigError:
        return False
    return True


def resumed(config: RunConfig, data: dict[str, Any], run: RunDir) -> Resumed | None:
    """What a command goes on from, if its run was begun before.

    Args:
        config: The settings of the command.
        data: `Manifest.inference_settings` of the prepared set as it is now.
        run: The folder; nothing in it is changed.

    Raises:
        ConfigError: The run was begun with other settings or other data, or is past the last step.
        WeightsError: No checkpoint is whole.
    """
    found = newest_whole(run)
    if found is None:
        return None
    checkpoint = found.checkpoint
    before = from_dict(checkpoint.config, RunConfig(), source=str(found.path))
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
    return found


def set_aside(run: RunDir, damaged: tuple[Path, ...]) -> Path | None:
    """Rename damaged checkpoints to `*.damaged` and keep one, the newest.

    Returns:
        The one that is kept, if there is any.

    Raises:
        RunError: The disk refused.
    """
    if not damaged:
        return None
    kept = damaged[0].with_name(f"{damaged[0].name}.damaged")
    try:
        for old in run.checkpoints.glob("*.damaged"):
            old.unlink()
        damaged[0].replace(kept)
        for path in damaged:
            path.unlink(missing_ok=True)
            hash_file(path).unlink(missing_ok=True)
    except OSError as error:
        raise _refused(run, error) from error
    return kept


def _refused(run: RunDir, error: OSError) -> RunError:
    return RunError(
        f"{run.checkpoints}: cannot be written ({error.strerror or error}).",
        "Check the folder's permissions and the space left on the disk.",
    )
