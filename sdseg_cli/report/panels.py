"""One small picture per case, for a page that shows hundreds: a slice and two outlines.

The slice is an ordinary picture; the outlines are lines on it, so that a page can switch each on
and off. A panel takes a few milliseconds. All panels of a report lie in one file beside it, so that
the page can be written again without predicting again. A map panel is tinted where the runs of a
case disagree.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.errors import DataError
from sdseg_cli.core.json_files import read_object
from sdseg_cli.core.tables import write_json
from sdseg_cli.report.drawing import (
    MaskPlane,
    PixelMm,
    as_colours,
    not_black,
    overlay,
    view_mm,
    windowed,
)

FILE = "panels.json"
FORMAT_VERSION = 1
LONGEST_SIDE = 420
"""Of a panel's picture, pixels."""
_QUALITY = 90  # of the JPEG: a third of a PNG's bytes, no difference seen at this size

Polyline = tuple[tuple[float, float], ...]
"""x and y of points on a panel's picture, pixels from its upper left corner."""


@dataclass(frozen=True)
class CasePanel:
    """One slice of one case, ready to show."""

    case_id: str
    caption: str
    image_png: bytes
    """The windowed slice as a JPEG or PNG file, pixels of their true proportions."""
    width: int
    """Of the picture, pixels."""
    height: int
    reference: tuple[Polyline, ...]
    """Closed outlines; none where the mask is empty in this slice."""
    prediction: tuple[Polyline, ...]
    width_mm: float | None
    """What the picture's width is on the patient; None of a picture in colour."""
    classes: tuple[tuple[tuple[Polyline, ...], tuple[Polyline, ...]], ...] = ()
    """Of several classes the outlines of each, of reference and prediction; then `reference` and
    `prediction` hold none."""


def case_panel(
    case_id: str,
    caption: str,
    plane: NDArray[Any],
    reference: MaskPlane,
    prediction: MaskPlane,
    window: tuple[float, float],
    pixel_mm: PixelMm,
    *,
    measured: bool | None = None,
) -> CasePanel:
    """Cut out what is worth looking at of a slice, and outline both masks.

    Args:
        case_id: The case.
        caption: What is shown, for example "slice 34 of 88"; a mask that is empty here is added.
        plane: (rows, columns) values as a radiologist sees them, or (rows, columns, 3) colours.
        reference: (rows, columns) bool, of several classes (K, rows, columns).
        prediction: Likewise.
        window: The values drawn black and white.
        pixel_mm: Height and width of a pixel; (1, 1) of a picture.
        measured: Whether it has millimetres; None: where it is not in colour.

    Raises:
        ValueError: The planes differ in shape.
    """
    if not plane.shape[:2] == reference.shape[-2:] or reference.shape != prediction.shape:
        raise ValueError(f"planes of {plane.shape}, {reference.shape} and {prediction.shape}")
    each = list(zip(reference, prediction, strict=True)) if reference.ndim == 3 else []
    if each:
        reference, prediction = (np.logical_or.reduce(of) for of in (reference, prediction))
    measured = plane.ndim == 2 if measured is None else measured
    left, right, top, bottom = view_mm(
        reference | prediction, not_black(plane, window[0]), pixel_mm
    )
    seen = (
        _pixels(top, bottom, pixel_mm[0], plane.shape[0]),
        _pixels(left, right, pixel_mm[1], plane.shape[1]),
    )
    cut = reference[seen].shape
    extent_mm = cut[0] * pixel_mm[0], cut[1] * pixel_mm[1]
    scale = LONGEST_SIDE / max(extent_mm)  # picture pixels per mm
    height, width = (max(1, round(scale * side)) for side in extent_mm)
    per_pixel = height / cut[0], width / cut[1]
    masks = {"reference": reference, "prediction": prediction}
    absent = " and ".join(f"no {name}" for name, mask in masks.items() if not mask.any())
    none = f"{absent} in this slice" if absent else ""
    return CasePanel(
        case_id=case_id,
        caption=", ".join(part for part in (caption, none) if part),
        image_png=_jpeg(plane[seen], window, (width, height)),
        width=width,
        height=height,
        reference=() if each else _outlines(reference[seen], per_pixel),
        prediction=() if each else _outlines(prediction[seen], per_pixel),
        width_mm=extent_mm[1] if measured else None,
        classes=tuple(
            (_outlines(one[seen], per_pixel), _outlines(other[seen], per_pixel))
            for one, other in each
        ),
    )


def _pixels(start_mm: float, stop_mm: float, step_mm: float, count: int) -> slice:
    """The pixels of an axis that an interval touches."""
    return slice(max(0, math.floor(start_mm / step_mm)), min(count, math.ceil(stop_mm / step_mm)))


def _jpeg(plane: NDArray[Any], window: tuple[float, float], size: tuple[int, int]) -> bytes:
    """A JPEG of (width, height) pixels."""
    from PIL import Image

    # NaN is black: a picture must not depend on how it happens to be cast.
    levels = np.rint(255 * np.nan_to_num(windowed(plane, window))).astype(np.uint8)
    written = io.BytesIO()
    image = Image.fromarray(levels).resize(size, Image.Resampling.BICUBIC)
    image.save(written, format="JPEG", quality=_QUALITY)
    return written.getvalue()


def _outlines(mask: MaskPlane, per_pixel: tuple[float, float]) -> tuple[Polyline, ...]:
    """Closed lines around a mask, in picture pixels; `per_pixel` is height and width of one."""
    from skimage.measure import find_contours

    padded = np.pad(mask, 1).astype(np.float32)  # closes outlines at the plane's border
    found = []
    for points in find_contours(padded, 0.5):
        steps = np.diff(points, axis=0)
        turns = steps[:-1, 0] * steps[1:, 1] != steps[:-1, 1] * steps[1:, 0]
        corners = points[np.concatenate(([True], turns, [True]))]
        xy = (corners[:, ::-1] - 0.5) * per_pixel[::-1]
        found.append(tuple((round(float(x), 1), round(float(y), 1)) for x, y in xy))
    return tuple(found)


def save_panels(folder: Path, panels: Sequence[CasePanel], name: str = FILE) -> Path:
    """Write panels.json, or panels of another kind, atomically.

    Args:
        folder: The report's; made if missing.
        panels: Any number.
        name: Of the file.

    Returns:
        The file.

    Raises:
        RunError: The disk refused.
    """
    path = folder / name
    items = [
        {
            "id": panel.case_id,
            "caption": panel.caption,
            "image": base64.b64encode(panel.image_png).decode("ascii"),
            "width": panel.width,
            "height": panel.height,
            "width_mm": panel.width_mm,
            "reference": [list(chain(*line)) for line in panel.reference],
            "prediction": [list(chain(*line)) for line in panel.prediction],
            **({"classes": _flat(panel)} if panel.classes else {}),
        }
        for panel in panels
    ]
    write_json(path, {"format_version": FORMAT_VERSION, "panels": items})
    return path


def _flat(panel: CasePanel) -> list[list[list[list[float]]]]:
    return [[[list(chain(*line)) for line in lines] for lines in one] for one in panel.classes]


def load_panels(folder: Path, name: str = FILE) -> tuple[CasePanel, ...]:
    """Read panels.json, or panels of another kind.

    Args:
        folder: The report's.
        name: Of the file.

    Returns:
        The panels, in order; none if there is no such file.

    Raises:
        DataError: The file is damaged or of another version.
    """
    path = folder / name
    if not path.is_file():
        return ()
    try:
        stored = read_object(path)
        if stored["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {stored['format_version']}")
        return tuple(_panel(item) for item in stored["panels"])
    except (DataError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise DataError(
            f"{path}: cannot be read as panels ({error}).",
            "Delete it and run the command again that wrote it.",
            "damaged",
        ) from error


def _panel(item: dict[str, Any]) -> CasePanel:
    try:
        image = base64.b64decode(item["image"], validate=True)
    except binascii.Error as error:
        raise ValueError("a picture is damaged") from error
    if media_type(image) is None:
        raise ValueError("a picture is neither PNG nor JPEG")
    width, height, width_mm = int(item["width"]), int(item["height"]), item["width_mm"]
    if width < 1 or height < 1:
        raise ValueError("a picture has no size")
    return CasePanel(
        case_id=str(item["id"]),
        caption=str(item["caption"]),
        image_png=image,
        width=width,
        height=height,
        reference=tuple(_pairs(line) for line in item["reference"]),
        prediction=tuple(_pairs(line) for line in item["prediction"]),
        width_mm=None if width_mm is None else float(width_mm),
        classes=tuple(
            (tuple(_pairs(line) for line in one), tuple(_pairs(line) for line in other))
            for one, other in item.get("classes", ())
        ),
    )


def media_type(image: bytes) -> str | None:
    """Media type of a picture's bytes, "image/png" or "image/jpeg"; None for others."""
    if image.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    return "image/jpeg" if image.startswith(b"\xff\xd8\xff") else None


def _pairs(values: Sequence[float]) -> Polyline:
    numbers = [float(value) for value in values]
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


MAP_FILE = "map_panels.json"
_TINT, _STRONGEST = "#9e33ff", 0.8
"""Violet: neither an outline's colour nor one that tissue has."""


def map_panel(
    case_id: str,
    caption: str,
    plane: NDArray[Any],
    reference: MaskPlane,
    majority: MaskPlane,
    disagreement: NDArray[np.uint8],
    window: tuple[float, float],
    pixel_mm: PixelMm,
) -> CasePanel:
    """A slice with the disagreement of its runs laid over it; the rest is as in `case_panel`.

    Args:
        case_id: The case.
        caption: What is shown.
        plane: As in `case_panel`.
        reference: As in `case_panel`.
        majority: As `prediction` in `case_panel`: what more than half of the runs call foreground.
        disagreement: (rows, columns), 4p(1-p) in steps of 1/255.
        window: The values drawn black and white.
        pixel_mm: Height and width of a pixel.
    """
    colours = 255 * as_colours(windowed(plane, window))
    share = _STRONGEST * disagreement.astype(np.float32) / 255
    tinted = overlay(colours, disagreement > 0, share, [_TINT])
    measured = plane.ndim == 2  # in colour, but a slice of a patient all the same
    return case_panel(
        case_id, caption, tinted, reference, majority, (0.0, 255.0), pixel_mm, measured=measured
    )
