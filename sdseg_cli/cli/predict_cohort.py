"""`sdseg predict` of a folder or a list: what it is asked, and what it shows."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from sdseg_cli.cli.console import Output
from sdseg_cli.cli.options import ClusterOption, weak_run
from sdseg_cli.core.errors import CohortError, ConfigError
from sdseg_cli.core.findings import Finding

if TYPE_CHECKING:
    from sdseg_cli.core.config import RunConfig, SampleConfig
    from sdseg_cli.inference.cohort import CohortReport, Engine, Shard

ShardText = Annotated[
    str | None, ClusterOption("--shard", help="Of a cohort: part i of n, i/n with i from 0 to n-1.")
]
EngineName = Annotated[str, ClusterOption("--engine", help="Of a cohort: local, or ray.")]
Workers = Annotated[
    int | None,
    ClusterOption(min=1, help="Of --engine ray: models at a time; default: one per GPU."),
]
RayAddress = Annotated[
    str | None, ClusterOption(help="Of --engine ray: a cluster; default: this machine alone.")
]


@dataclass(frozen=True)
class Spread:
    """Over what a cohort is spread, as the command line says it."""

    shard: str | None = None
    engine: str = "local"
    workers: int | None = None
    ray_address: str | None = None

    def refuse_for_one_scan(self) -> None:
        """Raises ConfigError if an option of cohorts was given."""
        if self != Spread():
            raise ConfigError(
                "--shard, --engine, --workers and --ray-address are for many scans.",
                "Give a folder or a list of scans, and -o a folder; or leave them out.",
            )

    def make_engine(self) -> Engine:
        """What does the scans. Raises ConfigError."""
        from sdseg_cli.inference.cohort import one_by_one
        from sdseg_cli.inference.ray import RayEngine, require_ray

        if self.engine not in ("local", "ray"):
            raise ConfigError(f'there is no engine "{self.engine}".', "Choose local or ray.")
        if self.engine == "ray":
            require_ray()
            return RayEngine(self.workers, self.ray_address)
        if self.workers is not None or self.ray_address is not None:
            raise ConfigError(
                "--workers and --ray-address need --engine ray.",
                "Add it, or start several processes with --shard.",
            )
        return one_by_one


def predict_cohort(
    source: Path,
    folder: Path,
    output: Output,
    *,
    model: Callable[[], Path],
    named: bool,
    spread: Spread,
    predictor: Mapping[str, Any],
    options: Mapping[str, Any],
    files: Mapping[str, Path | None],
    sample: Callable[[RunConfig], SampleConfig],
) -> None:
    """Predict the scans of a folder or a list.

    Args:
        source: The folder or the list.
        folder: Of the masks.
        output: How to talk.
        model: Gives the run or package, once the scans are known to be there.
        named: Somebody asked for this one; else what made the masks that are there makes the rest.
        spread: Over what.
        predictor: Keyword arguments of `Predictor`.
        options: Keyword arguments of `predict_file` that are the same for all scans.
        files: Those that name a file: here the folder of these files.
        sample: How to sample, by a run's settings and the options that were given.

    Raises:
        CohortError: A scan failed, or was not begun because the work was stopped.
        SdsegError: Nothing was begun, or nothing could be gone on with.
    """
    from sdseg_cli.imaging.scans import find_scans
    from sdseg_cli.inference.ledger import Ledger

    folders = {option: path for option, path in files.items() if path is not None}
    found = find_scans(source, folder, folders)
    goes_on = not named and Ledger(folder).model() is not None
    trained = folder if goes_on else model()  # which is found before torch takes its seconds

    from sdseg_cli.inference.cohort import Shard, leave_together, predict_cohort, take_own_gpu
    from sdseg_cli.inference.cohort_scan import Task, model_of_before, trained_config
    from sdseg_cli.model.distributed import ranks_of
    from sdseg_cli.runs.run_folder import RunDir

    if goes_on:
        trained = model_of_before(folder)
        output.say(f"going on with {trained}, which the masks in {folder} are made with")
    for suffix, count in sorted(found.passed_over.items()):
        output.say(f"passed over {count} of {suffix}, which is no kind of scan this tool reads")
    if found.channels == 1:
        output.say("scans are named as nnU-Net names them: masks are called without _0000")
    elif found.channels:
        output.say(
            f"scans are named as {found.channels} channels of nnU-Net's cases; a run reads one "
            "image, so each is predicted by itself. For one channel give a list of its files."
        )
    ranks = ranks_of(os.environ)
    shard = (Shard() if spread.shard is None else Shard.parse(spread.shard)).among(ranks)
    engine = spread.make_engine()
    take_own_gpu(ranks)
    chosen = {**options, "sample": sample(trained_config(trained))}
    task = Task(trained, folder, predictor, chosen, folders)
    try:
        # Ray's own messages go to stdout, which is for the result.
        with output.progress() as progress, redirect_stdout(sys.stderr):
            report = predict_cohort(
                found.scans, task, shard=shard, engine=engine, progress=progress, named=named
            )
    finally:
        leave_together(os.environ)
    weak = () if named else weak_run(RunDir(trained))
    _show(report, shard, output, weak)


def _show(report: CohortReport, shard: Shard, output: Output, weak: Sequence[Finding]) -> None:
    output.warn([Finding(**warning) for warning in report.warnings])
    for row in report.failed:
        output.say(f"failed {row.case}: {row.error}")
    per_scan = report.seconds_per_scan
    part = f", shard {shard.index}/{shard.count}" if shard.count > 1 else ""
    values = report.to_json()
    values["warnings"] += [finding.to_json() for finding in weak]
    output.result(
        values,
        title=f"segmented {report.done} scans{part}",
        columns=("scans", ""),
        rows=[
            ("done", str(report.done)),
            ("failed", str(len(report.failed))),
            ("skipped, done before", str(report.skipped)),
            *([("not begun", str(report.left))] if report.left else []),
            ("seconds per scan", "-" if per_scan is None else f"{per_scan:.1f}"),
            ("seconds", f"{report.seconds:.1f}"),
        ],
        files=[report.ledger],
    )
    total = report.done + len(report.failed) + report.skipped + report.left
    if report.failed:
        left = f"; {report.left} were not begun" if report.left else ""
        names = ", ".join(row.case for row in report.failed[:5])
        more = f" and {len(report.failed) - 5} more" if len(report.failed) > 5 else ""
        raise CohortError(
            f"{len(report.failed)} of {total} scans failed: {names}{more}{left}.",
            f"{report.ledger} says why; the same command tries them again.",
        )
    if report.left:
        raise CohortError(
            f"stopped with {report.left} of {total} scans not begun.",
            "The same command goes on.",
        )
