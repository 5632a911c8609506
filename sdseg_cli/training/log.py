"""`log.jsonl`, and the same numbers for TensorBoard where they are asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from sdseg_cli.errors import ConfigError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TAGS = {
    "loss": "loss/total",
    "loss_noise": "loss/noise",
    "loss_latent": "loss/latent",
    "lr": "learning rate",
    "val_dice": "validation Dice",
}
"""Key of a row -> its name in TensorBoard; other keys keep theirs."""


class RunLog:
    """Rows as they come, each at once on disk."""

    def __init__(self, file: TextIO, board: SummaryWriter | None = None) -> None:
        self._file, self._board = file, board

    def write(self, row: Mapping[str, float]) -> None:
        """One line: `step`, and what is known of it."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._board is None:
            return
        for key, value in row.items():
            if key != "step":
                self._board.add_scalar(TAGS.get(key, key), value, int(row["step"]))
        if "val_dice" in row:
            self._board.flush()  # in time with the pictures


@contextmanager
def open_log(path: Path, *, after: int, tensorboard: Path | None = None) -> Iterator[RunLog]:
    """Go on writing a run's log.

    Args:
        path: The `.jsonl` file, which holds no line past `after`; made if missing.
        after: The step the run goes on from. What TensorBoard has past it is forgotten.
        tensorboard: Folder of TensorBoard's files; None writes none.

    Raises:
        ConfigError: TensorBoard is not installed.
    """
    board = None if tensorboard is None else _board(tensorboard, after)
    try:
        with path.open("a", encoding="utf-8") as file:
            yield RunLog(file, board)
    finally:
        if board is not None:
            board.close()


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
