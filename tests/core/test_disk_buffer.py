from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from sdseg_cli.core.disk_buffer import DiskBuffer
from sdseg_cli.core.errors import RunError


def test_rows_of_every_array_come_back_in_order(tmp_path: Path) -> None:
    arrays = np.random.default_rng(0).random((3, 5, 4, 2)).astype(np.float32)
    with DiskBuffer(tmp_path) as kept:
        for array in arrays:
            kept.add(array)
        assert kept.count == 3
        assert np.array_equal(kept.part(1, 4), arrays[:, 1:4])
        assert list(tmp_path.iterdir()) == []  # a killed process leaves nothing


def test_whole_numbers_keep_their_type(tmp_path: Path) -> None:
    with DiskBuffer(tmp_path, np.uint64) as kept:
        kept.add(np.array([[2**63 + 1], [7]], np.uint64))  # no float holds the first
        part = kept.part(0, 2)
    assert (part.dtype, part[0, :, 0].tolist()) == (np.uint64, [2**63 + 1, 7])


def test_an_array_of_another_shape_is_a_programming_error(tmp_path: Path) -> None:
    with DiskBuffer(tmp_path) as kept:
        kept.add(np.zeros((2, 3), np.float32))
        with pytest.raises(ValueError, match="after"):
            kept.add(np.zeros((3, 2), np.float32))


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    class Full:
        def write(self, _: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None: ...

    with DiskBuffer(tmp_path) as kept:
        kept._file.close()
        kept._file = Full()
        with pytest.raises(RunError, match="No space left on device"):
            kept.add(np.zeros((2, 3), np.float32))


def test_a_folder_that_is_gone_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="cannot wait there"):
        DiskBuffer(tmp_path / "gone")
