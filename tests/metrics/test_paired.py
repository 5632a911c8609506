from __future__ import annotations

from dataclasses import replace

import pytest

from sdseg_cli.metrics.paired import Paired, paired, wilcoxon_p, with_holm


def test_differences_are_b_minus_a_over_cases_that_both_have() -> None:
    found = paired([0.5, 0.6, None, 0.9], [0.7, 0.6, 0.4, None], "higher")
    assert found.n == 2
    assert found.a == pytest.approx(0.55)
    assert found.b == pytest.approx(0.65)
    assert found.difference == pytest.approx(0.1)
    assert found.median_difference == pytest.approx(0.1)
    assert (found.better_a, found.better_b) == (0, 1)
    assert (found.only_a, found.only_b) == (1, 1)


def test_lower_is_better_for_distances() -> None:
    found = paired([1.0, 5.0], [2.0, 3.0], "lower")
    assert (found.better_a, found.better_b) == (1, 1)
    assert found.difference == pytest.approx(-0.5)


def test_nearer_to_zero_is_better_for_signed_differences() -> None:
    # |-3| > |1|: B is nearer in the first case; |2| < |-4|: A in the second; |-2| = |2|: a tie.
    found = paired([-3.0, 2.0, -2.0], [1.0, -4.0, 2.0], "zero")
    assert (found.better_a, found.better_b) == (1, 1)


def test_six_differences_of_one_sign_have_the_smallest_exact_p() -> None:
    # All 2^6 signs are equally likely; two of them (all plus, all minus) are this extreme.
    assert wilcoxon_p([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == pytest.approx(2 / 64)


def test_five_differences_are_not_tested() -> None:
    assert wilcoxon_p([0.1, 0.2, 0.3, 0.4, 0.5]) is None


def test_pairs_without_a_difference_do_not_count_towards_the_test() -> None:
    assert wilcoxon_p([0.0] * 10 + [0.1, 0.2, 0.3, 0.4, 0.5]) is None
    with_zeros = wilcoxon_p([0.0, 0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert with_zeros == pytest.approx(2 / 64)


def test_the_p_of_one_opposing_smallest_rank_is_worked_out_by_hand() -> None:
    # W- = 1 of 6 ranks. Sign patterns with W- <= 1: none and {1}, 2 of 64; two-sided 4 of 64.
    assert wilcoxon_p([-0.1, 0.2, 0.3, 0.4, 0.5, 0.6]) == pytest.approx(4 / 64)


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
    assert (found.n, found.a, found.difference, found.ci95, found.p) == (
        0,
        None,
        None,
        (None, None),
        None,
    )


def test_other_numbers_of_cases_are_a_bug() -> None:
    with pytest.raises(ValueError, match="2 cases against 1"):
        paired([0.1, 0.2], [0.1], "higher")


def test_holm_multiplies_by_the_number_of_tests_left_and_never_decreases() -> None:
    base = paired([0.1], [0.2], "higher")

    def with_p(p: float | None) -> Paired:
        return replace(base, p=p)

    found = with_holm({"x": with_p(0.04), "y": with_p(0.01), "z": with_p(0.03), "w": with_p(None)})
    # Sorted 0.01, 0.03, 0.04: 0.01 x 3 = 0.03; 0.03 x 2 = 0.06; 0.04 x 1 = 0.04, raised to 0.06.
    assert found["y"].p_holm == pytest.approx(0.03)
    assert found["z"].p_holm == pytest.approx(0.06)
    assert found["x"].p_holm == pytest.approx(0.06)
    assert found["w"].p_holm is None


def test_holm_stops_at_one() -> None:
    base = paired([0.1], [0.2], "higher")
    found = with_holm({name: replace(base, p=0.6) for name in "ab"})
    assert found["a"].p_holm == 1.0
