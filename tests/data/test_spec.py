"""Classes: what labels are segmented into."""

from __future__ import annotations

import numpy as np
import pytest

from sdseg_cli.core.errors import ConfigError
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


def test_held_voxels_give_back_the_mask_of_each_class_and_the_label_map() -> None:
    apart = ClassRule(((2,), (7, 8)), ("a", "b"))
    masks = np.array([[1, 0, 0], [0, 1, 0]], np.bool_)
    held = apart.hold(masks)
    assert (held.tolist(), held.dtype) == ([2, 7, 0], np.uint8)
    assert [apart.mask_of(held, number).tolist() for number in (0, 1)] == masks.tolist()
    assert apart.label_map(held).tolist() == [2, 7, 0]
    regions = ClassRule(((1, 2), (2,)), ("whole", "core"))
    masks = np.array([[1, 1, 0], [0, 1, 0]], np.bool_)
    held = regions.hold(iter(masks))
    assert held.tolist() == [1, 3, 0]  # a bit for each class
    assert [regions.mask_of(held, number).tolist() for number in (0, 1)] == masks.tolist()
    assert regions.label_map(held).tolist() == [1, 2, 0]


def test_forty_regions_are_held_exactly() -> None:
    regions = ClassRule(tuple((n, 99) for n in range(1, 41)), tuple(f"r{n}" for n in range(40)))
    masks = np.eye(40, dtype=np.bool_)
    held = regions.hold(masks)
    assert held.dtype == np.uint64
    assert all(np.array_equal(regions.mask_of(held, n), masks[n]) for n in range(40))


def test_more_regions_than_bits_are_refused() -> None:
    regions = ClassRule(tuple((n, 99) for n in range(1, 66)), tuple(f"r{n}" for n in range(65)))
    with pytest.raises(ConfigError, match="65 classes that overlap"):
        _ = regions.held_type


def test_lumbar_vertebrae_have_no_side_but_left_and_right_ribs_have():
    """L4 and L5 are vertebrae; beside R4, L4 is the left one of two."""
    assert ClassRule(((1,), (2,)), ("L4", "L5")).mirror_safe
    assert not ClassRule(((1,), (2,)), ("L4", "R4")).mirror_safe
    assert ClassRule(((1,), (2,)), ("L4", "R4"), mirror_pairs=((0, 1),)).mirror_safe


@pytest.mark.parametrize(
    ("groups", "values"),
    [
        (((1, 2, 3), (2, 3), (3,)), (1, 2, 3)),
        (((1, 2, 3), (1, 3), (3,)), (2, 1, 3)),  # 3 is the innermost, in all three
        (((3,), (1, 2, 3)), (4, 1)),  # nothing of the first is seen: a number that is no label
        (((7, 300), (5,)), (7, 5)),
    ],
)
def test_a_written_map_of_regions_is_read_again_as_the_same_regions(
    groups: tuple[tuple[int, ...], ...], values: tuple[int, ...]
) -> None:
    rule = ClassRule(groups, tuple("abc"[: len(groups)]))
    assert rule.values == values
    labels = np.array([[0, *sorted({label for group in groups for label in group})]])
    masks = rule.masks(labels)
    again = rule.masks(rule.label_map(rule.hold(masks)))
    if values[0] != 4:
        assert np.array_equal(again, masks)
