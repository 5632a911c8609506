"""Predictions against references: every metric per case, their summary, and a report.

For each case: predict (or reuse the mask a former call kept), score it by every protocol, cut out
the slice that shows it. Then the report is written, and the best, median and worst case are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.config import THRESHOLD, SampleConfig
from sdseg_cli.core.errors import DataError
from sdseg_cli.core.progress import Progress, no_op
from sdseg_cli.data.manifest import PreparedCase
from sdseg_cli.evaluation.cached_masks import CachedMask, CachedMasks
from sdseg_cli.evaluation.evaluation_split import (
    CaseProgress,
    EvaluationSplit,
    SplitOptions,
    open_held_out,
    panel_of,
)
from sdseg_cli.evaluation.page import write_report
from sdseg_cli.evaluation.results import (
    CaseResult,
    EvaluateReport,
    ProtocolSummary,
    score_case,
)
from sdseg_cli.imaging.intensity import Normalisation
from sdseg_cli.imaging.volume import Volume
from sdseg_cli.inference.decoders import decoder_identity
from sdseg_cli.metrics import Grid, Protocol, ScoringOptions
from sdseg_cli.report.panels import CasePanel, save_panels
from sdseg_cli.report.pictures import CasePlane, case_plane, save_cases

if TYPE_CHECKING:
    pass

PROTOCOLS: tuple[tuple[Protocol, Grid], ...] = (
    ("standard", "native"),
    ("standard", "model"),
    ("official", "model"),
)
"""How the same predictions are scored; the first is the default."""
OFFICIAL_NOTE = (
    "official protocol: scored on the 256 x 256 planes, one value per 3D case; an empty reference "
    "scores 1 against a non-empty prediction and 0 against an empty one"
)
MODEL_NOTE = (
    "model grid: scored on the network's 256 x 256 planes against shrunken references; no "
    "millimetres there, so distances and volumes are undefined"
)


def evaluate(
    run: Path | None,
    workspace: Path,
    *,
    options: ScoringOptions | None = None,
    cases: SplitOptions | None = None,
    sample: SampleConfig | None = None,
    command: str = "",
    progress: Progress = no_op,
) -> EvaluateReport:
    """Score a run on one split of the data set it was trained on.

    Args:
        run: The run folder; None for the newest finished run of the workspace.
        workspace: Folder that holds `prepared/` and `runs/`.
        options: How a case is judged: grid, protocol, tolerance and the like.
        cases: Which split, and how its cases are predicted.
        sample: Reverse steps and samples; None is the run's setting.
        command: What was typed, for the report.
        progress: Told in slices.

    Returns:
        Scores and files: in report/<split>/ of the run evaluate.csv, .json and .tex, report.html,
        best.png, median.png, worst.png and cases.png (all three); the masks stay in
        predictions/<split>/.

    Raises:
        ConfigError: An option is unknown, or there is no such run or split.
        DataError: A scan, label or prepared array is missing or damaged.
        GeometryError: A label does not lie on its scan's grid.
        WeightsError: The checkpoint is missing or damaged.
        RunError: The disk refused.
    """
    options, cases = options or ScoringOptions(), cases or SplitOptions()
    held = open_held_out(run, workspace, cases)
    sample = sample or held.run.config().sample
    masks = CachedMasks(
        held.run.predictions / cases.split,
        held.checkpoint_sha256,
        decoder_identity(held.predictor.decoder, held.run.path),
        held.predictor.device.type,
        cases.seed,
        sample,
    )
    scoring = _Scoring(held, masks, options, progress)
    scored = scoring.score_all()
    report = EvaluateReport(
        run=held.run.path,
        split=cases.split,
        grid=options.grid,
        protocol=options.protocol,
        cases=tuple(case.results[options.protocol, options.grid] for case in scored),
        seed=cases.seed,
        sample=sample,
        decoder=held.predictor.decoder,
        options=options,
        protocols=tuple(
            ProtocolSummary.of(*each, tuple(case.results[each] for case in scored))
            for each in PROTOCOLS
        ),
        provenance=held.provenance(command),
        notes=_notes(options),
    )
    default = (options.protocol, options.grid) == PROTOCOLS[0]
    folder = held.report_folder("" if default else f"-{options.grid}-{options.protocol}")
    files = report.write(folder)
    save_panels(folder, [case.panel for case in scored])
    pictures = draw_cases(
        held,
        report.cases,
        folder,
        scoring.answer,
        seed=cases.seed,
        sample=sample,
        progress=progress,
    )
    page = write_report(folder, title=held.title, config=held.config_text)
    return replace(report, files=(*files, *pictures, page))


def _notes(options: ScoringOptions) -> tuple[str, ...]:
    official = (OFFICIAL_NOTE,) if options.protocol == "official" else ()
    return (*official, MODEL_NOTE) if options.grid == "model" else ()


@dataclass(frozen=True, eq=False)
class _Scored:
    """One case, by every protocol, and its picture."""

    results: Mapping[tuple[Protocol, Grid], CaseResult]
    panel: CasePanel


@dataclass(frozen=True)
class _Scoring:
    """One pass over the held-out cases."""

    held: EvaluationSplit
    masks: CachedMasks
    options: ScoringOptions
    progress: Progress

    def score_all(self) -> tuple[_Scored, ...]:
        """Every case, in the order of the manifest."""
        count = CaseProgress(self.held.cases, self.progress)
        scored = []
        for case in self.held.cases:
            scored.append(self._score(case, count.of(case)))
            count.finish(case)
        return tuple(scored)

    def _score(self, case: PreparedCase, progress: Progress) -> _Scored:
        scan, reference = self.held.read(case)
        kept, planes = self.answer(case, scan, progress), self.held.reference_planes(case)
        if planes.shape != kept.planes.shape:
            raise DataError(
                f"case {case.id}: prepared as {planes.shape}, now {kept.planes.shape}.",
                "The scan was changed: run the same `sdseg prepare` command again.",
            )
        results = {
            (protocol, grid): score_case(
                case.id,
                *((kept.mask, reference) if grid == "native" else (kept.planes, planes)),
                scan.spacing_mm if grid == "native" else None,
                options=replace(self.options, protocol=protocol, grid=grid),
            )
            for protocol, grid in PROTOCOLS
        }
        return _Scored(results, panel_of(self.held, case, scan, reference, kept.mask))

    def answer(self, case: PreparedCase, scan: Volume, progress: Progress) -> CachedMask:
        """The case's mask: kept by a former call, or predicted now and kept."""
        kept = self.masks.find(case.id, scan)
        if kept is not None:
            return kept
        prediction = self.held.predictor.predict(
            scan,
            case_id=case.id,
            seed=self.masks.seed,
            sample=self.masks.sample,
            progress=progress,
        )
        planes = prediction.probability > THRESHOLD
        return self.masks.keep(case.id, prediction.mask(), planes, scan)


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
        scan,
        reference,
        mask,
        partial(held.predictor.plane, stack, seed=seed, sample=sample),
        stack.restore,
        dice=result.values["dice"],
        window=(limits.low, limits.high),
    )
