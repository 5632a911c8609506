"""CVC-ClinicDB, polyps in colonoscopy: 612 frames of 29 video sequences, 384x288.

The archive's own layout is split at random as in the paper, though frames of one video are near
twins. Where a split.csv names the sequences, they are kept whole, and "held-out" ones test.
"""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

from sdseg_cli.core.config import ABOVE_128
from sdseg_cli.core.errors import DataError
from sdseg_cli.core.json_files import read_text
from sdseg_cli.data.layouts.pairs import paired
from sdseg_cli.data.spec import Case, DatasetSpec, in_order

_PLACES = ("", "PNG", "TIF", "CVC-ClinicDB", "CVC-ClinicDB/PNG", "CVC-ClinicDB/TIF")
_COLUMNS = ["frame", "sequence", "split"]
_TEST = ("held-out", "test")


def find_cases(root: Path) -> list[Case]:
    """Pair Original/N with Ground Truth/N, or images/N with masks/N where split.csv is there.

    Raises:
        DataError: split.csv is damaged, or lacks a frame.
    """
    if _has_sequences(root):
        return in_order(_with_sequences(root))
    for place in _PLACES:
        if cases := paired(root / place / "Original", root / place / "Ground Truth"):
            return in_order(cases)
    return []


def recognises(root: Path) -> bool:
    """True if it has Original/ and Ground Truth/, or split.csv with its three columns."""
    both = ("Original", "Ground Truth")
    return _has_sequences(root) or any(
        all((root / place / folder).is_dir() for folder in both) for place in _PLACES
    )


def _has_sequences(root: Path) -> bool:
    file = root / "split.csv"
    if not file.is_file() or not (root / "images").is_dir():
        return False
    try:
        return next(csv.reader(io.StringIO(read_text(file, ""))), []) == _COLUMNS
    except (DataError, csv.Error):  # another table, not ours to name
        return False


def _with_sequences(root: Path) -> list[Case]:
    file = root / "split.csv"
    hint = f"Each frame needs a line of {','.join(_COLUMNS)}."
    try:
        rows = {row["frame"]: row for row in csv.DictReader(io.StringIO(read_text(file, hint)))}
    except csv.Error as error:
        raise DataError(f"{file}: damaged ({error}).", hint) from error
    cases = []
    for case in paired(root / "images", root / "masks"):
        row = rows.get(case.id)
        if row is None or not row["sequence"]:
            raise DataError(f"{file}: no sequence for frame {case.id}.", hint)
        split = "test" if row["split"] in _TEST else None
        cases.append(replace(case, split=split, group=f"sequence {row['sequence']}"))
    return cases


CVC = DatasetSpec(
    name="cvc",
    summary="CVC-ClinicDB {Original,Ground Truth}/N.png, or {images,masks}/N and split.csv",
    find_cases=find_cases,
    recognises=recognises,
    published=True,
    modality="photograph",
    mask_levels=ABOVE_128,
    split_sizes=(488, 62, 62),
)
