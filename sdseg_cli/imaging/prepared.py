"""One case, from its two files to the arrays a training reads."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from sdseg_cli.errors import DataError, GeometryError, RunError
from sdseg_cli.imaging.files import read_geometry, read_image, read_labels
from sdseg_cli.imaging.intensity import Normalisation, extent
from sdseg_cli.imaging.slices import SliceStack, to_stack
from sdseg_cli.imaging.volume import GRID_TOLERANCE_VOXELS, Geometry, Volume

FORMAT_VERSION = 1
_BATCH = 16


@dataclass(frozen=True)
class CaseJob:
    """What to prepare, and how.

    Attributes:
        id: Case id; the arrays go to a folder of this name.
        image: Scan.
        label: Label map.
        normalisation: How values become [-1, 1].
        crop: One of `slices.CROPS`.
        size: Side of the squares in pixels.
    """

    id: str
    image: Path
    label: Path
    normalisation: Normalisation
    crop: str
    size: int

    def fingerprint(self) -> str:
        """sha256 over the settings and both files' paths, sizes and times: equal = same arrays."""
        files = [
            (str(path.resolve()), status.st_size, status.st_mtime_ns)
            for path, status in ((path, path.stat()) for path in (self.image, self.label))
        ]
        settings = [FORMAT_VERSION, files, self.normalisation.to_dict(), self.crop, self.size]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


@dataclass(frozen=True)
class BadCase:
    """A case that cannot be prepared, and why.

    Attributes:
        id: Case id.
        code: "image", "label", "grid" or "values": what is wrong.
        error: What to tell the user.
    """

    id: str
    code: str
    error: DataError

    @classmethod
    def of(cls, id: str, code: str, error: DataError) -> BadCase:
        """A finding whose message names the case."""
        return cls(id, code, type(error)(f"case {id}: {error.message}", error.hint))


def finished(job: CaseJob, folder: Path) -> dict[str, Any] | None:
    """The record of a case already prepared from the same files with the same settings, if any.

    Args:
        job: The case.
        folder: Where case folders lie.
    """
    case = folder / job.id
    try:
        record: dict[str, Any] = json.loads((case / "case.json").read_text(encoding="utf-8"))
        sizes = {name: (case / name).stat().st_size for name in record["bytes"]}
        if record["fingerprint"] == job.fingerprint() and sizes == record["bytes"]:
            return record
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def check_headers(id: str, image: Path, label: Path | None) -> BadCase | None:
    """Whether a case's files exist, say they are volumes, and lie on one grid: quick.

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
            )
        mask = read_geometry(label)
        code = "grid"
        _check_grids(scan, mask, image.name, label.name)
    except DataError as error:
        return BadCase.of(id, code, error)
    return None


def prepare_case(job: CaseJob, folder: Path) -> dict[str, Any] | BadCase:
    """Check one case and write its arrays, under a temporary name until complete.

    Writes `pixels.npy` (S, size, size) float16 in [-1, 1], `labels.npy` (S, size, size) uint8 or
    uint16 with the original labels, and `case.json`, the record.

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
        label = read_labels(job.label)
        code = "grid"
        _check_grids(image.geometry, label.geometry, image.name, label.name)
        code = "values"
        _check_values(image)
    except DataError as error:
        return BadCase.of(job.id, code, error)
    temporary = folder / f".{job.id}.part"
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        record = _write_arrays(job, image, label, temporary, fingerprint)
        shutil.rmtree(folder / job.id, ignore_errors=True)
        temporary.rename(folder / job.id)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunError(
            f"case {job.id}: cannot be written ({error.strerror or error}).",
            f"Check the space left and the permissions of {folder}.",
        ) from error
    return record


def _check_grids(scan: Geometry, mask: Geometry, scan_name: str, mask_name: str) -> None:
    if scan.shape != mask.shape:
        raise GeometryError(
            f"label {mask_name} has shape {mask.shape}, scan {scan_name} has {scan.shape}.",
            "Export both from one series, or leave the case out.",
        )
    if not scan.same_grid(mask):
        raise GeometryError(
            f"label {mask_name} ({mask.axis_codes}) lies {scan.corner_distance_voxels(mask):.2g} "
            f"voxels off scan {scan_name} ({scan.axis_codes}); {GRID_TOLERANCE_VOXELS} is allowed.",
            "Export both from one series; if only the header is wrong, copy the scan's onto it.",
        )


def _check_values(image: Volume) -> None:
    found = extent(image)
    if found.not_finite:
        raise DataError(
            f"scan {image.name} has {found.not_finite} voxels that are NaN or infinite.",
            "Replace them, for example by -1000 in CT, or leave the case out.",
        )


def _write_arrays(
    job: CaseJob, image: Volume, label: Volume, folder: Path, fingerprint: str
) -> dict[str, Any]:
    stack = to_stack(image, job.normalisation, size=job.size, crop=job.crop)
    shape = (len(stack), job.size, job.size)
    pixels = open_memmap(folder / "pixels.npy", "w+", np.dtype(np.float16), shape)
    for start in range(0, len(stack), _BATCH):
        stop = min(start + _BATCH, len(stack))
        pixels[start:stop] = stack.pixels(start, stop)
    pixels.flush()
    label_slices = _write_labels(stack, label, folder / "labels.npy")
    spacing = stack.restore.planes.spacing_mm
    record = {
        "fingerprint": fingerprint,
        "slices": len(stack),
        "label_slices": {str(value): label_slices[value] for value in sorted(label_slices)},
        "spacing_mm": [round(length, 6) for length in spacing],
        "bytes": {name: (folder / name).stat().st_size for name in ("pixels.npy", "labels.npy")},
    }
    (folder / "case.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    return record


def _write_labels(stack: SliceStack, label: Volume, path: Path) -> dict[int, list[int]]:
    """Write the label slices; which slices hold each label."""
    restore = stack.restore
    shape = (restore.slices, restore.size, restore.size)
    labels = open_memmap(path, "w+", label.array.dtype, shape)
    label_slices: dict[int, list[int]] = {}
    for k in range(restore.slices):
        labels[k] = restore.labels_to_model(restore.canonical_plane(label.array, k), k)
        for value in np.unique(labels[k]).tolist():
            if value:
                label_slices.setdefault(value, []).append(k)
    labels.flush()
    return label_slices
