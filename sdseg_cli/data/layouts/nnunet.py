"""nnU-Net raw data, versions 1 and 2: imagesTr/CASE_0000, labelsTr/CASE, dataset.json."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from sdseg_cli.core.errors import DataError
from sdseg_cli.core.filenames import is_picture
from sdseg_cli.data.layouts.dataset_json import (
    DATASET_JSON,
    IMAGES,
    LABELS,
    Description,
    check_description,
    describe,
    refine,
)
from sdseg_cli.data.layouts.pairs import Stems, by_stem, case_of, files_in, is_volume
from sdseg_cli.data.spec import Case, DatasetSpec, in_order

_CHANNEL = "_0000"


def find_cases(root: Path) -> list[Case]:
    """Pair imagesTr/CASE_0000 with labelsTr/CASE.

    dataset.json's file ending is what nnU-Net itself goes by. A pair of another one is read too,
    and the checks say so.

    Raises:
        DataError: dataset.json is missing or malformed, or the images have several channels.
    """
    if not recognises(root):
        return []
    said = describe(root)
    images = by_stem(files_in(root / IMAGES, _is_read))
    labels = by_stem(files_in(root / LABELS, _is_read))
    _require_one_channel(root, said, images)
    cases = []
    for stem, several in images.items():
        id = stem.removesuffix(_CHANNEL)
        for image in several:
            is_own = image.name.lower().endswith(said.file_ending.lower())
            if stem.endswith(_CHANNEL) and (is_own or id in labels):
                cases.append(case_of(id, image, labels.get(id, ())))
    return in_order(cases)


def recognises(root: Path) -> bool:
    """Whether dataset.json and imagesTr/*_0000.* are there."""
    images = (root / IMAGES).glob(f"[!.]*{_CHANNEL}.*")
    return (root / DATASET_JSON).is_file() and any(images)


def _require_one_channel(root: Path, said: Description, images: Stems) -> None:
    ending = said.file_ending
    second = {stem.removesuffix("_0001") for stem in images if stem.endswith("_0001")}
    alone = sorted(id for id in second if f"{id}{_CHANNEL}" not in images)
    if alone and len(said.channels) == 1:
        raise DataError(
            f"{root}: dataset.json declares one channel, and {IMAGES}/{alone[0]}_0001 is a second.",
            f"Rename it to {alone[0]}{_CHANNEL}, or take it out.",
        )
    # nnU-Net names the three colours of a picture, which lie in one file.
    in_one = all(is_picture(image) for group in images.values() for image in group)
    if second or (len(said.channels) > 1 and not in_one):
        raise DataError(
            f"{root}: its images have several channels ({', '.join(said.channels)}); one is used.",
            f"Choose one: --image-glob '{IMAGES}/*{_CHANNEL}{ending}' "
            f"--label-glob '{LABELS}/*{ending}'.",
        )


def _is_read(path: Path) -> bool:
    return is_volume(path) or is_picture(path)


NNUNET = DatasetSpec(
    name="nnunet",
    summary="dataset.json, imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz (nnU-Net)",
    find_cases=find_cases,
    recognises=recognises,
    refine=refine,
    check=partial(check_description, is_complete=False),
)
