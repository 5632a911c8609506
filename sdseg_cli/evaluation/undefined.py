"""Notes on what a mean leaves out: a mean over the rest flatters whoever failed there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sdseg_cli.evaluation.case_scores import CaseResult

_WHY = {
    "hd95": "with one empty mask",
    "assd": "with one empty mask",
    "precision": "with no predicted voxel",
    "recall": "with no reference voxel",
}
_FLATTERING = ("hd95", "assd")
_NAMED = 5
"""So many cases are listed in a note."""


def shortened(names: Sequence[str], most: int = _NAMED) -> str:
    """`a, b, c` of a few names, `a, b, c, d, e and 7 more` of many."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def undefined_notes(rows: Sequence[CaseResult]) -> tuple[str, ...]:
    """What each metric's mean leaves out, in words; metrics that leave out the same share a note.

    Args:
        rows: The results that are scored, without the excluded ones.
    """
    left_out: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for number, score in enumerate(rows[0].scores if rows else ()):
        names = tuple(row.name for row in rows if row.scores[number].value is None)
        if names:
            why = _WHY.get(score.metric, "for which it is undefined")
            if score.metric in _FLATTERING and len(names) < len(rows):
                why += "; over the rest the mean is optimistic"
            left_out.setdefault((why, names), []).append(score.column)
    notes = []
    for (reason, names), columns in left_out.items():
        why, _, warning = reason.partition("; ")
        verb = "leaves" if len(columns) == 1 else "leave"
        one = "1 case" if len(rows) == 1 else f"{len(names)} of {len(rows)} cases"
        text = f"{' and '.join(columns)} {verb} out {one} {why} ({shortened(names)})"
        notes.append(f"{text}: {warning}" if warning else text)
    return tuple(notes)
