"""Names of scans, masks and pictures, how they are shown, and the files in a folder. Standard
library only.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath, PurePosixPath

from sdseg_cli.core.errors import DataError

NIFTI_SUFFIXES = (".nii", ".nii.gz")
METAIMAGE_SUFFIXES = (".nrrd", ".mha", ".mhd")
VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, *METAIMAGE_SUFFIXES)
JPEG_SUFFIXES = (".jpg", ".jpeg")
PICTURE_SUFFIXES = (".png", *JPEG_SUFFIXES, ".tif", ".tiff", ".bmp")
PACKAGE_FILE = "sdseg.json"
"""The description of an inference package."""
LEDGER_FOLDER = ".ledger"
"""In a folder of masks of many scans: what was done to each of them."""
LABEL_STEM = re.compile(r"(^|.*[_\-. ])(labels?|masks?|seg|segmentation|annotation)", re.IGNORECASE)
"""Label maps are named so: "label", "ct_seg"."""
DICOM_SUFFIX = ".dcm"
DICOM_SUFFIXES = (DICOM_SUFFIX, ".dicom", ".ima")
ZIP_SUFFIX = ".zip"


def is_there(path: Path) -> bool:
    """True if the path exists; a name that the system refuses does not."""
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a NUL
        return False


def is_folder(path: Path) -> bool:
    """True if the path is a folder; a name that the system refuses is none."""
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
    r"""Text that UTF-8 can hold: stray bytes and half characters become `\xNN` or `\uNNNN`."""
    if text.isascii():
        return text
    byte = re.sub("[\udc80-\udcff]", lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", text)
    return byte.encode("utf-8", "backslashreplace").decode()


MAC_FOLDER = "__MACOSX"
"""In zips packed by macOS: a file "._name" for each file, without its content."""
_NO_SLICE = re.compile(
    r"(authors|changelog|changes|checksums?|copying|dicomdir|done|icon\r?|index|info|license|licence"
    r"|lockfile|makefile|manifest|md5sums?|notes?|notice|readme|sha\d*sums?|_success|todo|version)\b",
    re.IGNORECASE,
)
"""Files without suffix found beside scans, some of them empty: macOS's Icon, markers, texts."""


def walked(
    root: Path, enter: Callable[[Path], bool] | None = None
) -> Iterator[tuple[Path, list[Path]]]:
    """Each folder at or below a root, with its files: how all folders are searched.

    Links are followed. A folder is searched once, under its own name where that is below the root,
    else by the first link to it; a link to a folder above itself is not followed. Hidden folders
    and files are left out.

    Args:
        root: Where to begin; it may be hidden, or a link.
        enter: Decides if a folder below the root is searched; default: all are.

    Yields:
        A folder and its files, naturally sorted. Dangling links are among the files, so that a lost
        scan is not passed over in silence.

    Raises:
        DataError: A folder cannot be searched.
    """
    seen: set[Path] = set()
    links: deque[Path] = deque()
    waiting = [root]
    while waiting or links:
        folder = waiting.pop() if waiting else links.popleft()
        real = real_path(folder)
        if real in seen or (folder != root and enter is not None and not enter(folder)):
            continue
        seen.add(real)
        folders, files = listed(folder)
        yield folder, files
        # Links wait until all other folders are searched, which have the better names.
        links.extend(one for one in folders if one.is_symlink() and not _leads_up(one, real))
        waiting.extend(one for one in reversed(folders) if not one.is_symlink())


def listed(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders and the files directly in a folder, naturally sorted, without hidden ones.

    Links are followed; a dangling link is a file.

    Raises:
        DataError: The folder cannot be searched.
    """
    try:
        with os.scandir(folder) as entries:
            is_folder = {one.name: _is_folder(one) for one in entries if is_shown(one.name)}
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be searched ({error.strerror or error}).",
            "Check that it is there and its permissions; what is in it would be missed.",
        ) from error
    names = sorted(is_folder, key=natural_key)
    folders = [folder / name for name in names if is_folder[name]]
    return folders, [folder / name for name in names if not is_folder[name]]


def matching(root: Path, pattern: str) -> list[Path]:
    """The files below a folder that a pattern matches, relative to it, in natural order.

    Folders are searched as by `walked`, from the pattern's first wildcard on. Wildcards are those
    of a shell: `*`, `?` and `[...]` match parts of one name, `**/` any folders.
    """
    parts = PurePosixPath(pattern).parts
    fixed = next((n for n, part in enumerate(parts) if re.search(r"[*?\[]", part)), len(parts) - 1)
    base, depth = root.joinpath(*parts[:fixed]), len(parts) - fixed
    if not base.is_dir():
        return []
    if fixed == len(parts) - 1 and (base / parts[-1]).is_file():
        return [Path(*parts)]
    expression = glob_expression("/".join(parts[fixed:]))
    flat = not any("**" in part for part in parts)
    found = []
    for _, files in walked(
        base, (lambda folder: len(folder.relative_to(base).parts) < depth) if flat else None
    ):
        below = (file.relative_to(base).as_posix() for file in files)
        found += [name for name in below if expression.fullmatch(name)]
    prefix = Path(*parts[:fixed])
    return [prefix / name for name in sorted(found, key=natural_key)]


def glob_expression(pattern: str) -> re.Pattern[str]:
    """A pattern of `matching` as a regular expression: a group for each row of wildcards."""
    wildcards = re.compile(r"\*\*/|\*+|\?|\[[^\]]+\]")
    expression, end = "", 0
    for wildcard in wildcards.finditer(pattern):
        text, between = wildcard.group(), pattern[end : wildcard.start()]
        expression += re.escape(between)
        if text == "**/":
            expression += "(?:(.*)/)?"
        else:
            one = {"?": "[^/]", "*": "[^/]*"}.get(text[0]) or text.replace("[!", "[^")
            beside = not between and expression.endswith(")")
            expression = f"{expression[:-1]}{one})" if beside else f"{expression}({one})"
        end = wildcard.end()
    return re.compile(expression + re.escape(pattern[end:]))


def may_be_called_slice(path: PurePath) -> bool:
    """True if a DICOM slice may have this name: .dcm, .ima, a number or nothing at the end.

    "IM5", "1.2.840.113619.2" and "scan.0007" may; "README", "DICOMDIR" and "plan.xml" may not.
    """
    suffix = path.suffix.lower()
    if suffix in DICOM_SUFFIXES:
        return True
    plain = not suffix or suffix[1:].isdecimal()
    return plain and not _NO_SLICE.match(path.name)


def name_pattern(path: Path) -> str:
    """A name with `#` for numbers: the same for all slices of a series."""
    return re.sub(r"\d+", "#", path.name.lower())


def leads_nowhere(path: Path) -> bool:
    """True if a path is a dangling link or leads in a circle."""
    return path.is_symlink() and not path.exists()


def require_there(path: Path, hint: str) -> None:
    """Refuse a path that is not there.

    Raises:
        DataError: With the hint; or it is a link that leads nowhere.
    """
    if leads_nowhere(path):
        raise DataError(
            f"{path}: a link to {path.readlink()}, which is not there.",
            "Fetch or mount what it leads to, or take the link away.",
            "missing",
        )
    if not path.exists():
        raise DataError(f"{path} does not exist.", hint, "missing")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    # Of a link that leads to itself, an entry cannot say what it is.
    return Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir()


def is_shown(name: str) -> bool:
    """True if a file or folder is neither hidden nor one of macOS's extra files."""
    return not name.startswith(".") and name != MAC_FOLDER


def _leads_up(link: Path, real: Path) -> bool:
    """True if a link leads to the folder it is in, whose real path is given, or above it."""
    target = real_path(link)
    return target == real or target in real.parents


def suffix_of(path: Path) -> str | None:
    """The volume suffix a name ends in (".nii.gz", ".mha", ...), or None."""
    name = path.name.lower()
    return next((suffix for suffix in VOLUME_SUFFIXES if name.endswith(suffix)), None)


def is_picture(path: Path) -> bool:
    """True if the name is that of a picture: PNG, JPEG, TIFF or BMP."""
    return path.name.lower().endswith(PICTURE_SUFFIXES)


def is_dicom_file(path: Path) -> bool:
    """True if it is a file with DICOM's mark, whatever its name."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def may_hold_dicom(path: Path) -> bool:
    """True if a path is to be read as DICOM: a folder, a zip, or a file of a series."""
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
    r"""Text of a name or a header, safe to show: characters that steer a terminal become visible.

    Control characters (C0, C1, DEL), invisible ones, those that turn the direction of writing, and
    bytes that are not UTF-8 become escapes: "a\x1b[31m". Letters of all scripts, and the characters
    in `keep`, stay.
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
    # Python reads no number of thousands of digits.
    key = (
        (0, int(part), "") if part.isdecimal() and len(part) < 1000 else (1, 0, part.lower())
        for part in parts
    )
    return tuple(key), text
