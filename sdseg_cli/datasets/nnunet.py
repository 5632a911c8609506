"""nnU-Net raw data, versions 1 and 2: imagesTr/CASE_0000, labelsTr/CASE, dataset.json."""

from __future__ import annotations

from pathlib import Path

from sdseg_cli.datasets.dataset_json import DATASET_JSON, IMAGES, LABELS, describe, refine
from sdseg_cli.datasets.spec import Case, DatasetSpec, in_order
from sdseg_cli.errors import DataError

_CHANNEL = "_0000"


def find_cases(root: Path) -> list[Case]:
    """Pair imagesTr/CASE_0000 with labelsTr/CASE, both with dataset.json's file ending.

    Raises:
        DataError: dataset.json is missing or malformed, or the images have several channels.
    """
    if not recognises(root):
        return []
    said = describe(root)
    ending = said.file_ending
    several = next((root / IMAGES).glob(f"[!.]*_0001{ending}"), None)
    if len(said.channels) > 1 or several is not None:
        raise DataError(
            f"{root}: its images have several channels ({', '.join(said.channels)}); one is used.",
            f"Choose one: --image-glob '{IMAGES}/*{_CHANNEL}{ending}' "
            f"--label-glob '{LABELS}/*{ending}'.",
        )
    cases = []
    for image in (root / IMAGES).glob(f"[!.]*{_CHANNEL}{ending}"):
        id = image.name.removesuffix(_CHANNEL + ending)
        label = root / LABELS / f"{id}{ending}"
        cases.append(Case(id, image, label if label.is_file() else None))
    return in_order(cases)


def recognises(root: Path) -> bool:
    """Whether dataset.json and imagesTr/*_0000.* are there."""
    images = (root / IMAGES).glob(f"[!.]*{_CHANNEL}.*")
    return (root / DATASET_JSON).is_file() and any(images)


NNUNET = DatasetSpec(
    name="nnunet",
    summary="dataset.json, imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz (nnU-Net)",
    find_cases=find_cases,
    recognises=recognises,
    refine=refine,
)
