"""The values that become -1 and +1: a fixed window, or percentiles of the scan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.errors import ConfigError
from sdseg_cli.imaging.volume import Planes, Volume

CT_WINDOW_HU = (-175.0, 250.0)
PERCENTILES = (0.5, 99.5)
KINDS = ("window", "window-range", "percentile")
PHOTOGRAPH = "photograph"
"""The modality of pictures."""
PICTURE_WINDOW = (0.0, 255.0)
ABOVE_AIR_HU = -800.0
"""Air in and around a patient is below this, with its noise."""
CT_MINIMUM_HU = -200.0
"""A scan with values below this is CT: only air lies there, and nothing else has negatives."""

_BINS = 4096


@dataclass(frozen=True)
class Limits:
    """The values of one scan that become -1 and +1; low < high."""

    low: float
    high: float

    def rescale(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """clip((v - low) / (high - low)) * 2 - 1 as float32 in [-1, 1]; NaN becomes -1."""
        scaled = (values - np.float32(self.low)) * np.float32(2 / (self.high - self.low)) - 1
        return np.clip(np.nan_to_num(scaled, copy=False, nan=-1.0), -1, 1, out=scaled)


@dataclass(frozen=True)
class Normalisation:
    """The mapping of scan values to [-1, 1].

    Attributes:
        kind: "window": low and high are values (HU for CT), the same for every scan;
            "window-range": each scan is clipped to that window, then its own lowest and highest
            clipped values become -1 and +1; "percentile": low and high are percentiles of each
            scan's foreground (0..100).
        low: Becomes -1.
        high: Becomes +1.
    """

    kind: str
    low: float
    high: float

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(
                f"normalisation {self.kind!r} is unknown.", f"Use one of {', '.join(KINDS)}."
            )
        low, high = (0, 100) if self.kind == "percentile" else (-1e300, 1e300)
        if not low <= self.low < self.high <= high:
            raise ConfigError(
                f"The window {self.low:g},{self.high:g} is empty or endless.",
                "Give the low end first, for example --window -175,250.",
            )

    @classmethod
    def for_modality(cls, modality: str) -> Normalisation:
        """The abdominal soft-tissue window for "CT", all colours (value / 127.5 - 1) for pictures,
        percentiles for anything else.
        """
        if modality == PHOTOGRAPH:
            return cls("window", *PICTURE_WINDOW)
        if modality == "CT":
            return cls("window", *CT_WINDOW_HU)
        return cls("percentile", *PERCENTILES)

    @property
    def hides_air(self) -> bool:
        """True if air (-1000 HU) is below the window, and water (0) within."""
        return self.kind != "percentile" and ABOVE_AIR_HU <= self.low < 0 < self.high

    def limits(self, volume: Volume) -> Limits:
        """The values of this scan that become -1 and +1.

        Percentiles count voxels above the scan's minimum: constant padding says nothing.
        """
        if self.kind == "window":
            return Limits(self.low, self.high)
        if self.kind == "window-range":
            found = extent(volume)
            ends = np.clip((found.minimum, found.maximum), self.low, self.high)
            low, high = float(ends[0]), float(ends[1])
            return Limits(low, high if high > low else low + 1)
        low, high = percentiles(volume, (self.low, self.high))
        return Limits(low, high if high > low else low + 1)

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        return {"kind": self.kind, "low": self.low, "high": self.high}

    @classmethod
    def from_dict(cls, settings: dict[str, Any]) -> Normalisation:
        """Undo `to_dict`."""
        return cls(str(settings["kind"]), float(settings["low"]), float(settings["high"]))


@dataclass(frozen=True)
class Extent:
    """The range of a scan's finite values, and how many voxels are not finite."""

    minimum: float
    maximum: float
    not_finite: int


def extent(volume: Volume) -> Extent:
    """Range of the finite values of a scan; 0..0 when there is none. Holds one slice at a time."""
    low, high, not_finite = np.inf, -np.inf, 0
    for values in _finite_planes(volume):
        not_finite += volume.array.size // Planes.of(volume.geometry).count - values.size
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    return Extent(low, high, not_finite) if low <= high else Extent(0.0, 0.0, not_finite)


def guess_modality(range_of_values: Extent) -> str:
    """The modality: "CT" when values below -200 occur (air in HU), else "MR/other"."""
    return "CT" if range_of_values.minimum < CT_MINIMUM_HU else "MR/other"


def percentiles(volume: Volume, wanted: tuple[float, ...]) -> list[float]:
    """Percentiles of the finite voxels above the scan's minimum.

    From two rounds of histograms, so that no copy of the scan is made and the order of the voxels
    cannot matter. Exact to the range divided by 4096 squared.

    Args:
        volume: The scan.
        wanted: 0..100.

    Returns:
        One value each; the minimum when the scan is constant.
    """
    whole = extent(volume)
    if not whole.minimum < whole.maximum:
        return [whole.minimum for _ in wanted]
    coarse = _histogram(volume, whole)
    cumulated = np.cumsum(coarse)
    results = []
    for percentile in wanted:
        rank = max(1, int(np.ceil(percentile / 100 * cumulated[-1])))
        index = int(np.searchsorted(cumulated, rank))
        fine = np.cumsum(_histogram(volume, whole, within=index))
        position = int(np.searchsorted(fine, rank - (cumulated[index] - coarse[index])))
        share = (index + (position + 0.5) / _BINS) / _BINS
        results.append(whole.minimum + share * (whole.maximum - whole.minimum))
    return results


def _histogram(volume: Volume, whole: Extent, within: int | None = None) -> NDArray[np.int64]:
    """Counts of the voxels above the minimum in equal bins of the range, or of one such bin."""
    counts = np.zeros(_BINS, np.int64)
    for values in _finite_planes(volume):
        above = values[values > whole.minimum].astype(np.float64)
        place = (above - whole.minimum) * (_BINS / (whole.maximum - whole.minimum))
        index = np.minimum(place.astype(np.int64), _BINS - 1)
        if within is not None:
            inside = index == within
            index = np.minimum(((place[inside] - within) * _BINS).astype(np.int64), _BINS - 1)
        counts += np.bincount(index, minlength=_BINS)
    return counts


def _finite_planes(volume: Volume) -> Iterator[NDArray[np.float32]]:
    planes = Planes.of(volume.geometry)
    for k in range(planes.count):
        values = volume.values(planes.get(volume.array, k))
        yield values[np.isfinite(values)]
