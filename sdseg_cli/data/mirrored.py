"""Cases whose labels lie where a mirror would put them, seen against the other cases of a set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from statistics import median

from sdseg_cli.core.findings import WARNING, Finding
from sdseg_cli.imaging.statistics import CaseFacts

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
