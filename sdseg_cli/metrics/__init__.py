"""Metrics of masks, similarity of maps, statistics over cases.

This module holds the types and options that all of them share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.errors import ConfigError

Mask = NDArray[np.bool_]
Spacing = tuple[float, ...]
Length = Literal["mm", "px"]
"""What distances are counted in: millimetres, in pictures pixels."""
Unit = Literal["1", "mm", "px", "ml", "dB"]
Better = Literal["higher", "lower", "zero"]
Grid = Literal["native", "model"]
Protocol = Literal["standard", "official"]

DETECTION_IOU = 0.1
"""`ScoringOptions.detection_iou` where lesions are counted and nothing else is said."""


@dataclass(frozen=True)
class ScoringOptions:
    """Choices that affect how a case is scored.

    Attributes:
        tolerance: Two borders agree where they are at most this far apart; mm, in pictures pixels.
        detection_iou: A lesion is found by a part of the prediction whose IoU with it is at least
            this; None counts no lesions, for organs are none.
        protocol: How empty masks are scored: "standard", or "official": by the official code's
            rules, which know the model's grid only, whatever `grid` says.
        grid: "native" scores on each scan's own voxels, "model" on the 256 x 256 planes.
        allow_missing: Score the cases that can be scored, where otherwise all must be there.
    """

    tolerance: float = 2.0
    detection_iou: float | None = None
    protocol: Protocol = "standard"
    grid: Grid = "native"
    allow_missing: bool = False

    def __post_init__(self) -> None:
        for option, value, allowed in (
            ("--grid", self.grid, ("native", "model")),
            ("--protocol", self.protocol, ("standard", "official")),
        ):
            if value not in allowed:
                raise ConfigError(f"{option} is {value!r}.", f"Choose one of {', '.join(allowed)}.")
        if self.protocol == "official":
            object.__setattr__(self, "grid", "model")
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
