from __future__ import annotations

import numpy as np
import pytest

from sdseg_cli.metrics import agreement as agreement_module
from sdseg_cli.metrics.agreement import (
    Agreement,
    Flips,
    Tally,
    disagreement,
    disagreement_of_counts,
)


def votes(*rows: str) -> np.ndarray:
    """One mask a row, written as "110"; each a plane of one row."""
    return np.array([[[digit == "1" for digit in row]] for row in rows])


def test_disagreement_is_4p_times_1_minus_p_in_255ths() -> None:
    # Shares 4/4, 3/4, 2/4, 0/4: 0, 4 x 0.1875 = 0.75, 1, 0.
    plane = disagreement(votes("1110", "1110", "1100", "1000"))
    assert plane.dtype == np.uint8
    assert plane.tolist() == [[0, 191, 255, 0]]


def test_three_masks_never_disagree_wholly() -> None:
    # 4 x 1/3 x 2/3 = 8/9, and 8/9 x 255 = 226.7
    assert disagreement(votes("100", "110", "000")).tolist() == [[227, 227, 0]]


def test_dice_is_the_mean_of_all_pairs() -> None:
    tally = Tally(3)
    tally.add(votes("1100", "1000", "0111"))
    # |A| 2, |B| 1, |C| 3; A and B share 1, A and C 1, B and C 0: (2/3 + 2/5 + 0) / 3.
    # Every voxel is in some mask, none in all.
    assert tally.agreement() == Agreement(3, pytest.approx((2 / 3 + 2 / 5) / 3), 1.0)


def test_planes_are_counted_together_and_not_averaged() -> None:
    tally = Tally(2)
    tally.add(votes("111100", "111000"))
    tally.add(votes("000000", "010000"))
    # 4 and 4 voxels, 3 shared: Dice 6/8. Of 5 voxels in any mask 3 are in both.
    assert tally.agreement() == Agreement(2, pytest.approx(0.75), pytest.approx(2 / 5))


def test_masks_that_are_all_empty_have_no_score() -> None:
    tally = Tally(2)
    tally.add(votes("000", "000"))
    assert tally.agreement() == Agreement(2, None, None)
    assert tally.agreement().to_json() == {"runs": 2, "dice": None, "flipped": None}


def test_a_pair_of_empty_masks_is_left_out_of_the_mean() -> None:
    tally = Tally(3)
    tally.add(votes("10", "00", "00"))
    assert tally.agreement() == Agreement(3, 0.0, 1.0)
    tally = Tally(3)
    tally.add(votes("10", "10", "00"))
    assert tally.agreement().dice == pytest.approx(1 / 3)


def test_the_size_of_the_pieces_counted_at_once_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = np.random.default_rng(0).random((4, 9, 11)) > 0.4
    found = []
    for size in (1, 7, 1 << 16):
        monkeypatch.setattr(agreement_module, "_CHUNK", size)
        tally = Tally(4)
        tally.add(drawn)
        found.append(tally.agreement())
    assert found[0] == found[1] == found[2]
    assert found[0].dice is not None and 0 < found[0].dice < 1


def test_counts_say_as_much_as_masks_whatever_their_shape() -> None:
    counts = np.array([[[0, 1], [2, 3]]], np.uint8)
    # 0, 4 x 1/3 x 2/3 = 8/9, the same, 0
    assert disagreement_of_counts(counts, 3).tolist() == [[[0, 227], [227, 0]]]


def test_flips_are_what_some_masks_have_and_not_all() -> None:
    flips = Flips.of_counts(np.array([0, 0, 1, 2, 3, 3], np.uint8), 3)
    assert flips == Flips(voxels=6, ever=4, flipped=2)
    assert (flips.fraction, flips.of_foreground) == (2 / 6, 2 / 4)
    both = flips + Flips(voxels=4, ever=1, flipped=0)
    assert (both.fraction, both.of_foreground) == (2 / 10, 2 / 5)


def test_where_no_mask_has_anything_nothing_can_flip() -> None:
    empty = Flips.of_counts(np.zeros((2, 2), np.uint8), 5)
    assert (empty.fraction, empty.of_foreground) == (0.0, None)
    assert Flips().fraction is None
