"""What a header claims against what the file holds: checked before memory is taken for voxels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sdseg_cli.errors import DataError

PACKED_RATIO = 1032
"""Deflate (gzip, zlib) unpacks to at most so many times its size."""

_HEADER_BYTES = 1 << 16
_HINT = "The header is wrong or the file was cut short: export it again."


def require_held(path: Path, claimed_bytes: int, held_bytes: int, *, packed: bool) -> None:
    """Refuse a header that claims more voxels than the file can hold.

    Args:
        path: The file, for the message.
        claimed_bytes: Size of the voxels by the header.
        held_bytes: Size of the file's voxels as they lie on the disk.
        packed: Whether they are compressed; they may then unpack to `PACKED_RATIO` times as much.
            What unpacks to less is found while reading, before memory beyond it is used.

    Raises:
        DataError: It claims more.
    """
    if claimed_bytes > max(held_bytes, 0) * (PACKED_RATIO if packed else 1):
        most = "at most " if packed else ""
        raise DataError(
            f"{path}: its header claims {claimed_bytes:,} bytes of voxels, the file holds "
            f"{most}{max(held_bytes, 0) * (PACKED_RATIO if packed else 1):,}.",
            _HINT,
            "damaged",
        )


@dataclass(frozen=True)
class Voxels:
    """Where the voxels of an NRRD or MetaImage file lie.

    Attributes:
        file: The file that holds them.
        packed: Whether they are compressed, or written out as text.
    """

    file: Path
    packed: bool


def find_voxels(path: Path) -> Voxels:
    """Read from a text header where the voxels are.

    They may lie in the file itself or in another file of the same folder: a header that came from
    elsewhere must not open files it does not belong to.

    Args:
        path: An .nrrd, .mha or .mhd file.

    Raises:
        DataError: They lie in another folder, in several files, or in a file that is missing; or
            an NRRD axis has no direction.
        OSError: The header cannot be read.
    """
    fields = _fields(path)
    name = fields.get("data file", fields.get("datafile", fields.get("elementdatafile", "local")))
    if fields.get("dimension") == "3" and "none" in fields.get("space directions", ""):
        raise DataError(
            f"{path}: an axis has no direction in space.",
            "Export one 3D volume whose three axes lie in space.",
            "dimensions",
        )
    # Written out as text, a number may take fewer bytes than it stands for.
    packed = (
        fields.get("encoding", "raw").lower() != "raw"
        or fields.get("compresseddata", "").lower() == "true"
        or fields.get("binarydata", "").lower() == "false"
    )
    if name.lower() == "local":
        return Voxels(path, packed)
    if Path(name).name != name or "\\" in name or name in (".", ".."):
        raise DataError(
            f"{path}: its voxels are said to lie outside its folder.",
            "Put header and voxels into one folder, or export one .nrrd or .mha file.",
            "damaged",
        )
    file = path.with_name(name)
    if name.lower().startswith("list") or "%" in name or not file.is_file():
        raise DataError(
            f"{path}: its voxels are said to lie in what is no file beside it.",
            "Put the one file of voxels beside the header, or export one .nrrd or .mha file.",
            "damaged",
        )
    return Voxels(file, packed)


def _fields(path: Path) -> dict[str, str]:
    """The text header's fields by lower-case name, up to where the voxels may begin."""
    with path.open("rb") as file:
        start = file.read(_HEADER_BYTES)
    fields: dict[str, str] = {}
    for line in start.split(b"\n"):
        text = line.decode("latin-1").strip()
        if not text and fields:
            break
        separator = ":" if path.suffix.lower() == ".nrrd" else "="
        name, found, value = text.partition(separator)
        if found and not text.startswith("#"):
            fields.setdefault(name.strip().lower(), value.lstrip("=").strip())
        if name.strip().lower() == "elementdatafile":
            break
    return fields
