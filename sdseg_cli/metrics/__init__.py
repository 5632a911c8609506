"""What a result is worth: one function per metric, registered with `@metric`.

A mask metric takes the prediction and the reference of one case (and, if it has a parameter
`spacing_mm`, the voxel spacing) and returns one number. Registering it is all it takes: `evaluate`,
its table, its CSV and its JSON walk over `mask_metrics()`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Spacing = tuple[float, float, float]
Unit = Literal["1", "mm", "px", "dB"]
Grid = Literal["native", "model"]
Protocol = Literal["standard", "official"]

MetricFunction = Callable[..., float | None]
_F = TypeVar("_F", bound=Callable[..., Any])


def column_name(name: str, unit: Unit) -> str:
    """A metric's name in CSV and JSON, with its unit where one is needed: `dice`, `hd95_mm`."""
    return f"{name}_mm" if unit == "mm" else name


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
    better: Literal["higher", "lower"]
    function: MetricFunction
    needs_spacing: bool

    @property
    def column(self) -> str:
        """Its name in CSV and JSON, see `column_name`."""
        return column_name(self.name, self.unit)

    def measure(
        self, pred: Mask, label: Mask, spacing_mm: Spacing | None, protocol: Protocol = "standard"
    ) -> float | None:
        """Score one case.

        Args:
            pred: Predicted mask, any shape, bool.
            label: Reference mask, the same shape, bool.
            spacing_mm: Distance between voxels along each axis of the masks, mm; None where the
                grid has no one spacing (the cropped and resized planes of the model).
            protocol: How an empty mask is scored, see `official_overlap`.

        Returns:
            The value, or None where it is undefined.

        Raises:
            ValueError: The masks differ in shape.
        """
        if protocol == "official" and self.unit == "1":
            fixed = official_overlap(pred, label)
            if fixed is not None:
                return fixed
        if not self.needs_spacing:
            return self.function(pred, label)
        return None if spacing_mm is None else self.function(pred, label, spacing_mm)


METRICS: dict[str, Metric] = {}
"""The registry that `@metric` fills. Read it through `mask_metrics()`."""

_MODULES = ("segmentation",)  # that define mask metrics


def metric(*, unit: Unit, better: Literal["higher", "lower"]) -> Callable[[_F], _F]:
    """Register a mask metric under its function's name.

    Args:
        unit: Of the value; "mm" becomes part of the column's name.
        better: Which way a good value lies.

    Returns:
        A decorator that registers the function and returns it unchanged.

    Raises:
        ValueError: The name is taken.
    """

    def register(function: _F) -> _F:
        name = function.__name__
        if name in METRICS:
            raise ValueError(f"metric {name!r} is registered twice")
        needs_spacing = "spacing_mm" in inspect.signature(function).parameters
        METRICS[name] = Metric(name, unit, better, function, needs_spacing)
        return function

    return register


def official_overlap(pred: Mask, label: Mask) -> float | None:
    """The official code's value of any overlap metric when the reference is empty.

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
    """Every registered mask metric, in order; imports the modules that hold them first."""
    for module in _MODULES:
        importlib.import_module(f"{__name__}.{module}")
    return tuple(METRICS.values())
