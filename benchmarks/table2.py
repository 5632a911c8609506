r"""Table 2 of the paper, on one's own data: SDSeg and baselines after equal seconds of training.

    python -m benchmarks.table2 --workspace FOLDER --datasets openkbp,kseg --seconds 600 \
        --seeds 0,1,2 --out table2.json

The seconds are those the processor works (on a GPU, those that pass), so that other jobs on the
machine take nothing from anybody. A model's steps are measured first and so many are trained as
fit, with the schedule over all of them: a run is then repeatable, which one that is cut off by a
clock is not. What it really took stands in its row, with validations, as many for each, and with
what SDSeg spends on the latents of masks it meets for the first time.

Resumable: rows that are in the file are not made again, and a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median

import torch

from benchmarks.results import Results, Row, clock, machine
from sdseg_cli.config import RunConfig
from sdseg_cli.datasets.manifest import Manifest
from sdseg_cli.evaluate import evaluate
from sdseg_cli.metrics.paired import paired
from sdseg_cli.metrics.statistics import bootstrap_ci95
from sdseg_cli.model.arithmetic import gflop
from sdseg_cli.model.store import WeightStore
from sdseg_cli.networks import SDSEG, models
from sdseg_cli.predict import Predictor
from sdseg_cli.presets import for_network, preset
from sdseg_cli.splits import open_split
from sdseg_cli.train import train
from sdseg_cli.training.batches import spread
from sdseg_cli.training.checkpoint import Checkpoint
from sdseg_cli.training.inference import Inference
from sdseg_cli.training.initialise import step_zero
from sdseg_cli.training.latents import open_latents
from sdseg_cli.training.package import networks_of
from sdseg_cli.training.run_folder import RunDir
from sdseg_cli.training.runtime import choose_device
from sdseg_cli.training.sampling import predict_planes
from sdseg_cli.training.steps import StepSource
from sdseg_cli.training.trainer import Trainer

WARM, MEASURED = 3, 12
"""Steps before the clock counts, and steps whose median is a step's time."""
VALIDATIONS = 6
METRICS = {"dice": "Dice", "iou": "IoU", "hd95_mm": "HD95 (mm)", "hd95": "HD95 (px)"}


@dataclass(frozen=True)
class Task:
    """One row of the file."""

    workspace: Path
    dataset: str
    model: str
    seed: int
    preset: str
    seconds: float
    device: torch.device

    @property
    def name(self) -> str:
        return f"{self.dataset}/{self.model}-{self.preset}/{self.seconds:g}s/seed{self.seed}"

    @property
    def manifest(self) -> Manifest:
        return Manifest.find(self.workspace, self.dataset)

    @property
    def run(self) -> RunDir:
        folder = f"table2-{self.model}-{self.preset}-{self.seconds:g}s-seed{self.seed}"
        return RunDir(self.workspace / "runs" / self.dataset / folder)

    def clock(self) -> float:
        """Seconds, as `results.clock` counts them."""
        return clock(self.device)

    def config(self, steps: int | None = None) -> RunConfig:
        """The preset for this model; with `steps`, schedule and validations over all of them."""
        config = for_network(preset(self.preset), self.model)
        config = replace(config, dataset=self.dataset, seed=self.seed)
        if steps is None:
            return config
        every = max(1, steps // VALIDATIONS)
        recipe = replace(
            config.train,
            steps=steps,
            warmup_steps=min(config.train.warmup_steps, steps // 10),
            validate_every=every,
            checkpoint_every=every,
        )
        return replace(config, train=recipe)


def fitting_steps(seconds: float, seconds_per_step: float) -> int:
    """How many steps fit, at least one."""
    return max(1, int(seconds / seconds_per_step))


def step_seconds(task: Task) -> Row:
    """The median time of a training step, of fresh weights."""
    config, slices = task.config(), open_split(task.manifest, "train")
    trainer = Trainer(config, step_zero(config, {}, slices, WeightStore.default()), task.device)
    shape, taken = trainer.model.latent_shape(*slices.plane), []
    with tempfile.TemporaryDirectory() as folder:
        latents = open_latents([Path(folder)], slices, trainer.model, {}, task.device)
        source = StepSource(config, slices, latents, shape)
        for step in range(WARM + MEASURED):
            trainer.train_step(source.inputs(step), latents).row()  # SDSeg keeps the masks' latents
            started = task.clock()
            trainer.train_step(source.inputs(step), latents).row()
            taken.append(task.clock() - started)
    return {"seconds_per_step": median(taken[WARM:]), **machine(task.device)}


def measured(task: Task, seconds_per_step: float) -> Row:
    """Train, score the test cases, and see how fast the model predicts."""
    steps = fitting_steps(task.seconds, seconds_per_step)
    begun, reached = task.clock(), [task.clock()]
    config = task.config(steps)
    report = train(
        config,
        task.manifest,
        task.run,
        device=task.device.type,
        watch=lambda _: reached.append(task.clock()),
    )
    if report.state != "finished":
        raise KeyboardInterrupt  # asked to stop: the same command goes on
    here = report.step - report.begun
    scores = evaluate(task.run.path, task.workspace, device=task.device.type).to_json()
    # After a stop only the last part was watched, and stands for the whole.
    share = steps / here if here else None
    return {
        "dataset": task.dataset,
        "model": task.model,
        "preset": task.preset,
        "seed": task.seed,
        "steps": steps,
        "budget_s": task.seconds,
        "training_s": None if share is None else (reached[-1] - begun) * share,
        "val_dice": report.best.get("val_dice"),
        "origin": report.origin,
        "decoder": scores["decoder"],
        "cases": scores["cases"],
        "excluded": scores["excluded"],
        **size_and_speed(task),
        **machine(task.device),
    }


def size_and_speed(task: Task, count: int = 16) -> Row:
    """Weights, GFLOP per slice, and slices per second of the trained model, as it predicts."""
    predictor, slices = (
        Predictor(task.run.path, device=task.device.type),
        open_split(task.manifest, "test"),
    )
    # Winograd's filters are copies of weights: they are counted in networks that have none.
    plain = networks_of(Checkpoint.load(task.run.best), task.device, source=str(task.run.path))
    plain.mask_decoder = predictor.model.mask_decoder
    sample = predictor.config.sample
    chosen = spread(slices, count)[:count]
    pixels = slices.batch(chosen).image
    first = pixels[:1].to(task.device)
    used = [value for part in plain.predicting_parts() for value in part.parameters()]
    ask = Inference(predictor.model)
    ask(predict_planes, pixels[:1].numpy(), [0], seed=0, sample=sample)
    started, worked = time.perf_counter(), task.clock()
    ask(predict_planes, pixels.numpy(), chosen, seed=0, sample=sample)
    worked, passed = task.clock() - worked, time.perf_counter() - started
    return {
        "parameters": sum(value.numel() for value in used),
        "gflop_per_slice": gflop(lambda: predict_planes(plain, first, [0], seed=0, sample=sample)),
        "slices_per_s": len(chosen) / passed,
        "seconds_per_slice": worked / len(chosen),
    }


def by_case(rows: Sequence[Row], metric: str) -> dict[str, float]:
    """Case -> the mean over seeds; a case without a value in some seed is left out."""
    found: dict[str, list[float | None]] = {}
    for row in rows:
        for case in row["cases"]:
            found.setdefault(case["id"], []).append(case.get(metric))
    whole = {key: [v for v in values if v is not None] for key, values in found.items()}
    return {key: fmean(values) for key, values in whole.items() if len(values) == len(rows)}


def paired_difference(ours: dict[str, float], theirs: dict[str, float]) -> str:
    """Mean of theirs less ours over the cases of both, its 95 % interval, and p if there is one."""
    cases = list(dict.fromkeys([*ours, *theirs]))
    found = paired([ours.get(one) for one in cases], [theirs.get(one) for one in cases], "higher")
    if found.difference is None:
        return "-"
    p = "" if found.p is None else f", p {found.p:.2g}"
    return _interval(found.difference, found.ci95, "+.3f") + p


def table(rows: Sequence[Row]) -> str:
    """Table 2's form, in Markdown: one block per data set, a line per model."""
    lines: list[str] = []
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        here = [row for row in rows if row["dataset"] == dataset]
        shown = {key: text for key, text in METRICS.items() if any(by_case(here[:1], key))}
        head = [dataset, *shown.values(), f"Dice less {SDSEG}'s", "weights (M)", "GFLOP/slice"]
        head += ["slices/s", "steps", "seconds", "seeds"]
        lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        ours = by_case([row for row in here if row["model"] == SDSEG], "dice")
        for model in dict.fromkeys(row["model"] for row in here):
            mine = [row for row in here if row["model"] == model]
            cells = [model, *(with_interval(by_case(mine, key)) for key in shown)]
            mean_dice = by_case(mine, "dice")
            cells.append("-" if model == SDSEG else paired_difference(ours, mean_dice))
            cells += [f"{mine[0]['parameters'] / 1e6:.2f}", f"{mine[0]['gflop_per_slice']:.2f}"]
            cells += [f"{median(row['slices_per_s'] for row in mine):.2f}", str(mine[0]["steps"])]
            seconds = [row["training_s"] for row in mine if row["training_s"] is not None]
            cells += [f"{fmean(seconds):.0f}" if seconds else "-", str(len(mine))]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines).lstrip("\n")


def with_interval(values: dict[str, float]) -> str:
    """Mean over cases and its 95 % interval; "-" without a case."""
    found = list(values.values())
    return _interval(fmean(found), bootstrap_ci95(found), ".3f") if found else "-"


def _interval(mean: float, bounds: tuple[float | None, float | None], form: str) -> str:
    low, high = bounds
    return format(mean, form) + (
        "" if low is None or high is None else f" ({low:{form}} to {high:{form}})"
    )


def main() -> None:
    """Measure what is not in the file yet, then print the table of all that is."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workspace", type=Path, required=True, help="folder with prepared/")
    parser.add_argument("--datasets", required=True, help="prepared names, with commas")
    parser.add_argument("--models", default=",".join(models()), help="with commas")
    parser.add_argument("--seconds", type=float, default=600.0, help="of training, for each")
    parser.add_argument("--seeds", default="0", help="with commas")
    parser.add_argument("--preset", default="tiny", help="tiny or sd")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    results, device = Results(args.out), choose_device(args.device)
    rows: list[Row] = []
    for seed in map(int, args.seeds.split(",")):  # all models once, before any a second time
        for dataset in args.datasets.split(","):
            for model in args.models.split(","):
                task = Task(args.workspace, dataset, model, seed, args.preset, args.seconds, device)
                timed = f"step/{dataset}/{model}-{args.preset}"
                step = results.measure(timed, lambda task=task: step_seconds(task))  # type: ignore[misc]
                row = results.measure(
                    task.name,
                    lambda task=task, step=step: measured(task, step["seconds_per_step"]),  # type: ignore[misc]
                )
                rows += [row] if "error" not in row else []
    print(table(rows))


if __name__ == "__main__":
    main()
