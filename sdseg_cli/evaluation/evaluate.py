"""Predictions against references: every metric per case, their summary, and a report.

For each case, once: read it, predict it (or reuse the mask a former call kept), score it by every
protocol, cut out the slice that shows it. Then the report is written, and the best, median and
worst case are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.config import SampleConfig
from sdseg_cli.core.errors import RunError
from sdseg_cli.core.progress import Progress, no_op
from sdseg_cli.data.manifest import PreparedCase
from sdseg_cli.data.spec import ClassRule
from sdseg_cli.evaluation.cached_masks import CachedMask, CachedMasks
from sdseg_cli.evaluation.evaluation_split import (
    CaseProgress,
    EvaluationSplit,
    SplitOptions,
    drawn_classes,
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
from sdseg_cli.metrics import Grid, Mask, Protocol, ScoringOptions, Spacing
from sdseg_cli.report.panels import CasePanel, case_panel, save_panels
from sdseg_cli.report.pictures import CasePlane, largest_area_slice, save_cases

PROTOCOLS: tuple[tuple[Protocol, Grid], ...] = (
    ("standard", "native"),
    ("standard", "model"),
    ("official", "model"),
)
"""Protocols that score the same predictions; the first is the default."""
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
        progress: Called with the slices done.

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
    with ShownPlanes(held.run.path) as shown:
        scored = score_split(held, shown, options, cases.seed, sample, progress)
        report = report_on(held, scored, options, cases.seed, sample, command)
        return publish(report, held, scored, shown)


def score_split(
    held: EvaluationSplit,
    shown: ShownPlanes,
    options: ScoringOptions,
    seed: int,
    sample: SampleConfig,
    progress: Progress,
) -> tuple[Scored, ...]:
    """Predict and score all cases of a split; what is drawn of them goes to `shown`."""
    masks = CachedMasks(
        held.run.predictions / held.split,
        held.checkpoint_sha256,
        " ".join(
            decoder_identity(held.predictor.decoder, path)
            for path in held.members or (held.run.path,)
        ),
        held.predictor.device.type,
        seed,
        sample,
        held.manifest.classes,
    )
    return _Scoring(held, masks, options, shown).score_all(progress)


def report_on(
    held: EvaluationSplit,
    scored: Sequence[Scored],
    options: ScoringOptions,
    seed: int,
    sample: SampleConfig,
    command: str,
) -> EvaluateReport:
    """The results of a split's cases, not written yet; see `evaluate` for the arguments."""
    rule = held.manifest.classes if len(held.manifest.classes) > 1 else None
    return EvaluateReport(
        run=held.run.path,
        split=held.split,
        grid=options.grid,
        protocol=options.protocol,
        cases=tuple(
            row for case in scored for row in case.results[options.protocol, options.grid].rows
        ),
        seed=seed,
        sample=sample,
        decoder=held.predictor.decoder,
        run_threshold=held.predictor.run_threshold,
        options=options,
        protocols=tuple(
            ProtocolSummary.of(
                *each, tuple(row for case in scored for row in case.results[each].rows)
            )
            for each in PROTOCOLS
        ),
        provenance=held.provenance(command),
        notes=_notes(options),
        classes=None if rule is None else rule.names,
        rule=rule,
        union=tuple(case.results[options.protocol, options.grid].union for case in scored if rule),
        undrawn=undrawn(held.cases, rule),
    )


def publish(
    report: EvaluateReport, held: EvaluationSplit, scored: Sequence[Scored], shown: ShownPlanes
) -> EvaluateReport:
    """Write the files of a report, its pictures and its page; the same with these files."""
    default = (report.protocol, report.grid) == PROTOCOLS[0]
    folder = held.report_folder("" if default else f"-{report.grid}-{report.protocol}")
    files = report.write(folder)
    pictures = draw_cases(report.case_means("dice"), shown, folder)
    panels = [case.panel for case in scored]
    save_panels(folder, panels)
    results = Results(evaluation=report.to_json(), panels=panels)
    page = write_report(folder, results, title=held.title, config=held.config_text)
    return replace(report, files=(*files, *pictures, page))


def undrawn(cases: Sequence[PreparedCase], rule: ClassRule | None) -> dict[str, tuple[str, ...]]:
    """Case -> its classes that were never drawn in it; none of cases that have all."""
    found = {}
    for case in cases if rule is not None else ():
        drawn = drawn_classes(case)
        if drawn is not None and rule is not None:
            found[case.id] = tuple(name for name in rule.names if name not in drawn)
    return {case_id: names for case_id, names in found.items() if names}


def _notes(options: ScoringOptions) -> tuple[str, ...]:
    official = (OFFICIAL_NOTE,) if options.protocol == "official" else ()
    return (*official, MODEL_NOTE) if options.grid == "model" else ()


@dataclass(frozen=True)
class _Rows:
    """The scores of a case by one protocol."""

    rows: tuple[CaseResult, ...]
    """One, or one for each class."""
    union: CaseResult
    """Of the foreground as a whole."""

    @property
    def dice(self) -> float | None:
        """The mean of those that are defined."""
        values = [row.values["dice"] for row in self.rows]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None


@dataclass(frozen=True, eq=False)
class Scored:
    """One case, by every protocol, and its picture."""

    results: Mapping[tuple[Protocol, Grid], _Rows]
    panel: CasePanel


class ShownPlanes:
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

    def __enter__(self) -> ShownPlanes:
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
    shown: ShownPlanes

    def score_all(self, progress: Progress) -> tuple[Scored, ...]:
        """Every case, in the order of the manifest."""
        count = CaseProgress(self.held.cases, progress)
        scored = []
        for case in self.held.cases:
            scored.append(self._score(case, count.of(case)))
            count.finish(case)
        return tuple(scored)

    def _score(self, case: PreparedCase, progress: Progress) -> Scored:
        """Read, predict, score and cut out a case, each once."""
        scan, labels = self.held.read_labels(case)
        reference = self.held.manifest.is_foreground(labels)
        restore = SliceTransform.of(scan.geometry)
        kept = self._mask(case, scan, reference, progress)
        planes = self.held.label_planes(case)
        if planes.shape != kept.planes.shape:
            raise prepared_otherwise(case, planes.shape, kept.planes.shape)
        results = {
            (protocol, grid): self._rows(
                case,
                *((kept.mask, labels) if grid == "native" else (kept.planes, planes)),
                scan.spacing_mm if grid == "native" else None,
                replace(self.options, protocol=protocol, grid=grid),
            )
            for protocol, grid in PROTOCOLS
        }
        k, probability = kept.shown
        window, pixel_mm = self.held.looks(scan, restore)
        rule = self.held.manifest.classes
        cut = partial(restore.canonical_plane, k=k)
        masks = np.array(cut(reference)), np.array(cut(kept.mask)) != 0
        if len(rule) > 1:
            held = np.asarray(cut(kept.mask))
            found = np.stack([rule.mask_of(held, number) for number in range(len(rule))])
            masks = rule.masks(np.asarray(cut(labels))), found
        plane = CasePlane(
            case_id=case.id,
            heading="",
            dice=results[self.options.protocol, self.options.grid].dice,
            slice_index=k,
            slices=restore.slices,
            image=scan.values(restore.canonical_plane(scan.array, k)),
            reference=masks[0],
            prediction=masks[1],
            # The way back from the squares that were predicted, which may be cropped.
            probability=self.held.predictor.stack(scan).restore.to_native(probability, k),
            window=window,
            pixel_mm=pixel_mm,
            classes=rule.names if len(rule) > 1 else (),
        )
        self.shown.add(plane)
        panel = case_panel(case.id, place(restore, k), plane.image, *masks, window, pixel_mm)
        return Scored(results, panel)

    def _rows(
        self,
        case: PreparedCase,
        found: NDArray[Any],
        labels: NDArray[Any],
        spacing_mm: Spacing | None,
        options: ScoringOptions,
    ) -> _Rows:
        """Score each class, one after the other, and all as one foreground.

        Args:
            case: The case.
            found: As `CachedMask.mask` or `.planes`.
            labels: On the same grid.
            spacing_mm: Of the scan's own grid.
            options: Of one protocol.
        """
        rule, drawn = self.held.manifest.classes, drawn_classes(case)
        counted = None if rule.ignore is None else labels != rule.ignore

        def score(mask: Mask, reference: Mask, name: str | None = None) -> CaseResult:
            mask = mask if counted is None else mask & counted
            return score_case(
                case.id, mask, reference, spacing_mm, options=options, class_label=name
            )

        if len(rule) == 1:
            union = score(found != 0, rule.foreground(labels))
            return _Rows((union,), union)
        whole = np.zeros(labels.shape, bool), np.zeros(labels.shape, bool)
        rows = []
        for number, each in enumerate(rule.each()):
            (name,) = each.names
            if drawn is not None and name not in drawn:
                continue
            masks = rule.mask_of(found, number), each.foreground(labels)
            for mask, one in zip(whole, masks, strict=True):
                mask |= one
            rows.append(score(*masks, name))
        return _Rows(tuple(rows), score(*whole))

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
            found = CachedMask.decided(prediction, (-1, np.empty(0, np.float32)))
            k = largest_area_slice(reference, found.mask != 0, restore)
            union = prediction.classes.union(prediction.probabilities[:, k])
            found = replace(found, shown=(k, np.array(union)))
        else:
            k = largest_area_slice(reference, kept.mask != 0, restore)
            if kept.shown[0] == k:
                return kept
            # Another reference, or kept by a version that kept no slice.
            stack = predictor.stack(scan)
            plane = predictor.plane(stack, k, seed=seed, sample=sample)
            found = replace(kept, shown=(k, predictor.classes.union(plane)))
        return self.masks.keep(case.id, found, scan)


PICTURES = ("best.png", "median.png", "worst.png", "cases.png")


def draw_cases(
    dice: Mapping[str, float | None], shown: ShownPlanes, folder: Path
) -> tuple[Path, ...]:
    """Draw best.png, median.png, worst.png and cases.png (all three); none if no case has a Dice.

    Raises:
        RunError: The disk refused.
    """
    known = {case_id: value for case_id, value in dice.items() if value is not None}
    ranked = sorted(known, key=known.__getitem__)
    if not ranked:
        for name in PICTURES:  # of a former call, whose cases these would seem to be
            (folder / name).unlink(missing_ok=True)
        return ()
    picks = {"best": ranked[-1], "median": ranked[(len(ranked) - 1) // 2], "worst": ranked[0]}
    headings: dict[str, list[str]] = {}
    for name, case_id in picks.items():
        headings.setdefault(case_id, []).append(name)
    drawn = {case_id: shown.of(case_id) for case_id in headings}
    rows = [[replace(drawn[pick], heading=name)] for name, pick in picks.items()]
    rows.append([replace(drawn[id], heading=", ".join(names)) for id, names in headings.items()])
    files = tuple(folder / name for name in PICTURES)
    for file, row in zip(files, rows, strict=True):
        save_cases(file, row)
    return files
