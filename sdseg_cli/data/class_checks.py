"""What is odd about the classes of a set, from all its cases: numbers in, findings out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from statistics import median

from sdseg_cli.core.findings import EVERY_CASE, Finding, warning
from sdseg_cli.data.spec import ClassRule, are_twins, side_of
from sdseg_cli.imaging.measure import CaseFacts, LabelStatistics

SIDE = 256
"""Pixels of a prepared slice's side."""
MOST_ALIKE = 5
"""More classes that are in some cases only are one finding."""
SMALLEST_PX = 1.0
"""At most so many pixels, in its largest slice: the majority of no pixel may be of the class."""
SMALLEST_SHARE = 0.001
"""Of the foreground: below this a class is rare."""
FEWEST_PAIRS = 3
"""Cases with both sides that say which way round a pair lies."""
ALIKE, APART, TWICE = 0.06, 0.1, 1.6
"""Twins lie at most so far from each other along the other axes, and from mirrored places, at least
so far apart from left to right (as shares of the grid), and are at most so many times as large.
"""
_LATERAL = 1


def check_classes(cases: Sequence[CaseFacts], rule: ClassRule) -> Iterator[Finding]:
    """Every rule on several classes.

    Args:
        cases: What was measured.
        rule: The classes.
    """
    yield from _check_presence(cases, rule)
    yield from _check_sizes(cases, rule)
    yield from _check_balance(cases, rule)
    for a, b in rule.mirror_pairs:
        if are_twins(rule.names[a], rule.names[b]):
            yield from _check_sides(cases, rule, a, b)
    yield from check_unnamed_pairs(cases, rule)


def check_unnamed_pairs(cases: Sequence[CaseFacts], rule: ClassRule) -> Iterator[Finding]:
    """Pairs of classes that lie like the left and the right of one structure, without saying so.

    Args:
        cases: What was measured, with the centres of the labels.
        rule: The classes.
    """
    for a, b in itertools.combinations(range(len(rule)), 2):
        sided = side_of(rule.names[a]) or side_of(rule.names[b])
        if (a, b) not in rule.mirror_pairs and not sided:
            yield from _check_unnamed_pair(cases, rule, a, b)


def _check_presence(cases: Sequence[CaseFacts], rule: ClassRule) -> Iterator[Finding]:
    masks = {case.id: case.labels for case in cases if case.labels is not None}
    absent = [
        (number, [id for id, mask in masks.items() if not _voxels(mask, rule, number)])
        for number in range(len(rule))
    ]
    partly = [(number, ids) for number, ids in absent if 0 < len(ids) < len(masks)]
    if len(partly) > MOST_ALIKE:
        number, ids = max(partly, key=lambda one: len(one[1]))
        yield warning(
            "class-in-some-cases",
            EVERY_CASE,
            f"{len(partly)} of {len(rule)} classes are in some cases only, such as "
            f"{_called(rule, number)}, which {len(ids)} of {len(masks)} lack",
            "Right where structures are not there. If some were never drawn, name the classes that "
            f'were in a split file: "labelled": {{"{ids[0]}": ["{rule.names[0]}", ...]}}',
        )
        return
    for number, without in partly:
        shown = ", ".join(without[:3]) + (", ..." if len(without) > 3 else "")
        yield warning(
            "class-in-some-cases",
            without[0] if len(without) == 1 else EVERY_CASE,
            f"{_called(rule, number)} is in {len(masks) - len(without)} of {len(masks)} cases, "
            f"not in {shown}",
            "Right where the structure is not there. If it was never drawn, name the classes "
            f'that were in a split file: "labelled": {{"{without[0]}": '
            f'["{rule.names[number - 1] if number else rule.names[1]}"]}}',
        )


def _check_sizes(cases: Sequence[CaseFacts], rule: ClassRule) -> Iterator[Finding]:
    """Classes that are lost when planes are made smaller."""
    for number in range(len(rule)):
        sizes = []
        for case in cases:
            if case.grid is None or case.labels is None or not case.labels.areas:
                continue
            scale = min(1.0, SIDE / max(case.grid.plane)) ** 2
            area = sum(case.labels.areas.get(label, 0) for label in rule.groups[number] or ())
            if area and scale < 1:
                sizes.append((area * scale, case.id))
        small = [(px, id) for px, id in sizes if px <= SMALLEST_PX]
        if small:
            px, id = min(small)
            yield warning(
                "class-vanishes",
                small[0][1] if len(small) == 1 else EVERY_CASE,
                f"{_called(rule, number)} has at most {px:.2g} px in any {SIDE}x{SIDE} slice of "
                f"{id}; 1 px or less in {len(small)} of {len(sizes)} cases",
                "prepare --crop body gives it more pixels; or merge it with a neighbour, or leave "
                "it out, with --classes.",
            )


def _check_balance(cases: Sequence[CaseFacts], rule: ClassRule) -> Iterator[Finding]:
    masks = [case.labels for case in cases if case.labels is not None]
    voxels = [sum(_voxels(mask, rule, number) for mask in masks) for number in range(len(rule))]
    total = sum(mask.counts.get(label, 0) for mask in masks for label in rule.labels or ())
    small = [number for number, count in enumerate(voxels) if 0 < count < SMALLEST_SHARE * total]
    if small:
        least = min(small, key=lambda one: voxels[one])
        largest = max(range(len(rule)), key=lambda one: voxels[one])
        others = f", and {len(small) - 1} more less than {SMALLEST_SHARE:.1%}"
        yield warning(
            "class-imbalance",
            EVERY_CASE,
            f"{_called(rule, least)} has {voxels[least] / total:.4%} of the foreground's voxels, "
            f"{_called(rule, largest)} {voxels[largest] / total:.0%}{others if small[1:] else ''}",
            "Training draws each class alike, but little teaches a small one: merge it with a "
            "neighbour, or train it in a run of its own, with --classes.",
        )


def _check_sides(cases: Sequence[CaseFacts], rule: ClassRule, a: int, b: int) -> Iterator[Finding]:
    """Whether the left of two lies on the left, as most cases have it."""
    left, right = (a, b) if (side_of(rule.names[a]) or "")[0] == "left" else (b, a)
    apart = _lateral_distances(cases, rule, left, right)
    if not apart:
        return
    names = f"{_called(rule, left)} lies to the right of {_called(rule, right)}"
    wrong = [id for id, distance in apart.items() if distance < 0]
    if len(wrong) == len(apart):
        yield warning(
            "sides-swapped",
            wrong[0] if len(wrong) == 1 else EVERY_CASE,
            f"{names} in every case",
            "Names or affines are the wrong way round: rename with --class-names, or repair them.",
        )
    else:
        for id in wrong:
            yield warning(
                "sides-swapped",
                id,
                f"{names}, as in {len(wrong)} of {len(apart)} cases",
                "Look at it: swap the two labels, or repair the affine of scan and mask.",
            )


def _check_unnamed_pair(
    cases: Sequence[CaseFacts], rule: ClassRule, a: int, b: int
) -> Iterator[Finding]:
    """Two classes that lie like the left and the right of one structure, without saying so."""
    apart = _lateral_distances(cases, rule, a, b)
    if len(apart) < FEWEST_PAIRS or len({distance > 0 for distance in apart.values()}) > 1:
        return
    masks = [case.labels for case in cases if case.labels is not None and case.id in apart]
    places = [
        [
            median(place[axis] for mask in masks if (place := _centre(mask, rule, number)))
            for axis in range(3)
        ]
        for number in (a, b)
    ]
    sizes = [median(_voxels(mask, rule, number) for mask in masks) for number in (a, b)]
    if (
        abs(median(apart.values())) >= APART
        and max(abs(places[0][axis] - places[1][axis]) for axis in (0, 2)) <= ALIKE
        and abs(places[0][_LATERAL] + places[1][_LATERAL] - 1) / 2 <= ALIKE
        and max(sizes) <= TWICE * min(sizes)
    ):
        labels = [(rule.groups[number] or (0,))[0] for number in (a, b)]
        shown = "; left-right mirrors in training show each as the other"
        yield warning(
            "mirror-pair-unnamed",
            EVERY_CASE,
            f"{_called(rule, a)} and {_called(rule, b)} lie opposite each other, left and right"
            f"{shown if rule.mirror_safe else ''}",
            "If they are twins, a mirror must swap them: prepare with --mirror-pairs "
            f"{labels[0]}:{labels[1]}, or say left and right in their names.",
        )


def _lateral_distances(
    cases: Sequence[CaseFacts], rule: ClassRule, left: int, right: int
) -> dict[str, float]:
    """Case id -> how far `left` lies to the left of `right`, as a share of the grid."""
    found = {}
    for case in cases:
        if case.labels is not None:
            one, other = (_centre(case.labels, rule, number) for number in (left, right))
            if one is not None and other is not None:
                found[case.id] = one[_LATERAL] - other[_LATERAL]
    return found


def _centre(
    mask: LabelStatistics, rule: ClassRule, number: int
) -> tuple[float, float, float] | None:
    """Of the largest label of a class; None where the case has none."""
    here = [label for label in rule.groups[number] or () if label in mask.centres]
    return mask.centres[max(here, key=lambda one: mask.counts[one])] if here else None


def _voxels(mask: LabelStatistics, rule: ClassRule, number: int) -> int:
    return sum(mask.counts.get(label, 0) for label in rule.groups[number] or ())


def _called(rule: ClassRule, number: int) -> str:
    labels = "+".join(map(str, rule.groups[number] or ()))
    name = rule.names[number]
    return name if name == f"label_{labels}" else f"{name} ({labels})"
