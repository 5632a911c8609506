"""What changes when a scan does: by it, what was made from the scan is known to hold still."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sdseg_cli.errors import DataError
from sdseg_cli.filenames import (
    LEDGER_FOLDER,
    METAIMAGE_SUFFIXES,
    is_dicom_file,
    is_picture,
    suffix_of,
)
from sdseg_cli.imaging.metaimage import voxel_file


def size_and_time(path: Path) -> tuple[int, int]:
    """Bytes and time of change, ns, of all that a scan is read from.

    Of a DICOM series that is every file, and of a header the file of its voxels too.

    Raises:
        OSError: It is gone.
    """
    states = [file.stat() for file in _files(path)]
    return sum(state.st_size for state in states), sum(state.st_mtime_ns for state in states)


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (file for file in path.rglob("*") if _may_be_of_series(file, path))
    elif suffix_of(path) is None and not is_picture(path) and is_dicom_file(path):
        yield from (file for file in path.parent.iterdir() if _may_be_of_series(file, path.parent))
    else:
        yield path
        if suffix_of(path) in METAIMAGE_SUFFIXES:
            yield from _voxels_elsewhere(path)


def _may_be_of_series(file: Path, folder: Path) -> bool:
    """Not what `predict` itself writes: masks and a ledger may lie below the series' folder."""
    if suffix_of(file) or is_picture(file) or file.name.endswith("ledger.csv"):
        return False
    return LEDGER_FOLDER not in file.relative_to(folder).parts and file.is_file()


def _voxels_elsewhere(header: Path) -> Iterator[Path]:
    try:
        file = voxel_file(header)
    except DataError:  # reading the scan will say what is wrong with it
        return
    if file != header:
        yield file
