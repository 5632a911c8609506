"""Ways of sampling compared on the same cases and seeds: reverse steps, eta and samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sdseg_cli.core.config import SampleConfig
from sdseg_cli.core.errors import ConfigError
from sdseg_cli.core.progress import Progress, no_op
from sdseg_cli.evaluation.evaluation_split import CaseProgress
from sdseg_cli.evaluation.page import FILE as PAGE
from sdseg_cli.evaluation.page import write_report
from sdseg_cli.evaluation.stability_trial import Trial, open_conditions
from sdseg_cli.evaluation.sweep_results import SweepReport, SweepRow

if TYPE_CHECKING:
    from sdseg_cli.inference.predictor import Predictor


def sweep(
    run: Path | None,
    workspace: Path,
    samplings: Sequence[SampleConfig],
    *,
    skipped_eta: bool = False,
    runs: int = 5,
    split: str = "test",
    seed: int = 0,
    device: str = "auto",
    batch_size: int | None = None,
    decoder: str = "auto",
    lpips_backbone: Path | None = None,
    lpips_linear: Path | None = None,
    predictor: Predictor | None = None,
    command: str = "",
    progress: Progress = no_op,
) -> SweepReport:
    """Try several ways of sampling, each as `stability` tries one; see there for the arguments.

    Args:
        run: The run folder; None for the newest finished run of the workspace.
        workspace: Folder that holds `prepared/` and `runs/`.
        samplings: Of `every_sampling`, one row each.
        skipped_eta: Likewise.
        runs: How often each case is predicted, at least 2, in every row with the same seeds.
        split: "train", "val" or "test".
        seed: Of the first run's noise.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        batch_size: Slices at a time; None for what suits the device.
        decoder: As `Predictor`.
        lpips_backbone: As `stability`.
        lpips_linear: As `stability`.
        predictor: The run's model if it is loaded already.
        command: What was typed, for the report.
        progress: Told in slices, and which row.

    Returns:
        The rows and the files: report/<split>/sweep.csv, sweep.json, sweep.png and report.html.
        Runs are compared as the paper does, the first with the rest; no map is written.

    Raises:
        SdsegError: As `stability`.
    """
    under = open_conditions(
        run,
        workspace,
        runs=runs,
        split=split,
        seed=seed,
        device=device,
        batch_size=batch_size,
        decoder=decoder,
        lpips_backbone=lpips_backbone,
        lpips_linear=lpips_linear,
        predictor=predictor,
    )
    rows = []
    for number, sample in enumerate(map(under.sampling, samplings)):
        what = f"row {number + 1} of {len(samplings)}, {_named(sample)}: case"
        within = _part(progress, number, len(samplings))
        trial = Trial.of_first_vs_rest(under, sample)
        report = trial.run(CaseProgress(under.held.cases, within, what, repeats=runs))
        rows.append(SweepRow(report, trial.seconds_per_slice))
    names = (*(f"sweep.{suffix}" for suffix in ("csv", "json", "png")), PAGE)
    files = tuple(under.folder / name for name in names)
    found = SweepReport(tuple(rows), skipped_eta, files, under.held.provenance(command))
    found.write()
    write_report(under.folder, title=under.held.title, config=under.held.config_text)
    return found


def every_sampling(
    settings: SampleConfig,
    steps: Sequence[int] | None,
    etas: Sequence[float] | None,
    samples: Sequence[int] | None,
) -> tuple[tuple[SampleConfig, ...], bool]:
    """Every combination of the given values; what is not given is the run's setting.

    Args:
        settings: Of the run.
        steps: Reverse steps, each at least 1.
        etas: Each in 0..1.
        samples: Noise draws averaged, each at least 1.

    Returns:
        The combinations, the fewest steps first as given, each once; and whether an eta was left
        out because there is nothing between the steps of one step.

    Raises:
        ConfigError: No combination has more than one step, but an eta above 0 is asked for.
    """
    steps = steps or (settings.steps,)
    if etas is not None and any(etas) and max(steps) == 1:
        raise ConfigError(
            "--eta has no effect with one reverse step.", "Give --steps 2 or more, or no --eta."
        )
    found: dict[SampleConfig, None] = {}
    for draws in samples or (settings.samples,):
        for step in steps:
            for eta in etas or (settings.eta,):
                # Asked for, or the run's own: with one step it cannot count.
                found[
                    replace(settings, steps=step, eta=eta if step > 1 else 0.0, samples=draws)
                ] = None
    return tuple(found), bool(etas is not None and any(etas) and min(steps) == 1)


def _named(sample: SampleConfig) -> str:
    return f"steps {sample.steps}, eta {sample.eta:g}, samples {sample.samples}"


def _part(progress: Progress, number: int, of: int) -> Progress:
    """The callback for one of several pieces of work of the same size."""

    def within(done: int, total: int, what: str) -> None:
        progress(number * total + done, of * total, what)

    return within
