"""Small archives in the layouts of real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

SHAPE = (12, 10, 6)
AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def scan(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(-900, 900, shape).astype(np.int16)


def tooth(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """5 x 5 x 4 = 100 voxels of label 2, and one stray voxel of label 1 far off."""
    labels = np.zeros(shape, np.uint8)
    labels[2:7, 2:7, 1:5] = 2
    labels[11, 9, 5] = 1
    return labels


def write_sts(root: Path, numbers: range = range(1, 13)) -> Path:
    """STS-3D: `labelled/{image,label}/Teeth_00NN_0000.nii.gz`, and scans without labels."""
    for number in numbers:
        name = f"Teeth_{number:04d}_0000.nii.gz"
        hu = scan(number)
        hu[0, :] = hu[4, 4, 2] = -1000  # outside the field, and one voxel inside the tooth
        write_nifti(root / "labelled/image" / name, hu)
        write_nifti(root / "labelled/label" / name, tooth())
    write_nifti(root / "unlabelled/image/Teeth_0099_0000.nii.gz", scan(99))
    return root


def write_nnunet(root: Path, cases: int = 4, channels: int = 1, **description: Any) -> Path:
    """nnU-Net's raw data; the description is version 2's unless given."""
    for number in range(1, cases + 1):
        for channel in range(channels):
            name = f"case_{number:03d}_{channel:04d}.nii.gz"
            write_nifti(root / "imagesTr" / name, scan(number + 100 * channel))
        write_nifti(root / "labelsTr" / f"case_{number:03d}.nii.gz", tooth())
    write_nifti(root / "imagesTs/case_009_0000.nii.gz", scan(9))
    content = {
        "channel_names": {str(c): ("CT", "PET")[c] for c in range(channels)},
        "labels": {"background": 0, "root": 1, "crown": 2},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (root / "dataset.json").write_text(json.dumps(content | description))
    return root


def write_decathlon(root: Path, cases: int = 4, **description: Any) -> Path:
    """A task of the Decathlon, with the "._" twins its archives hold."""
    names = [f"la_{number:03d}.nii.gz" for number in range(1, cases + 1)]
    for number, name in enumerate(names):
        write_nifti(root / "imagesTr" / name, scan(number))
        write_nifti(root / "labelsTr" / name, tooth())
        for folder in ("imagesTr", "labelsTr"):
            (root / folder / f"._{name}").write_bytes(b"Mac OS X")
    content = {
        "name": "LeftAtrium",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "left atrium", "2": "wall"},
        "numTraining": cases,
        "training": [
            {"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"}
            for name in (*names, f"._{names[0]}")
        ],
        "test": ["./imagesTs/la_009.nii.gz"],
    }
    (root / "dataset.json").write_text(json.dumps(content | description))
    return root
