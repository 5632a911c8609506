"""Fixed validation slices and what the model made of them in the course of the run."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.config import THRESHOLD
from sdseg_cli.core.files import replacing
from sdseg_cli.data.spec import ClassRule
from sdseg_cli.report.drawing import (
    DPI,
    INK,
    PAPER,
    PREDICTION_COLOUR,
    REFERENCE_COLOUR,
    Line,
    MaskPlane,
    Plane,
    View,
    as_colours,
    class_legend,
    draw_level,
    fitted,
    legend_inches,
    letters_may_lack,
    new_figure,
    not_black,
    numbered,
    overlay,
    rgb,
    view_mm,
)

COLUMNS = 6
"""Validations that are shown at most."""
_TILE, _GAP, _CAPTION, _HEAD = 224, 10, 30, 44
"""Pixels."""
_SHADE = 0.4
"""How much of the colour a probability of 1 lays over the image."""


@dataclass(frozen=True, eq=False)
class ShownSlice:
    """One validation slice on the model's plane."""

    name: str
    image: Plane
    """(H,W), of a picture (H,W,3), in [-1,1]."""
    reference: MaskPlane
    """(H,W), of several classes (K,H,W)."""


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The prediction of all shown slices at one validation."""

    probability: NDArray[np.uint8] | NDArray[np.uint16]
    """(N,H,W), 255 being 1; of several classes the number of each pixel's, from 1."""
    dice: NDArray[np.float32]
    """(N,), of each slice; NaN where both masks are empty; of several classes the mean over those
    that either mask has."""


@dataclass
class ValidationHistory:
    """Validations so far, and the predictions of those worth keeping, in one file.

    Args:
        path: The `.npz` file.
        positions: Of the slices, among those that are validated.
        shown: The slices themselves.
        rule: The classes of the run; None of one.
    """

    path: Path
    positions: tuple[int, ...]
    shown: tuple[ShownSlice, ...]
    rule: ClassRule | None = None
    steps: list[int] = field(default_factory=list)
    """Of every validation."""
    seen: dict[int, Snapshot] = field(default_factory=dict)
    """Step -> predictions, for the validations that are shown."""

    def read(self, after: int) -> None:
        """Go on from the file, without what lies past step `after`.

        A file that is missing, damaged or of other slices is no reason to stop a training: the
        history then begins anew.
        """
        self.steps, self.seen = [], {}
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
                names, steps, at = kept["names"].tolist(), kept["steps"], kept["shown_steps"]
                planes, dice = kept["probability"], kept["dice"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            return
        plane = self.shown[0].reference.shape[-2:] if self.shown else ()
        shape = (len(at), len(self.shown), *plane)
        if names != [one.name for one in self.shown] or planes.shape != shape:
            return
        self.steps = [int(step) for step in steps if step <= after]
        self.seen = {
            int(step): Snapshot(planes[n], dice[n]) for n, step in enumerate(at) if step <= after
        }

    def add(self, step: int, probability: NDArray[np.float32]) -> None:
        """Take in a validation and save: (N,H,W) in [0,1], in the order of `shown`; of several
        classes (N,K,H,W).
        """
        if self.rule is None:
            found = [plane > THRESHOLD for plane in probability]
            planes = np.round(probability * 255).astype(np.uint8)
        else:
            found = [self.rule.decide(plane, THRESHOLD) for plane in probability]
            planes = np.stack([numbered(masks) for masks in found]).astype(np.uint16)
        dice = [
            slice_dice(mask, one.reference) for mask, one in zip(found, self.shown, strict=True)
        ]
        self.steps.append(step)
        self.seen[step] = Snapshot(planes, np.asarray(dice, np.float32))
        wanted = {self.steps[number] for number in shown_numbers(len(self.steps))}
        self.seen = {step: seen for step, seen in sorted(self.seen.items()) if step in wanted}
        with replacing(self.path) as temporary:
            np.savez_compressed(
                temporary,
                names=np.array([one.name for one in self.shown]),
                steps=np.array(self.steps),
                shown_steps=np.array(list(self.seen)),
                probability=np.stack([seen.probability for seen in self.seen.values()]),
                dice=np.stack([seen.dice for seen in self.seen.values()]),
            )


def shown_numbers(count: int, limit: int = COLUMNS) -> list[int]:
    """Which of `count` validations are shown: every one, every 2nd, 4th, ..., and the last.

    What an early choice drops no later one wants back, so that predictions can be forgotten, and a
    run that was killed and went on ends with the picture of one that was not.
    """
    stride = 1
    while len(chosen := sorted({*range(0, count, stride), count - 1})) > limit:
        stride *= 2
    return chosen


def slice_dice(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Dice of two masks (H,W), of (K,H,W) the mean over those that are not empty in both; NaN where
    all are.
    """
    if found.ndim == 3:
        each = [slice_dice(one, other) for one, other in zip(found, truth, strict=True)]
        return float(np.nanmean(each)) if not np.isnan(each).all() else float("nan")
    size = int(found.sum() + truth.sum())
    return 2 * float((found & truth).sum()) / size if size else float("nan")


def validation_picture(path: Path, history: ValidationHistory) -> None:
    """Draw a row per slice: image with reference, then each prediction over it, oldest first.

    Args:
        path: The .png file; missing folders are made.
        history: At least one validation of at least one slice.

    Raises:
        RunError: The disk refused.
    """
    if history.rule is not None:
        _draw_classes(path, history, history.rule)
        return
    rows, columns = len(history.shown), 1 + len(history.seen)
    width = columns * (_TILE + _GAP) + _GAP
    height = _HEAD + rows * (_TILE + _CAPTION) + _GAP
    canvas = np.full((height, width, 3), rgb(PAPER), np.uint8)
    references, predictions = np.zeros((2, height, width), np.uint8)
    figure = new_figure(width / DPI, height / DPI)
    figure.set_layout_engine("none")
    figure.set_facecolor("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for row, one in enumerate(history.shown):
        view = view_mm(one.reference, not_black(one.image, -1.0), (1.0, 1.0))
        grey = np.clip((one.image + 1) * 127.5, 0, 255).astype(np.uint8)
        image = _tile(as_colours(grey), view)
        reference = _tile(one.reference.astype(np.uint8) * 255, view)
        top = _HEAD + row * (_TILE + _CAPTION) + _CAPTION
        for column, (step, seen) in enumerate([(0, None), *history.seen.items()]):
            left = _GAP + column * (_TILE + _GAP)
            place = (slice(top, top + _TILE), slice(left, left + _TILE))
            caption, colour = fitted(one.name, _TILE / DPI, 9), REFERENCE_COLOUR
            references[place], canvas[place] = reference, image
            if seen is not None:
                found = _tile(seen.probability[row], view)
                predictions[place] = found
                share = _SHADE * found.astype(np.float32) / 255
                canvas[place] = overlay(image, np.ones_like(found), share)
                caption, colour = f"step {step}   Dice {seen.dice[row]:.3f}", INK
            axes.text(left, top - 7, caption, color=colour, fontsize=9)
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    for plane, colour, points in (
        (references, REFERENCE_COLOUR, 1.0),
        (predictions, PREDICTION_COLOUR, 1.4),
    ):
        if plane.max() > 127:  # an empty one has no outline, which matplotlib would warn of
            half = plane.astype(np.float32) - 127  # 127.5 becomes a half, without rounding
            draw_level(axes, x, y, half, Line(colour, points))
    for left, side, text, colour, size in (
        (_GAP, "left", "Validation slices", INK, 12.0),
        (width - _GAP - 92, "right", "reference", REFERENCE_COLOUR, 9.5),
        (width - _GAP, "right", "prediction", PREDICTION_COLOUR, 9.5),
    ):
        axes.text(left, 28, text, color=colour, fontsize=size, ha=side)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    _save_over(canvas, figure, path)


_FILL = 0.55
"""How much of the colour of a class lies over the image."""


def _draw_classes(path: Path, history: ValidationHistory, rule: ClassRule) -> None:
    """Likewise of several classes, whose areas are filled; a legend below."""
    rows, columns = len(history.shown), 1 + len(history.seen)
    width = columns * (_TILE + _GAP) + _GAP
    legend = dict(enumerate(rule.names, start=1))
    below = round(DPI * legend_inches(legend, width / DPI))
    height = _HEAD + rows * (_TILE + _CAPTION) + _GAP + below
    canvas = np.full((height, width, 3), rgb(PAPER), np.uint8)
    figure = new_figure(width / DPI, height / DPI)
    figure.set_layout_engine("none")
    figure.set_facecolor("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.text(_GAP, 28, "Validation slices", color=INK, fontsize=12)
    for row, one in enumerate(history.shown):
        structures: MaskPlane = np.logical_or.reduce([*one.reference])
        view = view_mm(structures, not_black(one.image, -1.0), (1.0, 1.0))
        image = _tile(as_colours(np.clip((one.image + 1) * 127.5, 0, 255).astype(np.uint8)), view)
        top = _HEAD + row * (_TILE + _CAPTION) + _CAPTION
        shown: list[tuple[str, NDArray[Any]]]
        shown = [(f"{fitted(one.name, 1.3, 9)}: reference", numbered(one.reference))]
        for step, seen in history.seen.items():
            caption = f"step {step}   Dice {seen.dice[row]:.3f}"
            shown.append((caption, seen.probability[row]))
        for column, (caption, labels) in enumerate(shown):
            left = _GAP + column * (_TILE + _GAP)
            place = (slice(top, top + _TILE), slice(left, left + _TILE))
            paint = overlay(np.zeros((*labels.shape, 3)), labels, 1.0).astype(np.uint8)
            share = _tile((labels > 0).astype(np.uint8) * 255, view)[..., None] * (_FILL / 255)
            canvas[place] = image * (1 - share) + _tile(paint, view) * _FILL
            axes.text(left, top - 7, caption, color=INK, fontsize=9)
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    class_legend(figure, legend, width / DPI)
    _save_over(canvas, figure, path)


def _save_over(canvas: NDArray[np.uint8], figure: Any, path: Path) -> None:
    """Lines and letters over the pixels: drawing these with the figure takes ten times as long."""
    from PIL import Image

    with letters_may_lack():
        figure.canvas.draw()
    drawn = Image.fromarray(np.asarray(figure.canvas.buffer_rgba()))
    picture = Image.fromarray(canvas)
    picture.paste(drawn, mask=drawn.getchannel("A"))
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG", compress_level=3)


def _tile(plane: NDArray[np.uint8], view: View) -> NDArray[np.uint8]:
    """The view of a plane as a square of `_TILE` pixels; black beyond the plane."""
    from PIL import Image

    left, right, top, bottom = view
    size, box = (_TILE, _TILE), (left, top, right, bottom)
    seen = Image.fromarray(plane).transform(
        size, Image.Transform.EXTENT, box, Image.Resampling.BILINEAR
    )
    return np.asarray(seen)
