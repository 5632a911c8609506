"""Kvasir-SEG, polyps in colonoscopy: 1000 pictures of many sizes with JPEG masks."""

from __future__ import annotations

import re
from pathlib import Path

from sdseg_cli.core.config import ABOVE_128
from sdseg_cli.data.layouts.pairs import paired, pictures_in
from sdseg_cli.data.spec import Case, DatasetSpec, in_order

_PLACES = ("", "Kvasir-SEG", "kvasir-seg")
_ID = re.compile(r"c[a-z0-9]{24}")
"""What every file of the archive is called: cju0qkwl35piu0993l0dewei2."""


def find_cases(root: Path) -> list[Case]:
    """Pair images/ID.jpg with masks/ID.jpg."""
    for place in _PLACES:
        if cases := paired(root / place / "images", root / place / "masks"):
            return in_order(cases)
    return []


def recognises(root: Path) -> bool:
    """True if images/ and masks/ hold pictures with the archive's ids and no others."""
    for place in _PLACES:
        stems = [*pictures_in(root / place / "images"), *pictures_in(root / place / "masks")]
        if stems:
            return all(_ID.fullmatch(stem) for stem in stems)
    return False


KSEG = DatasetSpec(
    name="kseg",
    summary="Kvasir-SEG {images,masks}/ID.jpg",
    find_cases=find_cases,
    recognises=recognises,
    published=True,
    modality="photograph",
    mask_levels=ABOVE_128,
    split_sizes=(800, 100, 100),
    whole=(880, 1000),  # the official training list, and all
)
