"""The Medical Segmentation Decathlon: dataset.json lists the training images and label maps."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath

from sdseg_cli.core.errors import DataError
from sdseg_cli.core.filenames import is_picture, stem_of
from sdseg_cli.data.layouts import nnunet
from sdseg_cli.data.layouts.dataset_json import (
    DATASET_JSON,
    IMAGES,
    check_description,
    describe,
    refine,
)
from sdseg_cli.data.layouts.pairs import by_stem, case_of, files_in, is_volume
from sdseg_cli.data.spec import Case, DatasetSpec, in_order

LONGEST_NAME, LONGEST_PATH = 255, 1000
"""Bytes of a file name, and of a path below a data set."""


def find_cases(root: Path) -> list[Case]:
    """The pairs that dataset.json lists under "training"; macOS's "._" twins are passed over.

    Raises:
        DataError: dataset.json is missing or malformed, the images have several channels, or a
            path leaves the folder.
    """
    if not recognises(root):
        return []
    said = describe(root)
    colours = all(is_picture(Path(image)) for image, _ in said.training)
    if len(said.channels) > 1 and not colours:
        raise DataError(
            f"{root}: its images are 4D, with {len(said.channels)} channels "
            f"({', '.join(said.channels)}); one is used.",
            "Write the channel you want as 3D files, and use the folder layout images/, labels/.",
        )
    twice = [listed for listed, count in Counter(said.training).items() if count > 1]
    if twice:
        raise DataError(
            f"{root / DATASET_JSON}: lists {twice[0][0]!a} twice under training.",
            "Remove one of the two entries.",
        )
    cases = []
    for listed in said.training:
        image, label = (_inside(root, text) for text in listed)
        if not image.name.startswith("."):
            labels = [label] if label.is_file() else []
            cases.append(case_of(stem_of(image), image, labels))
    return in_order(cases)


def recognises(root: Path) -> bool:
    """Whether dataset.json and imagesTr are there, in another layout than nnU-Net's."""
    there = (root / DATASET_JSON).is_file() and (root / IMAGES).is_dir()
    return there and not nnunet.recognises(root)


def _inside(root: Path, text: str) -> Path:
    written = PurePosixPath(text)
    drive = PureWindowsPath(text).drive
    if _is_odd(text) or not written.name:
        raise DataError(
            f"{root / DATASET_JSON}: {text!a:.60} is no path of a file.",
            "Name the files as ./imagesTr/NAME.nii.gz and ./labelsTr/NAME.nii.gz.",
        )
    if written.is_absolute() or drive or ".." in written.parts:
        raise DataError(
            f"{root / DATASET_JSON}: {text!a} leaves the data set's folder.",
            "Name the files as ./imagesTr/NAME.nii.gz and ./labelsTr/NAME.nii.gz.",
        )
    return _as_found(root / written)


def _as_found(path: Path) -> Path:
    """The listed file, or the only one that differs from it by its ending."""
    if path.is_file():
        return path
    stem = stem_of(path)
    alike = by_stem(files_in(path.parent, is_volume)).get(stem, [])
    return alike[0] if len(alike) == 1 else path


def _is_odd(text: str) -> bool:
    """Whether no file can have this name: half a character, a zero, or too long."""
    broken = "\0" in text or any("\ud800" <= character <= "\udfff" for character in text)
    if broken or len(text) > LONGEST_PATH:
        return True
    return any(len(part.encode()) > LONGEST_NAME for part in text.split("/"))


DECATHLON = DatasetSpec(
    name="decathlon",
    summary='dataset.json with "training": [{"image", "label"}], imagesTr, labelsTr (Decathlon)',
    find_cases=find_cases,
    recognises=recognises,
    refine=refine,
    check=partial(check_description, is_complete=True),
)
