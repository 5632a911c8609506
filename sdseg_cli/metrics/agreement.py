"""Agreement of several masks of one scan, gathered plane by plane."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 16
"""Pixels counted at once; float32 counts exactly up to 2^24."""


def disagreement(votes: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """`disagreement_of_counts` of K masks (K,rows,columns): (rows,columns)."""
    return disagreement_of_counts(np.count_nonzero(votes, axis=0), len(votes))


def disagreement_of_counts(counts: NDArray[Any], runs: int) -> NDArray[np.uint8]:
    """Disagreement of K masks: 4 p (1 - p), p the share that is foreground.

    0 where all say the same, 1 where half say foreground; with an odd K the most is 1 - 1/K^2.

    Args:
        counts: How many masks call each voxel foreground: any shape, integers in 0..runs.
        runs: K, how many masks there are.

    Returns:
        The same shape, in steps of 1/255: 255 is 1.
    """
    share = np.arange(runs + 1) / runs
    found: NDArray[np.uint8] = np.rint(255 * 4 * share * (1 - share)).astype(np.uint8)[counts]
    return found


def disagreement_of_labels(votes: NDArray[Any]) -> NDArray[np.uint8]:
    """Likewise of K label maps (K,rows,columns): 4 p (1 - p), p the share that has the most
    frequent label, at least a half. So it is 1 where at least half of them differ from that.
    """
    ordered = np.sort(votes, axis=0)
    most = run = np.ones(votes.shape[1:], np.int64)
    for before, after in pairwise(ordered):
        run = np.where(before == after, run + 1, 1)
        most = np.maximum(most, run)
    return disagreement_of_counts(np.maximum(most, (len(votes) + 1) // 2), len(votes))


@dataclass(frozen=True)
class Flips:
    """Voxels on which K masks do not agree, counted."""

    voxels: int = 0
    """All there are."""
    ever: int = 0
    """Those that any mask calls foreground."""
    flipped: int = 0
    """Of these, those that not all do."""

    @classmethod
    def of_counts(cls, counts: NDArray[Any], runs: int) -> Flips:
        """Count; see `disagreement_of_counts` for the arguments."""
        ever, always = np.count_nonzero(counts), np.count_nonzero(counts == runs)
        return cls(counts.size, int(ever), int(ever - always))

    def __add__(self, other: Flips) -> Flips:
        return Flips(
            self.voxels + other.voxels, self.ever + other.ever, self.flipped + other.flipped
        )

    @property
    def fraction(self) -> float | None:
        """The share of all voxels that flip; None where there is no voxel."""
        return self.flipped / self.voxels if self.voxels else None

    @property
    def of_foreground(self) -> float | None:
        """The share that flips of the voxels any mask has; None where all masks are empty."""
        return self.flipped / self.ever if self.ever else None


@dataclass(frozen=True)
class Agreement:
    """Agreement of K masks."""

    runs: int
    dice: float | None
    """Mean Dice of all pairs of masks of which at least one is not empty; None where all are."""
    flipped: float | None
    """Of the voxels that any mask has, the share that not all have; None where all are empty."""

    def to_json(self) -> dict[str, Any]:
        """For reports."""
        return asdict(self)


class Tally:
    """Counts of K masks of one scan, whose planes pass by one at a time.

    Args:
        runs: K, at least 2.
    """

    def __init__(self, runs: int) -> None:
        self.runs = runs
        self._shared = np.zeros((runs, runs), np.int64)
        """Voxels that two masks share; on the diagonal, those of one."""
        self._any = self._all = 0

    def add(self, votes: NDArray[np.bool_]) -> None:
        """Count a plane (K,rows,columns)."""
        flat = votes.reshape(self.runs, -1)
        for start in range(0, flat.shape[1], _CHUNK):
            part = flat[:, start : start + _CHUNK]
            part = part[:, part.any(axis=0)]
            self._any += part.shape[1]
            self._all += int(np.count_nonzero(part.all(axis=0)))
            ones = part.astype(np.float32)
            self._shared += (ones @ ones.T).astype(np.int64)

    def agreement(self) -> Agreement:
        """Agreement over the planes so far."""
        own = np.diag(self._shared)
        one, other = np.triu_indices(self.runs, k=1)
        voxels = own[one] + own[other]
        there = voxels > 0
        if not there.any():
            return Agreement(self.runs, None, None)
        dice = 2 * self._shared[one, other][there] / voxels[there]
        return Agreement(self.runs, float(dice.mean()), 1 - self._all / self._any)


class LabelTally:
    """Likewise of K label maps.

    Args:
        runs: K, at least 2.
        masks_of: A plane of labels -> the mask of each class, as `Tally` counts them.
        classes: Number of classes.
    """

    def __init__(
        self,
        runs: int,
        classes: int,
        masks_of: Callable[[NDArray[Any]], Iterable[NDArray[np.bool_]]],
    ) -> None:
        self._masks_of = masks_of
        self._each = [Tally(runs) for _ in range(classes)]
        self._runs = runs
        self._stable = self._any = 0

    def add(self, votes: NDArray[Any]) -> None:
        """Count a plane (K,rows,columns) of labels."""
        there = (votes != 0).any(axis=0)
        if not there.any():
            return
        self._any += int(np.count_nonzero(there))
        self._stable += int(np.count_nonzero(there & (votes == votes[0]).all(axis=0)))
        for tally, masks in zip(self._each, self._masks_of(votes), strict=True):
            if masks.any():
                tally.add(masks)

    def agreement(self) -> Agreement:
        """The mean over the classes that any label map has; and the share of voxels whose label
        differs.
        """
        found = [tally.agreement().dice for tally in self._each]
        known = [dice for dice in found if dice is not None]
        if not known:
            return Agreement(self._runs, None, None)
        return Agreement(self._runs, float(np.mean(known)), 1 - self._stable / self._any)
