"""One case, from its two files to the arrays a training reads."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib.format import write_array_header_1_0

from sdseg_cli.core.errors import DataError, RunError
from sdseg_cli.core.filenames import is_picture
from sdseg_cli.core.files import file_sha256
from sdseg_cli.core.json_files import read_object
from sdseg_cli.imaging.intensity import PHOTOGRAPH, Normalisation, extent, guess_modality
from sdseg_cli.imaging.io.files import read_geometry, read_image, read_labels
from sdseg_cli.imaging.io.picture import MaskLevels, Picture
from sdseg_cli.imaging.measure import (
    ScanStatistics,
    facts_record,
    measure_grid,
    measure_labels,
    measure_scan,
)
from sdseg_cli.imaging.postprocess import Cleaning
from sdseg_cli.imaging.scans import size_and_time
from sdseg_cli.imaging.slices import to_stack
from sdseg_cli.imaging.volume import Volume, geometry_like, reorient_to, require_same_grid

FORMAT_VERSION = 2
_BATCH = 16
_ARRAYS = ("pixels.npy", "labels.npy")
_RECORD_HASH = "record_sha256"


@dataclass(frozen=True)
class CaseJob:
    """One case to prepare, and the settings.

    Attributes:
        id: Case id; the arrays go to a folder of this name.
        image: Scan.
        label: Label map.
        normalisation: How values become [-1, 1].
        crop: One of `slices.CROPS`.
        size: Side of the squares in pixels.
        cleaning: What the label map loses, as fields of `Cleaning`.
        levels: What the grey values of a picture's mask mean; None where the mask says it.
    """

    id: str
    image: Path
    label: Path
    normalisation: Normalisation
    crop: str
    size: int
    cleaning: dict[str, Any] = field(default_factory=dict)
    levels: MaskLevels | None = None

    def fingerprint(self) -> str:
        """sha256 over the settings and both files' paths, sizes and times: equal = same arrays."""
        files = [_identity(path) for path in (self.image, self.label)]
        settings: list[Any] = [
            FORMAT_VERSION,
            files,
            self.normalisation.to_dict(),
            self.crop,
            self.size,
            self.cleaning,
            *(self.levels or ()),
        ]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


@dataclass(frozen=True)
class BadCase:
    """A case that cannot be prepared, and why.

    Attributes:
        id: Case id.
        code: What is wrong, as in a finding of `sdseg check`: "label-damaged", "grid-shape", ...
        error: What to tell the user.
    """

    id: str
    code: str
    error: DataError

    @classmethod
    def of(cls, id: str, code: str, error: DataError | RunError) -> BadCase:
        """A fault whose message names the case; `code` says where, the error what.

        Args:
            id: Case id.
            code: "image", "label", "grid", "values", or "" when the error says it all.
            error: What went wrong. To read a picture is a RunError only where it does not fit into
                memory: a fault of this case alone, of the kind "memory".
        """
        if not isinstance(error, DataError):
            error = DataError(error.message, error.hint, "memory")
        full = "-".join(part for part in (code, error.code) if part)
        named = type(error)(f"case {id}: {error.message}", error.hint, error.code)
        return cls(id, full, named)

    def to_json(self) -> dict[str, str]:
        """For the list of cases that were left out."""
        return {"case": self.id, "code": self.code, "why": self.error.message}


def finished(job: CaseJob, folder: Path) -> dict[str, Any] | None:
    """The record of a case already prepared from the same files with the same settings, if any.

    The arrays are read whole: one that was damaged since keeps its size and time. `folder` holds
    the folders of all cases.
    """
    case = folder / job.id
    try:
        record = read_object(case / "case.json")
        if record["fingerprint"] != job.fingerprint() or not _is_whole(record, case):
            return None
    except (DataError, OSError, ValueError, KeyError, TypeError):
        return None  # cut short or damaged: it is made again
    return record


def _is_whole(record: dict[str, Any], case: Path) -> bool:
    """A record and its arrays are those that were written."""
    if record[_RECORD_HASH] != _record_sha256(record):
        return False
    sizes = {name: (case / name).stat().st_size for name in record["bytes"]}
    if set(sizes) != set(_ARRAYS) or sizes != record["bytes"]:
        return False
    hashes = [file_sha256(case / name) for name in _ARRAYS]
    return [record["pixels_sha256"], record["sha256"]] == [hashes[0], _joined(hashes)]


def modality_of(images: Sequence[Path]) -> str:
    """The modality of these scans: of pictures by their names, else of the first readable one.

    Raises:
        DataError: Some are pictures, others volumes.
    """
    pictures = [path for path in images if is_picture(path)]
    if len(pictures) == len(images):
        return PHOTOGRAPH
    if pictures:
        volume = next(path for path in images if not is_picture(path))
        raise DataError(
            f"{pictures[0].name} is a picture, {volume.name} a volume.",
            "Prepare pictures and volumes as two data sets.",
        )
    for path in images:
        try:
            return guess_modality(extent(read_image(path)))
        except DataError:
            continue  # Its own check will name it.
    return "MR/other"


def check_headers(id: str, image: Path, label: Path | None) -> BadCase | None:
    """Check a case by its headers: missing files, no volumes, two grids.

    Args:
        id: Case id.
        image: Scan.
        label: Label map, None when none was found.
    """
    code = "image"
    try:
        scan = read_geometry(image)
        code = "label"
        if label is None:
            raise DataError(
                f"no label map for {image}.",
                "Add it, take the scan out, or pair files with --image-glob and --label-glob.",
                "missing",
            )
        mask = geometry_like(read_geometry(label), scan)
        code = "grid"
        require_same_grid(scan, mask, f"scan {image.name}", f"label {label.name}")
    except (DataError, RunError) as error:
        return BadCase.of(id, code, error)
    return None


def prepare_case(job: CaseJob, folder: Path) -> dict[str, Any] | BadCase:
    """Check one case and write its arrays, under a temporary name until complete.

    Writes `pixels.npy` (S, size, size), of pictures (1, 3, size, size), float16 in [-1, 1];
    `labels.npy` (S, size, size) uint8 or uint16 with the original labels; `case.json`, the record.

    Args:
        job: The case.
        folder: Where case folders lie; made when missing.

    Returns:
        The record, or what is wrong with the case.

    Raises:
        RunError: The disk refused.
    """
    code = "image"
    try:
        # Taken first: a file that changes meanwhile is then read again by the next run.
        fingerprint = job.fingerprint()
        image = read_image(job.image)
        code = "label"
        label = reorient_to(read_labels(job.label, job.levels), image.geometry)
        code = "grid"
        names = f"scan {image.name}", f"label {label.name}"
        require_same_grid(image.geometry, label.geometry, *names)
        code = "values"
        values = _checked_values(image)
        grid = None if values is None else measure_grid(image.geometry)
        measured = facts_record(values, measure_labels(label), grid)
        label = Cleaning(**job.cleaning).apply(label, image)
    except (DataError, RunError) as error:
        return BadCase.of(job.id, code, error)
    temporary = folder / f".{job.id}.{os.getpid()}.part"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        measured["fingerprint"] = fingerprint
        record = _write_arrays(job, image, label, temporary, measured)
        shutil.rmtree(folder / job.id, ignore_errors=True)
        temporary.rename(folder / job.id)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunError(
            f"case {job.id}: cannot be written ({error.strerror or error}).",
            f"Check the space left and the permissions of {folder}.",
        ) from error
    return record


def _identity(path: Path) -> tuple[str, int, int]:
    """Size and time of a file, which change when it does; None if it is missing."""
    try:
        size, changed = size_and_time(path)
    except OSError:
        return str(path.absolute()), -1, -1
    return str(path.resolve()), size, changed


def _checked_values(image: Volume) -> ScanStatistics | None:
    if isinstance(image, Picture):
        return None  # Integers are always numbers, and colours no HU.
    found = measure_scan(image)
    if found.not_finite:
        raise DataError(
            f"scan {image.name} has {found.not_finite} voxels that are NaN or infinite.",
            "Replace them, for example by -1000 in CT, or leave the case out.",
            "not-finite",
        )
    return found


def _write_arrays(
    job: CaseJob, image: Volume, label: Volume, folder: Path, measured: dict[str, Any]
) -> dict[str, Any]:
    stack = to_stack(image, job.normalisation, size=job.size, crop=job.crop)
    squares = (len(stack), *stack.square_shape)
    with _npy(folder / "pixels.npy", np.dtype(np.float16), squares) as file:
        for start in range(0, len(stack), _BATCH):
            batch = stack.pixels(start, min(start + _BATCH, len(stack)))
            file.write(batch.astype(np.float16).tobytes())
    label_slices: dict[int, list[int]] = {}
    with _npy(folder / "labels.npy", label.array.dtype, (len(stack), job.size, job.size)) as file:
        for k in range(len(stack)):
            plane = stack.restore.canonical_plane(label.array, k)
            square = stack.restore.labels_to_model(plane, k)
            file.write(square.tobytes())
            for value in np.unique(square[square > 0]).tolist():
                label_slices.setdefault(value, []).append(k)
    hashes = [file_sha256(folder / name) for name in _ARRAYS]
    record = {
        **measured,
        "slices": len(stack),
        "label_slices": {str(value): label_slices[value] for value in sorted(label_slices)},
        "spacing_mm": image.spacing_mm
        and [round(length, 6) for length in stack.restore.planes.spacing_mm],
        "bytes": {name: (folder / name).stat().st_size for name in _ARRAYS},
        "pixels_sha256": hashes[0],
        "sha256": _joined(hashes),
    }
    record[_RECORD_HASH] = _record_sha256(record)
    (folder / "case.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    return record


def _joined(hashes: Sequence[str]) -> str:
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def _record_sha256(record: dict[str, Any]) -> str:
    """sha256 of the rest of a record, as JSON gives it back."""
    rest = {key: value for key, value in record.items() if key != _RECORD_HASH}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


@contextmanager
def _npy(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Iterator[BinaryIO]:
    """A .npy file of this shape to append to: a full disk raises, a memory map dies."""
    with path.open("wb") as file:
        header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
        write_array_header_1_0(file, header)
        yield file
