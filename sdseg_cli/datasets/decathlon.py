"""The Medical Segmentation Decathlon: dataset.json lists the training images and label maps."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from sdseg_cli.datasets import nnunet
from sdseg_cli.datasets.dataset_json import DATASET_JSON, IMAGES, describe, refine
from sdseg_cli.datasets.spec import Case, DatasetSpec, in_order
from sdseg_cli.errors import DataError
from sdseg_cli.filenames import stem_of


def find_cases(root: Path) -> list[Case]:
    """The pairs that dataset.json lists under "training"; macOS's "._" twins are passed over.

    Raises:
        DataError: dataset.json is missing or malformed, the images have several channels, or a
            path leaves the folder.
    """
    if not recognises(root):
        return []
    said = describe(root)
    if len(said.channels) > 1:
        raise DataError(
            f"{root}: its images are 4D, with {len(said.channels)} channels "
            f"({', '.join(said.channels)}); one is used.",
            "Write the channel you want as 3D files, and use the folder layout images/, labels/.",
        )
    cases = []
    for listed in said.training:
        image, label = (_inside(root, text) for text in listed)
        if not image.name.startswith("."):
            cases.append(Case(stem_of(image), image, label if label.is_file() else None))
    return in_order(cases)


def recognises(root: Path) -> bool:
    """Whether dataset.json and imagesTr are there, in another layout than nnU-Net's."""
    there = (root / DATASET_JSON).is_file() and (root / IMAGES).is_dir()
    return there and not nnunet.recognises(root)


def _inside(root: Path, text: str) -> Path:
    written = PurePosixPath(text)
    if written.is_absolute() or ".." in written.parts:
        raise DataError(
            f"{root / DATASET_JSON}: {text} leaves the data set's folder.",
            "Name the files as ./imagesTr/NAME.nii.gz and ./labelsTr/NAME.nii.gz.",
        )
    return root / written


DECATHLON = DatasetSpec(
    name="decathlon",
    summary='dataset.json with "training": [{"image", "label"}], imagesTr, labelsTr (Decathlon)',
    find_cases=find_cases,
    recognises=recognises,
    refine=refine,
)
