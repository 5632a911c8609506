"""Ways of sampling compared on the same cases and seeds: reverse steps, eta and samples, what each
gives and costs. Table 4 and Fig. 3 of one's own run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from sdseg_cli.core.config import SampleConfig
from sdseg_cli.core.errors import ConfigError
from sdseg_cli.core.progress import Progress, no_op
from sdseg_cli.core.tables import Cell, strict, write_csv, write_json
from sdseg_cli.evaluation.evaluation_split import CaseProgress, SplitOptions
from sdseg_cli.evaluation.page import FILE as PAGE
from sdseg_cli.evaluation.page import Results, write_report
from sdseg_cli.evaluation.stability import StabilityOptions, Trial, open_conditions
from sdseg_cli.evaluation.stability_results import StabilityReport, lpips_note
from sdseg_cli.metrics.similarity import MAPS, METRICS
from sdseg_cli.metrics.statistics import mean_and_sd
from sdseg_cli.report.drawing import (
    FAINT,
    PREDICTION_COLOUR,
    REFERENCE_COLOUR,
    chart,
    legend,
    new_figure,
    save_figure,
)


def sweep(
    run: Path | None,
    workspace: Path,
    samplings: Sequence[SampleConfig],
    *,
    skipped_eta: bool = False,
    options: StabilityOptions | None = None,
    cases: SplitOptions | None = None,
    command: str = "",
    progress: Progress = no_op,
) -> SweepReport:
    """Try several ways of sampling, each as `stability` tries one; see there for the arguments.

    Args:
        run: The run folder; None for the newest finished run of the workspace.
        workspace: Folder that holds `prepared/` and `runs/`.
        samplings: Of `every_sampling`, one row each.
        skipped_eta: Likewise.
        options: How many runs, with the same seeds in every row, and the weights of LPIPS.
        cases: Which split, and how its cases are predicted.
        command: What was typed, for the report.
        progress: Called with the slices done, and the row.

    Returns:
        The rows and the files: report/<split>/sweep.csv, sweep.json, sweep.png and report.html.
        Runs are compared as the paper does, the first with the rest; no map is written.

    Raises:
        SdsegError: As `stability`.
    """
    under = open_conditions(run, workspace, options, cases)
    rows = []
    for number, sample in enumerate(map(under.sampling, samplings)):
        what = f"row {number + 1} of {len(samplings)}, {_named(sample)}: case"
        within = _part(progress, number, len(samplings))
        trial = Trial.of_first_vs_rest(under, sample)
        report = trial.run(CaseProgress(under.held.cases, within, what, repeats=len(under.seeds)))
        rows.append(SweepRow(report, trial.seconds_per_slice))
    names = (*(f"sweep.{suffix}" for suffix in ("csv", "json", "png")), PAGE)
    files = tuple(under.folder / name for name in names)
    found = SweepReport(tuple(rows), skipped_eta, files, under.held.provenance(command))
    found.write()
    write_report(
        under.folder,
        Results(sweep=found.to_json()),
        title=under.held.title,
        config=under.held.config_text,
    )
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


SPEED_NOTE = (
    "seconds_per_slice is prediction alone, slices of air included, without the first prediction "
    "of each row, which warms up"
)
IDENTICAL_NOTE = (
    "psnr: some pairs of slices are identical, their psnr is infinite; each row averages the "
    "others, `identical` and `pairs` count"
)
ONE_STEP_NOTE = "eta has no effect with one reverse step: steps 1 has one row, eta 0"
_COLOURS = (PREDICTION_COLOUR, REFERENCE_COLOUR, "#b79cff", "#e78ac3", "#ffd92f", "#b3b3b3")


@dataclass(frozen=True)
class SweepRow:
    """One way of sampling."""

    report: StabilityReport
    seconds_per_slice: float | None

    @property
    def sample(self) -> SampleConfig:
        """The sampling of this row."""
        return self.report.sample

    @property
    def dice(self) -> tuple[float | None, float | None]:
        """Mean and standard deviation over runs of the mean Dice over cases."""
        return mean_and_sd(self.report.dice_by_run)

    @property
    def slices_per_second(self) -> float | None:
        """The other way round, as the paper counts."""
        return 1 / self.seconds_per_slice if self.seconds_per_slice else None

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        mean, sd = self.dice
        return {
            "steps": self.sample.steps,
            "eta": self.sample.eta,
            "samples": self.sample.samples,
            "dice": {"mean": mean, "sd": sd},
            "seconds_per_slice": self.seconds_per_slice,
            "slices_per_second": self.slices_per_second,
            **self.report.likeness(),
        }

    def cells(self) -> dict[str, Cell]:
        """For the CSV."""
        mean, sd = self.dice
        values: dict[str, Cell] = {
            "steps": self.sample.steps,
            "eta": self.sample.eta,
            "samples": self.sample.samples,
            "dice_mean": mean,
            "dice_sd": sd,
            "seconds_per_slice": self.seconds_per_slice,
            "slices_per_second": self.slices_per_second,
        }
        values |= {f"{n}_{m}": self.report.mean(n, m) for n in MAPS for m in METRICS}
        values |= {f"{name}_identical": self.report.identical(name) for name in MAPS}
        return {**values, "pairs": self.report.pairs()}


@dataclass(frozen=True)
class SweepReport:
    """The result of a sweep."""

    rows: tuple[SweepRow, ...]
    skipped_eta: bool
    """Whether an eta was asked for that one step cannot have."""
    files: tuple[Path, ...] = ()
    provenance: Mapping[str, object] = field(default_factory=dict)
    """Of `provenance`."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for a reader of the table."""
        missing = self.rows[0].report.missing_lpips
        found = [SPEED_NOTE, *([ONE_STEP_NOTE] if self.skipped_eta else [])]
        found += [lpips_note(missing)] if missing else []
        # What a row leaves out of its Dice, every row does.
        found += [n for n in self.rows[0].report.notes if n.startswith(("dice ", "ms_ssim "))]
        same = [row for row in self.rows if any(row.report.identical(name) for name in MAPS)]
        return (*found, IDENTICAL_NOTE) if same else tuple(found)

    def to_json(self) -> dict[str, Any]:
        """The object of `--json`."""
        first = self.rows[0].report
        values: dict[str, object] = {
            "run": first.run,
            "split": first.split,
            "runs": len(first.seeds),
            "seeds": first.seeds,
            "decoder": first.decoder,
            "sweep": [row.to_json() for row in self.rows],
            "notes": self.notes,
            "files": self.files,
            "provenance": self.provenance,
        }
        return cast("dict[str, Any]", strict(values))

    def write(self) -> None:
        """Write the first of `files`: sweep.csv, sweep.json and sweep.png.

        Raises:
            RunError: The disk refused.
        """
        table, summary, picture = self.files[:3]
        cells = [row.cells() for row in self.rows]
        write_csv(table, list(cells[0]), cells)
        write_json(summary, self.to_json())
        sweep_picture(picture, self.rows)


def sweep_picture(path: Path, rows: Sequence[SweepRow]) -> None:
    """Draw Dice against reverse steps, and beside it what a slice costs.

    Args:
        path: The .png file; missing folders are made.
        rows: Those of one sweep.

    Raises:
        RunError: The disk refused.
    """
    figure = new_figure(10.5, 4.4)
    dice, seconds = figure.subplots(1, 2)
    runs = len(rows[0].report.seeds)
    chart(dice, f"Dice, mean and deviation over {runs} runs", "reverse steps")
    chart(seconds, "seconds a slice", "reverse steps")
    for number, (label, line) in enumerate(_lines(rows).items()):
        style: dict[str, Any] = {
            "color": _COLOURS[number % len(_COLOURS)],
            "marker": "os^Dv"[number % 5],
            "markersize": 5,
            "label": label,
        }
        known = [row for row in line if row.dice[0] is not None]
        steps = [row.sample.steps for row in known]
        means, spread = [row.dice[0] for row in known], [row.dice[1] or 0.0 for row in known]
        dice.errorbar(steps, means, yerr=spread, capsize=3, **style)
        timed = [row for row in line if row.seconds_per_slice is not None]
        costs = [row.seconds_per_slice for row in timed]
        seconds.plot([row.sample.steps for row in timed], costs, **style)
    ticks = sorted({row.sample.steps for row in rows})
    for axes in (dice, seconds):
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(step) for step in ticks])
        axes.minorticks_off()
        axes.margins(x=0.08, y=0.15)
        axes.tick_params(colors=FAINT)
    seconds.set_ylim(bottom=0)
    if dice.get_legend_handles_labels()[0]:
        legend(dice)
    save_figure(figure, path)


def _lines(rows: Sequence[SweepRow]) -> dict[str, list[SweepRow]]:
    """One line per eta and number of samples; the point of one step belongs to every eta."""
    found: dict[str, list[SweepRow]] = {}
    etas = {row.sample.eta for row in rows if row.sample.steps > 1} or {0.0}
    for samples in dict.fromkeys(row.sample.samples for row in rows):
        for eta in sorted(etas):
            noun = "sample" if samples == 1 else "samples"
            line = [
                row
                for row in rows
                if row.sample.samples == samples
                and (row.sample.eta == eta or row.sample.steps == 1)
            ]
            found[f"eta {eta:g}, {samples} {noun}"] = sorted(line, key=lambda r: r.sample.steps)
    return found
