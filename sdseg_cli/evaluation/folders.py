"""A folder of masks against a folder of references, wherever they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sdseg_cli.core.errors import ConfigError, DataError, RunError
from sdseg_cli.core.processes import available_cores, in_processes
from sdseg_cli.core.progress import Progress, no_op
from sdseg_cli.data.layouts.folder import FOLDER
from sdseg_cli.data.recognise import adapter
from sdseg_cli.evaluation.page import Results, require_own_folder, write_report
from sdseg_cli.evaluation.pairs import (
    CHANNEL,
    CaseScores,
    Pair,
    Pairing,
    PairOptions,
    pair_folders,
    score_pair,
)
from sdseg_cli.evaluation.results import EvaluateReport, provenance, shortened
from sdseg_cli.metrics import ScoringOptions

_PAIRS_EACH = 4
PLANES_NOTE = (
    "model grid: both finished masks were taken to 256 x 256 planes as `prepare` takes labels (the "
    "whole plane padded to a square, by majority where it shrinks); no distances and volumes "
    "there. Of a run, the network's own planes are scored: its figures on this grid are others"
)
OFFICIAL_NOTE = (
    "official protocol: one value per 3D case; an empty reference has Dice and IoU 1 against a "
    "non-empty prediction and 0 against an empty one"
)


@dataclass(frozen=True)
class FolderOptions:
    """Options for reading the masks of a folder and their references.

    Attributes:
        target: Labels that count as foreground; None for the data set's, or all but 0.
        classes: Classes to score each on its own, by name or label: their labels. Other labels
            are background.
        dataset: Adapter whose rules read the references; None for plain label maps.
        resample: Bring masks that lie on another grid onto their reference's; what they hold
            beyond it is false.
        workers: Processes that read and score; None for what suits the machine.
    """

    target: tuple[int, ...] | None = None
    classes: Mapping[int | str, tuple[int, ...]] | None = None
    dataset: str | None = None
    resample: bool = False
    workers: int | None = None


def evaluate_folders(
    pred: Path,
    ref: Path,
    *,
    reading: FolderOptions | None = None,
    options: ScoringOptions | None = None,
    report: Path | None = None,
    command: str = "",
    progress: Progress = no_op,
) -> EvaluateReport:
    """Score a folder of masks against a folder of references, wherever they come from.

    Files belong together whose paths below the two folders agree up to the suffix (a mask may also
    bear nnU-Net's _0000). They have to lie
    on one grid in the world; in which order and direction its axes are stored may differ. Names and
    headers of all are checked before the first is scored.

    Args:
        pred: Folder of masks; what is not 0 is foreground. Label maps are searched for the target.
        ref: Folder of label maps.
        reading: How masks and references are read.
        options: How a case is judged: grid, protocol, tolerance and the like.
        report: Folder for evaluate.csv, .json and .tex and report.html; None writes no file.
        command: What was typed, for the report.
        progress: Called with the cases done.

    Returns:
        The scores. Its notes name masks without a reference and all else that was not plain.

    Raises:
        ConfigError: An option is unknown, or two contradict each other; both folders are one; or
            `report` is that of a run.
        DataError: A folder is missing or empty, a reference has no mask, a file is damaged or holds
            labels that are not declared, or no reference holds the target.
        GeometryError: A mask does not lie on its reference's grid.
        RunError: The disk refused, or a worker was killed.
    """
    reading, scoring = reading or FolderOptions(), options or ScoringOptions()
    if reading.classes is not None and reading.target is not None:
        raise ConfigError(
            "--classes and --target are both given.",
            "--classes scores each label on its own, --target several as one: choose one.",
        )
    if pred.resolve() == ref.resolve():
        raise ConfigError(f"{pred} is both --pred and --ref.", "Give two folders of masks.")
    how = _pair_options(reading, scoring)
    if report is not None:
        require_own_folder(report)
        if report.resolve() in (pred.resolve(), ref.resolve()):
            raise ConfigError(f"{report} holds the masks.", "Give --report another folder.")
    pairing = pair_folders(
        pred, ref, allow_missing=scoring.allow_missing, resample=reading.resample
    )
    workers = reading.workers
    workers = _workers(len(pairing.pairs)) if workers is None else max(1, workers)
    scored = _score(pairing.pairs, how, workers, progress)
    _require_target(how.target, scored, ref)
    several = any(len(one.labels) > 1 for one in scored)
    if how.target is not None and several:
        # Beside label maps, a mask with one value that is no target is a label map without it.
        wrong = [n for n, one in enumerate(scored) if _lacks(one, how.target)]
        again = [pairing.pairs[n] for n in wrong]
        second = _score(again, replace(how, plain=False), workers, progress)
        for n, one in zip(wrong, second, strict=True):
            scored[n] = one
    found = EvaluateReport(
        run=None,
        split=None,
        grid=scoring.grid,
        protocol=scoring.protocol,
        cases=tuple(row for one in scored for row in one.rows),
        notes=tuple(_notes(pairing, how, scored)),
        options=scoring,
        pred=pred,
        ref=ref,
        classes=None if reading.classes is None else tuple(reading.classes),
        missing=pairing.missing,
        resampled=pairing.resampled,
        outside={
            pair.id: one.outside
            for pair, one in zip(pairing.pairs, scored, strict=True)
            if one.outside
        },
        provenance=provenance(command=command, files={}),
    )
    if report is None:
        return found
    files = found.write(report)
    results = Results(evaluation=found.to_json())
    page = write_report(report, results, title=f"{pred.name} against {ref.name}")
    return replace(found, files=(*files, page))


def _workers(pairs: int) -> int:
    """Processes that are worth starting: each takes a second or two before its first case."""
    return max(1, min(available_cores(), pairs // _PAIRS_EACH))


def _pair_options(reading: FolderOptions, scoring: ScoringOptions) -> PairOptions:
    """The options, checked."""
    spec = FOLDER if reading.dataset is None else adapter(reading.dataset)
    target, classes = reading.target, reading.classes
    if classes is not None and not all(label > 0 for each in classes.values() for label in each):
        raise ConfigError(
            f"--classes is {','.join(map(str, classes))}.",
            "Give labels from 1 up: 0 is background.",
        )
    if classes is None and target is None:
        target = spec.target
    return PairOptions(target, classes, spec.mask_levels, scoring)


def _score(
    pairs: Sequence[Pair], how: PairOptions, workers: int, progress: Progress
) -> list[CaseScores]:
    """All pairs, in their order."""
    work, found = partial(score_pair, options=how), []
    try:
        with closing(in_processes(work, pairs, workers)) as results:
            for pair, one in zip(pairs, results, strict=True):
                found.append(one)
                progress(len(found), len(pairs), f"case {pair.id}")
    except RunError as error:
        raise RunError(error.message, "Run again with --workers 1.") from error
    return found


def _require_target(
    target: tuple[int, ...] | None, scored: Sequence[CaseScores], ref: Path
) -> None:
    """Refuse a target that is in none of the references, while other labels are."""
    known = sorted({label for one in scored for label in one.reference_labels})
    if target is not None and known and not {*known} & {*target}:
        raise DataError(
            f"{ref}: no reference holds --target {_listed(target)}.",
            f"They hold {_listed(known[:20])}{', ...' if len(known) > 20 else ''}.",
            "values",
        )


def _listed(labels: Sequence[int]) -> str:
    return ",".join(map(str, labels))


def _lacks(one: CaseScores, target: tuple[int, ...]) -> bool:
    """True if a mask was read as one foreground though its only label is no target."""
    return len(one.labels) == 1 and one.labels[0] not in target


def _notes(pairing: Pairing, how: PairOptions, scored: Sequence[CaseScores]) -> list[str]:
    """Notes for a reader of the scores."""
    notes = []
    if how.scoring.grid == "model":
        notes.append(PLANES_NOTE)
    if how.scoring.protocol == "official":
        notes.append(OFFICIAL_NOTE)
    if pairing.missing:
        count = len(pairing.missing)
        notes.append(
            f"{count} of {count + len(pairing.pairs)} cases have no mask and are not scored: "
            f"{', '.join(pairing.missing)}"
        )
    if pairing.extra:
        notes.append(f"not scored, no reference: {shortened(pairing.extra)}")
    if pairing.renamed:
        notes.append(
            f"masks named as nnU-Net names a scan ({CHANNEL} after the case): "
            f"{shortened(pairing.renamed)}"
        )
    if pairing.resampled:
        notes.append(
            f"resampled onto the reference's grid, to the nearest neighbour: "
            f"{shortened(pairing.resampled)}"
        )
    beyond = [
        f"{pair.id} ({one.outside:,})"
        for pair, one in zip(pairing.pairs, scored, strict=True)
        if one.outside
    ]
    if beyond:
        notes.append(
            f"predicted voxels beyond the reference's grid, counted as false: {shortened(beyond)}"
        )
    if how.classes is None:
        return [*notes, *_label_notes(pairing, how, scored)]
    named = {label for labels in how.classes.values() for label in labels}
    held = {label for one in scored for label in (*one.labels, *one.reference_labels)}
    if others := sorted(held - named):
        notes.append(f"labels in no class of --classes are background: {_listed(others)}")
    return notes


def _label_notes(pairing: Pairing, how: PairOptions, scored: Sequence[CaseScores]) -> list[str]:
    """Notes where one foreground combines several labels, or may be another organ's."""
    target, notes = how.target, []
    asked = "any label counts" if target is None else f"--target {_listed(target)} counts"
    for what, labels in (
        ("masks", [one.labels for one in scored]),
        ("references", [() if target else one.reference_labels for one in scored]),
    ):
        names = [p.id for p, held in zip(pairing.pairs, labels, strict=True) if len(held) > 1]
        if names:
            of = f"{len(names)} of {len(scored)} {what}"
            notes.append(f"{of} hold several labels, of which {asked}: {shortened(names)}")
    if target is not None and not any(len(one.labels) > 1 for one in scored):
        others = [
            pair.id
            for pair, one in zip(pairing.pairs, scored, strict=True)
            if _lacks(one, target) and one.labels[0] in one.reference_labels
        ]
        if others:
            notes.append(
                f"{len(others)} of {len(scored)} masks hold one label that is in their reference "
                f"but not in --target {_listed(target)}; it was taken as foreground: "
                f"{shortened(others)}"
            )
    return notes
