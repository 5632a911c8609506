"""Five small CT cases on disk, as a user has them."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np

from sdseg_cli.core.progress import Progress, no_op
from sdseg_cli.data.prepare import PrepareOptions, PrepareReport, prepare

SHAPE = (20, 24, 5)
AFFINE = np.diag([-2.0, -2.0, 5.0, 1.0])
IDS = ["pt_1", "pt_2", "pt_3", "pt_4", "pt_10"]


def write_case(folder: Path, seed: int) -> None:
    """A CT of noise; labels 1 in slices 1 and 2, 300 in slice 4."""
    hu = np.random.default_rng(seed).integers(-1000, 1000, SHAPE).astype(np.int16)
    labels = np.zeros(SHAPE, np.uint16)
    labels[5:9, 5:12, 1:3] = 1
    labels[10:14, 5:12, 4] = 300
    folder.mkdir(parents=True)
    nib.save(nib.Nifti1Image(hu, AFFINE), folder / "image.nii.gz")
    nib.save(nib.Nifti1Image(labels, AFFINE), folder / "label.nii.gz")


def write_cases(folder: Path) -> Path:
    """`pt_N/{image,label}.nii.gz` for each of `IDS`; the folder's name has a space in it."""
    for seed, id in enumerate(IDS):
        write_case(folder / "raw data" / id, seed)
    return folder / "raw data"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def prepared(
    raw: Path, workspace: Path, *, progress: Progress = no_op, **options: object
) -> PrepareReport:
    """`prepare` in one process, with slices of 64 px; keywords are fields of `PrepareOptions`."""
    values = {"workers": 1, "size": 64} | options
    return prepare(raw, workspace, PrepareOptions(**values), progress=progress)  # type: ignore[arg-type]


def split_file(workspace: Path, **lists: list[str]) -> Path:
    """`split.json` beside a workspace, with these lists of cases."""
    path = workspace.parent / "split.json"
    path.write_text(json.dumps(lists))
    return path
