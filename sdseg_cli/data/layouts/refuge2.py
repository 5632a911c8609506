"""REFUGE2, optic cup and disc in fundus photographs: 400 train, 400 val, 400 test.

As in the paper, train and val together train, and test tests. sdseg stops training by a
validation set, so a tenth of those 800 is taken out for it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from sdseg_cli.data.layouts.pairs import paired, pictures_in
from sdseg_cli.data.spec import SPLITS, Case, DatasetSpec, in_order

_PLACES = ("", "REFUGE2", "REFUGE")
_MASK_FOLDERS = ("mask", "masks")
_NAME = re.compile(r"[gnvt]\d{4}", re.IGNORECASE)
"""What the archive's pictures are called: g0001 (glaucoma), n0001 (none), V0001, T0001."""


def find_cases(root: Path) -> list[Case]:
    """Pair {train,val,test}/images/N with mask/N or masks/N; the id is "train_g0001"."""
    base = _base(root)
    if base is None:
        return []
    cases = []
    for name in SPLITS:
        folders = [base / name / folder for folder in _MASK_FOLDERS]
        masks = next((folder for folder in folders if folder.is_dir()), folders[0])
        for case in paired(base / name / "images", masks):
            split = "test" if name == "test" else None
            cases.append(replace(case, id=f"{name}_{case.id}", split=split))
    return in_order(cases)


def recognises(root: Path) -> bool:
    """True if it has the layout and every picture has a name of the archive.

    Other sets lie in such folders too, and their masks would be read inside out: 0 is the cup here.
    """
    base = _base(root)
    return base is not None and all(
        _NAME.fullmatch(stem) for name in SPLITS for stem in pictures_in(base / name / "images")
    )


def _base(root: Path) -> Path | None:
    for place in _PLACES:
        train = root / place / "train"
        masks = any((train / folder).is_dir() for folder in _MASK_FOLDERS)
        if masks and pictures_in(train / "images"):
            return root / place
    return None


REFUGE2 = DatasetSpec(
    name="refuge2",
    summary="{train,val,test}/images/*.jpg and mask/*.bmp: 0 cup, 128 rim, 255 background",
    find_cases=find_cases,
    recognises=recognises,
    published=True,
    modality="photograph",
    # The cup is label 1, the rim 2 (--target 1,2 is the whole disc).
    mask_levels=((0, 1), (64, 2), (193, 0)),
    target=(1,),
    class_names={1: "cup", 2: "rim"},
)
