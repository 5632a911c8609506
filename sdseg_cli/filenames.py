"""What files of scans, masks and pictures are called, how names are shown, and DICOM's mark.

Standard library only.
"""

from __future__ import annotations

import re
import unicodedata
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


def printable(text: str, keep: str = "") -> str:
    r"""Text of a name or a header as it can be shown: what steers a terminal becomes visible.

    Control characters (C0, C1, DEL), those that turn the direction of writing or are not seen, and
    bytes of a name that is no UTF-8 become escapes: "a\x1b[31m". Letters of all scripts stay.

    Args:
        text: Any.
        keep: Characters that stay as they are, such as a newline.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(one if one in keep or one.isprintable() else _escape(one) for one in text)


def _escape(one: str) -> str:
    if one in "\u200c\u200d" or unicodedata.category(one) == "Zs":
        return one  # joiners, without which some scripts and emoji fall apart, and wide spaces
    code = ord(one)
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return one.encode("unicode_escape").decode("ascii")


def natural_key(text: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """A sorting key that puts "pt_2" before "pt_10" and ignores case first."""
    parts = (part for part in re.split(r"(\d+)", text) if part)
    key = ((0, int(part), "") if part.isdecimal() else (1, 0, part.lower()) for part in parts)
    return tuple(key), text
