"""`log.jsonl`: one line per optimiser step and one per validation, each written at once."""

from __future__ import annotations

import errno
import json
import os
from io import FileIO
from pathlib import Path
from types import TracebackType

from sdseg_cli.atomic import replacing
from sdseg_cli.errors import RunError


class RunLog:
    """The log, open to be added to; close it by leaving its `with` block.

    Raises:
        RunError: The disk refused.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            # A buffer would try a full disk again when it closes.
            self._file: FileIO = path.open("ab", buffering=0)
        except OSError as error:
            raise self._refused(error) from error

    def write(self, row: dict[str, float]) -> None:
        """Add a line.

        Raises:
            RunError: The disk refused.
        """
        line = json.dumps(row).encode() + b"\n"
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise self._refused(error) from error

    def sync(self) -> None:
        """Have the disk take it all: done before a checkpoint, which relies on these lines.

        Raises:
            RunError: The disk refused.
        """
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> RunError:
        return RunError(
            f"{self._path}: cannot be written ({error.strerror or error}).",
            "Check the folder's permissions and the space left on the disk, then run the same "
            "command again.",
        )

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def truncate_log(path: Path, step: int) -> None:
    """Drop the lines past `step`, so that after a resume every step stands once.

    Raises:
        RunError: A line before the last is no JSON.
    """
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = []
    for number, line in enumerate(lines):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines) - 1:  # the last line may be cut off by a kill
                raise RunError(
                    f"{path}: line {number + 1} is damaged.",
                    "Delete the run folder and train again.",
                ) from error
    with replacing(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
