"""How a report names metrics, writes numbers and lays out a table."""

from __future__ import annotations

import math
from dataclasses import dataclass

ABSENT = "\u2013"
THIN_SPACE = "\u202f"
MINUS = "\u2212"

_NAMES = {
    "dice": "Dice",
    "iou": "IoU",
    "precision": "Precision",
    "recall": "Recall",
    "hd95": "HD95",
    "assd": "ASSD",
    "surface_dice": "Surface Dice",
    "volume_difference": "Volume difference",
    "detection_f1": "Lesion F1",
    "reference_voxels": "Reference voxels",
    "predicted_voxels": "Predicted voxels",
    "reference_lesions": "Reference lesions",
    "predicted_lesions": "Predicted lesions",
    "psnr": "PSNR",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "lpips": "LPIPS",
    "id": "Case",
    "sd": "SD",
}

MEANINGS = {
    "dice": "Twice the overlap, divided by the sum of both sizes.",
    "iou": "The overlap, divided by what either covers.",
    "precision": "Share of the predicted voxels that the reference has too.",
    "recall": "Share of the reference's voxels that were predicted.",
    "hd95": "95th percentile of the distances between the surfaces, the worse direction.",
    "assd": "Average distance between the surfaces, both directions together.",
    "surface_dice": "Share of both surfaces that lies within the tolerance of the other.",
    "volume_difference": "Predicted volume minus the reference's.",
    "detection_f1": "F1 of connected parts found, missed and made up; each speck is a part.",
}

BETTER = {"higher": "higher is better", "lower": "lower is better", "zero": "zero is best"}
ARROWS = {"higher": "\u2191", "lower": "\u2193", "zero": "\u21920"}


def base_name(column: str, unit: str) -> str:
    """The metric of a column: `hd95` of `hd95_mm`."""
    ending = f"_{unit}"
    return column[: -len(ending)] if unit and column.endswith(ending) else column


def label(column: str, unit: str = "") -> str:
    """The metric of a column, in a reader's words and without its unit."""
    base = base_name(column, unit)
    spaced = base.replace("_", " ")
    return _NAMES.get(base, spaced[:1].upper() + spaced[1:])


def unit_of(column: str, units: dict[str, str]) -> str:
    """The unit of a column: as stated, else as its name ends; empty for a share, stated as "1"."""
    if column in units:
        return "" if units[column] == "1" else units[column]
    return next((unit for unit in ("mm", "px", "ml") if column.endswith(f"_{unit}")), "")


def decimals(unit: str) -> int:
    """Digits after the point that a mean of such values deserves."""
    return 2 if unit else 3


def number(value: float | None, places: int) -> str:
    """A number for a table: so many decimals, thin spaces between thousands, a true minus."""
    if value is None:
        return ABSENT
    written = f"{value:,.{places}f}".replace(",", THIN_SPACE)
    if float(f"{value:.{places}f}") == 0:
        written = written.lstrip("-")
    return written.replace("-", MINUS)


def count(value: float | None) -> str:
    """A whole number."""
    return number(value, 0)


def interval(low: float | None, high: float | None, places: int) -> str:
    """Two ends; absent if one is."""
    if low is None or high is None:
        return ABSENT
    return f"{number(low, places)} to {number(high, places)}"


def percent(share: float | None) -> str:
    """A share of one as a percentage of about three digits."""
    if share is None:
        return ABSENT
    return f"{number(100 * share, digits(100 * share))} %"


def digits(value: float) -> int:
    """Decimals that leave three digits which count, at least one decimal: 0.00213, 2.13, 21.3."""
    return 1 if value == 0 else max(1, 2 - math.floor(math.log10(abs(value))))


@dataclass(frozen=True)
class Column:
    """A heading of a table."""

    label: str
    unit: str = ""
    is_text: bool = False
    """Sorted as text, else as numbers."""


@dataclass(frozen=True)
class Cell:
    """One entry: a text, and the number it is sorted by."""

    text: str
    value: float | None = None
    """What a column of numbers is sorted by; None where undefined."""
    below: str = ""
    """A smaller second line."""


@dataclass(frozen=True)
class Row:
    """One line."""

    cells: tuple[Cell, ...]
    case_id: str
    """The case whose picture belongs to it; empty if there is none."""


@dataclass(frozen=True)
class Table:
    """Columns and rows."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


def numeric(value: float | None, places: int) -> Cell:
    """A number with so many decimals."""
    return Cell(number(value, places), value)
