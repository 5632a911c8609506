"""Classes: what labels are segmented into."""

from __future__ import annotations

import numpy as np
import pytest

from sdseg_cli.data.spec import ClassRule

LABELS = np.array([[0, 1], [2, 300]], np.uint16)
SLICES = {"1": [4, 5], "2": [9], "300": [5, 0]}


@pytest.mark.parametrize(
    ("target", "mask", "slices"),
    [
        ((1, 300), [[False, True], [False, True]], [0, 4, 5]),
        ((2,), [[False, False], [True, False]], [9]),
        ((7,), [[False, False], [False, False]], []),
        (None, [[False, True], [True, True]], [0, 4, 5, 9]),
    ],
)
def test_a_target_is_one_class(target, mask, slices) -> None:
    rule = ClassRule.of_target(target)
    assert len(rule) == 1
    assert rule.masks(LABELS).dtype == bool and rule.masks(LABELS).tolist() == [mask]
    assert rule.foreground(LABELS).tolist() == mask
    assert rule.slices(SLICES) == slices
    assert rule.slices({}) == []


def test_each_class_has_its_mask_and_may_share_labels() -> None:
    rule = ClassRule(groups=((1, 2), (2,)), names=("disc", "cup"))
    assert rule.masks(LABELS).tolist() == [
        [[False, True], [True, False]],
        [[False, False], [True, False]],
    ]
    assert rule.foreground(LABELS).tolist() == [[False, True], [True, False]]
    assert rule.slices(SLICES) == [4, 5, 9]


def test_every_class_has_a_name() -> None:
    with pytest.raises(ValueError, match="2 groups"):
        ClassRule(groups=((1,), (2,)))


def test_lumbar_vertebrae_have_no_side_but_left_and_right_ribs_have():
    """L4 and L5 are vertebrae; beside R4, L4 is the left one of two."""
    assert ClassRule(((1,), (2,)), ("L4", "L5")).mirror_safe
    assert not ClassRule(((1,), (2,)), ("L4", "R4")).mirror_safe
    assert ClassRule(((1,), (2,)), ("L4", "R4"), mirror_pairs=((0, 1),)).mirror_safe
