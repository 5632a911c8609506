"""The slices of a DICOM series as one regular stack, or the reason why they are none."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.errors import DataError
from sdseg_cli.core.filenames import natural_key
from sdseg_cli.imaging.io.dicom_series import Instance
from sdseg_cli.imaging.volume import GRID_TOLERANCE_VOXELS, LPS_TO_RAS, Geometry

MAX_PLANE_PIXELS = 1 << 26
"""8192 x 8192: a compressed file that claims more is not believed."""
_TOLERANCE = 1e-4
"""How far cosines and mm per pixel of one series may differ: 0.05 pixels over a row of 512."""
_HOUNSFIELD = ("HU", "HU_MOD", "US")
"""Kinds of values in CT: Hounsfield units, those somehow modified, and not said."""
_NAMED = 5
"""So many slices are named in a message."""

_Vector = NDArray[np.float64]


def check_header(slice_: Instance) -> None:
    """Refuse a file that is no single plane of grey values, or smaller than its header claims.

    Raises:
        DataError: As said.
    """
    (frames,) = slice_.numbers("NumberOfFrames", 1, default=1)
    (samples,) = slice_.numbers("SamplesPerPixel", 1, default=1)
    if frames != 1:
        raise DataError(
            f"{slice_.path}: a multi-frame object of {frames:g} frames, which is not read.",
            "Export the series as one file per slice, or convert it, for example with dcm2niix.",
        )
    if samples != 1:
        raise DataError(f"{slice_.path}: a colour image.", "Give a series of grey values.")
    if slice_.get("ModalityLUTSequence"):
        raise DataError(
            f"{slice_.path}: its grey values need a lookup table, which is not applied.",
            "Export the series with a rescale slope and intercept.",
        )
    _check_grey(slice_)
    (rows,), (columns,) = slice_.numbers("Rows", 1), slice_.numbers("Columns", 1)
    (bits,) = slice_.numbers("BitsAllocated", 1)
    pixels = int(rows * columns)
    held = slice_.path.stat().st_size
    if pixels > MAX_PLANE_PIXELS or (not slice_.is_compressed and pixels * bits / 8 > held):
        raise DataError(
            f"{slice_.path}: claims {pixels:,} pixels, which its {held:,} bytes do not hold.",
            "It is cut short or damaged: copy or export the series again.",
        )


def _check_grey(slice_: Instance) -> None:
    """Refuse grey values that mean something else than they seem to."""
    meaning = slice_.text("PhotometricInterpretation").strip().upper()
    if meaning == "MONOCHROME1":
        raise DataError(
            f"{slice_.path}: its grey values are inverted (MONOCHROME1), which is not handled.",
            "Export the series as MONOCHROME2.",
        )
    if meaning not in ("", "MONOCHROME2"):
        raise DataError(f"{slice_.path}: a colour image.", "Give a series of grey values.")
    (bits,) = slice_.numbers("BitsAllocated", 1)
    (stored,) = slice_.numbers("BitsStored", 1, default=bits)
    (highest,) = slice_.numbers("HighBit", 1, default=stored - 1)
    if not 1 <= stored <= bits or highest != stored - 1:
        raise DataError(
            f"{slice_.path}: its header says {stored:g} of {bits:g} bits up to bit {highest:g}, "
            "which is not handled.",
            "Export the series again; pixels are read whose bits begin with bit 0.",
        )
    kind = slice_.text("RescaleType").strip().upper()
    if slice_.modality == "CT" and kind not in ("", *_HOUNSFIELD):
        raise DataError(
            f"{slice_.path}: its RescaleType says that its values are no Hounsfield units.",
            "Export the series of the CT's own grey values, in HU.",
        )


def check_alike(slices: Sequence[Instance]) -> None:
    """Refuse slices whose grey values do not mean the same throughout the series.

    Slopes and intercepts may differ from slice to slice; they are applied. But a slice without one
    among slices that have it would be off, by 1024 HU in a CT, and nobody would see it.

    Raises:
        DataError: As said; it names the slices.
    """
    for name in ("RescaleSlope", "RescaleIntercept"):
        lacking = [one for one in slices if one.get(name) is None]
        if 0 < len(lacking) < len(slices):
            having = len(slices) - len(lacking)
            raise DataError(
                f"{_named(lacking)}: no {name}, which {having} of {len(slices)} slices have.",
                "Export the series again: without it these slices would be off against the others.",
            )
    negative = [one for one in slices if (one.numbers("RescaleSlope", 1, default=1) < 0).any()]
    if 0 < len(negative) < len(slices):
        raise DataError(
            f"{_named(negative)}: a RescaleSlope below 0, where other slices have one above 0.",
            "Export the series again; its header is damaged.",
        )
    for name in ("Modality", "RescaleType", "Units", "FrameOfReferenceUID"):
        groups: dict[str, list[Instance]] = {}
        for one in slices:
            groups.setdefault(one.text(name).strip().upper(), []).append(one)
        # Some anonymisers give each file a frame of its own, which then says nothing.
        is_everywhere = name == "FrameOfReferenceUID" and len(groups) == len(slices)
        if len(groups) > 1 and not is_everywhere:
            few = min(groups.values(), key=len)
            raise DataError(
                f"{_named(few)}: another {name} than the other {len(slices) - len(few)} slices.",
                "Export the series again, or move what does not belong to it away.",
            )


def _named(slices: Sequence[Instance]) -> str:
    """The first with its path, some more by name."""
    paths = sorted((one.path for one in slices), key=lambda path: natural_key(str(path)))
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return ", ".join([str(paths[0]), *(path.name for path in paths[1:_NAMED])]) + more


def sorted_stack(instances: Sequence[Instance]) -> tuple[list[Instance], Geometry]:
    """Sort slices along their normal, row x column, and place them.

    Returns:
        The slices, and the geometry of an array (column, row, slice).

    Raises:
        DataError: Slices of several sizes or directions, two at one place, a gap, or a tilt.
    """
    first = instances[0]
    _require_equal(instances, (("Columns", 1), ("Rows", 1)), 0, "size")
    _require_equal(instances, (("PixelSpacing", 2),), _TOLERANCE, "pixel spacing")
    _require_equal(instances, (("ImageOrientationPatient", 6),), _TOLERANCE, "direction")
    columns, rows = int(first.get("Columns")), int(first.get("Rows"))
    row_mm, column_mm = first.numbers("PixelSpacing", 2)
    if min(row_mm, column_mm) <= 0:
        raise DataError(
            f"{first.path}: its pixel spacing is no number above 0.", "Export the series again."
        )
    along_row, along_column = np.split(first.numbers("ImageOrientationPatient", 6), 2)
    cosines = np.array([along_row, along_column])
    if not np.allclose(cosines @ cosines.T, np.eye(2), rtol=0, atol=10 * _TOLERANCE):
        raise DataError(
            f"{first.path}: ImageOrientationPatient gives no two perpendicular directions.",
            "Export the series again; its orientation is damaged.",
        )
    normal = np.cross(along_row, along_column)
    places = np.array([one.numbers("ImagePositionPatient", 3) for one in instances])
    order = np.argsort(places @ normal, kind="stable")
    stack, places = [instances[n] for n in order], places[order]
    step = _step(stack, places, normal, min(row_mm, column_mm))
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1] = along_row * column_mm, along_column * row_mm
    lps[:3, 2], lps[:3, 3] = normal * step, places[0]
    try:
        return stack, Geometry((columns, rows, len(stack)), LPS_TO_RAS @ lps)
    except ValueError as error:
        raise DataError(
            f"{first.path}: its pixel spacing or orientation is no number above 0.",
            "Export the series again.",
        ) from error


def _step(stack: list[Instance], places: _Vector, normal: _Vector, pixel_mm: float) -> float:
    """Distance between neighbouring slices in mm, once they are known to stack."""
    if len(stack) == 1:
        (thickness,) = stack[0].numbers("SliceThickness", 1, default=1)
        (distance,) = stack[0].numbers("SpacingBetweenSlices", 1, default=thickness)
        return float(abs(distance)) or 1.0
    heights = places @ normal
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    for n in np.flatnonzero(gaps <= 0.01 * max(usual, 0.1)).tolist():
        raise DataError(
            f"{stack[n].path} and {stack[n + 1].path.name} lie at one position.",
            "Keep one copy of each slice, and one phase or echo: move the others away.",
        )
    step = float(heights[-1] - heights[0]) / len(gaps)
    even = heights[0] + step * np.arange(len(stack))
    if np.abs(heights - even).max() > GRID_TOLERANCE_VOXELS * step:
        n = int(np.argmax(np.abs(gaps - usual)))
        raise DataError(
            f"{stack[n].path} and {stack[n + 1].path.name} lie {gaps[n]:.4g} mm apart, most "
            f"slices {usual:.4g} mm: {_missing(gaps[n] / usual)}.",
            "Export the whole series again, or resample it to equal spacing.",
        )
    drift = np.linalg.norm(places[-1] - places[0] - normal * (heights[-1] - heights[0]))
    if drift > GRID_TOLERANCE_VOXELS * pixel_mm:
        degrees = math.degrees(math.atan2(drift, heights[-1] - heights[0]))
        raise DataError(
            f"{stack[0].path}: the slices of its series are sheared by {degrees:.3g} degrees "
            "(gantry tilt).",
            "Correct the tilt first, for example with dcm2niix, and give its NIfTI file.",
        )
    return step


def _missing(ratio: float) -> str:
    slices = round(ratio) - 1
    if slices < 1 or abs(ratio - slices - 1) > GRID_TOLERANCE_VOXELS:
        return "the spacing is not constant"
    return f"{slices} slice{'s are' if slices > 1 else ' is'} missing between them"


def _require_equal(
    instances: Sequence[Instance],
    elements: tuple[tuple[str, int], ...],
    tolerance: float,
    what: str,
) -> None:
    """Refuse a series in which a slice differs from the first."""
    first = instances[0]
    wanted = np.concatenate([first.numbers(name, count) for name, count in elements])
    for one in instances[1:]:
        values = np.concatenate([one.numbers(name, count) for name, count in elements])
        if np.abs(values - wanted).max() > tolerance:
            raise DataError(
                f"{one.path}: has another {what} than {first.path.name}.",
                "Localizers or several stacks share one series: move the others away.",
            )
