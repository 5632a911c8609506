"""Summaries of a few numbers, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sdseg_cli.metrics.statistics import bootstrap_ci95, mean_and_sd, summarise


def test_summary_skips_what_is_undefined():
    summary = summarise([0.2, None, 0.6, 1.0])
    assert (summary.mean, summary.median, summary.n) == (pytest.approx(0.6), 0.6, 3)
    assert (summary.sd, summary.undefined) == (pytest.approx(0.4), 1)  # sqrt((0.16 + 0.16) / 2)


def test_summary_of_nothing_is_all_none():
    assert summarise([None]).to_json() == {
        "mean": None,
        "median": None,
        "sd": None,
        "ci95": [None, None],
        "n": 0,
        "undefined": 1,
    }


def test_interval_of_equal_values_is_that_value():
    assert bootstrap_ci95([0.5, 0.5, 0.5]) == (0.5, 0.5)


def test_interval_of_one_case_is_absent():
    assert bootstrap_ci95([0.7]) == (None, None)


def test_interval_of_zero_and_one_spans_both():
    # A quarter of the resamples draws the first case twice, a quarter the second.
    assert bootstrap_ci95([0.0, 1.0]) == (0.0, 1.0)


def test_interval_of_many_cases_is_the_normal_one():
    values = np.tile([0.4, 0.6], 500)  # sd 0.1, so the mean's is 0.1 / sqrt(1000)
    low, high = bootstrap_ci95(list(values))
    half = 1.96 * 0.1 / math.sqrt(1000)
    assert low == pytest.approx(0.5 - half, abs=5e-4)
    assert high == pytest.approx(0.5 + half, abs=5e-4)


def test_interval_depends_on_the_seed_alone():
    values = [math.sqrt(n) for n in range(20)]
    assert bootstrap_ci95(values, seed=3) == bootstrap_ci95(values, seed=3)
    assert bootstrap_ci95(values, seed=3) != bootstrap_ci95(values, seed=4)


def test_infinite_values_are_refused():
    with pytest.raises(ValueError, match="finite"):
        summarise([1.0, math.inf])


def test_standard_deviation_divides_by_one_less():
    assert mean_and_sd([1.0, 3.0]) == (2.0, pytest.approx(math.sqrt(2)))
    assert mean_and_sd([1.0]) == (1.0, None)
    assert mean_and_sd([]) == (None, None)
