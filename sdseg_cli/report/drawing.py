"""The few strokes every picture is made of: figures, planes, contours, marks.

matplotlib is used through its objects, without pyplot's global state, and imported only to draw.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
RIM, RIM_OPACITY = "#000000", 0.8
"""Of every outline: what makes a bright line seen on bone, on fat and on a reflection."""
RIM_WIDTH = 2.4
"""So much wider than its line, points."""
DPI = 120
PANEL_INCHES = 3.3

Plane = NDArray[np.float32]
MaskPlane = NDArray[np.bool_]

PixelMm = tuple[float, float]
"""Height and width of a pixel, mm (or 1, 1 for a plane that has no millimetres)."""
View = tuple[float, float, float, float]
"""Left, right, top and bottom edge, mm from the plane's upper left corner."""

_VIEW_PER_EXTENT = 2.4  # a view is this much wider than the structures in it,
_VIEW_LEAST = 0.4  # and at least this share of the plane


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


def bare(axes: Axes, caption: str, colour: str = FAINT) -> None:
    """Turn axes into a frame for a plane, with a caption."""
    axes.set_title(caption, color=colour, fontsize=10, pad=4)
    axes.set_facecolor("black")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def show_plane(
    axes: Axes,
    plane: NDArray[Any],
    pixel_mm: PixelMm,
    *,
    cmap: str,
    limits: tuple[float, float],
) -> AxesImage:
    """Draw a (rows, columns) plane, or (rows, columns, 3) colours, in millimetres, first row on
    top.
    """
    if plane.ndim == 3:
        plane = np.clip((plane - limits[0]) / (limits[1] - limits[0]), 0, 1)
    height, width = plane.shape[0] * pixel_mm[0], plane.shape[1] * pixel_mm[1]
    return axes.imshow(
        plane,
        cmap=cmap,
        vmin=limits[0],
        vmax=limits[1],
        extent=(0, width, height, 0),
        interpolation="bilinear",
    )


def show_contour(
    axes: Axes,
    mask: NDArray[np.bool_],
    pixel_mm: PixelMm,
    colour: str,
    *,
    width: float = 1.5,
    dashed: bool = False,
    alpha: float = 1.0,
) -> None:
    """Outline a (rows, columns) mask; an empty one leaves no trace."""
    if not mask.any():
        return
    padded = np.pad(mask, 1).astype(np.float32)  # closes outlines at the plane's border
    x = (np.arange(padded.shape[1]) - 0.5) * pixel_mm[1]
    y = (np.arange(padded.shape[0]) - 0.5) * pixel_mm[0]
    draw_outline(axes, x, y, padded, 0.5, colour, width=width, dashed=dashed, alpha=alpha)


def draw_outline(
    axes: Axes,
    x: NDArray[Any],
    y: NDArray[Any],
    plane: NDArray[Any],
    level: float,
    colour: str,
    *,
    width: float,
    dashed: bool = False,
    alpha: float = 1.0,
) -> None:
    """A line where a plane crosses a level, with a dark rim that lies below all lines.

    So the rim of one outline never hides another, and a dashed one is dark between its dashes.
    """
    levels, opacity = [level], RIM_OPACITY * alpha
    axes.contour(
        x, y, plane, levels, colors=[RIM], linewidths=width + RIM_WIDTH, alpha=opacity, zorder=1.9
    )
    style = "dashed" if dashed else "solid"
    axes.contour(
        x, y, plane, levels, colors=[colour], linewidths=width, linestyles=style, alpha=alpha
    )


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


def _halo(width: float) -> list[Any]:
    """A dark rim, so that a line or a letter is seen on white bone as well."""
    from matplotlib.patheffects import Normal, Stroke

    return [Stroke(linewidth=width, foreground="black", alpha=0.55), Normal()]


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
    upright = each < upright_inches and max((_points(name, size) for name in names), default=0) > (
        72 * each
    )
    room = upright_inches if upright else each
    shown = [fitted(name, room, size) for name in names]
    if len(set(shown)) < len(set(names)):  # what tells them apart was left out
        shown = [fitted(name, room, size) for name in _differing(names)]
    axes.set_xticks(
        range(len(names)),
        shown,
        fontsize=size,
        rotation=90 if upright else 0,
    )


def _differing(names: Sequence[str]) -> list[str]:
    """Names without what all of them begin and end with."""
    start = _common(names)
    tails = [name[start:] for name in names]
    end = _common([tail[::-1] for tail in tails])
    return [f"…{tail[: len(tail) - end]}{'…' if end else ''}" for tail in tails]


def _common(names: Sequence[str]) -> int:
    """How many letters all names begin with."""
    columns = enumerate(zip(*names, strict=False))
    return next((n for n, letters in columns if len(set(letters)) > 1), min(map(len, names)))


def legend(axes: Axes) -> None:
    """A frameless legend of what has a label, where it hides least."""
    axes.legend(loc="best", frameon=False, labelcolor=INK, fontsize=9)


def colour_bar(figure: Any, image: AxesImage, axes: Axes, label: str = "") -> None:
    """A slim scale beside `axes`; `figure` is a figure or a part of one."""
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=INK, labelsize=8)
    bar.set_label(label, color=INK, fontsize=9)


def zoom(axes: Axes, view: View) -> None:
    """Show this part of the plane only."""
    axes.set_xlim(view[0], view[1])
    axes.set_ylim(view[3], view[2])


def mark_orientation(axes: Axes) -> None:
    """R on the left edge, A on the upper edge."""
    for x, y, letter in ((0.04, 0.5, "R"), (0.5, 0.955, "A")):
        _label(axes, x, y, letter, ha="center", va="center")


def mark_scale(axes: Axes, view: View) -> None:
    """A bar of a round length, about a quarter of the view wide."""
    side = view[1] - view[0]
    length = max((step for step in (1, 2, 5, 10, 20, 50, 100, 200) if step <= side / 4), default=1)
    axes.plot(
        [0.05, 0.05 + length / side],
        [0.05, 0.05],
        transform=axes.transAxes,
        color=INK,
        linewidth=2,
        solid_capstyle="butt",
        path_effects=_halo(4),
    )
    _label(axes, 0.05, 0.07, f"{length} mm", ha="left", va="bottom")


def _label(axes: Axes, x: float, y: float, text: str, *, ha: str, va: str) -> None:
    axes.text(
        x,
        y,
        text,
        transform=axes.transAxes,
        color=INK,
        fontsize=8,
        ha=ha,
        va=va,
        path_effects=_halo(2),
    )


def not_black(image: Plane, black: float) -> MaskPlane:
    """(rows, columns) bool: where a plane, or any colour of it, is above black."""
    brightest = image.max(axis=-1) if image.ndim == 3 else image
    return np.asarray(brightest > black)


def view_mm(structures: NDArray[np.bool_], body: NDArray[np.bool_], pixel_mm: PixelMm) -> View:
    """The part of a plane worth looking at: a square around the structures, within the body.

    Args:
        structures: (rows, columns) bool, what must be seen whole.
        body: (rows, columns) bool, what there is to see.
        pixel_mm: Height and width of a pixel.

    Returns:
        Left, right, top and bottom edge, mm.
    """
    width, height = structures.shape[1] * pixel_mm[1], structures.shape[0] * pixel_mm[0]
    around = _bounds_mm(body, pixel_mm) or (0.0, width, 0.0, height)
    seen = _bounds_mm(structures, pixel_mm) or around
    extent = max(seen[1] - seen[0], seen[3] - seen[2])
    most = 1.06 * max(around[1] - around[0], around[3] - around[2], extent)
    side = max(_VIEW_PER_EXTENT * extent, _VIEW_LEAST * max(width, height))
    if side >= most:  # the whole body fits: centre on it
        side, seen = most, around
    return (
        *_place((seen[0] + seen[1]) / 2, side, width),
        *_place((seen[2] + seen[3]) / 2, side, height),
    )


def _place(centre: float, side: float, extent: float) -> tuple[float, float]:
    """An interval of length `side` around `centre`, moved into [0, extent] where it fits."""
    if side >= extent:
        return (extent - side) / 2, (extent + side) / 2
    start = min(max(centre - side / 2, 0.0), extent - side)
    return start, start + side


def _bounds_mm(mask: NDArray[np.bool_], pixel_mm: PixelMm) -> View | None:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return None
    height, width = pixel_mm
    return (
        float(columns[0] * width),
        float((columns[-1] + 1) * width),
        float(rows[0] * height),
        float((rows[-1] + 1) * height),
    )
