"""NIfTI-1 and NIfTI-2, plain or gzipped; nibabel reads the header, the data pass by in blocks."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from sdseg_cli.atomic import replacing
from sdseg_cli.errors import DataError
from sdseg_cli.imaging.claims import BLOCK_BYTES, read_array, require_held
from sdseg_cli.imaging.shear import geometry_of
from sdseg_cli.imaging.volume import Array, Claim, Geometry, Volume

_FREE_TEXTS = {"descrip", "aux_file", "db_name", "data_type"}
"""What a scan's header may say about its patient: none of it goes into a mask."""


def read(path: Path, claim: Claim | None = None) -> Volume:
    """Read a NIfTI file at its stored type.

    Besides the array itself, memory holds one block: nibabel would hold a gzipped scan twice. The
    stream is read to its end, so that gzip's checksum is checked.

    Args:
        path: The file.
        claim: Told of the header before the voxels are read.

    Raises:
        DataError: Not NIfTI, damaged, cut short, or not one 3D volume of numbers.
    """
    with _opened(path) as stream:
        header, stored = _read_header(path, stream)
        geometry = _geometry(path, header)
        _require_voxels(path, header, stored)
        if claim is not None:
            claim(geometry, header.get_data_dtype().itemsize)
        _skip(stream, int(header.get_data_offset()) - header.sizeof_hdr)
        array = read_array(stream, geometry.shape, header.get_data_dtype())
        while stream.read(BLOCK_BYTES):
            pass
        slope, intercept = header.get_slope_inter()
    return Volume(
        array,
        geometry,
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        header=stored,
        source=path,
    )


def read_geometry(path: Path) -> Geometry:
    """Read where a volume lies, from its header alone.

    Raises:
        DataError: Not NIfTI, or not one 3D volume of numbers.
    """
    with _opened(path) as stream:
        header, stored = _read_header(path, stream)
        geometry = _geometry(path, header)
        _require_voxels(path, header, stored)
        return geometry


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


def says_orientation(volume: Volume) -> bool:
    """Whether a NIfTI scan's sform or qform is in use; without either, readers guess."""
    header: Any = volume.header
    return bool(int(header["sform_code"]) or int(header["qform_code"]))


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
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file's bytes, unpacked; what goes wrong while reading becomes a DataError."""
    try:
        if path.name.lower().endswith(".gz"):
            with gzip.open(path, "rb") as stream:
                yield cast(BinaryIO, stream)
        else:
            with path.open("rb") as plain:
                yield plain
    except gzip.BadGzipFile as error:
        raise DataError(
            f"{path}: not a gzip file, or a damaged one ({_reason(error)}).",
            "Check what the file really is; an uncompressed scan must be named .nii.",
            "damaged",
        ) from error
    except (EOFError, OSError, zlib.error, MemoryError, HeaderDataError) as error:
        raise DataError(
            f"{path}: cannot be read ({_reason(error)}).",
            "It may be cut short or damaged: copy or export it again.",
            "damaged",
        ) from error


def _read_header(path: Path, stream: BinaryIO) -> tuple[Any, Any]:
    """The header as nibabel repairs it, for reading, and as it stands, for copying."""
    start = stream.read(4)
    is_nifti2 = start in (b"\x1c\x02\0\0", b"\0\0\x02\x1c")
    kind: Any = nib.Nifti2Header if is_nifti2 else nib.Nifti1Header
    block = start + stream.read(kind.sizeof_hdr - 4)
    try:
        checked, stored = kind(block), kind(block, check=False)
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
    return checked, stored


def _geometry(path: Path, header: Any) -> Geometry:
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
    try:
        affine = np.asarray(header.get_best_affine(), np.float64)
    except ValueError as error:
        raise DataError(
            f"{path}: its header gives no usable orientation ({error}).",
            "Export the scan again, or repair its sform and qform.",
            "affine",
        ) from error
    return geometry_of(path, (rows, columns, slices), affine)


def _require_voxels(path: Path, header: Any, stored: Any) -> None:
    """Refuse a header whose numbers contradict each other or the file's size."""
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
    if path.name.lower().endswith(".gz"):
        require_held(path, claimed, size, packed=True)
    else:
        require_held(path, claimed, size - offset, packed=False)


def _skip(stream: BinaryIO, count: int) -> None:
    while count > 0 and (block := stream.read(min(count, BLOCK_BYTES))):
        count -= len(block)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
