"""Parts of every picture: the palette, figures, panels of a slice, charts.

matplotlib is used through its objects, without pyplot's global state, and imported only to draw.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.filenames import printable
from sdseg_cli.core.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

PAPER, INK, FAINT = "#0e1116", "#e6e9ee", "#8b93a1"
REFERENCE_COLOUR, PREDICTION_COLOUR = "#35d0ff", "#d0ff2f"
"""Blue and a yellow green, in every picture and on every page: colours that neither tissue nor CT
has, both bright, and told apart by the colour-blind too."""
CLASS_COLOURS = (
    PREDICTION_COLOUR, REFERENCE_COLOUR, "#ff4b00", "#f000d2", "#ffaaa0",
    "#1e64ff", "#a08cff", "#00c878", "#0f695a", "#ffffa5",
    "#a53c1e", "#ff69b4", "#3c5a96", "#4bfff0", "#00f05a",
    "#87a53c", "#00874b", "#c3ffd2", "#ffa51e", "#870fd2",
)  # fmt: skip
"""Of classes 1, 2, ... in the order of their run, in every picture and on every page. The first
five are told apart by the colour-blind too; each later one is as far from all before it as is
left, for every kind of eye. Class 21 has the colour of class 1 again, and so on: legends keep the
order of the classes, so that place and name tell such a pair apart."""
LINE_COLOURS = (INK, "#b79cff", "#ff9a2e", "#ff7ab0")
"""Of lines in charts that are neither a reference nor a prediction."""
_RIM, _RIM_OPACITY = "#000000", 0.8
"""Of every outline: what makes a bright line seen on bone, on fat and on a reflection."""
_RIM_WIDTH = 2.4
"""So much wider than its line, points."""
DPI = 120
PANEL_INCHES = 3.3

Plane = NDArray[np.float32]
MaskPlane = NDArray[np.bool_]
LabelPlane = NDArray[np.bool_] | NDArray[np.integer[Any]]
"""(rows, columns), 0 is background; a mask is label 1."""

PixelMm = tuple[float, float]
"""Height and width of a pixel, mm (or 1, 1 for a plane that has no millimetres)."""
View = tuple[float, float, float, float]
"""Left, right, top and bottom edge, mm from the plane's upper left corner."""

_VIEW_PER_EXTENT = 2.4  # a view is this much wider than the structures in it,
_VIEW_LEAST = 0.4  # and at least this share of the plane


def class_colour(label: int) -> str:
    """The colour of a class, from 1; the same in every picture."""
    return CLASS_COLOURS[(label - 1) % len(CLASS_COLOURS)]


def numbered(masks: NDArray[np.bool_]) -> LabelPlane:
    """The number of the class of each pixel, where masks overlap of the last: (K,...) -> (...).

    A mask without a class axis, (rows, columns), is returned as it is: label 1.
    """
    if masks.ndim == 2:
        return masks
    numbers = np.arange(1, len(masks) + 1, dtype=np.uint16).reshape(-1, *[1] * (masks.ndim - 1))
    found: LabelPlane = (masks * numbers).max(axis=0)
    return found


def rgb(colour: str) -> list[int]:
    """Red, green and blue of "#rrggbb", each in 0..255."""
    return [int(colour[n : n + 2], 16) for n in (1, 3, 5)]


def windowed(plane: NDArray[Any], window: tuple[float, float]) -> Plane:
    """Values between black and white in [0,1], shape as given."""
    low, high = window
    shown: Plane = np.clip((plane.astype(np.float32) - low) / max(high - low, 1e-6), 0, 1)
    return shown


def as_colours(plane: NDArray[Any]) -> NDArray[Any]:
    """(rows, columns) grey or (rows, columns, 3) -> (rows, columns, 3)."""
    return plane if plane.ndim == 3 else np.repeat(plane[..., None], 3, axis=2)


def overlay(
    image: NDArray[Any],
    labels: LabelPlane,
    opacity: NDArray[Any] | float,
    colours: Sequence[str] = CLASS_COLOURS,
) -> NDArray[np.float64]:
    """Lay the colour of each label over an image; background shows the image alone.

    Args:
        image: (rows, columns, 3) in 0..255.
        labels: (rows, columns).
        opacity: In [0,1], of the whole plane or (rows, columns).
        colours: Of labels 1, 2, ..., and again from the first.

    Returns:
        (rows, columns, 3) in 0..255, not rounded.
    """
    numbers = np.asarray(labels, np.int64)
    paint = np.array([rgb(colour) for colour in colours])[(numbers - 1) % len(colours)]
    share = np.where(numbers > 0, opacity, np.float32(0))[..., None]
    mixed: NDArray[np.float64] = image * (1 - share) + paint * share
    return mixed


def new_figure(width_inches: float, height_inches: float) -> Figure:
    """An empty dark figure that lays itself out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(
        figsize=(width_inches, height_inches), dpi=DPI, layout="constrained", facecolor=PAPER
    )
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG, atomically; missing folders are made.

    Raises:
        RunError: The disk refused.
    """
    with replacing(path) as temporary, letters_may_lack():
        # No version, no date: the same result gives the same bytes.
        figure.savefig(temporary, format="png", metadata={"Software": None})


@dataclass(frozen=True)
class Line:
    """An outline's look; its rim lies below all lines, so that no rim hides another outline."""

    colour: str | None = None
    """None gives each label its own, see `class_colour`."""
    width: float = 1.5
    """Points."""
    dashed: bool = False
    """Dark between the dashes."""
    alpha: float = 1.0


@dataclass(frozen=True)
class Frame:
    """The size of a plane's pixels, and the part that is shown; None shows the whole plane."""

    pixel_mm: PixelMm = (1.0, 1.0)
    view: View | None = None


def show_panel(
    axes: Axes,
    caption: str,
    plane: NDArray[Any],
    frame: Frame,
    *,
    limits: tuple[float, float],
    outlines: Sequence[tuple[LabelPlane, Line]] = (),
    colour: str = FAINT,
    cmap: str = "gray",
) -> AxesImage:
    """Draw a plane in millimetres, first row on top, with outlines and a caption.

    Args:
        axes: Empty ones.
        caption: Above the plane.
        plane: (rows, columns), or (rows, columns, 3) colours.
        frame: Its pixels and the part that is shown.
        limits: The values drawn black and white, or at both ends of the colour map.
        outlines: Masks or labels on the same grid, and how each is outlined.
        colour: Of the caption.
        cmap: matplotlib's name of a colour map.
    """
    axes.set_title(caption, color=colour, fontsize=10, pad=4)
    axes.set(facecolor="black", xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    height, width = plane.shape[0] * frame.pixel_mm[0], plane.shape[1] * frame.pixel_mm[1]
    image = axes.imshow(
        windowed(plane, limits) if plane.ndim == 3 else plane,
        cmap=cmap,
        vmin=limits[0],
        vmax=limits[1],
        extent=(0, width, height, 0),
        interpolation="bilinear",
    )
    for labels, line in outlines:
        show_outline(axes, labels, frame.pixel_mm, line)
    if frame.view is not None:
        left, right, top, bottom = frame.view
        axes.set(xlim=(left, right), ylim=(bottom, top))
    return image


def show_outline(axes: Axes, labels: LabelPlane, pixel_mm: PixelMm, line: Line) -> None:
    """Outline every label of a plane half way to the pixels around it; an empty one is no error."""
    padded: NDArray[Any] = np.pad(labels, 1)  # closes outlines at the plane's border
    x = (np.arange(padded.shape[1]) - 0.5) * pixel_mm[1]
    y = (np.arange(padded.shape[0]) - 0.5) * pixel_mm[0]
    for label in np.unique(padded[padded > 0]):
        colour = line.colour or class_colour(int(label))
        draw_level(axes, x, y, (padded == label).astype(np.float32), replace(line, colour=colour))


def draw_level(
    axes: Axes, x: NDArray[Any], y: NDArray[Any], plane: NDArray[Any], line: Line
) -> None:
    """A line with a dark rim where a plane crosses a half."""
    rim = {"colors": [_RIM], "linewidths": line.width + _RIM_WIDTH, "zorder": 1.9}
    axes.contour(x, y, plane, [0.5], alpha=_RIM_OPACITY * line.alpha, **rim)
    style = "dashed" if line.dashed else "solid"
    look = {"colors": [line.colour], "linewidths": line.width, "linestyles": style}
    axes.contour(x, y, plane, [0.5], alpha=line.alpha, **look)


def fitted(text: str, inches: float, fontsize: float) -> str:
    """A name as it is written into a picture: no wider than there is room, its middle left out.

    Both ends stay, for either may tell cases apart; dollar signs are no formulas.
    """
    name = printable(text)
    room = 72 * inches  # points
    kept = len(name)
    shown = name
    while kept > 2 and _points(shown, fontsize) > room:
        kept = min(kept - 1, max(2, int(kept * room / _points(shown, fontsize))))
        shown = f"{name[: kept // 2]}…{name[len(name) - (kept - kept // 2) :]}"
    return shown.replace("$", r"\$")


def _points(text: str, fontsize: float) -> float:
    from matplotlib.font_manager import FontProperties

    with letters_may_lack():
        width, _, _ = _ruler().get_text_width_height_descent(
            text, FontProperties(size=fontsize), ismath=False
        )
    return float(width)


@cache
def _ruler() -> Any:
    from matplotlib.backends.backend_agg import RendererAgg

    return RendererAgg(8, 8, 72)  # a pixel is a point


@contextmanager
def letters_may_lack() -> Iterator[None]:
    """The font has not every script: a box is drawn instead, and there is nothing to be done."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def chart(axes: Axes, caption: str, x_label: str) -> None:
    """Turn axes into a plain dark chart with a faint grid."""
    axes.set_facecolor(PAPER)
    axes.set_title(caption, color=INK, fontsize=11, loc="left", pad=6)
    axes.set_xlabel(x_label, color=FAINT, fontsize=9)
    axes.tick_params(colors=FAINT, labelsize=8, which="both")
    axes.grid(color=FAINT, alpha=0.18, linewidth=0.6)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)


def name_places(axes: Axes, names: Sequence[str], inches: float) -> None:
    """Name the places 0, 1, 2, ... below a chart of this width: no name runs into the next.

    They stand upright where that leaves each more room.
    """
    size, upright_inches = 8, 1.2
    each = 0.92 * inches / max(1, len(names))
    widest = max((_points(name, size) for name in names), default=0)
    upright = each < upright_inches and widest > 72 * each
    room = upright_inches if upright else each
    shown = [fitted(name, room, size) for name in names]
    if len(set(shown)) < len(set(names)):  # what tells them apart was left out
        start = _common(names)
        end = _common([name[start:][::-1] for name in names])
        middles = (name[start : len(name) - end] for name in names)
        shown = [fitted(f"…{middle}{'…' if end else ''}", room, size) for middle in middles]
    axes.set_xticks(range(len(names)), shown, fontsize=size, rotation=90 if upright else 0)


def _common(names: Sequence[str]) -> int:
    """Length of the prefix that all names share."""
    columns = enumerate(zip(*names, strict=False))
    return next((n for n, letters in columns if len(set(letters)) > 1), min(map(len, names)))


def legend(axes: Axes) -> None:
    """A frameless legend of what has a label, where it hides least."""
    axes.legend(loc="best", frameon=False, labelcolor=INK, fontsize=9)


def class_legend(figure: Any, names: Mapping[int, str], inches: float) -> None:
    """Name the classes below a figure, or a part of one, each beside its colour, in order.

    Args:
        figure: Below whose panels there is room, or that lays itself out.
        names: Number of each class, from 1 -> name.
        inches: Width of the figure.
    """
    from matplotlib.patches import Patch

    shown = [fitted(name, _LEGEND_INCHES, _LEGEND_SIZE) for name in names.values()]
    lays_out = figure.get_layout_engine() is not None
    figure.legend(
        [Patch(facecolor=class_colour(number)) for number in names],
        shown,
        loc="outside lower center" if lays_out else "lower center",
        ncols=_legend_columns(names, inches),
        frameon=False,
        labelcolor=INK,
        fontsize=_LEGEND_SIZE,
        handlelength=1.2,
    )


def legend_inches(names: Mapping[int, str], inches: float) -> float:
    """How high `class_legend` becomes; 0 without names."""
    return 0.2 + 0.21 * -(-len(names) // _legend_columns(names, inches)) if names else 0.0


_LEGEND_SIZE, _LEGEND_INCHES = 9, 2.2


def _legend_columns(names: Mapping[int, str], inches: float) -> int:
    texts = (fitted(name, _LEGEND_INCHES, _LEGEND_SIZE) for name in names.values())
    widest = max(_points(text, _LEGEND_SIZE) for text in texts) / 72 + 0.6
    return max(1, min(len(names), int(inches / widest)))


def colour_bar(figure: Any, image: AxesImage, axes: Axes) -> None:
    """A slim scale beside `axes`; `figure` is a figure or a part of one."""
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=INK, labelsize=8)


def mark_patient(axes: Axes, view: View) -> None:
    """R on the left edge, A on the upper edge, and a bar of a round length: a quarter of the view
    at most.
    """
    side = view[1] - view[0]
    length = max((step for step in (1, 2, 5, 10, 20, 50, 100, 200) if step <= side / 4), default=1)
    axes.plot(
        [0.05, 0.05 + length / side],
        [0.05, 0.05],
        transform=axes.transAxes,
        color=INK,
        linewidth=2,
        solid_capstyle="butt",
        path_effects=text_halo(4),
    )
    for x, y, text, ha, va in (
        (0.04, 0.5, "R", "center", "center"),
        (0.5, 0.955, "A", "center", "center"),
        (0.05, 0.07, f"{length} mm", "left", "bottom"),
    ):
        place: dict[str, Any] = {"transform": axes.transAxes, "ha": ha, "va": va}
        axes.text(x, y, text, color=INK, fontsize=8, path_effects=text_halo(2), **place)


def text_halo(width: float = 2.0) -> list[Any]:
    """A dark rim, so that a line or a letter is seen on white bone as well."""
    from matplotlib.patheffects import Normal, Stroke

    return [Stroke(linewidth=width, foreground="black", alpha=0.55), Normal()]


def not_black(image: Plane, black: float) -> MaskPlane:
    """(rows, columns) bool: where a plane, or any colour of it, is above black."""
    brightest = image.max(axis=-1) if image.ndim == 3 else image
    return np.asarray(brightest > black)


def view_mm(structures: MaskPlane, body: MaskPlane, pixel_mm: PixelMm) -> View:
    """The part of a plane worth looking at: a square around the structures, within the body.

    Args:
        structures: (rows, columns) bool, what must be seen whole.
        body: (rows, columns) bool, what there is to see.
        pixel_mm: Height and width of a pixel.

    Returns:
        Left, right, top and bottom edge, mm.
    """
    height, width = structures.shape[0] * pixel_mm[0], structures.shape[1] * pixel_mm[1]
    around = _bounds_mm(body, pixel_mm) or (0.0, width, 0.0, height)
    seen = _bounds_mm(structures, pixel_mm) or around
    extent = max(seen[1] - seen[0], seen[3] - seen[2])
    most = 1.06 * max(around[1] - around[0], around[3] - around[2], extent)
    side = max(_VIEW_PER_EXTENT * extent, _VIEW_LEAST * max(width, height))
    if side >= most:  # the whole body fits: centre on it
        side, seen = most, around
    across = _interval((seen[0] + seen[1]) / 2, side, width)
    return (*across, *_interval((seen[2] + seen[3]) / 2, side, height))


def _interval(centre: float, side: float, extent: float) -> tuple[float, float]:
    """An interval of length `side` around `centre`, moved into [0, extent] where it fits."""
    if side >= extent:
        return (extent - side) / 2, (extent + side) / 2
    start = min(max(centre - side / 2, 0.0), extent - side)
    return start, start + side


def _bounds_mm(mask: MaskPlane, pixel_mm: PixelMm) -> View | None:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return None
    height, width = pixel_mm
    across = float(columns[0] * width), float((columns[-1] + 1) * width)
    return (*across, float(rows[0] * height), float((rows[-1] + 1) * height))
