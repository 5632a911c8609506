"""What data sets of pictures share: pairs of equal names. Standard library only."""

from __future__ import annotations

from pathlib import Path

from sdseg_cli.datasets.spec import Case
from sdseg_cli.errors import DataError
from sdseg_cli.filenames import is_picture, listed, stem_of


def pictures_in(folder: Path) -> dict[str, Path]:
    """Stem -> picture; dot files are none, and a folder that is not there has none.

    Raises:
        DataError: Two pictures have one stem.
    """
    found: dict[str, Path] = {}
    for path in filter(is_picture, listed(folder)[1] if folder.is_dir() else ()):
        if stem_of(path) in found:
            raise DataError(
                f"{path} and {found[stem_of(path)].name} are both case {stem_of(path)}.",
                "Keep one of them, or choose files with --image-glob and --label-glob.",
            )
        found[stem_of(path)] = path
    return found


def paired(images: Path, masks: Path) -> list[Case]:
    """A case for each picture in `images`; its mask has the same stem in `masks`, or is missing.

    Raises:
        DataError: Two pictures of one folder have one stem.
    """
    mask_of = pictures_in(masks)
    return [Case(stem, image, mask_of.get(stem)) for stem, image in pictures_in(images).items()]
