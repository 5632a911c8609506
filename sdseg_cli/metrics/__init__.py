"""What a result is worth: one function per metric, registered with `@metric`.

A mask metric is a function that names what it needs of a case, and gets it by these names:

    pred, label     the prediction and the reference, bool
    spacing_mm      the distance between voxels along each of their axes
    surfaces        how far the border of each lies from the other's, see `surfaces.py`
    lesions         connected parts, and how many of them were found, see `detection.py`
    tolerance       how far apart two borders may lie and still agree, see `ScoringOptions`

Registering it is all it takes: `evaluate`, its table, its CSV and its JSON walk over
`mask_metrics()`. What is costly is computed once a case, see `pair.py`.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.errors import ConfigError

if TYPE_CHECKING:
    from sdseg_cli.metrics.pair import MaskPair

Mask = NDArray[np.bool_]
Spacing = tuple[float, ...]
Length = Literal["mm", "px"]
"""What distances are counted in: millimetres, in pictures pixels."""
Unit = Literal["1", "mm", "px", "ml", "dB"]
Better = Literal["higher", "lower", "zero"]
Grid = Literal["native", "model"]
Protocol = Literal["standard", "official"]

MetricFunction = Callable[..., float | None]
_F = TypeVar("_F", bound=Callable[..., Any])


DETECTION_IOU = 0.1
"""`Terms.detection_iou` where lesions are counted and nothing else is said."""


@dataclass(frozen=True)
class ScoringOptions:
    """How a case is judged where that is a matter of choice.

    Attributes:
        tolerance: Two borders agree where they are at most this far apart; mm, in pictures pixels.
        detection_iou: A lesion is found by a part of the prediction whose IoU with it is at least
            this; None counts no lesions, for organs are none.
    """

    tolerance: float = 2.0
    detection_iou: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise ConfigError(
                f"--tolerance is {self.tolerance:g}.", "Give a distance of 0 mm or more."
            )
        if self.detection_iou is not None and not 0 < self.detection_iou <= 1:
            raise ConfigError(
                f"--detection-iou is {self.detection_iou:g}.", "Give a share above 0, at most 1."
            )


def column_name(name: str, unit: Unit) -> str:
    """A metric's name in CSV and JSON, with its unit where one is needed: `dice`, `hd95_mm`."""
    return f"{name}_{unit}" if unit in ("mm", "ml") else name


@dataclass(frozen=True)
class Score:
    """One number about one case."""

    case_id: str
    metric: str
    value: float | None
    """None where the metric is undefined, for example a distance to an empty mask."""
    grid: Grid
    unit: Unit

    @property
    def column(self) -> str:
        """Its name in CSV and JSON, see `column_name`."""
        return column_name(self.metric, self.unit)


@dataclass(frozen=True)
class Metric:
    """A registered mask metric."""

    name: str
    unit: Unit
    better: Better
    function: MetricFunction
    needs: tuple[str, ...]
    """Its parameters: what it is given of a case."""

    @property
    def column(self) -> str:
        """Its name in CSV and JSON where distances are in mm, see `column_name`."""
        return column_name(self.name, self.unit)

    def unit_in(self, length: Length | None) -> Unit | None:
        """Its unit on a grid.

        Args:
            length: What distances are counted in there; None where they have no meaning, as on
                the cropped and resized planes of the model.

        Returns:
            None where the metric has no meaning: no distances without a length, no ml in pixels.
        """
        if length is None:
            return None if _NEED_A_LENGTH & set(self.needs) else self.unit
        if self.unit == "ml":
            return "ml" if length == "mm" else None
        return length if self.unit == "mm" else self.unit

    def of(self, pair: MaskPair, protocol: Protocol = "standard") -> float | None:
        """Score one case.

        Args:
            pair: Its masks, and what was computed of them so far.
            protocol: How an empty mask is scored, see `official_overlap`.

        Returns:
            The value, or None where it is undefined.
        """
        if protocol == "official" and self.name in _OFFICIAL:
            fixed = official_overlap(pair.pred, pair.label)
            if fixed is not None:
                return fixed
        if self.unit_in(pair.length) is None:
            return None
        return self.function(**{name: getattr(pair, name) for name in self.needs})

    def measure(
        self, pred: Mask, label: Mask, spacing_mm: Spacing | None, protocol: Protocol = "standard"
    ) -> float | None:
        """Score one case by this metric alone.

        Args:
            pred: Predicted mask, any shape, bool.
            label: Reference mask, the same shape, bool.
            spacing_mm: Distance between voxels along each axis of the masks, mm; None where the
                grid has no one spacing.
            protocol: As for `of`.

        Returns:
            The value, or None where it is undefined.

        Raises:
            ValueError: The masks differ in shape, or are not bool.
        """
        from sdseg_cli.metrics.pair import MaskPair

        return self.of(MaskPair(pred, label, spacing_mm), protocol)


METRICS: dict[str, Metric] = {}
"""The registry that `@metric` fills. Read it through `mask_metrics()`."""

_MODULES = ("overlap", "surfaces", "volume", "lesions")  # that define mask metrics, in order
_INGREDIENTS = {"pred", "label", "spacing_mm", "surfaces", "lesions", "tolerance"}
_NEED_A_LENGTH = {"spacing_mm", "surfaces", "lesions", "tolerance"}
"""Lesions too: what touches what, and how large it is, is the scan's own matter."""
_OFFICIAL = ("dice", "iou")


def metric(*, unit: Unit, better: Better) -> Callable[[_F], _F]:
    """Register a mask metric under its function's name.

    Args:
        unit: Of the value; "mm" and "ml" become part of the column's name. In pictures "mm" is
            pixels, and there is no "ml".
        better: Which way a good value lies.

    Returns:
        A decorator that registers the function and returns it unchanged.

    Raises:
        ValueError: The name is taken, or a parameter is none of what a case can give.
    """

    def register(function: _F) -> _F:
        name = function.__name__
        if name in METRICS:
            raise ValueError(f"metric {name!r} is registered twice")
        needs = tuple(inspect.signature(function).parameters)
        for unknown in set(needs) - _INGREDIENTS:
            raise ValueError(f"metric {name!r} asks for {unknown!r}, which no case has")
        METRICS[name] = Metric(name, unit, better, function, needs)
        return function

    return register


def official_overlap(pred: Mask, label: Mask) -> float | None:
    """The official code's Dice and IoU when the reference is empty.

    Args:
        pred: Predicted mask, bool.
        label: Reference mask, the same shape, bool.

    Returns:
        1 for a non-empty prediction on an empty reference, 0 when both are empty (unsound, but what
        the published figures were made with); None when the reference is not empty.
    """
    if label.any():
        return None
    return 1.0 if pred.any() else 0.0


def mask_metrics() -> tuple[Metric, ...]:
    """Every registered mask metric; imports the modules that hold them first.

    Returns:
        In the order of their modules, whichever was imported first; those of others come last.
    """
    names = [f"{__name__}.{module}" for module in _MODULES]
    for name in names:
        importlib.import_module(name)
    place = {name: number for number, name in enumerate(names)}
    last = len(place)
    found = METRICS.values()
    return tuple(sorted(found, key=lambda one: place.get(one.function.__module__, last)))
