"""A made-up abdomen CT data set in BTCV's layout: for the demo and for tests, no patient needed.

Coordinates are millimetres from the centre of the body: x towards the patient's left, y towards the
back, z towards the head. Everything is an ellipsoid or a tube, bent by a smooth random warp.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sdseg_cli.core.files import replacing
from sdseg_cli.core.progress import Progress, no_op
from sdseg_cli.demo.anatomy import AIR_HU, WARP_MM, Canvas, Field, build_abdomen
from sdseg_cli.imaging.volume import Geometry, Volume

PLACE = Path("Abdomen/RawData/Training")
"""Where BTCV keeps its training cases."""
SHAPE = (176, 176, 32)
SPACING_MM = (2.1, 2.1, 5.0)


@dataclass(frozen=True, eq=False)
class Phantom:
    """A made-up scan and its organs.

    Attributes:
        scan: (I, J, K) int16 HU, stored towards the patient's left, front and head (LAS).
        labels: (I, J, K) uint8 on the same grid, BTCV's numbers: 1 spleen, 2 and 3 right and
            left kidney, 4 gallbladder, 6 liver, 7 stomach, 8 aorta, 9 vena cava, 11 pancreas.
    """

    scan: Volume
    labels: Volume


def make_phantom(
    seed: int,
    case: int,
    shape: tuple[int, int, int] = SHAPE,
    spacing_mm: tuple[float, float, float] = SPACING_MM,
) -> Phantom:
    """Make one patient; the same arguments make the same one.

    Args:
        seed: Of the data set.
        case: Number of the patient.
        shape: Voxels (I, J, K).
        spacing_mm: Distance between them; the body spans about 320 x 220 mm.
    """
    rng = np.random.default_rng([seed, case])
    straight = _coordinates(shape, spacing_mm)
    abdomen = build_abdomen(rng, *_warped(rng, *straight))
    _lay_on_table(abdomen, *straight[:2])
    geometry = Geometry(shape, _oblique_affine(rng, shape, spacing_mm))
    return Phantom(
        scan=Volume(_scanned(rng, abdomen), geometry), labels=Volume(abdomen.labels, geometry)
    )


def write_phantom_set(
    folder: Path,
    *,
    cases: int = 14,
    seed: int = 0,
    shape: tuple[int, int, int] = SHAPE,
    spacing_mm: tuple[float, float, float] = SPACING_MM,
    progress: Progress = no_op,
) -> list[Path]:
    """Write patients 1..cases as img/img00NN.nii.gz and label/label00NN.nii.gz.

    Args:
        folder: `Abdomen/RawData/Training` is made in it.
        cases: Number of patients; 1, 2, 3, 4 and 8 are BTCV's test cases.
        seed: Of the data set.
        shape: Voxels (I, J, K) of each scan.
        spacing_mm: Distance between them.
        progress: Called after each patient.

    Returns:
        The scans' paths.

    Raises:
        RunError: The disk refused.
    """
    scans = []
    for case in range(1, cases + 1):
        phantom = make_phantom(seed, case, shape, spacing_mm)
        scan = folder / PLACE / "img" / f"img{case:04d}.nii.gz"
        _save(scan, phantom.scan)
        _save(folder / PLACE / "label" / f"label{case:04d}.nii.gz", phantom.labels)
        scans.append(scan)
        progress(case, cases, f"phantom {case:04d}")
    return scans


def _save(path: Path, volume: Volume) -> None:
    import nibabel as nib  # making a phantom needs none, and a bare machine has none

    image = nib.Nifti1Image(volume.array, volume.geometry.affine)
    image.header.set_xyzt_units("mm")
    with replacing(path) as temporary:
        image.to_filename(temporary)


def _coordinates(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]
) -> tuple[Field, Field, Field]:
    """x, y, z of every voxel in mm, each (I, J, K)."""
    lines = (
        sign * (np.arange(n, dtype=np.float32) - (n - 1) / 2) * step
        for n, step, sign in zip(shape, spacing_mm, (1, -1, 1), strict=True)
    )
    x, y, z = (axis.astype(np.float32) for axis in np.meshgrid(*lines, indexing="ij"))
    # The table takes room behind the back.
    return x, y + 22, z


def _warped(rng: np.random.Generator, x: Field, y: Field, z: Field) -> tuple[Field, Field, Field]:
    """The coordinates bent by a few millimetres, smoothly: no two organs are alike."""
    bent = []
    for axis in (x, y, z):
        bend = np.zeros_like(x)
        for _ in range(3):
            direction = rng.normal(size=3)
            wave = direction / np.linalg.norm(direction) * 2 * np.pi / rng.uniform(120, 300)
            phase = float(rng.uniform(0, 2 * np.pi))
            angle = float(wave[0]) * x + float(wave[1]) * y + float(wave[2]) * z + phase
            bend += float(rng.uniform(1, WARP_MM / 3.5)) * np.sin(angle)
        bent.append(axis + bend)
    return bent[0], bent[1], bent[2]


def _lay_on_table(abdomen: Canvas, x: Field, y: Field) -> None:
    """A curved carbon shell with a foam core under the back."""
    outside = (abdomen.hu == AIR_HU) & (np.abs(x) < 172)
    depth = y - 124 + (x / 190) ** 2 * 16
    foam = outside & (depth > 0) & (depth < 28)
    abdomen.hu[foam] = -930
    for shell in (0, 28):
        # Thinner than a voxel is wide: the voxels it crosses are partly air.
        share = np.clip(1 - np.abs(depth - shell) / 3.2, 0, 1)
        crossed = outside & (share > 0)
        abdomen.hu[crossed] = AIR_HU + 1350 * share[crossed]


def _scanned(rng: np.random.Generator, abdomen: Canvas) -> NDArray[np.int16]:
    """The abdomen through a scanner: blur and noise that is correlated in the plane."""
    sharp = ndimage.gaussian_filter(abdomen.hu, (0.55, 0.55, 0.3))
    noise = ndimage.gaussian_filter(
        rng.standard_normal(abdomen.hu.shape, dtype=np.float32), (0.7, 0.7, 0)
    )
    noise *= np.float32(rng.uniform(9, 15) / noise.std())
    stored: NDArray[np.int16] = np.clip(np.rint(sharp + noise), -1024, 3071).astype(np.int16)
    return stored


def _oblique_affine(
    rng: np.random.Generator, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]
) -> NDArray[np.float64]:
    """Axes towards left, front and head, tilted by a few degrees, as on a real scanner's bed."""
    tilt = rng.uniform(-6, 6, size=3) * np.pi / 180
    rotation = np.eye(3)
    for (a, b), angle in zip(((1, 2), (0, 2), (0, 1)), tilt, strict=True):
        turn = np.eye(3)
        turn[[a, b], [a, b]] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        rotation = turn @ rotation
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([-spacing_mm[0], spacing_mm[1], spacing_mm[2]])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine
