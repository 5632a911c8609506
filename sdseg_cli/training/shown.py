"""Which validation slices the pictures of a run show."""

from __future__ import annotations

from collections.abc import Sequence

from sdseg_cli.training.batches import PreparedSlices

SHOWN = 4


def shown_slices(slices: PreparedSlices, among: Sequence[int], limit: int = SHOWN) -> list[int]:
    """The slices with most foreground, from as many cases as there are.

    Each case gives its best slice first; where cases are few they give more, but no neighbours,
    which would look alike: at least a sixth of the case lies between two.

    Args:
        slices: The validation slices.
        among: Positions to choose from, those that are validated.
        limit: At most so many.

    Returns:
        Positions, in ascending order; none where nothing has foreground.
    """
    filled = set(slices.with_foreground)
    areas = {p: int(slices.batch([p]).foreground.sum()) for p in among if p in filled}
    cases: dict[int, list[int]] = {}
    lengths: dict[int, int] = {}
    for case, k in slices.places:
        lengths[case] = max(lengths.get(case, 0), k + 1)
    for position in sorted(areas, key=lambda p: (-areas[p], p)):
        case, k = slices.places[position]
        chosen = cases.setdefault(case, [])
        if all(abs(k - slices.places[c][1]) > lengths[case] / 6 for c in chosen):
            chosen.append(position)
    # A case's second comes after every case's first; equals in the order of their area.
    ranked = [(turn, -areas[p], p) for chosen in cases.values() for turn, p in enumerate(chosen)]
    return sorted(position for _, _, position in sorted(ranked)[:limit])
