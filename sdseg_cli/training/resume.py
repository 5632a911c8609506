"""Which checkpoints a run keeps, and which one it goes on from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sdseg_cli.errors import RunError, WeightsError
from sdseg_cli.training.checkpoint import Checkpoint, DamagedError, hash_file
from sdseg_cli.training.run_folder import RunDir

KEPT = 2


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
