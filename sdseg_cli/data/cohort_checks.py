"""Integrity rules that compare cases: leaks between splits, outliers, mirrored labels."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from sdseg_cli.core.findings import ERROR, EVERY_CASE, WARNING, Finding
from sdseg_cli.data.checks import Expected
from sdseg_cli.imaging.measure import CaseFacts

SMALLEST_COHORT = 4
"""Fewer cases have no majority to differ from."""
SPACING_FACTOR = 3.0
"""A spacing this many times the cohort's median, or this part of it, is an outlier."""
MAJORITY = 0.75
COMMON = 0.75
"""A label is compared when at least this share of the cases has it."""
FEWEST_LABELS = 2
"""One organ alone may lie anywhere in a scan; two say which way round it is."""
FAR, FAR_TIMES = 0.08, 3.0
"""So far from its usual place (as a share of the grid, and so many times the usual distance) ..."""
NEARER = 0.5
"""... and at most this part of it when mirrored: then the case is called mirrored."""

_DIRECTIONS = ("front to back", "left to right", "head to feet")

_Places = dict[int, float]
"""Label -> where its centre lies along one axis, as a share of the grid."""


def check_cohort(
    cases: Sequence[CaseFacts], split: Mapping[str, str], expected: Expected
) -> Iterator[Finding]:
    """Every rule that needs all cases.

    Args:
        cases: What was measured.
        split: Case id -> "train", "val" or "test"; empty when there is none.
        expected: What the data set says of itself.
    """
    yield from check_duplicates({case.id: case.sha256 for case in cases}, split)
    yield from _check_target(cases, expected)
    yield from _check_squares(cases)
    yield from _check_binary(cases)
    for group in _cohorts(cases):
        yield from _check_spacing(group)
        yield from _check_orientation(group)
        yield from check_mirrored(group)


def check_duplicates(contents: Mapping[str, str], split: Mapping[str, str]) -> Iterator[Finding]:
    """The same image under two names; across splits the test would know the answer.

    Args:
        contents: Case id -> hash of its decoded image; "" = unknown.
        split: As for `check_cohort`.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for id, content in contents.items():
        if content:
            groups[content].append(id)
    for first, *others in groups.values():
        for id in others:
            here, there = split.get(id), split.get(first)
            if here and there and here != there:
                yield Finding(
                    "leakage",
                    ERROR,
                    id,
                    f"the same image as case {first}: one is in {there}, the other in {here}",
                    "Delete one, put both into one split with --split-file, or prepare with "
                    "--skip-bad.",
                )
            else:
                yield Finding(
                    "duplicate",
                    WARNING,
                    id,
                    f"the same image as case {first}",
                    "Delete one of the two: it counts double.",
                )


def _check_target(cases: Sequence[CaseFacts], expected: Expected) -> Iterator[Finding]:
    measured = [case.labels for case in cases if case.labels is not None]
    present = sorted({label for mask in measured for label in mask.labels})
    if expected.target and present and not set(present) & set(expected.target):
        yield Finding(
            "target-absent",
            ERROR,
            EVERY_CASE,
            f"target {_listed(expected.target)} occurs in no case; labels here: {_listed(present)}",
            f"--target {','.join(map(str, present[:16]))}",
        )


def _check_squares(cases: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Volumes alone: no one expects a photograph to be square."""
    volumes = [case for case in cases if case.grid is not None and case.grid.spacing_mm]
    odd = [case for case in volumes if case.grid and case.grid.plane[0] != case.grid.plane[1]]
    if odd and odd[0].grid:
        rows, columns = odd[0].grid.plane
        yield Finding(
            "planes-not-square",
            WARNING,
            _who(odd),
            f"{len(odd)} of {len(volumes)} scan(s), such as {odd[0].id} with {columns}x{rows}",
            "Nothing to do: planes are padded to a square, masks are cropped back.",
        )


def _check_binary(cases: Sequence[CaseFacts]) -> Iterator[Finding]:
    masks = [case for case in cases if case.labels is not None]
    grey = [(case.labels.between_share, case) for case in masks if case.labels is not None]
    grey = [(share, case) for share, case in grey if share > 0]
    if grey:
        worst, case = max(grey, key=lambda pair: pair[0])
        kind = case.label.suffix if case.label else ""
        yield Finding(
            "mask-not-binary",
            WARNING,
            _who([case for _, case in grey]),
            f"{len(grey)} of {len(masks)} {kind} mask(s) hold values between 0 and 255: "
            f"{median(share for share, _ in grey):.1%} of the pixels, at most {worst:.1%} "
            f"({case.id})",
            "Every value but 0 counts as foreground: save the masks as 0 and 255."
            if any(facts.labels is not None and facts.labels.graded for _, facts in grey)
            else "Nothing to do: the data set says which values count. PNG masks would be sharper.",
        )


def _cohorts(cases: Sequence[CaseFacts]) -> list[list[CaseFacts]]:
    """Volumes of one collection, large enough to have a majority."""
    groups: dict[object, list[CaseFacts]] = defaultdict(list)
    for case in cases:
        if case.grid is not None and case.grid.spacing_mm:
            groups[case.image.parent.parent].append(case)
    return [group for group in groups.values() if len(group) >= SMALLEST_COHORT]


def _check_spacing(cases: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Sorted spacings, so that the order of the axes does not matter."""
    spacings = [(case, sorted(case.grid.spacing_mm)) for case in cases if case.grid]
    usual = [median(lengths[axis] for _, lengths in spacings) for axis in range(3)]
    for case, lengths in spacings:
        factor = max(max(a / b, b / a) for a, b in zip(lengths, usual, strict=True))
        if factor > SPACING_FACTOR:
            yield Finding(
                "spacing-outlier",
                WARNING,
                case.id,
                f"voxels of {_lengths(lengths)} mm, the median is {_lengths(usual)} mm",
                "Check the header's zooms and affine; a scan of another protocol may be left out.",
            )


def _check_orientation(cases: Sequence[CaseFacts]) -> Iterator[Finding]:
    codes = Counter(case.grid.axis_codes for case in cases if case.grid)
    usual, count = codes.most_common(1)[0]
    if count < MAJORITY * len(cases):
        return
    for case in cases:
        if case.grid and case.grid.axis_codes != usual:
            yield Finding(
                "orientation-outlier",
                WARNING,
                case.id,
                f"stored {case.grid.axis_codes}, {count} of {len(cases)} cases are {usual}",
                "Slices follow the affine, so nothing to do if it is right: look at one overlay.",
            )


def _who(cases: Sequence[CaseFacts]) -> str:
    return cases[0].id if len(cases) == 1 else EVERY_CASE


def _lengths(spacing_mm: Sequence[float]) -> str:
    return " x ".join(f"{length:.3g}" for length in spacing_mm)


def _listed(labels: Sequence[int]) -> str:
    return ", ".join(map(str, labels[:16])) + (", ..." if len(labels) > 16 else "")


def check_mirrored(cases: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Findings for the cases of one collection.

    Args:
        cases: At least a handful, with their labels' centres.
    """
    masks = {case.id: case.labels.centres for case in cases if case.labels is not None}
    seen = Counter(label for centres in masks.values() for label in centres)
    common = {label for label, count in seen.items() if count >= COMMON * len(masks)}
    for axis, direction in enumerate(_DIRECTIONS):
        places = {
            id: {label: place[axis] for label, place in centres.items() if label in common}
            for id, centres in masks.items()
        }
        places = {id: found for id, found in places.items() if len(found) >= FEWEST_LABELS}
        yield from _along(places, direction)


def _along(cases: dict[str, _Places], direction: str) -> Iterator[Finding]:
    if not cases:
        return
    labels = set().union(*cases.values())
    usual = {
        label: median(places[label] for places in cases.values() if label in places)
        for label in labels
    }
    apart = {id: _distance(places, usual) for id, places in cases.items()}
    limit = max(FAR, FAR_TIMES * median(apart.values()))
    for id, places in cases.items():
        mirrored = _distance({label: 1 - place for label, place in places.items()}, usual)
        if apart[id] > limit and mirrored < NEARER * apart[id]:
            yield Finding(
                "mirrored",
                WARNING,
                id,
                f"labels up to {apart[id]:.0%} of the grid from where other cases have them, "
                f"{mirrored:.0%} if mirrored {direction}",
                "Look at it; if it is mirrored, repair the affine of its scan and mask.",
            )


def _distance(places: _Places, usual: _Places) -> float:
    return max(abs(place - usual[label]) for label, place in places.items())
