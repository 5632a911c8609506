"""Pictures a person judges a result by: slices of cases, several runs of one, two runs compared.

Planes are drawn as a radiologist sees them (front up, the patient's right on the left), with pixels
of their true proportions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.config import THRESHOLD
from sdseg_cli.imaging.slices import SliceTransform
from sdseg_cli.imaging.volume import Volume
from sdseg_cli.metrics.statistics import Paired
from sdseg_cli.report.drawing import (
    FAINT,
    INK,
    LINE_COLOURS,
    PANEL_INCHES,
    PAPER,
    PREDICTION_COLOUR,
    REFERENCE_COLOUR,
    Frame,
    Line,
    MaskPlane,
    PixelMm,
    Plane,
    as_colours,
    chart,
    class_colour,
    class_legend,
    colour_bar,
    draw_level,
    fitted,
    legend_inches,
    mark_patient,
    name_places,
    new_figure,
    not_black,
    numbered,
    overlay,
    save_figure,
    show_panel,
    view_mm,
    windowed,
)

_TITLE_SIZE, _NAME_INCHES = 12, 7.0


@dataclass(frozen=True, eq=False)
class CasePlane:
    """One axial slice of one case, ready to draw. All planes are (rows, columns), canonical."""

    case_id: str
    dice: float | None
    slice_index: int
    """From the feet, 0-based."""
    slices: int
    image: Plane
    """Values of the scan (HU for CT); (rows, columns, 3) of a picture."""
    reference: MaskPlane
    """Of several classes (K,rows,columns)."""
    prediction: MaskPlane
    """Likewise."""
    probability: Plane
    """In [0,1], of several classes of any."""
    window: tuple[float, float]
    """The values drawn black and white."""
    pixel_mm: PixelMm
    """Height and width of a pixel; (1, 1) of a picture."""
    heading: str = ""
    """What the row is about, for example "best"."""
    classes: tuple[str, ...] = ()
    """Names, where there are several."""

    @property
    def is_picture(self) -> bool:
        """In colour, without millimetres and a patient's right."""
        return self.image.ndim == 3


def case_plane(
    case_id: str,
    volume: Volume,
    reference: NDArray[np.bool_],
    prediction: NDArray[np.bool_],
    probability: Callable[[int], NDArray[np.float32]],
    restore: SliceTransform,
    *,
    dice: float | None,
    window: tuple[float, float],
) -> CasePlane:
    """Cut the slice that `largest_area_slice` chooses out of a case.

    Args:
        case_id: The case.
        volume: The scan, (I,J,K).
        reference: (I,J,K) bool, on the scan's grid.
        prediction: (I,J,K) bool, on the scan's grid.
        probability: Slice number -> (256,256) in [0,1], the model's plane; called once.
        restore: The way from the model's planes to the scan.
        dice: Of the whole case; None where it is undefined.
        window: The scan's values drawn black and white.
    """
    k = largest_area_slice(reference, prediction, restore)
    height_mm, width_mm, _ = restore.planes.spacing_mm
    return CasePlane(
        case_id=case_id,
        dice=dice,
        slice_index=k,
        slices=restore.slices,
        image=volume.values(restore.canonical_plane(volume.array, k)),
        reference=np.array(restore.canonical_plane(reference, k)),
        prediction=np.array(restore.canonical_plane(prediction, k)),
        probability=restore.to_native(probability(k), k),
        window=window,
        pixel_mm=(height_mm, width_mm),
    )


def largest_area_slice(
    reference: NDArray[np.bool_], prediction: NDArray[np.bool_], restore: SliceTransform
) -> int:
    """The slice with the largest reference area, else predicted area, else the middle one."""
    for mask in (reference, prediction):
        areas = [
            int(np.count_nonzero(restore.canonical_plane(mask, k))) for k in range(restore.slices)
        ]
        if max(areas) > 0:
            return int(np.argmax(areas))
    return restore.slices // 2


def save_cases(path: Path, rows: Sequence[CasePlane]) -> None:
    """Draw one row per case (scan, reference, prediction, probability) and write a PNG, atomically.

    Raises:
        RunError: The disk refused.
        ValueError: No rows.
    """
    if not rows:
        raise ValueError("a picture of no cases")
    width = 4 * PANEL_INCHES + 0.6
    legend = dict(enumerate(rows[0].classes, start=1))
    below = legend_inches(legend, width)
    each = PANEL_INCHES + (0.95 if legend else 0.6)  # with what the hatching means
    figure = new_figure(width, len(rows) * each + below)
    heights = [*len(rows) * [each], *([below] if legend else [])]
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    if legend:
        parts[-1].set_facecolor(PAPER)
        class_legend(parts[-1], legend, width)
    for row, part in zip(rows, parts, strict=False):
        dice = "undefined" if row.dice is None else f"{row.dice:.3f}"
        heading = f"{row.heading}:  " if row.heading else ""
        place = "" if row.is_picture else f"    slice {row.slice_index + 1} of {row.slices}"
        _set_title(part, heading, row.case_id, f"    Dice {dice}{place}")
        draw = _draw_class_row if row.classes else _draw_row
        draw(part, row)
    save_figure(figure, path)


def _set_title(part: Any, before: str, name: str, after: str) -> None:
    part.set_facecolor(PAPER)
    title = f"{before}{fitted(name, _NAME_INCHES, _TITLE_SIZE)}{after}"
    part.suptitle(title, color=INK, fontsize=_TITLE_SIZE, x=0.012, ha="left")


def _draw_row(part: Any, row: CasePlane) -> None:
    scan, reference, prediction, probability = part.subplots(1, 4)
    seen = not_black(row.image, row.window[0])
    view = view_mm(row.reference | row.prediction, seen, row.pixel_mm)
    frame = Frame(row.pixel_mm, view)
    show = partial(show_panel, plane=row.image, frame=frame, limits=row.window)
    thin = (row.reference, Line(REFERENCE_COLOUR, width=0.9))
    none = "" if row.prediction.any() else ": none here"
    show(scan, "picture" if row.is_picture else "scan")
    outlines = [(row.reference, Line(REFERENCE_COLOUR))]
    show(reference, "reference", outlines=outlines, colour=REFERENCE_COLOUR)
    outlines = [thin, (row.prediction, Line(PREDICTION_COLOUR, dashed=True))]
    caption = f"prediction (dashed){none}"
    show(prediction, caption, outlines=outlines, colour=PREDICTION_COLOUR)
    plane, limits = row.probability, (0.0, 1.0)
    drawn = show_panel(
        probability, "probability", plane, frame, limits=limits, outlines=[thin], cmap="inferno"
    )
    colour_bar(part, drawn, probability)
    if not row.is_picture:
        mark_patient(scan, view)


_FILL = 0.55
"""How much of the colour of a class lies over the scan."""
ERRORS = {"missed": None, "too much": "////", "another class": "...."}
"""What may be wrong with a pixel, and its hatching in `ERROR_COLOUR`; None fills it. No colour of a
class says it: any may be a class of the run."""
ERROR_COLOUR = INK
_DIMMED = 0.5
"""How bright the scan is under it."""


def _draw_class_row(part: Any, row: CasePlane) -> None:
    """Scan, classes of the reference, classes of the prediction, and where these differ."""
    scan, *others = part.subplots(1, 4)
    seen = not_black(row.image, row.window[0])
    structures: MaskPlane = np.logical_or.reduce([*row.reference, *row.prediction])
    view = view_mm(structures, seen, row.pixel_mm)
    frame = Frame(row.pixel_mm, view)
    grey = 255 * as_colours(windowed(row.image, row.window))
    caption = "picture" if row.is_picture else "scan"
    show_panel(scan, caption, grey / 255, frame, limits=(0, 1), colour=INK)
    reference, prediction = numbered(row.reference), numbered(row.prediction)
    none = "" if row.prediction.any() else ": none here"
    for axes, caption, labels in zip(
        others, ("reference", f"prediction{none}"), (reference, prediction), strict=False
    ):
        filled = overlay(grey, labels, _FILL) / 255
        outlines = [(labels, Line(width=0.9))]
        show_panel(axes, caption, filled, frame, limits=(0, 1), outlines=outlines, colour=INK)
    differing = np.any(row.reference != row.prediction, axis=0)
    kinds = np.where(prediction == 0, 1, np.where(reference == 0, 2, 3)) * differing
    dark = _DIMMED * grey / 255
    show_panel(others[-1], "where they differ", dark, frame, limits=(0, 1), colour=INK)
    _hatch(others[-1], kinds, row.pixel_mm)
    if not row.is_picture:
        mark_patient(scan, view)


def _hatch(axes: Any, kinds: NDArray[np.integer[Any]], pixel_mm: PixelMm) -> None:
    """Fill or hatch what is wrong, and say below what is which; kinds (rows, columns), 0 is right,
    else the number of one of `ERRORS`.
    """
    from matplotlib.patches import Patch

    padded = np.pad(kinds, 1)
    x = (np.arange(padded.shape[1]) - 0.5) * pixel_mm[1]
    y = (np.arange(padded.shape[0]) - 0.5) * pixel_mm[0]
    keys = []
    for number, (name, hatch) in enumerate(ERRORS.items(), start=1):
        fill = ERROR_COLOUR if hatch is None else "none"
        plane = (padded == number).astype(np.float32)
        if plane.any():
            area = axes.contourf(x, y, plane, [0.5, 1.5], colors=[fill], hatches=[hatch])
            area.set(edgecolor=ERROR_COLOUR, linewidth=0)
            draw_level(axes, x, y, plane, Line(ERROR_COLOUR, width=0.7))
        keys.append(Patch(facecolor=fill, edgecolor=ERROR_COLOUR, hatch=hatch, label=name))
    axes.legend(
        handles=keys,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        ncols=3,
        frameon=False,
        labelcolor=INK,
        fontsize=8,
        columnspacing=1.2,
        handlelength=1.6,
    )


_MOST_NAMED = 40
"""So many cases at most are named below a chart."""
_DICE_INCHES, _DIFFERENCES_INCHES = 4 * PANEL_INCHES + 0.8, 5.6


@dataclass(frozen=True, eq=False)
class StabilityPlane:
    """One slice of one case as M runs saw it, on the model's plane."""

    case_id: str
    slice_index: int
    """From the feet, 0-based."""
    image: Plane
    """(H,W), of a picture (H,W,3), in [-1,1]."""
    reference: MaskPlane
    """(H,W)."""
    probability: NDArray[np.floating[Any]]
    """(M,H,W) in [0,1], one per run."""
    pixel_mm: PixelMm | None = None
    """Height and width of a pixel; None of a picture."""
    classes: tuple[ClassRuns, ...] = ()
    """Of several classes, each by itself."""


@dataclass(frozen=True, eq=False)
class ClassRuns:
    """One class of a slice as M runs saw it, on the planes of `StabilityPlane`."""

    number: int
    """Of the class, from 1, which gives its colour."""
    name: str
    reference: MaskPlane
    """(H,W)."""
    masks: NDArray[np.bool_]
    """(M,H,W), one per run."""

    @property
    def unstable(self) -> int:
        """The pixels on which not all runs agree."""
        return int(np.count_nonzero(self.masks.any(axis=0) & ~self.masks.all(axis=0)))


_MOST_CLASS_PANELS, _CLASS_COLUMNS = 8, 4
"""So many classes at most have a panel of their own."""


def stability_picture(
    path: Path, view: StabilityPlane, dice: Mapping[str, Sequence[float]]
) -> None:
    """Draw one slice (every run's outline, mean, spread), and the Dice of every run and case.

    Args:
        path: The .png file; missing folders are made.
        view: The slice to show.
        dice: Per case the Dice of each run, in order.

    Raises:
        RunError: The disk refused.
    """
    heights = [1.25, 1.0]
    classes = _worth_a_panel(view.classes)
    rows = -(-len(classes) // _CLASS_COLUMNS)
    inches = PANEL_INCHES + 3.2
    if rows:
        heights.insert(1, 2.25 * (rows * (PANEL_INCHES + 0.35) + 0.35) / inches)
    figure = new_figure(4 * PANEL_INCHES + 1.4, inches * sum(heights) / 2.25)
    parts = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    _draw_planes(parts[0], view)
    if rows:
        _draw_class_runs(parts[1], view, classes, rows)
    _draw_dice(parts[-1], dice, "Dice of all classes as one" if view.classes else "Dice")
    save_figure(figure, path)


def _draw_planes(part: Any, view: StabilityPlane) -> None:
    runs, is_picture = len(view.probability), view.image.ndim == 3
    place = "" if is_picture else f"    slice {view.slice_index + 1}"
    _set_title(part, "least stable case:  ", view.case_id, f"{place}    {runs} runs")
    first, second, third, fourth = part.subplots(1, 4)
    probability = view.probability.astype(np.float32)
    masks = probability > THRESHOLD
    seen = not_black(view.image, -1.0)
    pixel_mm = view.pixel_mm or (1.0, 1.0)
    frame = Frame(pixel_mm, view_mm(view.reference | masks.any(axis=0), seen, pixel_mm))
    show = partial(show_panel, plane=view.image, frame=frame, limits=(-1.0, 1.0))
    outlines = [(view.reference, Line(REFERENCE_COLOUR))]
    caption = f"{'picture' if is_picture else 'scan'} with reference"
    show(first, caption, outlines=outlines, colour=REFERENCE_COLOUR)
    outlines = [(mask, Line(PREDICTION_COLOUR, width=0.9, alpha=0.8)) for mask in masks]
    show(second, f"outlines of {runs} runs", outlines=outlines, colour=PREDICTION_COLOUR)
    sd = probability.std(axis=0, ddof=1)
    for axes, caption, plane, high in (
        (third, "mean probability", probability.mean(axis=0), 1.0),
        (fourth, "standard deviation over runs", sd, max(float(sd.max()), 0.01)),
    ):
        image = show_panel(axes, caption, plane, frame, limits=(0.0, high), cmap="inferno")
        colour_bar(part, image, axes)
    if view.pixel_mm is not None and frame.view is not None:
        mark_patient(first, frame.view)


def _worth_a_panel(classes: Sequence[ClassRuns]) -> list[ClassRuns]:
    """The classes in a slice, of many the least stable ones, in the order of the run."""
    there = [one for one in classes if one.reference.any() or one.masks.any()]
    chosen = sorted(there, key=lambda one: -one.unstable)[:_MOST_CLASS_PANELS]
    return sorted(chosen, key=lambda one: one.number)


def _draw_class_runs(
    part: Any, view: StabilityPlane, classes: Sequence[ClassRuns], rows: int
) -> None:
    """A panel for each class: the outline of every run in its colour, the reference dashed."""
    part.set_facecolor(PAPER)
    title = "each class in this slice:  outlines of the runs, the reference dashed"
    part.suptitle(title, color=INK, fontsize=_TITLE_SIZE, x=0.012, ha="left")
    pixel_mm = view.pixel_mm or (1.0, 1.0)
    structures = np.logical_or.reduce([one.reference | one.masks.any(axis=0) for one in classes])
    frame = Frame(pixel_mm, view_mm(structures, not_black(view.image, -1.0), pixel_mm))
    panels = part.subplots(rows, _CLASS_COLUMNS, squeeze=False).ravel()
    for axes, one in zip(panels, classes, strict=False):
        colour = class_colour(one.number)
        outlines = [(mask, Line(colour, width=0.9, alpha=0.8)) for mask in one.masks]
        outlines.append((one.reference, Line(INK, width=1.1, dashed=True)))
        found = int(np.count_nonzero(one.masks.any(axis=(1, 2))))
        some = "" if found == len(one.masks) else f": in {found} of {len(one.masks)} runs"
        caption = f"{fitted(one.name, PANEL_INCHES - 1.2, 10)}{some}"
        show_panel(
            axes, caption, view.image, frame, limits=(-1, 1), outlines=outlines, colour=colour
        )
    for axes in panels[len(classes) :]:
        axes.set_axis_off()


def _draw_dice(part: Any, dice: Mapping[str, Sequence[float]], what: str) -> None:
    part.set_facecolor(PAPER)
    axes = part.subplots()
    chart(axes, f"{what} of each run, by case", "")
    ordered = sorted(dice.items(), key=lambda item: -float(np.mean(item[1])))
    for place, (_, values) in enumerate(ordered):
        x = np.full(len(values), float(place))
        axes.plot(x, values, color=PREDICTION_COLOUR, alpha=0.35, linewidth=3)
        axes.plot(x, values, color=PREDICTION_COLOUR, marker="o", markersize=4, linestyle="none")
    if len(ordered) <= _MOST_NAMED:
        name_places(axes, [name for name, _ in ordered], _DICE_INCHES)
    axes.set_xlim(-0.6, len(ordered) - 0.4)
    axes.margins(y=0.15)


def comparison_picture(
    path: Path,
    dice: Mapping[str, tuple[float | None, float | None]],
    names: tuple[str, str],
    found: Paired,
    classes: Mapping[str, tuple[Sequence[float], Paired]] | None = None,
) -> None:
    """Draw Dice of B against Dice of A, and B - A case by case in order; of several classes below
    it B - A of each, a row a class.

    Args:
        path: The .png file; missing folders are made.
        dice: Case -> Dice of A and of B; cases without both are left out.
        names: What A and B are called.
        found: Their comparison, for the mean and its interval.
        classes: Name -> B - A of each case, and their comparison; in the order of the run.

    Raises:
        RunError: The disk refused.
    """
    both = {name: (a, b) for name, (a, b) in dice.items() if a is not None and b is not None}
    below = 0.9 + _CLASS_INCHES * min(len(classes), _MOST_NAMED) if classes else 0.0
    whole = new_figure(11.0, 5.0 + below)
    figure: Any = whole
    if classes:
        parts = whole.subfigures(2, 1, squeeze=False, height_ratios=(5.0, below))
        figure, part = parts[:, 0]
        figure.set_facecolor(PAPER)
        _draw_class_differences(part, classes)
    a, b = (fitted(name, 5.0, 10) for name in names)
    figure.suptitle(f"A: {a}    B: {b}", color=INK, fontsize=10, x=0.012, ha="left")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.4))
    values = np.array(list(both.values()), np.float64).reshape(-1, 2)
    _draw_pairs(left, values)
    _draw_differences(right, dict(zip(both, values[:, 1] - values[:, 0], strict=True)), found)
    if classes:
        left.set_title("Dice of each case, mean of classes", color=INK, fontsize=11, loc="left")
    save_figure(whole, path)


_CLASS_INCHES = 0.3
"""Height of the row of a class."""


def _draw_class_differences(
    part: Any, classes: Mapping[str, tuple[Sequence[float], Paired]]
) -> None:
    """A row for each class: B - A of its cases as dots, their mean and its 95 % interval."""
    part.set_facecolor(PAPER)
    axes = part.subplots()
    shown = list(enumerate(classes.items(), start=1))[:_MOST_NAMED]
    rest = f" (the first {len(shown)} of {len(classes)})" if len(shown) < len(classes) else ""
    chart(axes, f"B - A of each class{rest}: cases, mean and its 95 % interval", "Dice, B - A")
    axes.axvline(0, color=FAINT, linewidth=0.8)
    for number, (_, (differences, one)) in shown:
        colour = class_colour(number)
        axes.scatter(differences, [number] * len(differences), s=16, color=colour, alpha=0.6)
        low, high = one.ci95
        if low is not None and high is not None:
            axes.plot([low, high], [number, number], color=INK, linewidth=2.2)
        if one.difference is not None:
            look = {"marker": "D", "color": colour, "edgecolors": INK, "zorder": 3}
            axes.scatter([one.difference], [number], s=46, **look)
    names = [fitted(name, 2.0, 9) for _, (name, _) in shown]
    axes.set_yticks([number for number, _ in shown], names, color=INK, fontsize=9)
    axes.set_ylim(len(shown) + 0.6, 0.4)
    axes.grid(visible=False, axis="y")


def _draw_pairs(axes: Any, values: NDArray[np.float64]) -> None:
    chart(axes, "Dice of each case", "A")
    axes.set_ylabel("B", color=FAINT, fontsize=9)
    low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    margin = max(0.02, 0.08 * (high - low))
    limits = (low - margin, high + margin)
    axes.plot(limits, limits, color=FAINT, linewidth=0.8, linestyle="dashed")
    axes.scatter(values[:, 0], values[:, 1], s=22, color=PREDICTION_COLOUR, alpha=0.8, zorder=3)
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    style = {"transform": axes.transAxes, "color": FAINT, "fontsize": 8}
    axes.text(0.03, 0.96, "B better", ha="left", va="top", **style)
    axes.text(0.97, 0.04, "A better", ha="right", va="bottom", **style)


def _draw_differences(axes: Any, differences: Mapping[str, float], found: Paired) -> None:
    chart(axes, "B - A, case by case", "")
    ordered = sorted(differences.items(), key=lambda item: item[1])
    places = np.arange(len(ordered))
    heights = np.array([value for _, value in ordered], np.float64)
    axes.axhline(0, color=FAINT, linewidth=0.8)
    axes.vlines(places, 0, heights, color=PREDICTION_COLOUR, alpha=0.5, linewidth=2)
    axes.scatter(places, heights, s=18, color=PREDICTION_COLOUR, zorder=3)
    low, high = found.ci95
    mean = LINE_COLOURS[1]
    if found.difference is not None:
        axes.axhline(found.difference, color=mean, linewidth=1.2)
    if low is not None and high is not None:
        axes.axhspan(low, high, color=mean, alpha=0.16, linewidth=0)
        text = "mean and its 95 % interval"
        axes.set_title(text, color=mean, fontsize=9, loc="right", pad=6)
    if len(ordered) <= _MOST_NAMED:
        name_places(axes, [name for name, _ in ordered], _DIFFERENCES_INCHES)
    else:
        axes.set_xticks([])
