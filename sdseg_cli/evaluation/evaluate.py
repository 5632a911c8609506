"""Predictions against references: every metric per case, their summary, and a report.

For each case, once: read it, predict it (or reuse the mask a former call kept), score it by every
protocol, cut out the slice that shows it. Then the report is written, and the best, median and
worst case are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.config import THRESHOLD, SampleConfig
from sdseg_cli.core.errors import RunError
from sdseg_cli.core.progress import Progress, no_op
from sdseg_cli.data.manifest import PreparedCase
from sdseg_cli.evaluation.cached_masks import CachedMask, CachedMasks
from sdseg_cli.evaluation.evaluation_split import (
    CaseProgress,
    EvaluationSplit,
    SplitOptions,
    open_held_out,
    place,
    prepared_otherwise,
)
from sdseg_cli.evaluation.page import Results, write_report
from sdseg_cli.evaluation.results import (
    CaseResult,
    EvaluateReport,
    ProtocolSummary,
    score_case,
)
from sdseg_cli.imaging.slices import SliceTransform
from sdseg_cli.imaging.volume import Volume
from sdseg_cli.inference.decoders import decoder_identity
from sdseg_cli.metrics import Grid, Protocol, ScoringOptions
from sdseg_cli.report.panels import CasePanel, case_panel, save_panels
from sdseg_cli.report.pictures import CasePlane, largest_area_slice, save_cases

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
    with _ShownPlanes(held.run.path) as shown:
        scored = _Scoring(held, masks, options, shown).score_all(progress)
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
        pictures = draw_cases(report.cases, shown, folder)
    panels = [case.panel for case in scored]
    save_panels(folder, panels)
    results = Results(evaluation=report.to_json(), panels=panels)
    page = write_report(folder, results, title=held.title, config=held.config_text)
    return replace(report, files=(*files, *pictures, page))


def _notes(options: ScoringOptions) -> tuple[str, ...]:
    official = (OFFICIAL_NOTE,) if options.protocol == "official" else ()
    return (*official, MODEL_NOTE) if options.grid == "model" else ()


@dataclass(frozen=True, eq=False)
class _Scored:
    """One case, by every protocol, and its picture."""

    results: Mapping[tuple[Protocol, Grid], CaseResult]
    panel: CasePanel


class _ShownPlanes:
    """The slice of each case that is drawn if the case is the best, the median or the worst.

    Which these are is known when all cases are scored, and no case is read again to draw it. The
    slice of a large picture takes 100 MB, so that what exceeds `_IN_MEMORY` waits on the disk, in a
    file without a name.

    Args:
        folder: On the disk to use.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: dict[str, tuple[CasePlane, int]] = {}
        self._file = SpooledTemporaryFile(_IN_MEMORY, dir=str(folder))  # noqa: SIM115  see __exit__

    def __enter__(self) -> _ShownPlanes:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, plane: CasePlane) -> None:
        """Put one more slice behind those that are there.

        Raises:
            RunError: The disk refused.
        """
        begin = self._file.tell()
        try:
            for array in (plane.image, plane.reference, plane.prediction, plane.probability):
                np.save(self._file, array, allow_pickle=False)
        except OSError as error:
            raise RunError(
                f"{self._folder}: slices to draw cannot wait there ({error.strerror or error}).",
                "Check the folder's permissions and the space left on the disk.",
            ) from error
        none: Any = None
        rest = replace(plane, image=none, reference=none, prediction=none, probability=none)
        self._places[plane.case_id] = rest, begin

    def of(self, case_id: str) -> CasePlane:
        """The slice of a case."""
        rest, begin = self._places[case_id]
        self._file.seek(begin)
        image, reference, prediction, probability = (
            np.load(self._file, allow_pickle=False) for _ in range(4)
        )
        return replace(
            rest,
            image=image,
            reference=reference,
            prediction=prediction,
            probability=probability,
        )


_IN_MEMORY = 1 << 28


@dataclass(frozen=True)
class _Scoring:
    """One pass over the held-out cases."""

    held: EvaluationSplit
    masks: CachedMasks
    options: ScoringOptions
    shown: _ShownPlanes

    def score_all(self, progress: Progress) -> tuple[_Scored, ...]:
        """Every case, in the order of the manifest."""
        count = CaseProgress(self.held.cases, progress)
        scored = []
        for case in self.held.cases:
            scored.append(self._score(case, count.of(case)))
            count.finish(case)
        return tuple(scored)

    def _score(self, case: PreparedCase, progress: Progress) -> _Scored:
        """Read, predict, score and cut out a case, each once."""
        scan, reference = self.held.read(case)
        restore = SliceTransform.of(scan.geometry)
        kept = self._mask(case, scan, reference, progress)
        planes = self.held.reference_planes(case)
        if planes.shape != kept.planes.shape:
            raise prepared_otherwise(case, planes.shape, kept.planes.shape)
        results = {
            (protocol, grid): score_case(
                case.id,
                *((kept.mask, reference) if grid == "native" else (kept.planes, planes)),
                scan.spacing_mm if grid == "native" else None,
                options=replace(self.options, protocol=protocol, grid=grid),
            )
            for protocol, grid in PROTOCOLS
        }
        k, probability = kept.shown
        window, pixel_mm = self.held.looks(scan, restore)
        plane = CasePlane(
            case_id=case.id,
            heading="",
            dice=results[self.options.protocol, self.options.grid].values["dice"],
            slice_index=k,
            slices=restore.slices,
            image=scan.values(restore.canonical_plane(scan.array, k)),
            reference=np.array(restore.canonical_plane(reference, k)),
            prediction=np.array(restore.canonical_plane(kept.mask, k)),
            probability=restore.to_native(probability, k),
            window=window,
            pixel_mm=pixel_mm,
        )
        self.shown.add(plane)
        masks = plane.reference, plane.prediction
        panel = case_panel(case.id, place(restore, k), plane.image, *masks, window, pixel_mm)
        return _Scored(results, panel)

    def _mask(
        self,
        case: PreparedCase,
        scan: Volume,
        reference: NDArray[np.bool_],
        progress: Progress,
    ) -> CachedMask:
        """The case's mask: kept by a former call, or predicted now and kept."""
        predictor, sample, seed = self.held.predictor, self.masks.sample, self.masks.seed
        restore = SliceTransform.of(scan.geometry)
        kept = self.masks.find(case.id, scan)
        if kept is None:
            prediction = predictor.predict(
                scan, case_id=case.id, seed=seed, sample=sample, progress=progress
            )
            mask, planes = prediction.mask() != 0, prediction.probability > THRESHOLD
            k = largest_area_slice(reference, mask, restore)
            shown = k, np.array(prediction.probability[k])
        else:
            mask, planes = kept.mask, kept.planes
            k = largest_area_slice(reference, mask, restore)
            if kept.shown[0] == k:
                return kept
            # Another reference, or kept by a version that kept no slice.
            stack = predictor.stack(scan)
            plane = predictor.plane(stack, k, seed=seed, sample=sample)
            shown = k, predictor.classes.union(plane)
        return self.masks.keep(case.id, CachedMask(mask, planes, shown), scan)


PICTURES = ("best.png", "median.png", "worst.png", "cases.png")


def draw_cases(
    results: Sequence[CaseResult], shown: _ShownPlanes, folder: Path
) -> tuple[Path, ...]:
    """Draw best.png, median.png, worst.png and cases.png (all three); none if no case has a Dice.

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
    headings: dict[str, list[str]] = {}
    for name, result in picks.items():
        headings.setdefault(result.case_id, []).append(name)
    drawn = {case_id: shown.of(case_id) for case_id in headings}
    rows = [[replace(drawn[pick.case_id], heading=name)] for name, pick in picks.items()]
    rows.append([replace(drawn[id], heading=", ".join(names)) for id, names in headings.items()])
    files = tuple(folder / name for name in PICTURES)
    for file, row in zip(files, rows, strict=True):
        save_cases(file, row)
    return files
