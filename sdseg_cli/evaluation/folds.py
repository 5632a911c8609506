"""`sdseg evaluate --folds`: every case by the run that did not train on it, test cases by all."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from sdseg_cli.core.config import SampleConfig
from sdseg_cli.core.errors import ConfigError, RunError
from sdseg_cli.core.filenames import natural_key
from sdseg_cli.core.progress import Progress, no_op
from sdseg_cli.data.manifest import Manifest, PreparedCase
from sdseg_cli.evaluation.evaluate import (
    Scored,
    ShownPlanes,
    publish,
    report_on,
    score_split,
)
from sdseg_cli.evaluation.evaluation_split import EvaluationSplit, SplitOptions, open_held_out
from sdseg_cli.evaluation.results import EvaluateReport, FoldScores
from sdseg_cli.inference.predictor import Predictor
from sdseg_cli.metrics import ScoringOptions
from sdseg_cli.runs.run_folder import FoldRuns


def evaluate_folds(
    folds: FoldRuns,
    workspace: Path,
    *,
    options: ScoringOptions | None = None,
    cases: SplitOptions | None = None,
    sample: SampleConfig | None = None,
    command: str = "",
    progress: Progress = no_op,
) -> EvaluateReport:
    """Score every case that trained by the fold that did not see it, and test cases by the mean of
    all folds.

    Args:
        folds: The runs, all finished.
        workspace: Folder that holds `prepared/` and `runs/`.
        options: How a case is judged.
        cases: How cases are predicted; its split does not count.
        sample: Reverse steps and samples; None is the runs' setting.
        command: What was typed, for the report.
        progress: Called with the slices done, fold by fold.

    Returns:
        One report, its cases those of all folds; written to report/folds/ of `folds.folder`, that
        on the test cases to report/test/.

    Raises:
        ConfigError: A fold is not finished, or the set was prepared anew; or as `evaluate`.
        DataError: As `evaluate`.
        WeightsError: As `evaluate`.
        RunError: The disk refused.
    """
    options, cases = options or ScoringOptions(), cases or SplitOptions()
    runs, folder = folds.finished, folds.folder
    manifest = Manifest.find(workspace, runs[0].config().dataset)
    sample = sample or runs[0].config().sample
    _require_all(folds, manifest)
    _make(folder.path)
    every: list[tuple[PreparedCase, Scored]] = []
    each: list[FoldScores] = []
    decoders, hashes = set[str](), []
    with ShownPlanes(folder.path) as shown:
        for number, run in enumerate(runs):
            held = open_held_out(run.path, workspace, replace(cases, split="val"))
            scored = score_split(held, shown, options, cases.seed, sample, progress)
            own = report_on(held, scored, options, cases.seed, sample, command)
            each.append(FoldScores(number, run.path, own.metrics, len(own.case_ids)))
            every += zip(held.cases, scored, strict=True)
            decoders.add(held.predictor.decoder)
            hashes.append(held.checkpoint_sha256)
        every.sort(key=lambda one: natural_key(one[0].id))
        whole = replace(
            held,
            run=folder,
            manifest=manifest,
            split="folds",
            cases=tuple(case for case, _ in every),
            checkpoint_sha256=hashlib.sha256("".join(hashes).encode()).hexdigest(),
            members=tuple(run.path for run in runs),
        )
        all_scored = tuple(one for _, one in every)
        report = replace(
            report_on(whole, all_scored, options, cases.seed, sample, command),
            folds=tuple(each),
            decoder=decoders.pop() if len(decoders) == 1 else "mixed",
            ensemble=_of_test_cases(whole, options, cases, sample, command, progress),
        )
        return publish(report, whole, all_scored, shown)


def _of_test_cases(
    whole: EvaluationSplit,
    options: ScoringOptions,
    cases: SplitOptions,
    sample: SampleConfig,
    command: str,
    progress: Progress,
) -> EvaluateReport | None:
    """The test cases by the mean of all folds; None where there are none."""
    found = whole.manifest.cases("test")
    if not found:
        return None
    predictor = cases.predictor or Predictor(
        whole.members, device=cases.device, batch_size=cases.batch_size, decoder=cases.decoder
    )
    held = replace(whole, split="test", cases=found, predictor=predictor)
    with ShownPlanes(held.run.path) as shown:
        scored = score_split(held, shown, options, cases.seed, sample, progress)
        report = report_on(held, scored, options, cases.seed, sample, command)
        return publish(report, held, scored, shown)


def _require_all(folds: FoldRuns, manifest: Manifest) -> None:
    """Refuse a set of which a fold is missing: its cases would be judged by nobody."""
    manifest.of_fold(0)
    there = {run.config().fold for run in folds.finished}
    missing = [str(fold) for fold in range(manifest.folds) if fold not in there]
    if missing:
        raise ConfigError(
            f"{folds.folder.path}: of {manifest.folds} folds {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not finished.",
            "Run the same `sdseg train --fold all` command again.",
        )


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"{folder}: cannot be made ({error.strerror or error}).",
            "Check the folder's permissions and the space left on the disk.",
        ) from error
