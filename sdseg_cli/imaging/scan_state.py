"""What changes when a scan does: by it, what was made from the scan is known to hold still."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sdseg_cli.core.errors import DataError
from sdseg_cli.core.filenames import (
    METAIMAGE_SUFFIXES,
    is_dicom_file,
    is_picture,
    listed,
    suffix_of,
    walked,
)
from sdseg_cli.imaging.io.metaimage import voxel_file


def size_and_time(path: Path) -> tuple[int, int]:
    """Bytes and time of change, ns, of all that a scan is read from.

    Of a DICOM series that is every file, and of a header the file of its voxels too.

    Raises:
        OSError: It is gone, or a folder of it cannot be searched.
    """
    try:
        states = [file.stat() for file in _files(path)]
    except DataError as error:
        raise OSError(error.message) from error
    return sum(state.st_size for state in states), sum(state.st_mtime_ns for state in states)


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        every = (file for _, files in walked(path) for file in files)
        yield from filter(_may_be_of_series, every)
    elif suffix_of(path) is None and not is_picture(path) and is_dicom_file(path):
        yield from filter(_may_be_of_series, listed(path.parent)[1])
    else:
        yield path
        if suffix_of(path) in METAIMAGE_SUFFIXES and path.is_file():  # a pipe would be waited for
            yield from _voxels_elsewhere(path)


def _may_be_of_series(file: Path) -> bool:
    """Not what `predict` itself writes: masks and a ledger may lie below the series' folder."""
    if suffix_of(file) or is_picture(file) or file.name.endswith("ledger.csv"):
        return False
    return file.is_file()


def _voxels_elsewhere(header: Path) -> Iterator[Path]:
    try:
        file = voxel_file(header)
    except DataError:  # reading the scan will say what is wrong with it
        return
    if file != header:
        yield file
