"""How good a model is while it trains: Dice on the model's plane, at one reverse step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdseg_cli.core.config import THRESHOLD, SampleConfig
from sdseg_cli.inference.engine import predict_planes, shifted
from sdseg_cli.model.distributed import Ranks
from sdseg_cli.model.interface import SliceModel
from sdseg_cli.training.batches import PreparedSlices

SEED = 0
THRESHOLDS = tuple(percent / 100 for percent in range(10, 95, 5))
"""Tried with `train.threshold = "validation"`."""


@dataclass(frozen=True, eq=False)
class Validation:
    """What the averaged model reaches."""

    dice: float
    """Mean over the cases."""
    planes: NDArray[np.float32]
    """(K,H,W) in [0,1]: the probabilities of the slices that were to be kept, in their order;
    shifted so that the threshold lies at 0.5."""
    threshold: float = THRESHOLD
    """Of those tried the one with the highest Dice; the nearest to 0.5 of several."""


def validation(
    model: SliceModel,
    slices: PreparedSlices,
    positions: Sequence[int],
    keep: Sequence[int],
    ranks: Ranks,
    *,
    batch_size: int,
    thresholds: Sequence[float] = (THRESHOLD,),
    tell: Callable[[int], None] = lambda count: None,
) -> Validation:
    """Predict slices with one reverse step and one sample, whatever `[sample]` says.

    Args:
        model: In eval mode.
        slices: The validation slices.
        positions: Which of them are predicted; processes that train together share them.
        keep: Those of them whose probabilities are handed over.
        ranks: Who trains together.
        batch_size: Slices at a time.
        thresholds: Probabilities above which a pixel may be foreground.
        tell: Told how many slices each batch had.
    """
    tried = sorted(thresholds, key=lambda one: abs(one - THRESHOLD))
    # Of each case and threshold: pixels in both masks; the sum of their sizes.
    counts = torch.zeros(slices.cases, len(tried), 2, dtype=torch.float64)
    planes = torch.zeros(len(keep), *slices.plane)
    mine = positions[ranks.rank :: ranks.world]
    for start in range(0, len(mine), batch_size):
        chosen = mine[start : start + batch_size]
        batch = slices.batch(chosen)
        probability = predict_planes(model, batch.image, chosen, seed=SEED, sample=SampleConfig())
        for position, one, truth in zip(chosen, probability, batch.foreground, strict=True):
            case, size = slices.places[position][0], truth.sum()
            for number, threshold in enumerate(tried):
                found = one > threshold
                counts[case, number, 0] += (found & truth).sum()
                counts[case, number, 1] += found.sum() + size
            if position in keep:
                planes[list(keep).index(position)] = one
        tell(len(chosen))
    if ranks.world > 1:
        device = next(model.parameters()).device
        counts = ranks.sum(counts.to(device)).cpu()
        planes = ranks.sum(planes.to(device)).cpu()  # each process has its own, zeros elsewhere
    dice = [_mean_dice(counts[:, number]) for number in range(len(tried))]
    best = dice.index(max(dice))
    return Validation(dice[best], shifted(planes, tried[best]).numpy(), tried[best])


def _mean_dice(counts: Tensor) -> float:
    """Over the cases with foreground in either mask; 0 if there are none."""
    overlap, both = counts[counts[:, 1] > 0].T
    return float((2 * overlap / both).mean()) if len(both) else 0.0
