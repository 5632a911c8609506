"""NRRD's header by the format's rules (versions 1 to 5), of which one 3D volume is understood."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.errors import DataError
from sdseg_cli.imaging.io.text_header import (
    Fields,
    HeaderError,
    TextHeader,
    Three,
    file_beside,
    header_lines,
    quoted,
    require_millimetres,
    require_volume,
    sizes,
    three,
    whole,
)

_MAGIC = re.compile(r"NRRD(000[1-5]|00\.01)")
_SEPARATOR = re.compile(r":(?=[= ])")
_FIELDS = {
    "dimension", "type", "block size", "encoding", "endian", "content", "min", "max", "old min",
    "old max", "data file", "line skip", "byte skip", "number", "sample units", "space",
    "space dimension", "space units", "space origin", "space directions", "measurement frame",
    "sizes", "spacings", "thicknesses", "axis mins", "axis maxs", "centers", "centerings",
    "labels", "units", "kinds",
}  # fmt: skip
_BY_SPELLING = {spelled: name for name in _FIELDS for spelled in (name, name.replace(" ", ""))}
_TYPES = {
    "signed char": "i1", "int8": "i1", "int8_t": "i1",
    "uchar": "u1", "unsigned char": "u1", "uint8": "u1", "uint8_t": "u1",
    "short": "i2", "short int": "i2", "signed short": "i2", "signed short int": "i2",
    "int16": "i2", "int16_t": "i2",
    "ushort": "u2", "unsigned short": "u2", "unsigned short int": "u2", "uint16": "u2",
    "uint16_t": "u2",
    "int": "i4", "signed int": "i4", "int32": "i4", "int32_t": "i4",
    "uint": "u4", "unsigned int": "u4", "uint32": "u4", "uint32_t": "u4",
    "longlong": "i8", "long long": "i8", "long long int": "i8", "signed long long": "i8",
    "signed long long int": "i8", "int64": "i8", "int64_t": "i8",
    "ulonglong": "u8", "unsigned long long": "u8", "unsigned long long int": "u8",
    "uint64": "u8", "uint64_t": "u8",
    "float": "f4", "double": "f8",
}  # fmt: skip
_ENCODINGS = {
    "raw": "raw", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2",
    "ascii": "ascii", "text": "ascii", "txt": "ascii",
}  # fmt: skip
_TO_LPS = {
    "left-posterior-superior": (1, 1, 1), "lps": (1, 1, 1),
    "right-anterior-superior": (-1, -1, 1), "ras": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1), "las": (1, -1, 1),
}  # fmt: skip
_IN_SPACE = {"domain", "space", "none", "???"}
"""Kinds of an axis along which positions lie; all others hold values, colours or times."""
_MAY_BE_UNKNOWN = {"spacings", "axis mins", "axis maxs"}
"""All NaN, they say no more than if they were absent."""


def voxel_file(path: Path) -> Path:
    """The file with the voxels: itself, or one beside it; errors as of `read_header`."""
    return _file_of(path, _fields(path)[0])


def read_header(path: Path) -> TextHeader:
    """Read a header.

    Raises:
        HeaderError: It breaks the format's rules, or says what is not understood.
        DataError: It is not one 3D volume of numbers, or its voxels lie elsewhere.
    """
    fields, ended = _fields(path)
    kind = " ".join(fields.text("type").lower().split())
    if kind not in _TYPES:
        raise HeaderError(
            f"its type {quoted(kind)} is none of a number", "Export one number a voxel."
        )
    encoding = fields.text("encoding").strip().lower()
    if encoding not in _ENCODINGS:
        raise HeaderError(
            f"its encoding {quoted(encoding)} is not read", "Store it as raw or gzip."
        )
    encoding = _ENCODINGS[encoding]
    _require_one_volume(path, fields)
    shape = sizes("sizes", fields.text("sizes"))
    if "number" in fields.values and whole("number", fields.values["number"]) != math.prod(shape):
        raise HeaderError("its number is not the product of its sizes")
    spacing_mm, directions, origin_mm = _grid(fields)
    file = _file_of(path, fields)
    if file == path and not ended:
        raise HeaderError("no empty line ends its header")
    return TextHeader(
        path=path,
        shape=shape,
        dtype=_byte_order(fields, np.dtype(_TYPES[kind]), encoding),
        spacing_mm=spacing_mm,
        directions=directions,
        origin_mm=origin_mm,
        file=file,
        encoding=encoding,
        begin=fields.begin if file == path else 0,
        skip_lines=whole("line skip", fields.text("line skip", "0")),
        skip_bytes=whole("byte skip", fields.text("byte skip", "0"), -(encoding == "raw")),
    )


def _fields(path: Path) -> tuple[Fields, bool]:
    """The fields of a header, and whether an empty line ends it."""
    fields, ended = Fields(), False
    with path.open("rb") as file:
        lines = header_lines(file)
        if not _MAGIC.fullmatch(next(lines, "")):
            raise HeaderError("its first line is not NRRD0001 to NRRD0005")
        for number, line in enumerate(lines, 2):
            fields.begin = file.tell()
            if not line:
                ended = True
                break
            if line.startswith("#"):
                continue
            separator = _SEPARATOR.search(line)
            if separator is None:
                raise HeaderError(f"line {number} of its header is neither a field nor a comment")
            if line[separator.end()] == "=":  # a key and a value of somebody's own
                continue
            name = _BY_SPELLING.get(line[: separator.start()].lower())
            if name is None:
                raise HeaderError(f"line {number} of its header is no field of the format")
            fields.put("centerings" if name == "centers" else name, line[separator.end() + 1 :])
    for name in _MAY_BE_UNKNOWN & fields.values.keys():
        if set(_words(fields, name)) == {"nan"}:
            del fields.values[name]
    return fields, ended


def _words(fields: Fields, name: str) -> list[str]:
    """A field's words, one an axis; none where it is absent."""
    return fields.text(name, "").lower().split()


def _file_of(path: Path, fields: Fields) -> Path:
    name = fields.values.get("data file")
    return path if name is None else file_beside(path, name)


def _byte_order(fields: Fields, dtype: np.dtype[np.generic], encoding: str) -> np.dtype[np.generic]:
    endian = fields.text("endian", "").strip().lower()
    if endian not in ("", "little", "big"):
        raise HeaderError("its endian is neither little nor big")
    if not endian and dtype.itemsize > 1 and encoding != "ascii":
        raise HeaderError("its header does not say the byte order (endian)")
    return dtype.newbyteorder(">" if endian == "big" else "<")


def _require_one_volume(path: Path, fields: Fields) -> None:
    """Axes that lie in space are counted apart from those that hold a voxel's values."""
    dimension = whole("dimension", fields.text("dimension"), 1)
    kinds = _words(fields, "kinds")
    lengths = fields.text("sizes").split()
    if dimension <= 16 and len(lengths) != dimension:
        raise HeaderError(f"its sizes are {len(lengths)} numbers, not {dimension}")
    if kinds and len(kinds) != dimension:
        raise HeaderError(f"its kinds are {len(kinds)} words, not {dimension}")
    if "none" in fields.text("space directions", "").lower() and dimension == 3:
        raise DataError(
            f"{path}: an axis has no direction in space.",
            "Export one 3D volume whose three axes lie in space.",
            "dimensions",
        )
    values = [
        whole("sizes", n, 1) for n, k in zip(lengths, kinds, strict=False) if k not in _IN_SPACE
    ]
    words = " ".join(kinds) or fields.text("type")
    require_volume(path, dimension - len(values), math.prod(values), words)


def _grid(fields: Fields) -> tuple[Three, NDArray[np.float64], Three]:
    """Spacing, directions and origin, LPS; 1 mm and 0 where the header does not say."""
    values = fields.values
    for name in ("space units", "units"):
        text = values.get(name, "")
        require_millimetres(name, re.findall(r'"([^"]*)"', text) or text.split())
    if "space" not in values and "space dimension" not in values:
        if "space directions" in values or "space origin" in values:
            raise HeaderError("its directions or origin are of no space")
        return _grid_of_axes(fields)
    for name in ("spacings", "axis mins", "axis maxs"):
        if name in values:
            raise HeaderError(f"its header says both space and {name}")
    if {"space", "space dimension"} <= values.keys():
        raise HeaderError("its header says both space and space dimension")
    space = values.get("space", "lps").lower()
    if space not in _TO_LPS or values.get("space dimension", "3").strip() != "3":
        raise HeaderError(
            f"its space {quoted(space)} does not say where left, front and head are",
            "Store it in left-posterior-superior, right- or left-anterior-superior.",
        )
    sign = _TO_LPS[space]
    columns = _vectors(
        "space directions", values.get("space directions", "(1,0,0) (0,1,0) (0,0,1)"), 3
    )
    spacing, directions = [], np.eye(3)
    for axis, vector in enumerate(columns):
        # As ITK does it, to the last bit: a mask goes out with the grid that came in.
        length = math.sqrt(vector[0] * vector[0] + vector[1] * vector[1] + vector[2] * vector[2])
        spacing.append(length)
        scale = 1 / length if length else 0.0
        directions[:, axis] = [
            scale * v * s if s < 0 else scale * v for v, s in zip(vector, sign, strict=True)
        ]
    (origin,) = _vectors("space origin", values.get("space origin", "(0,0,0)"), 1)
    turned = [v * s if s < 0 else v for v, s in zip(origin, sign, strict=True)]
    return (spacing[0], spacing[1], spacing[2]), directions, (turned[0], turned[1], turned[2])


def _grid_of_axes(fields: Fields) -> tuple[Three, NDArray[np.float64], Three]:
    """A header that knows no space: its axes are taken for those of LPS, as ITK does."""
    values = fields.values
    if "axis maxs" in values and "spacings" not in values:
        raise HeaderError("its header says where axes end, but not how far apart the voxels are")
    steps = three("spacings", values.get("spacings", "1 1 1"))
    directions = np.diag([-1.0 if step < 0 else 1.0 for step in steps])
    spacing: Three = (abs(steps[0]), abs(steps[1]), abs(steps[2]))
    origin: Three = (0.0, 0.0, 0.0)
    if "axis mins" in values:
        centerings = _words(fields, "centerings") or ["cell"] * 3
        if len(centerings) != 3:
            raise HeaderError("its centerings are not 3 words")
        first, second, third = (
            low if word == "node" else low + step / 2
            for low, step, word in zip(
                three("axis mins", values["axis mins"]), steps, centerings, strict=True
            )
        )
        origin = (first, second, third)
    return spacing, directions, origin


def _vectors(name: str, text: str, count: int) -> list[Three]:
    """`(a,b,c)`, so many times."""
    found = re.findall(r"\(([^()]*)\)", text)
    if len(found) != count or re.sub(r"\([^()]*\)", "", text).strip():
        raise HeaderError(f"its {name} is not {count} of (a,b,c)")
    vectors = []
    for vector in found:
        parts = vector.split(",")
        if len(parts) != 3:
            raise HeaderError(f"its {name} has a vector that is not 3 numbers")
        vectors.append(three(name, " ".join(parts)))
    return vectors
