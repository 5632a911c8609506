"""Whether a prediction fits into the memory there is, from the scan's header.

It holds the scan at its stored type and one byte per voxel for each map that is asked for; besides,
as much as a batch takes, and what some formats' writers copy. Nothing else grows with the scan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from sdseg_cli.core.errors import RunError
from sdseg_cli.core.filenames import NIFTI_SUFFIXES, suffix_of
from sdseg_cli.core.processes import available_bytes, largest_that_fits
from sdseg_cli.imaging.volume import Geometry, Planes
from sdseg_cli.inference.options import OutputPaths

PREVIEW_BYTES = 150_000_000
"""Drawing: its library, and twelve slices of a large scan."""
SLICE_BYTES_PER_PIXEL = 24
"""A slice on its way to the model's plane and back, most of it float32."""
GB = 1e9


@dataclass(frozen=True)
class Need:
    """What one prediction takes, in bytes, besides what the process has taken before it."""

    scan: int
    mask: int
    probability: int
    uncertainty: int
    copies: int
    """Of a map, while it is written."""
    preview: int
    batch: int
    """Of slices: their pixels, what the networks hold at once, and the answers."""

    @property
    def total(self) -> int:
        """All of it: the most at any one time, or a little more."""
        return sum(asdict(self).values())

    def __str__(self) -> str:
        parts = (f"{name} {value / GB:.2f}" for name, value in asdict(self).items() if value)
        return ", ".join(parts)


def need_of(
    outputs: OutputPaths, geometry: Geometry, voxel_bytes: int, batch_bytes: int, draws: int = 1
) -> Need:
    """What a prediction takes.

    Args:
        outputs: What is written.
        geometry: Of the scan.
        voxel_bytes: Of the scan's stored type.
        batch_bytes: `Predictor.batch_bytes`.
        draws: Masks of a slice that are compared.
    """
    voxels, side = math.prod(geometry.shape), max(Planes.of(geometry).shape)
    share = np.dtype(outputs.probability_dtype).itemsize
    others = [path for path in (outputs.probability, outputs.uncertainty) if path is not None]
    copied = [_copied_bytes(outputs.mask, 1), *(_copied_bytes(path, 4) for path in others)]
    return Need(
        scan=voxels * voxel_bytes,
        mask=voxels,
        probability=voxels * share * (outputs.probability is not None),
        uncertainty=voxels * (outputs.uncertainty is not None),
        copies=voxels * max(copied),
        preview=PREVIEW_BYTES * (outputs.preview is not None),
        batch=batch_bytes + side**2 * (SLICE_BYTES_PER_PIXEL + 2 * draws),
    )


def _copied_bytes(path: Path, held: int) -> int:
    """Per voxel: NIfTI is written plane by plane, the other formats' libraries hold what they write
    (and probabilities as float32, for these formats know no slope).
    """
    return 0 if suffix_of(path) in NIFTI_SUFFIXES else held


def advice(savings: Mapping[str, int], short: int) -> str:
    """What to do about a scan that does not fit.

    Args:
        savings: What could be done otherwise, in the order of preference -> bytes that it saves.
        short: Bytes that are missing.
    """
    enough = [[option] for option, saved in savings.items() if saved >= short]
    together = [option for option, saved in savings.items() if saved > 0]
    if "no --prob" in together and "--prob-dtype uint8" in together:
        together.remove("--prob-dtype uint8")
    if sum(savings[option] for option in together) >= short:
        enough.append(together)
    if not enough:
        return "No option makes it fit: end other programs, or take a machine with more memory."
    return f"It fits with {' and '.join(enough[0])}."


@dataclass(frozen=True)
class MemoryGuard:
    """Refuses a scan that does not fit; a `OnHeader`.

    Attributes:
        name: Of the scan.
        outputs: What is written.
        batch_bytes: What a batch takes, by its size; by None as it is set.
        draws: Masks of a slice that are compared.
        batch_size: As it is set; a scan of fewer slices has a smaller one. None: unknown.
    """

    name: str
    outputs: OutputPaths
    batch_bytes: Callable[[int | None], int]
    draws: int = 1
    batch_size: int | None = None

    def __call__(self, geometry: Geometry, voxel_bytes: int) -> None:
        """Told of the scan before it is read.

        Raises:
            RunError: It does not fit.
        """
        size = self.batch_size and min(self.batch_size, Planes.of(geometry).count)
        set_batch = self.batch_bytes(size)
        need = need_of(self.outputs, geometry, voxel_bytes, set_batch, self.draws)
        free = available_bytes()
        if need.total <= free:
            return
        is_float = self.outputs.probability_dtype != "uint8"
        left = free - (need.total - set_batch)
        smaller = max(1, largest_that_fits(self.batch_bytes, size or 1, left))
        savings = {
            f"--batch-size {smaller}": set_batch - self.batch_bytes(smaller),
            "outputs in .nii.gz": need.copies,
            "--prob-dtype uint8": need.probability * 3 // 4 if is_float else 0,
            "no --preview": need.preview,
            "no --uncertainty": need.uncertainty,
            "no --prob": need.probability,
        }
        raise RunError(
            f"{self.name}: predicting it takes {need.total / GB:.2f} GB of memory ({need}), "
            f"and {free / GB:.2f} GB are free.",
            advice(savings, need.total - free),
        )
