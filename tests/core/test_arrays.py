from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sdseg_cli.core.arrays import open_array
from sdseg_cli.core.errors import DataError


def test_an_array_is_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(6, dtype=np.uint8).reshape(2, 3))
    assert open_array(tmp_path / "a.npy").tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"(2, 3), }", b"(2, 3(, }"),  # parsed as Python: a token error
        (b"(2, 3), }", b"(2, 3), \n"),
        (b"(2, 3), }", b"(9, 9), }"),
        (b"(2, 3), }", b"(-2,3), }"),
        (b"'|u1'", b"'|O' "),
        (b"'|u1'", b"'|S1'"),
        (b"'|u1'", b"',,,,"),
        (b"NUMPY", b"numpy"),
    ],
)
def test_a_damaged_header_is_one_error(tmp_path: Path, old: bytes, new: bytes) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3), np.uint8))
    data = (tmp_path / "a.npy").read_bytes()
    assert old in data
    (tmp_path / "a.npy").write_bytes(data.replace(old, new))
    with pytest.raises(DataError, match=r"a\.npy: (missing or )?damaged") as caught:
        open_array(tmp_path / "a.npy")
    assert "sdseg prepare" in caught.value.hint


def test_an_archive_called_npy_is_no_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    with pytest.raises(DataError, match="no array of numbers"):
        open_array(tmp_path / "a.npy")
