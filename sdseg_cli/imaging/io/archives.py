"""Zip files from strangers: unpacked into a folder of our own, within limits, and gone afterwards.

Entries are stored under numbers: an entry's own name is checked, then forgotten (but for what kind
of file it says), so it can neither clash with another, nor leave the folder, nor carry a patient's
name into a message.
"""

from __future__ import annotations

import errno
import lzma
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

from sdseg_cli.core.errors import DataError, RunError
from sdseg_cli.core.filenames import DICOM_SUFFIX, DICOM_SUFFIXES, is_shown, may_be_called_slice

MAX_EXPANDED_BYTES = 8 << 30
"""What the entries of one archive may unpack to: a whole-body CT of 4000 slices twice over."""
MAX_ENTRIES = 100_000
"""How many entries one archive may have."""

_BLOCK_BYTES = 1 << 20
_OTHER = ".other"
_SHOWN = 80
"""So many letters of a name are shown."""
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    ValueError,
    OverflowError,
)


@contextmanager
def extracted(
    archive: Path, *, max_bytes: int = MAX_EXPANDED_BYTES, max_entries: int = MAX_ENTRIES
) -> Iterator[Path]:
    """Unpack a zip file for as long as the block runs.

    Args:
        archive: The zip file.
        max_bytes: Most that is unpacked, whatever the header claims.
        max_entries: Most entries.

    Yields:
        A folder that only this user can enter, with the files 1, 2.dcm, ... in the archive's order,
        those called neither as DICOM nor without suffix as 3.other. Hidden ones, such as macOS's
        "__MACOSX/._name", are left out.

    Raises:
        DataError: Damaged, encrypted, too large, or an entry is a link, leaves the folder or has a
            name that is none.
        RunError: The temporary folder cannot be written to.
    """
    with tempfile.TemporaryDirectory(prefix="sdseg-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        try:
            with zipfile.ZipFile(archive) as opened:
                entries = opened.infolist()
                _check(archive, entries, max_bytes, max_entries)
                _unpack(archive, opened, folder, max_bytes)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{archive}: an entry's name is not UTF-8, though it claims to be: "
                f"{ascii(error.object)[2:-1][:_SHOWN]}.",
                "Pack the files again, with names of plain letters.",
            ) from error
        except _DAMAGED as error:
            raise _damaged(archive) from error
        except OSError as error:
            if error.errno in (None, errno.EINVAL):  # damaged bz2 data; an offset out of the file
                raise _damaged(archive) from error
            raise RunError(
                f"{archive}: cannot be unpacked ({error.strerror}).",
                "It is unpacked to the temporary folder: check its space, or set TMPDIR.",
            ) from error
        yield folder


def _check(archive: Path, entries: list[zipfile.ZipInfo], max_bytes: int, max_entries: int) -> None:
    """Refuse what the directory alone gives away, before anything is written."""
    if len(entries) > max_entries:
        raise DataError(
            f"{archive}: has {len(entries):,} entries; {max_entries:,} are allowed.",
            "Pack one patient's scan alone.",
        )
    if sum(entry.file_size for entry in entries) > max_bytes:
        raise _too_large(archive, max_bytes)
    for number, entry in enumerate(entries, start=1):
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if not entry.filename:
            fault = "has no name"
        elif _leaves_the_folder(entry.filename):
            fault = "would be written outside the folder it is unpacked to"
        elif _is_hidden(entry.filename):
            continue
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            fault = "is a link or a device, not a file"
        elif entry.flag_bits & 0x1:
            fault = "is encrypted"
        else:
            continue
        raise DataError(
            f"{archive}: entry {number} {fault}.", "Pack the plain files of the scan again."
        )


def _leaves_the_folder(name: str) -> bool:
    return any(
        path.anchor or ".." in path.parts for path in (PurePosixPath(name), PureWindowsPath(name))
    )


def _is_hidden(name: str) -> bool:
    """True if a file, or a folder above it, is hidden, or is one of macOS's twins."""
    return not all(map(is_shown, PurePosixPath(name.replace("\\", "/")).parts))


def _kind(name: str) -> str:
    """Kind of a name: that of a DICOM file, of one that may be, or of neither."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.suffix.lower() in DICOM_SUFFIXES:
        return DICOM_SUFFIX
    return "" if may_be_called_slice(path) else _OTHER


def _unpack(archive: Path, opened: zipfile.ZipFile, folder: Path, max_bytes: int) -> None:
    left = max_bytes
    for number, entry in enumerate(opened.infolist(), start=1):
        if entry.is_dir() or _is_hidden(entry.filename):
            continue
        path = folder / f"{number}{_kind(entry.filename)}"
        with opened.open(entry) as packed, path.open("wb") as file:
            while block := packed.read(_BLOCK_BYTES):
                left -= len(block)
                if left < 0:  # the directory had promised less
                    raise _too_large(archive, max_bytes)
                file.write(block)


def _too_large(archive: Path, max_bytes: int) -> DataError:
    return DataError(
        f"{archive}: unpacks to more than {max_bytes / (1 << 30):.3g} GiB.",
        "Unpack it yourself if you trust it, and give the folder.",
    )


def _damaged(archive: Path) -> DataError:
    return DataError(
        f"{archive}: not a zip file, or a damaged one.", "Copy or pack it again; give a zip file."
    )
