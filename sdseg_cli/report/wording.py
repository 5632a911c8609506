"""Names of metrics and formats of numbers in a report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

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


def unit_of(column: str, units: Mapping[str, str]) -> str:
    """The unit of a column: as stated, else as its name ends; empty for a share, stated as "1"."""
    if column in units:
        return "" if units[column] == "1" else units[column]
    return next((unit for unit in ("mm", "px", "ml") if column.endswith(f"_{unit}")), "")


def decimals(unit: str) -> int:
    """Digits after the point that a mean of such values deserves."""
    return 2 if unit else 3


def text(value: object) -> str:
    """A value as text, empty where there is none."""
    return "" if value is None else str(value)


def number(value: float | None, places: int) -> str:
    """A number for a table: so many decimals, thin spaces between thousands, a true minus."""
    if value is None:
        return ABSENT
    written = f"{value:,.{places}f}".replace(",", THIN_SPACE)
    if float(f"{value:.{places}f}") == 0:
        written = written.lstrip("-")
    return written.replace("-", MINUS)


def interval(ends: Sequence[float | None], places: int) -> str:
    """Two ends; absent if one is."""
    low, high = ends
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
