"""NIfTI-1 and NIfTI-2, plain or gzipped; nibabel reads the header, the data pass by in blocks."""

from __future__ import annotations

import gzip
import itertools
import logging
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np
from nibabel.quaternions import quat2mat
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from sdseg_cli.core.errors import DataError
from sdseg_cli.core.files import replacing
from sdseg_cli.imaging.io.header_checks import (
    BLOCK_BYTES,
    ROUNDING_DEGREES,
    geometry_of,
    nearest_rotation,
    read_array,
    require_held,
    shear_degrees,
    skip,
)
from sdseg_cli.imaging.volume import GRID_TOLERANCE_VOXELS, Array, Geometry, OnHeader, Volume

_FREE_TEXTS = {"descrip", "aux_file", "db_name", "data_type"}
"""What a scan's header may say about its patient: none of it goes into a mask."""
_GZIP = b"\x1f\x8b"
_STARTS = (b"\x5c\1\0\0", b"\0\0\1\x5c", b"\x1c\2\0\0", b"\0\0\2\x1c")
"""A header's own size, 348 or 540, in either order of bytes: how every NIfTI file begins."""
_OTHER_KINDS = {
    _GZIP: "a file compressed by gzip twice",
    b"BZh": "a bzip2 file",
    b"PK": "a zip",
    b"\xfd7zXZ": "an xz file",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x28\xb5\x2f\xfd": "a zstd file",
    b"NRRD": "an NRRD file",
    b"ObjectType": "a MetaImage file",
    b"\x89HDF": "an HDF5 file",
    b"\x89PNG": "a PNG picture",
    b"<": "a web page or XML",
}
"""First bytes of what is often found under a NIfTI name."""
_MM_PER_UNIT = {0: Decimal(1), 1: Decimal(1000), 2: Decimal(1), 3: Decimal("0.001")}
"""By the code in the lower three bits of xyzt_units: unknown (read as mm), m, mm, micrometres."""
_LENGTHS = ("pixdim", "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z")
_LONGEST_QUATERNION = 1 + 1e-5
"""b, c and d may be longer than 1 by what rounding to a few digits adds: a is then 0."""
_SILENT = logging.Logger("nibabel's repairs", logging.CRITICAL + 1)
"""nibabel would print what it corrects in a header."""


def read(path: Path, on_header: OnHeader | None = None) -> Volume:
    """Read a NIfTI file at its stored type.

    Besides the array itself, memory holds one block: nibabel would hold a gzipped scan twice. The
    stream is read to its end, so that gzip's checksum is checked.

    Raises:
        DataError: Not NIfTI, damaged, cut short, or not one 3D volume of numbers.
    """
    with _opened(path) as (stream, packed):
        header, stored, geometry = _checked_header(path, stream, packed)
        if on_header is not None:
            on_header(geometry, header.get_data_dtype().itemsize)
        skip(stream, int(header.get_data_offset()) - header.sizeof_hdr)
        array = read_array(stream, geometry.shape, header.get_data_dtype())
        spare = _spare_bytes(stream)
        slope, intercept = header.get_slope_inter()
    return Volume(
        array,
        replace(geometry, spare_bytes=spare),
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        header=stored,
        source=path,
    )


def read_geometry(path: Path) -> Geometry:
    """Read where a volume lies, from its header alone; errors as of `read`."""
    with _opened(path) as (stream, packed):
        return _checked_header(path, stream, packed)[2]


def write(path: Path, array: Array, like: Volume, slope: float) -> None:
    """Write a uint8 or float32 array on the grid of `like`, atomically, without a time stamp.

    Args:
        path: The file to write or replace.
        array: (I, J, K).
        like: Its NIfTI header is copied when it has one, else built from the affine.
        slope: scl_slope; the intercept is 0.
    """
    header = _header_for(like)
    header.set_data_dtype(array.dtype)
    header.set_slope_inter(slope, 0)
    header["cal_min"], header["cal_max"] = 0, 0
    header.set_intent("none")
    for text in _FREE_TEXTS & set(header.keys()):
        header[text] = b""
    # Extensions describe the scan, sometimes the patient: a mask carries none (four zero bytes).
    offset = header.sizeof_hdr + 4
    header["vox_offset"] = offset
    with replacing(path) as temporary, temporary.open("wb") as raw:
        if path.name.lower().endswith(".gz"):
            with gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=6, mtime=0) as gz:
                _write_blocks(cast(BinaryIO, gz), header, array)
        else:
            _write_blocks(raw, header, array)


def _write_blocks(stream: BinaryIO, header: Any, array: Array) -> None:
    stream.write(header.binaryblock)
    stream.write(b"\0\0\0\0")
    stream.writelines(array[:, :, k].tobytes(order="F") for k in range(array.shape[2]))


def _header_for(like: Volume) -> Any:
    if isinstance(like.header, nib.Nifti1Header):
        return like.header.copy()
    header = nib.Nifti1Header()
    header.set_data_shape(like.geometry.shape)
    # A qform cannot hold shear; the sform holds any affine.
    header.set_qform(like.geometry.affine, code="scanner", strip_shears=True)
    header.set_sform(like.geometry.affine, code="scanner")
    header.set_xyzt_units("mm", "unknown")
    return header


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, bool]]:
    """The file's bytes, unpacked, and whether they were packed: the content says so, not the name.

    What goes wrong while reading becomes a DataError.
    """
    start = b""
    try:
        with path.open("rb") as raw:
            start = raw.read(16)
            raw.seek(0)
            named = path.name.lower().endswith(".gz") and bool(start) and start[:4] not in _STARTS
            if named or start.startswith(_GZIP):
                with gzip.open(raw, "rb") as stream:
                    yield cast(BinaryIO, stream), True
            else:
                yield raw, False
    except gzip.BadGzipFile as error:
        raise _not_gzip(path, start, error) from error
    except (EOFError, OSError, zlib.error, MemoryError, HeaderDataError) as error:
        raise DataError(
            f"{path}: cannot be read ({_reason(error)}).",
            "It may be cut short or damaged: copy or export it again.",
            "damaged",
        ) from error


def _not_gzip(path: Path, start: bytes, error: gzip.BadGzipFile) -> DataError:
    """Describe a bad gzip file: no gzip at all, damaged, or followed by something else."""
    if (kind := _kind_of(start)) is not None and not start.startswith(_GZIP):
        return _other_kind(path, kind)
    if start.startswith(_GZIP) and str(error).startswith("Not a gzipped file"):
        # The stream before it is whole: its checksum was compared first.
        return DataError(
            f"{path}: other bytes follow the end of its compressed data ({_reason(error)}).",
            "It was joined to another file or badly copied: copy it again, or unpack it with "
            "gunzip, which leaves them out.",
            "damaged",
        )
    return DataError(
        f"{path}: not a gzip file, or a damaged one ({_reason(error)}).",
        "Check what the file really is, and that the download or export finished.",
        "damaged",
    )


def _kind_of(start: bytes) -> str | None:
    return next((kind for first, kind in _OTHER_KINDS.items() if start.startswith(first)), None)


def _other_kind(path: Path, kind: str) -> DataError:
    return DataError(
        f"{path}: not a NIfTI file, but {kind}.",
        "Unpack or convert it, or give it its right name; NIfTI may be packed by gzip, once.",
        "kind",
    )


def _read_header(path: Path, stream: BinaryIO) -> tuple[Any, Any]:
    """The header as nibabel repairs it, in mm, for reading; and as it stands, for copying."""
    start = stream.read(4)
    kind: Any = nib.Nifti2Header if start in _STARTS[2:] else nib.Nifti1Header
    block = start + stream.read(kind.sizeof_hdr - 4)
    if start not in _STARTS and (other := _kind_of(block)) is not None:
        raise _other_kind(path, other)
    try:
        checked, stored = kind(block, check=False), kind(block, check=False)
        checked.check_fix(logger=_SILENT)
        int(checked.get_data_offset())
    except Exception as error:  # nibabel raises its own and numpy's kinds on arbitrary bytes
        raise DataError(
            f"{path}: not a NIfTI file, whatever its name says.",
            "Give a NIfTI scan; check that the download or export finished.",
            "kind",
        ) from error
    if stored["magic"].item()[:3] in (b"ni1", b"ni2"):
        raise DataError(
            f"{path}: a header without voxels, which lie in an .img file.",
            "Convert the pair .hdr/.img to one .nii file.",
            "damaged",
        )
    _turn_to_mm(checked)
    return checked, stored


def _unit(header: Any) -> int:
    """The code of the header's unit of length."""
    return int(header["xyzt_units"]) & 7


def _turn_to_mm(header: Any) -> None:
    """Multiply every length of a header, as written in decimals: 0.002 m becomes 2 mm exactly."""
    factor = _MM_PER_UNIT.get(_unit(header), Decimal(1))
    if factor == 1:
        return
    with np.errstate(over="ignore"):  # beyond float32 is no usable grid, which is found later
        for field in _LENGTHS:
            values = np.atleast_1d(header[field]).copy()
            lengths = slice(1, 4) if field == "pixdim" else slice(None)
            values[lengths] = [float(Decimal(str(one)) * factor) for one in values[lengths]]
            header[field] = values.reshape(header[field].shape)


def _geometry(path: Path, header: Any, stored: Any) -> Geometry:
    shape = tuple(int(n) for n in header.get_data_shape())
    if not shape or min(shape) < 1 or max(shape[3:], default=1) != 1:
        raise DataError(
            f"{path}: has shape {shape}, not one 3D volume.",
            "Extract one volume of the series first.",
            "dimensions",
        )
    dtype = np.dtype(header.get_data_dtype())
    if dtype.kind not in "iuf":
        raise DataError(
            f"{path}: holds {dtype} voxels, not grey values.",
            "Export the scan as one number each.",
            "dimensions",
        )
    rows, columns, slices = (*shape, 1, 1)[:3]
    _require_spacing(path, stored, (rows, columns, slices))
    try:
        with np.errstate(all="ignore"):  # what numbers run wild in a header is seen in the affine
            affine, apart_mm = _place(header, (rows, columns, slices))
    except ValueError as error:
        raise DataError(
            f"{path}: its header gives no usable orientation ({error}).",
            "Export the scan again, or repair its sform and qform.",
            "affine",
        ) from error
    return replace(
        geometry_of(path, (rows, columns, slices), affine),
        forms_apart_mm=apart_mm,
        says_place=bool(int(header["sform_code"]) or int(header["qform_code"])),
        unit_known=_unit(header) in _MM_PER_UNIT,
    )


def _require_spacing(path: Path, stored: Any, shape: tuple[int, int, int]) -> None:
    """Refuse a header without an sform whose spacing is 0: nibabel would take 1."""
    if int(stored["sform_code"]) > 0:
        return
    for axis, (size, step) in enumerate(zip(shape, stored["pixdim"][1:4], strict=True)):
        if size > 1 and not (np.isfinite(step) and step != 0):
            raise DataError(
                f"{path}: its header gives no spacing along axis {axis + 1} ({step:g}).",
                "Export the scan again, or repair its pixdim.",
                "affine",
            )


def _place(header: Any, shape: tuple[int, int, int]) -> tuple[NDArray[np.float64], float]:
    """Voxel index -> RAS+ mm, by the sform, else the qform, else what is neither; and how far the
    two forms lie apart in mm, 0 where they agree or one is not in use.
    """
    sform, qform = int(header["sform_code"]) > 0, int(header["qform_code"]) > 0
    if not qform:
        return np.asarray(header.get_best_affine(), np.float64), 0.0
    turn = _Quaternion.of(header)
    if sform:
        affine = np.asarray(header.get_sform(), np.float64)
        return affine, turn.apart_mm(affine, shape)
    if not turn.length <= _LONGEST_QUATERNION:
        raise ValueError(f"the quaternion of its qform is {turn.length:.6g} long, longer than 1")
    return turn.affine, 0.0


@dataclass(frozen=True)
class _Quaternion:
    """A qform, and how exactly it was stored.

    Attributes:
        length: Of b, c and d; the fourth number, a, is what lacks to 1.
        affine: (4, 4), with b, c and d shortened to 1 where they are longer.
        rounding: How far rounded numbers may turn it, in radians: where a is near 0, a lot, for it
            is the root of a difference.
    """

    length: float
    affine: NDArray[np.float64]
    rounding: float

    @classmethod
    def of(cls, header: Any) -> _Quaternion:
        """The qform of a header whose pixdim nibabel has checked."""
        bcd = np.array([header[f"quatern_{one}"] for one in "bcd"], np.float64)
        length = float(np.linalg.norm(bcd))
        if length > 1:
            bcd /= length
        rest = max(0.0, 1.0 - float(bcd @ bcd))
        slack = max(4 * float(np.finfo(np.float32).eps), length**2 - 1)
        rounding = 2 * (math.sqrt(rest + slack) - math.sqrt(max(0.0, rest - slack)))
        zooms = np.array(header["pixdim"][1:4], np.float64)
        zooms[2] *= float(header["pixdim"][0])
        affine = np.eye(4)
        affine[:3, :3] = quat2mat(np.array([math.sqrt(rest), *bcd])) * zooms
        affine[:3, 3] = [header[f"qoffset_{axis}"] for axis in "xyz"]
        return cls(length, affine, rounding)

    def apart_mm(self, sform: NDArray[np.float64], shape: tuple[int, int, int]) -> float:
        """Largest distance of a corner from where the sform places it, mm; 0 for agreement.

        They agree within `GRID_TOLERANCE_VOXELS` and what rounding may turn. A small shear, which
        no quaternion can say, is no disagreement.
        """
        linear = sform[:3, :3]
        spacing = np.linalg.norm(linear, axis=0)
        if np.all(spacing > 0) and shear_degrees(sform) > ROUNDING_DEGREES:
            linear = nearest_rotation(linear / spacing) * spacing
        corners = np.array(list(itertools.product(*((0, n - 1) for n in shape))), np.float64)
        lever = np.linalg.norm(corners * spacing, axis=1)
        if not np.isfinite(self.affine).all():  # nobody can follow it: as far as the grid is long
            return float(max(lever.max(), spacing.min()))
        moved = corners @ (linear - self.affine[:3, :3]).T + sform[:3, 3] - self.affine[:3, 3]
        apart = np.linalg.norm(moved, axis=1)
        allowed = GRID_TOLERANCE_VOXELS * spacing.min() + self.rounding * lever
        return float(apart.max()) if np.any(apart > allowed) else 0.0


def _checked_header(path: Path, stream: BinaryIO, packed: bool) -> tuple[Any, Any, Geometry]:
    """Both forms of the header, and its grid; its numbers fit each other and the file's size."""
    header, stored = _read_header(path, stream)
    geometry = _geometry(path, header, stored)
    dtype, bits = header.get_data_dtype(), int(stored["bitpix"])
    if bits != dtype.itemsize * 8:
        raise DataError(
            f"{path}: its header says {dtype} voxels of {bits} bits.",
            "One of the two is wrong: export the scan again.",
            "damaged",
        )
    offset, size = int(header.get_data_offset()), path.stat().st_size
    if offset < header.sizeof_hdr:
        raise DataError(
            f"{path}: its header says the voxels begin at byte {offset}, within the header.",
            "Export the scan again, or repair vox_offset.",
            "damaged",
        )
    claimed = math.prod(int(n) for n in header.get_data_shape()) * dtype.itemsize
    require_held(path, claimed, size if packed else size - offset, packed=packed)
    return header, stored, geometry


def _spare_bytes(stream: BinaryIO) -> int:
    """Number of bytes left; 0 where all are zeros, with which some programs fill a block."""
    count, filled = 0, False
    while block := stream.read(BLOCK_BYTES):
        count += len(block)
        filled = filled or bool(block.strip(b"\0"))
    return count if filled else 0


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
