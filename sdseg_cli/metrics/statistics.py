"""From one number per case to one line per metric, and two ways of predicting compared.

Two ways are compared on the same cases: each is its own control, what counts are the differences,
case by case. They are summed up by their mean and its bootstrap interval, and tested with
Wilcoxon's signed-rank test (two-sided), which assumes nothing of their distribution but symmetry.
Several metrics of the same cases are several tests: their p values are adjusted by Holm's method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.metrics import Better

RESAMPLES = 10_000
FEW_CASES = 10
"""Below so many cases the bootstrap interval holds the true mean in 9 of 10 times at most, not in
95 of 100: `benchmarks/interval_coverage.py`."""
FEWEST_TO_TEST = 6
"""Below so many differing pairs the smallest p there is, 2 / 2^n, is above 0.05 whatever was
measured: 0.0625 with five."""
_CHUNK = 1_000_000  # numbers drawn at once by the bootstrap: 8 MB
_DECIMALS = 12
"""Of a difference; beyond these lie rounding errors, which would break ties: 0.9 - 0.8 is not
0.3 - 0.2."""

Interval = tuple[float | None, float | None]


@dataclass(frozen=True)
class Summary:
    """A metric over the cases of a split; a statistic is None where it is undefined."""

    mean: float | None
    median: float | None
    sd: float | None
    """Sample standard deviation; None below two cases."""
    ci95: Interval
    """95 % interval of the mean; (None, None) below two cases."""
    n: int
    """Cases for which the metric is defined: those that all the rest is about."""
    undefined: int
    """Cases for which it is not."""

    def to_json(self) -> dict[str, object]:
        """As in the JSON of `evaluate`."""
        return asdict(self) | {"ci95": list(self.ci95)}


def bootstrap_ci95(
    values: Sequence[float] | NDArray[np.float64], *, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
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


def summarise(values: Sequence[float | None]) -> Summary:
    """Reduce one value per case to its summary; None, where it is undefined, is counted apart.

    Raises:
        ValueError: A value is infinite or not a number.
    """
    present = [value for value in values if value is not None]
    ci95 = bootstrap_ci95(present)
    mean, sd = mean_and_sd(present)
    return Summary(
        mean=mean,
        median=float(np.median(present)) if present else None,
        sd=sd,
        ci95=ci95,
        n=len(present),
        undefined=len(values) - len(present),
    )


def mean_and_sd(
    values: Sequence[float] | NDArray[np.float64],
) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation (n - 1 in the denominator) of finite numbers.

    Returns:
        Both, or None for what is undefined: the deviation below two values, the mean of none.
    """
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return (float(np.mean(values)) if len(values) else None), spread


@dataclass(frozen=True)
class Paired:
    """One metric of two ways, A and B, over the cases where both have a value."""

    n: int
    a: float | None
    """Mean over these cases; so is `b`."""
    b: float | None
    difference: float | None
    """Mean of B - A; None without a case."""
    median_difference: float | None
    ci95: Interval
    """Bootstrap interval of the mean difference; (None, None) below two cases."""
    p: float | None
    """Two-sided; None where fewer than `FEWEST_TO_TEST` pairs differ."""
    p_holm: float | None
    """`p` adjusted for the number of metrics tested; None before `with_holm`."""
    better_a: int
    """Cases in which A is better; the rest of `n` are ties."""
    better_b: int
    only_a: int
    """Cases left out because only A has a value."""
    only_b: int

    def to_json(self) -> dict[str, Any]:
        """As in the JSON of `compare`."""
        return asdict(self) | {"ci95": list(self.ci95)}


def paired(a: Sequence[float | None], b: Sequence[float | None], better: Better) -> Paired:
    """Compare two ways case by case.

    Args:
        a: One value per case, None where it is undefined.
        b: Of the same cases, in the same order.
        better: Which way a good value lies; "zero": the nearer to it, the better.

    Raises:
        ValueError: The lengths differ, or a value is not finite.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} cases against {len(b)}")
    cases = list(zip(a, b, strict=True))
    both = [(x, y) for x, y in cases if x is not None and y is not None]
    values = np.array(both, np.float64).reshape(-1, 2)
    goodness = -np.abs(values) if better == "zero" else -values if better == "lower" else values
    differences, gain = (np.round(one[:, 1] - one[:, 0], _DECIMALS) for one in (values, goodness))
    return Paired(
        n=len(both),
        a=mean_and_sd(values[:, 0])[0],
        b=mean_and_sd(values[:, 1])[0],
        difference=mean_and_sd(differences)[0],
        median_difference=float(np.median(differences)) if both else None,
        ci95=bootstrap_ci95(differences),
        p=wilcoxon_p(differences),
        p_holm=None,
        better_a=int(np.count_nonzero(gain < 0)),
        better_b=int(np.count_nonzero(gain > 0)),
        only_a=sum(x is not None and y is None for x, y in cases),
        only_b=sum(x is None and y is not None for x, y in cases),
    )


def wilcoxon_p(differences: Sequence[float] | NDArray[np.float64]) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test; pairs that do not differ drop out.

    Returns:
        p in (0, 1], exact where scipy can; None where too few pairs differ, see `FEWEST_TO_TEST`.
    """
    nonzero = [float(value) for value in differences if value != 0]
    if len(nonzero) < FEWEST_TO_TEST:
        return None
    from scipy.stats import wilcoxon

    return float(wilcoxon(nonzero).pvalue)


def with_holm(found: Mapping[str, Paired]) -> dict[str, Paired]:
    """The same with `p_holm`: the chance that any of the tests errs stays at the level chosen.

    Holm (1979): the smallest of m values is multiplied by m, the next by m - 1, ...; none becomes
    smaller than the one before it, or larger than 1.
    """
    tested = sorted((one.p, name) for name, one in found.items() if one.p is not None)
    adjusted: dict[str, float] = {}
    floor = 0.0
    for rank, (p, name) in enumerate(tested):
        floor = max(floor, min(1.0, p * (len(tested) - rank)))
        adjusted[name] = floor
    return {name: replace(one, p_holm=adjusted.get(name)) for name, one in found.items()}
