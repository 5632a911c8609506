"""Pairs of files by their names, for all data sets. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from sdseg_cli.core.filenames import is_picture, listed, stem_of, suffix_of
from sdseg_cli.data.spec import Case

DATASET_JSON, IMAGES, LABELS = "dataset.json", "imagesTr", "labelsTr"
"""What nnU-Net and the Decathlon call the description and the folders of a data set."""

Stems = dict[str, list[Path]]
"""Stem -> the files of that stem, as they sort; mostly one."""


def is_volume(path: Path) -> bool:
    """True for the name of a NIfTI, NRRD or MetaImage file, in capitals or not."""
    return suffix_of(path) is not None


def files_in(folder: Path, kind: Callable[[Path], bool]) -> list[Path]:
    """Files of a kind in one folder, naturally sorted, without hidden ones.

    A link to what is not there is one, so that a lost scan is an error; a folder that is not there
    has none.
    """
    return [path for path in listed(folder)[1] if kind(path)] if folder.is_dir() else []


def by_stem(paths: Iterable[Path]) -> Stems:
    """Files by the stem of their names."""
    found: Stems = {}
    for path in paths:
        found.setdefault(stem_of(path), []).append(path)
    return found


def pictures_in(folder: Path) -> Stems:
    """The pictures of a folder."""
    return by_stem(files_in(folder, is_picture))


def case_of(id: str, image: Path, labels: Sequence[Path]) -> Case:
    """A case with whatever label maps have its name; more than one are for the checks to name."""
    return Case(id, image, labels[0] if labels else None, other_labels=tuple(labels[1:]))


def cases_of(
    images: Mapping[str, Sequence[Path]], labels: Mapping[str, Sequence[Path]]
) -> list[Case]:
    """A case for each image; its label map has the same stem, or is missing."""
    return [
        case_of(stem, image, labels.get(stem, ()))
        for stem, several in images.items()
        for image in several
    ]


def paired(images: Path, masks: Path) -> list[Case]:
    """A case for each picture in `images`; its mask has the same stem in `masks`, or is missing."""
    return cases_of(pictures_in(images), pictures_in(masks))
