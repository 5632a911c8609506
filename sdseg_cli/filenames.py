"""What files of scans, masks and pictures are called, and DICOM's mark. Standard library only."""

from __future__ import annotations

import os
import re
from pathlib import Path

NIFTI_SUFFIXES = (".nii", ".nii.gz")
METAIMAGE_SUFFIXES = (".nrrd", ".mha", ".mhd")
VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, *METAIMAGE_SUFFIXES)
JPEG_SUFFIXES = (".jpg", ".jpeg")
PICTURE_SUFFIXES = (".png", *JPEG_SUFFIXES, ".tif", ".tiff", ".bmp")
PACKAGE_FILE = "sdseg.json"
"""What an inference package says of itself."""
LEDGER_FOLDER = ".ledger"
"""In a folder of masks of many scans: what was done to each of them."""
DICOM_SUFFIX = ".dcm"
ZIP_SUFFIX = ".zip"


def is_there(path: Path) -> bool:
    """Whether something lies there; not under a name that the system takes none of."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a NUL
        return False


def is_folder(path: Path) -> bool:
    """Whether a folder lies there; not under a name that the system takes none of."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def real_path(path: Path) -> Path:
    """A path without links; as it is where they lead in circles or it is no name."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError):
        return path.absolute()


def as_text(path: Path | str) -> str:
    r"""A path as UTF-8 and JSON can hold it; `as_path` gives the very path again.

    A name need not be UTF-8: its other bytes become `\xNN`. So that such a mark always stands for
    a byte, the backslash of a name that itself holds one becomes `\x5c`.
    """
    marked = re.sub(r"\\(?=x[0-9a-f]{2})", r"\\x5c", os.fspath(path))
    return storable(marked)


def as_path(text: str) -> Path:
    """The path that `as_text` wrote."""
    parts = re.split(r"\\x([0-9a-f]{2})", text)
    data = [bytes.fromhex(part) if k % 2 else os.fsencode(part) for k, part in enumerate(parts)]
    return Path(os.fsdecode(b"".join(data)))


def storable(text: str) -> str:
    r"""Text with what is no character, such as half of one, as `\xNN` or `\uNNNN`."""
    if text.isascii():
        return text
    byte = re.sub("[\udc80-\udcff]", lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", text)
    return byte.encode("utf-8", "backslashreplace").decode()


def suffix_of(path: Path) -> str | None:
    """The volume suffix a name ends in (".nii.gz", ".mha", ...), or None."""
    name = path.name.lower()
    return next((suffix for suffix in VOLUME_SUFFIXES if name.endswith(suffix)), None)


def is_picture(path: Path) -> bool:
    """Whether the name is that of a picture: PNG, JPEG, TIFF or BMP."""
    return path.name.lower().endswith(PICTURE_SUFFIXES)


def is_dicom_file(path: Path) -> bool:
    """Whether a file bears DICOM's mark, whatever it is called; False for what is no file."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def may_hold_dicom(path: Path) -> bool:
    """Whether a path is to be read as DICOM: a folder, a zip, or a file of a series."""
    return path.is_dir() or (
        suffix_of(path) is None and (path.suffix.lower() == ZIP_SUFFIX or is_dicom_file(path))
    )


def stem_of(path: Path) -> str:
    """The file's name without its suffix: "img0001.nii.gz" -> "img0001", "7.png" -> "7"."""
    suffix = path.suffix if is_picture(path) else suffix_of(path)
    return path.name[: -len(suffix)] if suffix else path.name


def safe_id(text: str) -> str:
    """Text as a case id that is one plain file name: "a b/c" -> "a_b_c"; may come out empty."""
    return re.sub(r"[^\w.-]+", "_", text).strip("._-")


def natural_key(text: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """A sorting key that puts "pt_2" before "pt_10" and ignores case first."""
    parts = (part for part in re.split(r"(\d+)", text) if part)
    # Python reads no number of thousands of digits.
    key = (
        (0, int(part), "") if part.isdecimal() and len(part) < 1000 else (1, 0, part.lower())
        for part in parts
    )
    return tuple(key), text
