"""Pictures of the best, the median and the worst case of an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.config import SampleConfig
from sdseg_cli.core.progress import Progress
from sdseg_cli.data.manifest import PreparedCase
from sdseg_cli.evaluation.cached_masks import CachedMask
from sdseg_cli.evaluation.case_scores import CaseResult
from sdseg_cli.evaluation.evaluation_split import CaseProgress, EvaluationSplit
from sdseg_cli.imaging.intensity import Normalisation
from sdseg_cli.imaging.volume import Volume
from sdseg_cli.report.pictures import CasePlane, case_plane, save_cases

PICTURES = ("best.png", "median.png", "worst.png", "cases.png")
Answer = Callable[[PreparedCase, Volume, Progress], CachedMask]
"""A case, its scan and a callback -> what the run says of it."""


def draw_cases(
    held: EvaluationSplit,
    results: tuple[CaseResult, ...],
    folder: Path,
    answer: Answer,
    *,
    seed: int,
    sample: SampleConfig,
    progress: Progress,
) -> tuple[Path, ...]:
    """Draw best.png, median.png, worst.png and cases.png (all three); none if no case has a Dice.

    One slice of each is predicted anew, for its probability.

    Raises:
        RunError: The disk refused.
    """
    ranked = sorted(
        (result for result in results if result.values["dice"] is not None),
        key=lambda result: result.values["dice"] or 0.0,
    )
    if not ranked:
        for name in PICTURES:  # of a former call, whose cases these would seem to be
            (folder / name).unlink(missing_ok=True)
        return ()
    picks = {"best": ranked[-1], "median": ranked[(len(ranked) - 1) // 2], "worst": ranked[0]}
    cases = {case.id: case for case in held.cases}
    wanted = {result.case_id: result for result in picks.values()}
    count = CaseProgress([cases[name] for name in wanted], progress, "drawing case")
    drawn: dict[str, CasePlane] = {}
    for name, result in wanted.items():
        case = cases[name]
        scan, reference = held.read(case)
        mask = answer(case, scan, count.of(case)).mask
        drawn[name] = _plane(held, result, scan, reference, mask, seed, sample)
        count.finish(case)
    pictures = {name: [replace(drawn[pick.case_id], heading=name)] for name, pick in picks.items()}
    pictures["cases"] = [
        replace(plane, heading=", ".join(n for n, pick in picks.items() if pick.case_id == id))
        for id, plane in drawn.items()
    ]
    files = {folder / f"{name}.png": rows for name, rows in pictures.items()}
    for file, rows in files.items():
        save_cases(file, rows)
    return tuple(files)


def _plane(
    held: EvaluationSplit,
    result: CaseResult,
    scan: Volume,
    reference: NDArray[np.bool_],
    mask: NDArray[np.bool_],
    seed: int,
    sample: SampleConfig,
) -> CasePlane:
    """The telling slice of a case; of its probability that slice is all that is predicted."""
    stack = held.predictor.stack(scan)
    limits = Normalisation.from_dict(held.manifest.normalisation).limits(scan)
    return case_plane(
        result.case_id,
        "",
        scan,
        reference,
        mask,
        partial(held.predictor.plane, stack, seed=seed, sample=sample),
        stack.restore,
        dice=result.values["dice"],
        window=(limits.low, limits.high),
    )
