"""Whether one way of predicting is better than another on the same cases.

Each case is its own control: what counts are the differences, case by case. They are summed up by
their mean and its bootstrap interval, and tested with Wilcoxon's signed-rank test (two-sided),
which asks nothing of their distribution but symmetry. Several metrics of the same cases are several
tests: their p values are adjusted by Holm's method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from sdseg_cli.metrics.statistics import bootstrap_ci95

Better = Literal["higher", "lower", "zero"]

FEWEST_TO_TEST = 6
"""Below so many differing pairs the smallest p there is, 2 / 2^n, is above 0.05 whatever was
measured: 0.0625 with five.
"""
_DECIMALS = 12
"""Of a difference; beyond these lie rounding errors, which would break ties: 0.9 - 0.8 is not
0.3 - 0.2."""


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
    ci95: tuple[float | None, float | None]
    """Bootstrap interval of the mean difference; (None, None) below two cases."""
    p: float | None
    """Two-sided; None where fewer than `FEWEST_TO_TEST` pairs differ."""
    better_a: int
    """Cases in which A is better; the rest of `n` are ties."""
    better_b: int
    only_a: int
    """Cases left out because only A has a value."""
    only_b: int
    p_holm: float | None = None
    """`p` adjusted for the number of metrics tested."""

    def to_json(self) -> dict[str, Any]:
        """As in the JSON of `compare`."""
        return {
            "n": self.n,
            "a": self.a,
            "b": self.b,
            "difference": self.difference,
            "median_difference": self.median_difference,
            "ci95": list(self.ci95),
            "p": self.p,
            "p_holm": self.p_holm,
            "better_a": self.better_a,
            "better_b": self.better_b,
            "only_a": self.only_a,
            "only_b": self.only_b,
        }


def paired(
    a: Sequence[float | None], b: Sequence[float | None], better: Better, *, seed: int = 0
) -> Paired:
    """Compare two ways case by case.

    Args:
        a: One value per case, None where it is undefined.
        b: Of the same cases, in the same order.
        better: Which way a good value lies; "zero": the nearer to it, the better.
        seed: Of the bootstrap.

    Raises:
        ValueError: The lengths differ, or a value is not finite.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} cases against {len(b)}")
    both = [(x, y) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    first, second = np.array(both, np.float64).reshape(-1, 2).T
    differences = np.round(second - first, _DECIMALS)
    gain = np.round(_goodness(second, better) - _goodness(first, better), _DECIMALS)
    return Paired(
        n=len(both),
        a=_mean(first),
        b=_mean(second),
        difference=_mean(differences),
        median_difference=float(np.median(differences)) if both else None,
        ci95=bootstrap_ci95(differences.tolist(), seed=seed),
        p=wilcoxon_p(differences.tolist()),
        better_a=int(np.count_nonzero(gain < 0)),
        better_b=int(np.count_nonzero(gain > 0)),
        only_a=sum(x is not None and y is None for x, y in zip(a, b, strict=True)),
        only_b=sum(x is None and y is not None for x, y in zip(a, b, strict=True)),
    )


def wilcoxon_p(differences: Sequence[float]) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test; pairs that do not differ drop out.

    Args:
        differences: One per case, finite.

    Returns:
        p in (0, 1], exact where scipy can; None where too few pairs differ, see `FEWEST_TO_TEST`.
    """
    nonzero = [value for value in differences if value != 0]
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


def _goodness(values: np.ndarray[Any, np.dtype[np.float64]], better: Better) -> Any:
    """A number that is higher where the value is better."""
    if better == "higher":
        return values
    return -(np.abs(values) if better == "zero" else values)


def _mean(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) else None
