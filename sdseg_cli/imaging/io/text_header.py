"""Common parts of NRRD and MetaImage: a text header, and voxels read to their end.

Each format's rules are in a file of its own, and no other parser has a say: what a header holds
that is not understood is refused, so that no two readers can take it for different things.
"""

from __future__ import annotations

import bz2
import gzip
import math
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.errors import DataError
from sdseg_cli.imaging.io.header_checks import (
    BLOCK_BYTES,
    CUT_SHORT_HINT,
    read_array,
    require_held,
    skip,
)
from sdseg_cli.imaging.volume import Array

Three = tuple[float, float, float]

_PACKED_BYTES = 1 << 16
"""Read at once for unpacking, which copies what it leaves."""
_BZIP2_RATIO = 2_000_000
"""It unpacks 46 MB of one value from less than 40 bytes."""
_LINE_BYTES = 1 << 20
_HEADER_BYTES = 1 << 23
"""Segmentations of hundreds of structures have headers of half a megabyte."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_WHOLE = re.compile(r"[+-]?\d{1,18}", re.ASCII)
_MILLIMETRES = re.compile(r"mm|millimet(er|re)s?|\?+|none|", re.IGNORECASE)
_ONE_FILE = "Put header and voxels into one folder, or export one .nrrd or .mha file."


class HeaderError(Exception):
    """Why a header or its voxels cannot be read; completes "FILE: cannot be read (...)"."""

    def __init__(
        self,
        why: str,
        hint: str = "The file is damaged, or not what its name says; export it again.",
    ) -> None:
        super().__init__(why)
        self.hint = hint


@dataclass(frozen=True, eq=False)
class TextHeader:
    """A header of one 3D volume of numbers.

    Attributes:
        path: The header's file.
        shape: Number of voxels along each axis, the first fastest.
        dtype: As stored, with its byte order.
        spacing_mm: Of each axis, positive.
        directions: (3, 3) float64, LPS; column j is the direction of axis j.
        origin_mm: Centre of the first voxel, LPS.
        file: Where the voxels lie; `path` itself, or a file beside it.
        encoding: "raw", "zlib" (or gzip, which its first bytes say), "gzip", "bzip2" or "ascii".
        begin: Byte of the file at which lines to be skipped, packed or plain voxels begin.
        skip_lines: Lines to skip from there.
        skip_bytes: Then bytes to skip, once unpacked; -1 takes the file's last bytes.
        packed_bytes: Size of the packed voxels, where the header says it.
    """

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype[np.generic]
    spacing_mm: Three
    directions: NDArray[np.float64]
    origin_mm: Three
    file: Path
    encoding: str
    begin: int
    skip_lines: int = 0
    skip_bytes: int = 0
    packed_bytes: int | None = None

    @property
    def claimed_bytes(self) -> int:
        """Size of the voxels, unpacked."""
        return math.prod(self.shape) * self.dtype.itemsize


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong within the block into a DataError about the file."""
    try:
        yield
    except HeaderError as fault:
        raise DataError(f"{path}: cannot be read ({fault}).", fault.hint, "damaged") from fault
    except (EOFError, OSError, zlib.error, MemoryError) as error:
        words = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise DataError(
            f"{path}: cannot be read ({words or type(error).__name__}).",
            "It may be cut short or damaged: copy or export it again.",
            "damaged",
        ) from error


@dataclass
class Fields:
    """The fields of a header by their names.

    Attributes:
        begin: Byte of the file at which the header ends.
    """

    values: dict[str, str] = field(default_factory=dict)
    begin: int = 0

    def put(self, name: str, value: str) -> None:
        """Take in a field, which must not be there yet."""
        if name in self.values:
            raise HeaderError(f"its header says {name} twice")
        self.values[name] = value.strip(" \t")

    def text(self, name: str, otherwise: str | None = None) -> str:
        """A field's text; without another value for it, the field must be there."""
        found = self.values.get(name, otherwise)
        if found is None:
            raise HeaderError(f"its header has no {name}")
        return found


def header_lines(file: BinaryIO) -> Iterator[str]:
    """The header's lines without their ends; the file stands behind the line given last."""
    read = 0
    while line := file.readline(_LINE_BYTES):
        read += len(line)
        if read > _HEADER_BYTES or (len(line) == _LINE_BYTES and not line.endswith(b"\n")):
            raise HeaderError("its header has no end")
        yield line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8", "surrogateescape")


def quoted(text: str) -> str:
    """Text of a header, fit for a message: cut short, without control characters."""
    return repr(text.strip()[:60])


def numbers(name: str, text: str, count: int) -> tuple[float, ...]:
    """Exactly `count` numbers with spaces between them."""
    parts = text.split()
    if len(parts) != count or not all(_NUMBER.fullmatch(part) for part in parts):
        raise HeaderError(f"its {name} is not {count} number{'s' if count > 1 else ''}")
    return tuple(float(part) for part in parts)


def three(name: str, text: str) -> Three:
    """Three numbers with spaces between them."""
    first, second, third = numbers(name, text, 3)
    return first, second, third


def whole(name: str, text: str, least: int = 0) -> int:
    """A whole number of at least `least`."""
    if not _WHOLE.fullmatch(text.strip()) or int(text) < least:
        raise HeaderError(f"its {name} is not a whole number from {least} on")
    return int(text)


def sizes(name: str, text: str, least: int = 1) -> tuple[int, int, int]:
    """Three whole numbers of at least `least`."""
    parts = text.split()
    if len(parts) != 3:
        raise HeaderError(f"its {name} are {len(parts)} numbers, not 3")
    first, second, third = (whole(name, part, least) for part in parts)
    return first, second, third


def require_millimetres(name: str, units: list[str]) -> None:
    """Refuse another unit: other readers of these formats take every number for millimetres."""
    for unit in units:
        if not _MILLIMETRES.fullmatch(unit.strip()):
            raise HeaderError(
                f"its {name} is {quoted(unit)}, not mm",
                "Most readers take every length for millimetres: store it in mm.",
            )


def require_volume(path: Path, axes: int, values: int, kind: str) -> None:
    """Refuse what is not one 3D volume of numbers."""
    if axes != 3 or values != 1:
        raise DataError(
            f"{path}: has {axes} axes and {values} value(s) per voxel ({quoted(kind)}).",
            "Export one 3D volume of grey values.",
            "dimensions",
        )


def file_beside(path: Path, name: str) -> Path:
    """The file of the voxels, which must bear a plain name in the header's own folder.

    It may be a link: who made a link in the user's folder could as well have put the file there,
    and tools that keep data elsewhere do. What it leads to must be a file and no device.
    """
    name = name.strip().removeprefix("./")
    if name and (Path(name).name != name or "\\" in name or name in (".", "..")):
        raise DataError(
            f"{path}: its voxels are said to lie outside its folder.", _ONE_FILE, "damaged"
        )
    several = not name or name.split()[0].upper() == "LIST" or "%" in name or "\0" in name
    if several or not path.with_name(name).is_file() or path.with_name(name).samefile(path):
        raise DataError(
            f"{path}: its voxels are said to lie in {quoted(name)}, which is no file beside it.",
            "Put the one file of voxels beside the header, or export one .nrrd or .mha file.",
            "damaged",
        )
    return path.with_name(name)


def require_claimed(header: TextHeader) -> None:
    """Compare what a header claims with its file, before memory is taken.

    Raises:
        DataError: The file cannot hold it, or raw voxels are not exactly as many as it claims.
    """
    with header.file.open("rb") as file:
        start = _start(header, file)
    held = header.file.stat().st_size - start
    if header.packed_bytes is not None and header.packed_bytes != held:
        raise DataError(
            f"{header.path}: its header claims {header.packed_bytes:,} packed bytes, the file "
            f"holds {held:,}.",
            CUT_SHORT_HINT,
            "damaged",
        )
    raw, tail = header.encoding == "raw", header.skip_bytes == -1
    if raw and not tail:
        held -= header.skip_bytes
    if header.encoding == "bzip2":
        require_held(header.path, header.claimed_bytes, held * _BZIP2_RATIO, packed=False)
        return
    require_held(header.path, header.claimed_bytes, held, packed=not raw, exact=raw and not tail)


def read_voxels(header: TextHeader) -> Array:
    """Read all voxels, and require that they end where the header says.

    Returns:
        (I, J, K), Fortran order, in this machine's byte order.

    Raises:
        HeaderError: There are more, or what is written out as text are no such numbers.
        EOFError: There are fewer, or a packed stream has no end.
        OSError: The file cannot be read, or a checksum is wrong; zlib.error likewise.
    """
    with header.file.open("rb") as file:
        start = _start(header, file)
        if header.skip_bytes == -1:
            start = header.file.stat().st_size - header.claimed_bytes
        file.seek(start)
        stream = _unpacked(file, header.encoding)
        skip(stream, max(header.skip_bytes, 0))
        if header.encoding == "ascii":
            return _read_text(stream, header)
        array = read_array(stream, header.shape, header.dtype)
        if stream.read(1):
            raise HeaderError("it holds more voxels than its header claims")
    if not header.dtype.isnative:
        array = array.byteswap(inplace=True).view(header.dtype.newbyteorder("="))
    return array


def _start(header: TextHeader, file: BinaryIO) -> int:
    """The byte at which skipping, or unpacking, begins."""
    file.seek(header.begin)
    for _ in range(header.skip_lines):
        while (line := file.readline(BLOCK_BYTES)) and not line.endswith(b"\n"):
            pass
        if not line:
            raise HeaderError("it has fewer lines than its header wants to be skipped")
    return file.tell()


def _unpacked(file: BinaryIO, encoding: str) -> BinaryIO:
    if encoding in ("raw", "ascii"):
        return file
    if encoding == "gzip":
        return cast(BinaryIO, gzip.GzipFile(fileobj=file, mode="rb"))
    return cast(BinaryIO, _Unpacked(file, encoding))


class _Unpacked:
    """A zlib (or gzip) or bzip2 stream: its end and checksum must be there, and nothing after."""

    def __init__(self, file: BinaryIO, encoding: str) -> None:
        self._file, self._packed = file, b""
        zlib_or_gzip = zlib.MAX_WBITS | 32
        self._unpacker: Any = (
            bz2.BZ2Decompressor() if encoding == "bzip2" else zlib.decompressobj(zlib_or_gzip)
        )

    def read(self, count: int) -> bytes:
        while not self._unpacker.eof:
            block: bytes = self._unpacker.decompress(self._packed, count)
            # zlib hands back what it has not unpacked yet, bzip2 keeps it.
            self._packed = getattr(self._unpacker, "unconsumed_tail", b"")
            if block:
                return block
            if not self._packed and not self._unpacker.eof:
                self._packed = self._file.read(_PACKED_BYTES)
                if not self._packed:
                    raise EOFError("the packed voxels have no end")
        if self._unpacker.unused_data or self._file.read(1):
            raise HeaderError("something follows the packed voxels")
        return b""


def _read_text(stream: BinaryIO, header: TextHeader) -> Array:
    """Numbers written out, with white space between them, exactly as many as there are voxels."""
    dtype = header.dtype.newbyteorder("=")
    flat = np.empty(math.prod(header.shape), dtype)
    filled, rest = 0, b""
    while block := stream.read(BLOCK_BYTES):
        parts = (rest + block).split()
        # The last may go on in the next block.
        rest = parts.pop() if parts and not block[-1:].isspace() else b""
        filled = _fill(flat, filled, parts)
    filled = _fill(flat, filled, [rest] if rest else [])
    if filled < len(flat):
        raise EOFError(f"{filled} of {len(flat)} voxels")
    return flat.reshape(header.shape, order="F")


def _fill(flat: Array, filled: int, parts: list[bytes]) -> int:
    """Write numbers behind those that are there; how many there are now."""
    if filled + len(parts) > len(flat):
        raise HeaderError("it holds more voxels than its header claims")
    whole_numbers = flat.dtype.kind in "iu"
    try:
        if any(b"_" in part for part in parts):  # Python's own grouping of digits
            raise ValueError
        values = [int(part) if whole_numbers else float(part) for part in parts]
        with np.errstate(over="ignore"):  # beyond float32 becomes infinite, which checks report
            flat[filled : filled + len(parts)] = np.array(values, flat.dtype)
    except (ValueError, OverflowError) as error:
        raise HeaderError(f"a voxel written out as text is no {flat.dtype} number") from error
    return filled + len(parts)
