r"""Fig. 3 of the paper, on one's own runs: test Dice against the number of DDIM steps.

    python -m benchmarks.fig3 --workspace FOLDER --runs openkbp/fig3-last,kseg/fig3-uniform \
        --steps 1,2,5,10,20 --eta 0,1 --seeds 0 --cases 3 --out fig3.json --picture fig3.png

Each run gives a line per eta, which is the noise the sampler adds between steps. With one step
there is no between: that point is measured once and belongs to every eta. The paper's own two lines
are of Eq. 3's lambda, the weight of the latent loss in training: 0 and 1 are two runs, and each
block of the table says which it is of.

Dice is that of `sdseg evaluate`, on the scan's own grid; nothing is written into the runs. Times
are of prediction alone, by the processor's clock (on a GPU by the wall's), air included; the median
over cases, for the first one also warms up.

Resumable: rows that are in the file are not made again, unless the run's weights or its
decoder have changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from statistics import fmean, median
from textwrap import wrap
from typing import Any

import torch

from benchmarks.comparison_table import by_case, paired_difference, with_interval
from benchmarks.results import Results, Row, clock, command, machine, told
from sdseg_cli.core.config import SampleConfig
from sdseg_cli.core.errors import RunError
from sdseg_cli.core.files import file_sha256
from sdseg_cli.evaluation.evaluation_split import EvaluationSplit, SplitOptions, open_held_out
from sdseg_cli.evaluation.results import score_case
from sdseg_cli.evaluation.sweep import every_sampling
from sdseg_cli.inference.decoders import decoder_identity
from sdseg_cli.metrics.statistics import FEW_CASES, bootstrap_ci95
from sdseg_cli.model.runtime import choose_device
from sdseg_cli.report.drawing import (
    FAINT,
    PREDICTION_COLOUR,
    REFERENCE_COLOUR,
    chart,
    legend,
    new_figure,
    save_figure,
)
from sdseg_cli.runs.run_folder import RunDir, find_run

COLOURS = (REFERENCE_COLOUR, PREDICTION_COLOUR, "#9be564", "#e78ac3")
TITLE_CHARACTERS = 46
PANELS_ABREAST = 3
APART = 1.05
"""Lines are drawn this factor apart, so that the bars of one do not hide the other's."""


@dataclass(frozen=True)
class Subject:
    """A run whose curve is measured, loaded only if something of it is missing."""

    workspace: Path
    name: str
    device: torch.device
    cases: int | None = None
    """Only so many test cases, the first ones; None takes all."""

    @cached_property
    def run(self) -> RunDir:
        return find_run(self.workspace, self.name)

    @cached_property
    def weights(self) -> str:
        """sha256 of the checkpoint that predicts."""
        return file_sha256(self.run.best)

    @cached_property
    def identity(self) -> str:
        """Of what predicts: the weights, and the decoder where the run has one of its own."""
        decoder = sha256(decoder_identity("auto", self.run.path).encode()).hexdigest()
        return f"{self.weights[:12]}-{decoder[:6]}"

    @cached_property
    def held(self) -> EvaluationSplit:
        held = open_held_out(self.run.path, self.workspace, SplitOptions(device=self.device.type))
        if held.checkpoint_sha256 != self.weights:
            raise RunError(f"{self.name} was trained further meanwhile.", "Call again.")
        return held

    def row_name(self, sample: SampleConfig, seed: int) -> str:
        """What the row is called in the file."""
        cases = "all" if self.cases is None else self.cases
        way = f"steps{sample.steps}/eta{sample.eta:g}/seed{seed}"
        return f"{self.name}@{self.identity}/cases-{cases}/{way}"


def rows_of(
    subject: Subject, results: Results, steps: Sequence[int], etas: Sequence[float], seed: int
) -> list[Row]:
    """One row per way of sampling, measured now or before; without those memory was too small for.

    What is not swept, such as the number of samples, is as the run has it.
    """
    samplings, _ = every_sampling(subject.run.config().sample, steps, etas, None)
    rows = [
        results.measure(
            subject.row_name(sample, seed),
            lambda sample=sample: measured(subject, sample, seed),  # type: ignore[misc]
        )
        for sample in samplings
    ]
    return [row for row in rows if "error" not in row]


def measured(subject: Subject, sample: SampleConfig, seed: int) -> Row:
    """Predict and score the test cases one way."""
    held = subject.held
    config, chosen = held.predictor.config, held.cases[: subject.cases]
    scores, taken = [], []
    for case in chosen:
        scan, reference = held.read(case)
        started = clock(subject.device)
        prediction = held.predictor.predict(scan, case_id=case.id, seed=seed, sample=sample)
        taken.append((clock(subject.device) - started) / len(prediction.probability))
        found = score_case(case.id, prediction.mask() != 0, reference, scan.spacing_mm).values
        scores.append({"id": case.id, "dice": found["dice"], "iou": found["iou"]})
    return {
        "run": subject.name,
        "dataset": held.manifest.name,
        "weights_sha256": held.checkpoint_sha256,
        "decoder": held.predictor.decoder,
        "parameterisation": config.model.parameterisation,
        "timesteps": config.train.timesteps,
        "noise_loss_weight": config.train.noise_loss_weight,
        "latent_loss_weight": config.train.latent_loss_weight,
        "training_steps": held.run.status().get("step"),
        "weights_of_step": held.predictor.step,
        "steps": sample.steps,
        "eta": sample.eta,
        "sample": asdict(sample),
        "seed": seed,
        "cases": scores,
        "scored_cases": len(scores),
        "test_cases": len(held.cases),
        "seconds_per_slice": median(taken),
        **machine(subject.device),
    }


def table(rows: Sequence[Row]) -> str:
    """Markdown, a block for each run with a line per number of steps."""
    etas = _etas(rows)
    heads = ["DDIM steps", *(f"Dice, eta {eta:g}" for eta in etas)]
    heads += [*(f"eta {eta:g} less one step" for eta in etas), "s/slice"]
    lines: list[str] = []
    for run, here in _by_run(rows).items():
        lines += ["", f"**{run}**: {_described(here)}", "", _line(heads), "|---" * len(heads) + "|"]
        one_step = by_case([row for row in here if row["steps"] == 1], "dice")
        for steps in sorted({row["steps"] for row in here}):
            now = [row for row in here if row["steps"] == steps]
            found = [by_case(of_eta(now, eta), "dice") for eta in etas]
            less = ["-" if steps == 1 else paired_difference(one_step, dice) for dice in found]
            seconds = median(row["seconds_per_slice"] for row in now)
            lines.append(_line([f"{steps}", *map(with_interval, found), *less, f"{seconds:.3g}"]))
    return "\n".join(lines).lstrip("\n")


def of_eta(rows: Iterable[Row], eta: float) -> list[Row]:
    """Those of one eta; one step belongs to all."""
    return [row for row in rows if row["steps"] == 1 or row["eta"] == eta]


def _etas(rows: Iterable[Row]) -> list[float]:
    return sorted({row["eta"] for row in rows if row["steps"] > 1}) or [0.0]


def _by_run(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["run"], []).append(row)
    return found


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _settings(row: Row) -> str:
    loss = f"loss {row['noise_loss_weight']:g} noise + {row['latent_loss_weight']:g} latent"
    return f"predicts {row['parameterisation']}, t {row['timesteps']} in training, {loss}"


def _described(rows: Sequence[Row]) -> str:
    """What the run is and what was scored, in a line."""
    row, seeds = rows[0], sorted({row["seed"] for row in rows})
    weights = f"weights of step {row['weights_of_step']}"
    if row["training_steps"] is not None:
        weights += f" of {row['training_steps']}"
    count, numbers = row["scored_cases"], ", ".join(map(str, seeds))
    text = f"{_settings(row)}; {weights}, {row['decoder']} decoder; {count} of {row['test_cases']}"
    text += f" test cases, seed{'s' if len(seeds) > 1 else ''} {numbers}"
    few = "; so few cases that the interval is too narrow" if 1 < count < FEW_CASES else ""
    return text + few


def draw(path: Path, rows: Sequence[Row]) -> None:
    """The curves as a PNG, a panel for each run; bars are 95 % intervals over cases."""
    runs = _by_run(rows)
    across = min(PANELS_ABREAST, len(runs))
    down = -(-len(runs) // across)
    figure = new_figure(4.6 * across, 4.2 * down)
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for axes, (run, here) in zip(panels, runs.items(), strict=False):
        _draw_run(axes, run, here)
    for axes in panels[len(runs) :]:
        axes.set_visible(False)
    save_figure(figure, path)


def _draw_run(axes: Any, run: str, rows: Sequence[Row]) -> None:
    count, etas = rows[0]["scored_cases"], _etas(rows)
    lines = [*wrap(run, TITLE_CHARACTERS), *wrap(_settings(rows[0]), TITLE_CHARACTERS)]
    chart(axes, "\n".join(lines), "DDIM steps")
    label = f"Dice, mean and 95 % interval of {count} cases" if count > 1 else "Dice of one case"
    axes.set_ylabel(label, color=FAINT, fontsize=9)
    for number, eta in enumerate(etas):
        line = of_eta(rows, eta)
        steps, means, below, above = [], [], [], []
        for step in sorted({row["steps"] for row in line}):
            dice = list(by_case([row for row in line if row["steps"] == step], "dice").values())
            if not dice:
                continue
            mean, (low, high) = fmean(dice), bootstrap_ci95(dice)
            steps.append(step * APART ** (number - (len(etas) - 1) / 2))
            means.append(mean)
            below.append(0.0 if low is None else mean - low)
            above.append(0.0 if high is None else high - mean)
        style = {"color": COLOURS[number % len(COLOURS)], "marker": "os^D"[number % 4]}
        bounds = (below, above)
        axes.errorbar(steps, means, bounds, capsize=3, markersize=5, label=f"eta {eta:g}", **style)
    ticks = sorted({row["steps"] for row in rows})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [str(step) for step in ticks])
    axes.minorticks_off()
    axes.margins(x=0.08, y=0.15)
    legend(axes)


def _case_counts(text: str, runs: int) -> list[int | None]:
    """One number for all runs, or one for each."""
    counts = [None if word == "all" else int(word) for word in text.split(",")]
    if any(count is not None and count < 1 for count in counts):
        raise SystemExit("--cases: give at least 1.")
    if len(counts) not in (1, runs):
        raise SystemExit(f"--cases: give one number, or one for each of the {runs} runs.")
    return counts * runs if len(counts) == 1 else counts


def main() -> None:
    """Measure what is not in the file yet, then print the table of all that was asked for."""
    parser = command(__doc__)
    parser.add_argument("--workspace", type=Path, required=True, help="with prepared/ and runs/")
    parser.add_argument("--runs", required=True, help="DATASET/NAME of trained runs, with commas")
    parser.add_argument("--steps", default="1,2,5,10,20", help="DDIM steps, with commas")
    parser.add_argument("--eta", default="0,1", help="in 0..1, with commas")
    parser.add_argument("--seeds", default="0", help="with commas")
    parser.add_argument(
        "--cases", default="all", help="the first N test cases; for all runs or each, with commas"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--picture", type=Path, help="PNG of the curves")
    args = parser.parse_args()
    results, device, names = Results(args.out), choose_device(args.device), args.runs.split(",")
    counts = _case_counts(args.cases, len(names))
    steps = [int(word) for word in args.steps.split(",")]
    etas = [float(word) for word in args.eta.split(",")]
    subjects = [
        Subject(args.workspace, name, device, count)
        for name, count in zip(names, counts, strict=True)
    ]
    rows: list[Row] = []
    for seed in map(int, args.seeds.split(",")):  # all runs once, before any a second time
        for subject in subjects:
            rows += rows_of(subject, results, steps, etas, seed)
    print(table(rows))
    if args.picture and rows:
        draw(args.picture, rows)


if __name__ == "__main__":
    with told():
        main()
