"""From one number per case to one line per metric: mean, median and how sure we are of the mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
FEW_CASES = 10
"""Below so many cases the bootstrap interval holds the true mean in 9 of 10 times at most, not in
95 of 100: `benchmarks/interval_coverage.py`.
"""
_CHUNK = 1_000_000  # numbers drawn at once by the bootstrap: 8 MB


@dataclass(frozen=True)
class Summary:
    """A metric over the cases of a split."""

    mean: float | None
    median: float | None
    ci95: tuple[float | None, float | None]
    """95 % interval of the mean; (None, None) below two cases."""
    n: int
    """Cases for which the metric is defined: those that all the rest is about."""
    sd: float | None = None
    """Sample standard deviation; None below two cases."""
    undefined: int = 0
    """Cases for which it is not."""

    def to_json(self) -> dict[str, object]:
        """As in the JSON of `evaluate`."""
        return {
            "mean": self.mean,
            "median": self.median,
            "sd": self.sd,
            "ci95": list(self.ci95),
            "n": self.n,
            "undefined": self.undefined,
        }


def bootstrap_ci95(
    values: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float | None, float | None]:
    """Percentile-bootstrap interval of the mean, resampling whole cases.

    Args:
        values: One finite number per case.
        seed: Of the resampling; the same values and seed give the same interval.
        resamples: How many means are drawn.

    Returns:
        The 2.5th and 97.5th percentile of the resampled means, or (None, None) for fewer than two
        cases: one case says nothing about the spread.

    Raises:
        ValueError: A value is not finite.
    """
    data = np.asarray(values, dtype=np.float64)
    if not np.isfinite(data).all():
        raise ValueError("bootstrap over a value that is not finite")
    if data.size < 2:
        return None, None
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    rows = max(1, _CHUNK // data.size)
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        picks = rng.integers(0, data.size, size=(stop - start, data.size))
        means[start:stop] = data[picks].mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def summarise(values: Sequence[float | None], *, seed: int = 0) -> Summary:
    """Reduce one value per case to its summary.

    Args:
        values: One number per case; None where the metric is undefined, which is counted apart.
        seed: Of the bootstrap.

    Returns:
        Mean, median, deviation, interval and the number of cases that count; all None where that is
        zero.

    Raises:
        ValueError: A value is infinite or not a number.
    """
    present = [value for value in values if value is not None]
    undefined = len(values) - len(present)
    if not present:
        return Summary(None, None, (None, None), 0, undefined=undefined)
    interval = bootstrap_ci95(present, seed=seed)
    mean, sd = mean_and_sd(present)
    return Summary(mean, float(np.median(present)), interval, len(present), sd, undefined)


def mean_and_sd(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation (n - 1 in the denominator).

    Args:
        values: Finite numbers.

    Returns:
        Both, or None for what is undefined: the deviation below two values, the mean of none.
    """
    if not values:
        return None, None
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return float(np.mean(values)), spread
