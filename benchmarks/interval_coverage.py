"""How often the 95 % interval of `evaluate` holds the true mean, by the number of cases.

    python -m benchmarks.interval_coverage

Cases are drawn from two known distributions: a normal one, and Dice values as segmentation gives
them, bunched near the top with a tail of failures (beta(8, 1.5), mean 0.842).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.metrics.statistics import bootstrap_ci95

CASES = (3, 5, 8, 10, 15, 20, 30, 50)
Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]
DISTRIBUTIONS: dict[str, tuple[Draw, float]] = {
    "normal": (lambda rng, n: rng.normal(0.8, 0.05, n), 0.8),
    "beta(8, 1.5)": (lambda rng, n: rng.beta(8, 1.5, n), 8 / 9.5),
}


def coverage(draw: Draw, mean: float, cases: int, trials: int) -> float:
    """The share of trials whose interval holds the mean."""
    rng = np.random.default_rng(cases)
    held = 0
    for trial in range(trials):
        low, high = bootstrap_ci95(draw(rng, cases).tolist(), seed=trial, resamples=1_000)
        held += low is not None and high is not None and low <= mean <= high
    return held / trials


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=2_000)
    trials = parser.parse_args().trials
    print("| cases | " + " | ".join(DISTRIBUTIONS) + " |")
    print("|---" * (1 + len(DISTRIBUTIONS)) + "|")
    for cases in CASES:
        shares = (coverage(draw, mean, cases, trials) for draw, mean in DISTRIBUTIONS.values())
        print(f"| {cases} | " + " | ".join(f"{100 * share:.0f} %" for share in shares) + " |")


if __name__ == "__main__":
    main()
