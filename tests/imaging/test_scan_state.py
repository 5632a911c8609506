from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from sdseg_cli.imaging.scan_state import size_and_time
from tests import dicom_files


def test_the_state_of_a_dicom_series_is_that_of_all_its_files(tmp_path: Path) -> None:
    folder = dicom_files.write_series(tmp_path / "ct")
    (tmp_path / "plain.nii").write_bytes(b"12345")
    assert size_and_time(tmp_path / "plain.nii")[0] == 5
    before = size_and_time(folder), size_and_time(folder / "IM0")
    assert before[0] == before[1]
    changed = folder / "IM3"
    os.utime(changed, ns=(0, changed.stat().st_mtime_ns + 1))
    assert size_and_time(folder) != before[0]
    assert size_and_time(folder / "IM0") != before[1]


@pytest.mark.parametrize("suffix", [".nii.gz", ".png"])
def test_what_is_written_below_a_dicom_folder_does_not_change_the_series(
    tmp_path: Path, suffix: str
) -> None:
    folder = dicom_files.write_series(tmp_path / "ct")
    before = size_and_time(folder), size_and_time(folder / "IM0")
    (folder / "out" / ".ledger").mkdir(parents=True)
    for name in (f"ct{suffix}", f".7.part.ct{suffix}", "ledger.csv", ".7.part.ledger.csv"):
        (folder / name).write_text("new")
        (folder / "out" / name).write_text("new")
    for name in ("in-use.lock", "0a.json"):
        (folder / "out" / ".ledger" / name).write_text("new")
    assert (size_and_time(folder), size_and_time(folder / "IM0")) == before
    (folder / "out" / "IM9").write_text("new")
    assert size_and_time(folder)[0] == before[0][0] + 3


@pytest.mark.parametrize("header", ["a.mhd", "a.nrrd"])
def test_voxels_that_changed_beside_their_header_are_seen(tmp_path: Path, header: str) -> None:
    texts = {
        "a.mhd": "ObjectType = Image\nNDims = 3\nElementDataFile = a.raw\n",
        "a.nrrd": "NRRD0004\ndimension: 3\ndata file: a.raw\n\n",
    }
    path, voxels = tmp_path / header, tmp_path / "a.raw"
    path.write_text(texts[header])
    alone = size_and_time(path)
    assert alone[0] == len(texts[header]), "without voxels the header counts"
    voxels.write_bytes(b"1234")
    before = size_and_time(path)
    assert before[0] == alone[0] + 4
    os.utime(voxels, ns=(0, voxels.stat().st_mtime_ns + 1))
    assert size_and_time(path) == (before[0], before[1] + 1)


def test_a_file_that_holds_its_voxels_itself_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "a.mha"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.zeros((2, 3, 4), np.int16)), path)
    assert size_and_time(path) == (path.stat().st_size, path.stat().st_mtime_ns)
