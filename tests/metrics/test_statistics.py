"""Summaries of a few numbers and paired comparisons, worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from sdseg_cli.metrics.statistics import (
    bootstrap_ci95,
    mean_and_sd,
    paired,
    summarise,
    wilcoxon_p,
    with_holm,
)


def test_summary_skips_what_is_undefined() -> None:
    summary = summarise([0.2, None, 0.6, 1.0])
    assert (summary.mean, summary.median, summary.n) == (pytest.approx(0.6), 0.6, 3)
    assert (summary.sd, summary.undefined) == (pytest.approx(0.4), 1)  # sqrt((0.16 + 0.16) / 2)


def test_summary_of_nothing_is_all_none() -> None:
    found = list(summarise([None]).to_json().items())
    nothing = [("mean", None), ("median", None), ("sd", None), ("ci95", [None, None])]
    assert found == [*nothing, ("n", 0), ("undefined", 1)]


@pytest.mark.parametrize(
    ("values", "interval"),
    [
        ([0.5, 0.5, 0.5], (0.5, 0.5)),
        ([0.7], (None, None)),
        # A quarter of the resamples draws the first case twice, a quarter the second.
        ([0.0, 1.0], (0.0, 1.0)),
    ],
)
def test_interval_of_a_few_values(values, interval) -> None:
    assert bootstrap_ci95(values) == interval


def test_interval_of_many_cases_is_the_normal_one() -> None:
    values = np.tile([0.4, 0.6], 500)  # sd 0.1, so the mean's is 0.1 / sqrt(1000)
    low, high = bootstrap_ci95(list(values))
    half = 1.96 * 0.1 / math.sqrt(1000)
    assert low == pytest.approx(0.5 - half, abs=5e-4)
    assert high == pytest.approx(0.5 + half, abs=5e-4)


def test_interval_depends_on_the_seed_alone() -> None:
    values = [math.sqrt(n) for n in range(20)]
    assert bootstrap_ci95(values, seed=3) == bootstrap_ci95(values, seed=3)
    assert bootstrap_ci95(values, seed=3) != bootstrap_ci95(values, seed=4)


def test_infinite_values_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        summarise([1.0, math.inf])


def test_standard_deviation_divides_by_one_less() -> None:
    assert mean_and_sd([1.0, 3.0]) == (2.0, pytest.approx(math.sqrt(2)))
    assert mean_and_sd([1.0]) == (1.0, None)
    assert mean_and_sd([]) == (None, None)


def test_differences_are_b_minus_a_over_cases_that_both_have() -> None:
    found = paired([0.5, 0.6, None, 0.9], [0.7, 0.6, 0.4, None], "higher")
    means = found.a, found.b, found.difference, found.median_difference
    assert means == pytest.approx((0.55, 0.65, 0.1, 0.1))
    counts = found.n, found.better_a, found.better_b, found.only_a, found.only_b
    assert counts == (2, 0, 1, 1, 1)


def test_lower_is_better_for_distances() -> None:
    found = paired([1.0, 5.0], [2.0, 3.0], "lower")
    assert (found.better_a, found.better_b) == (1, 1)
    assert found.difference == pytest.approx(-0.5)


def test_nearer_to_zero_is_better_for_signed_differences() -> None:
    # |-3| > |1|: B is nearer in the first case; |2| < |-4|: A in the second; |-2| = |2|: a tie.
    found = paired([-3.0, 2.0, -2.0], [1.0, -4.0, 2.0], "zero")
    assert (found.better_a, found.better_b) == (1, 1)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        # All 2^6 signs are equally likely; two of them (all plus, all minus) are this extreme.
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 2 / 64),
        # W- = 1 of 6 ranks. Sign patterns with W- <= 1: none and {1}, 2 of 64; two-sided 4 of 64.
        ([-0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 4 / 64),
        ([0.1, 0.2, 0.3, 0.4, 0.5], None),
        # Pairs without a difference do not count.
        ([0.0] * 10 + [0.1, 0.2, 0.3, 0.4, 0.5], None),
        ([0.0, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 2 / 64),
    ],
)
def test_the_p_of_a_few_differences_is_worked_out_by_hand(differences, p) -> None:
    assert wilcoxon_p(differences) == (None if p is None else pytest.approx(p))


def test_differences_that_are_equal_but_for_rounding_share_a_rank() -> None:
    # Each differs by 0.1, the last one downwards: 0.3 - 0.2 and 0.9 - 0.8 are not 0.1 in binary.
    a, b = [0.2, 0.8, 0.1, 0.5, 0.6, 0.4], [0.3, 0.9, 0.2, 0.6, 0.7, 0.3]
    assert len({y - x for x, y in zip(a, b, strict=True)}) > 2
    # All six share one rank. At most one of them negative: 1 + 6 of 2^6 signs; two-sided twice.
    assert paired(a, b, "higher").p == pytest.approx(14 / 64)
    # 0.1 + 0.2 against 0.3 is a tie.
    found = paired([0.3], [0.1 + 0.2], "higher")
    assert (found.difference, found.better_a, found.better_b) == (0.0, 0, 0)


def test_a_way_against_itself_differs_nowhere() -> None:
    found = paired([0.1, 0.5, 0.9], [0.1, 0.5, 0.9], "higher")
    assert (found.difference, found.ci95, found.p) == (0.0, (0.0, 0.0), None)


def test_no_common_case_gives_no_number() -> None:
    found = paired([None], [0.5], "higher")
    numbers = found.a, found.difference, found.ci95, found.p
    assert (found.n, *numbers) == (0, None, None, (None, None), None)


def test_other_numbers_of_cases_are_a_bug() -> None:
    with pytest.raises(ValueError, match="2 cases against 1"):
        paired([0.1, 0.2], [0.1], "higher")


@pytest.mark.parametrize(
    ("ps", "adjusted"),
    [
        # Sorted 0.01, 0.03, 0.04: 0.01 x 3 = 0.03; 0.03 x 2 = 0.06; 0.04 x 1, raised to 0.06.
        ([0.04, 0.01, 0.03, None], [0.06, 0.03, 0.06, None]),
        ([0.6, 0.6], [1.0, 1.0]),
    ],
)
def test_holm_multiplies_by_the_tests_left_never_decreases_and_stops_at_one(ps, adjusted) -> None:
    base = paired([0.1], [0.2], "higher")
    found = with_holm({str(n): replace(base, p=p) for n, p in enumerate(ps)})
    assert [found[str(n)].p_holm for n in range(len(ps))] == pytest.approx(adjusted)
