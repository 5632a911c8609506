"""Results that wait on disk until all of them are there."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sdseg_cli.core.errors import RunError


class DiskBuffer:
    """Arrays of one shape and type in a file without a name.

    Five runs of a scan of 600 slices are 790 MB; what is compared at a time is a few slices of
    each. The file is not in the system's folder for temporary files, which is often kept in memory,
    and it has no name, so that a killed process leaves nothing behind. It is written with `write`:
    running out of disk in a memory map kills the process.

    Args:
        folder: On the disk to use.
        dtype: Of the arrays.
    """

    def __init__(self, folder: Path, dtype: DTypeLike = np.float32) -> None:
        self.folder, self.count, self._dtype = folder, 0, np.dtype(dtype)
        self._shape: tuple[int, ...] = ()
        try:
            self._file = TemporaryFile(dir=folder)  # noqa: SIM115  closed by __exit__
        except OSError as error:
            raise self._refused(error) from error

    def __enter__(self) -> DiskBuffer:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, array: NDArray[Any]) -> None:
        """Append an array.

        Raises:
            RunError: The disk refused.
        """
        if self._shape not in ((), array.shape):
            raise ValueError(f"{array.shape} after {self._shape}")
        self._shape = array.shape
        try:
            self._file.write(np.ascontiguousarray(array, self._dtype).data.cast("B"))
            self._file.flush()
        except OSError as error:
            raise self._refused(error) from error
        self.count += 1

    def part(self, start: int, stop: int) -> NDArray[Any]:
        """(count, stop - start, ...): these rows of every array, read into memory."""
        mapped = np.memmap(self._file, self._dtype, "r", shape=(self.count, *self._shape))
        return np.array(mapped[:, start:stop])

    def _refused(self, error: OSError) -> RunError:
        return RunError(
            f"{self.folder}: the runs of a case cannot wait there ({error.strerror or error}).",
            "Check the folder's permissions and the space left on the disk.",
        )
