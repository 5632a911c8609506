"""`log.jsonl`: one line per optimiser step and one per validation, each written at once; and the
same numbers for TensorBoard where they are asked for.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdseg_cli.core.errors import ConfigError, RunError
from sdseg_cli.core.files import replacing

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


TAGS = {
    "loss": "loss/total",
    "loss_noise": "loss/noise",
    "loss_latent": "loss/latent",
    "loss_mask": "loss/mask",
    "loss_dice": "loss/Dice",
    "loss_cross_entropy": "loss/cross-entropy",
    "lr": "learning rate",
    "val_dice": "validation Dice",
    "val_dice_union": "validation Dice of all classes as one",
    "threshold": "threshold",
}
"""Key of a row -> its name in TensorBoard; other keys keep theirs."""


PER_CLASS = "val_dice_classes"
"""Key of the object that holds the Dice of each class, by its name."""
MOST_STEPS = 2**63
LARGEST_VALUE = 1e300
TAIL_BYTES = 4096
"""Many lines of a log, each of which has its step."""


class RunLog:
    """The log, open to be added to.

    Args:
        path: The `.jsonl` file, which holds no line past `after`; made if missing.
        after: The step the run goes on from. What TensorBoard has past it is forgotten.
        tensorboard: Folder of TensorBoard's files; None writes none.

    Raises:
        RunError: The disk refused.
        ConfigError: TensorBoard is not installed.
    """

    def __init__(self, path: Path, *, after: int = 0, tensorboard: Path | None = None) -> None:
        self._path = path
        self._board = None if tensorboard is None else _board(tensorboard, after)
        try:
            # A buffer would try a full disk again when it closes.
            self._file: FileIO = path.open("ab", buffering=0)
        except OSError as error:
            raise self._refused(error) from error

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a line: `step`, and what is known of it.

        Raises:
            RunError: The disk refused.
        """
        line = json.dumps(row).encode() + b"\n"
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise self._refused(error) from error
        if self._board is not None:
            for key, value in numbers_of(row).items():
                if key == "step":
                    continue
                self._board.add_scalar(TAGS.get(key, key), value, int(row["step"]))
            if "val_dice" in row:
                self._board.flush()  # in time with the pictures

    def sync(self) -> None:
        """Have the disk take it all: done before a checkpoint, which relies on these lines.

        Raises:
            RunError: The disk refused.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._refused(error) from error

    def close(self) -> None:
        """Nothing is written afterwards."""
        self._file.close()
        if self._board is not None:
            self._board.close()

    def _refused(self, error: OSError) -> RunError:
        return RunError(
            f"{self._path}: cannot be written ({error.strerror or error}).",
            "Check the folder's permissions and the space left on the disk, then run the same "
            "command again.",
        )


def require_tensorboard() -> None:
    """Raise ConfigError where the package is missing: before a run is begun, not in its midst."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "--tensorboard needs TensorBoard, which is not installed.",
            "Run pip install 'sdseg-cli[tensorboard]', or leave --tensorboard away.",
        ) from error


def _board(folder: Path, after: int) -> SummaryWriter:
    require_tensorboard()
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=after + 1)


def last_step(path: Path) -> int | None:
    """The step of the last whole line, while another process writes; None where there is none."""
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return None
    steps = (_values_of(line).get("step") for line in reversed(lines))
    return next((step for step in steps if step is not None), None)


def read_log(path: Path) -> list[dict[str, float]]:
    """The lines that have a step, of each what is a finite number.

    Raises:
        OSError: It cannot be read.
    """
    rows = (_values_of(line) for line in path.read_bytes().splitlines())
    return [
        {key: of for key, of in numbers_of(row).items() if _is_number(of)} for row in rows if row
    ]


def numbers_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """A line, with the Dice of each class as `val_dice/NAME`, and without what is not known."""
    each = row.get(PER_CLASS)
    named = {f"val_dice/{name}": of for name, of in each.items()} if isinstance(each, dict) else {}
    flat = {**{key: of for key, of in row.items() if key != PER_CLASS}, **named}
    return {key: of for key, of in flat.items() if of is not None}


def _values_of(line: bytes) -> dict[str, Any]:
    """A line that has a step; {} where it is none of ours. A log may hold NaN beside it."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    step = values.get("step") if isinstance(values, dict) else None
    return values if type(step) is int and 0 <= step < MOST_STEPS else {}


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < LARGEST_VALUE  # so put, NaN is none


def truncate_log(path: Path, step: int) -> None:
    """Drop what is past `step`, so that after a resume every step stands once.

    A kill may cut off the last line, and a power cut damage what was written after the last
    checkpoint: all that goes too.

    Raises:
        RunError: It is damaged before `step`.
    """
    if not path.exists():
        return
    kept, reached = b"", 0
    for line in path.read_bytes().splitlines(keepends=True):
        at = _values_of(line).get("step")
        if at is None or at > step or not line.endswith(b"\n"):
            break
        kept, reached = kept + line, at
    if reached < step:
        raise RunError(
            f"{path}: damaged after step {reached}, before the checkpoint of step {step}.",
            "Copy it back if you have a copy; else delete the run folder and train again.",
        )
    with replacing(path) as temporary:
        temporary.write_bytes(kept)
