"""Ways to break a raw case: each changes the files of one case's folder."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from tests.raw_cases import AFFINE, SHAPE

Fault = Callable[[Path], None]


def save(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    nib.save(nib.Nifti1Image(values, affine), path)


def values_of(path: Path) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


def set_affine(path: Path, affine: np.ndarray) -> None:
    """As a broken exporter would: the sform, without nibabel's checks."""
    image = nib.load(path)
    header = image.header.copy()
    header.set_qform(None, code=0)
    header["sform_code"] = 1
    for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
        header[name] = affine[row]
    header["vox_offset"] = 352
    content = bytes(header.binaryblock) + bytes(4) + np.asanyarray(image.dataobj).tobytes("F")
    path.write_bytes(gzip.compress(content))


def cut(case: Path) -> None:
    content = (case / "image.nii.gz").read_bytes()
    (case / "image.nii.gz").write_bytes(content[:-100])


def spoil_checksum(case: Path) -> None:
    content = bytearray((case / "image.nii.gz").read_bytes())
    content[-6] ^= 1  # in the CRC: every voxel still decodes
    (case / "image.nii.gz").write_bytes(content)


def no_offset(case: Path) -> None:
    content = bytearray(gzip.decompress((case / "image.nii.gz").read_bytes()))
    content[108:112] = bytes(4)  # vox_offset
    (case / "image.nii.gz").write_bytes(gzip.compress(bytes(content)))


def text(case: Path) -> None:
    (case / "image.nii.gz").write_bytes(gzip.compress(b"this is no scan, " * 40))


def series(case: Path) -> None:
    save(case / "image.nii.gz", np.zeros((*SHAPE, 3), np.int16))


def colour(case: Path) -> None:
    rgb = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    save(case / "image.nii.gz", rgb)


def zero_affine(case: Path) -> None:
    set_affine(case / "image.nii.gz", np.zeros((4, 4)))


def flat_affine(case: Path) -> None:
    set_affine(case / "image.nii.gz", np.diag([2.0, 2.0, 0.0, 1.0]))


def shear(degrees: float) -> Fault:
    affine = AFFINE.copy()
    affine[0, 1] = affine[1, 1] * np.tan(np.radians(degrees))

    def fault(case: Path) -> None:
        for name in ("image.nii.gz", "label.nii.gz"):
            set_affine(case / name, affine)

    return fault


def nan(case: Path) -> None:
    values = values_of(case / "image.nii.gz").astype(np.float32)
    values[1, 2, 3], values[0, 0, 0] = np.nan, np.inf
    save(case / "image.nii.gz", values)


def offset(case: Path) -> None:
    save(case / "image.nii.gz", values_of(case / "image.nii.gz") + np.int16(1024))


def wrap(case: Path) -> None:
    save(case / "image.nii.gz", values_of(case / "image.nii.gz").astype(np.uint16))


def window(case: Path) -> None:
    scaled = (values_of(case / "image.nii.gz").astype(np.float32) + 1000) / 2000
    save(case / "image.nii.gz", scaled)


def constant(case: Path) -> None:
    save(case / "image.nii.gz", np.full_like(values_of(case / "image.nii.gz"), -1000))


def swap(case: Path) -> None:
    save(case / "image.nii.gz", np.minimum(values_of(case / "label.nii.gz"), 9).astype(np.uint8))


def metres(case: Path) -> None:
    for name in ("image.nii.gz", "label.nii.gz"):
        set_affine(case / name, np.diag([-0.002, -0.002, 0.005, 1]))


def relabel(function: Callable[[np.ndarray], np.ndarray]) -> Fault:
    def fault(case: Path) -> None:
        save(case / "label.nii.gz", function(values_of(case / "label.nii.gz")))

    return fault


def move(case: Path) -> None:
    affine = AFFINE.copy()
    affine[0, 3] = 1
    save(case / "label.nii.gz", values_of(case / "label.nii.gz"), affine)


def reorient(case: Path) -> None:
    for name in ("image.nii.gz", "label.nii.gz"):
        flipped = np.diag([2.0, 2.0, 5.0, 1.0])
        save(case / name, np.ascontiguousarray(values_of(case / name)[::-1, ::-1]), flipped)


def lose_mask(case: Path) -> None:
    (case / "label.nii.gz").unlink()
