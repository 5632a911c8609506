r"""Table 2 of the paper, on one's own data: SDSeg and baselines after equal seconds of training.

    python -m benchmarks.table2 --workspace FOLDER --datasets openkbp,kseg --seconds 600 \
        --seeds 0,1,2 --out table2.json

The seconds are those the processor works (on a GPU, those that pass), so that other jobs on the
machine take nothing from anybody. A model's steps are measured first and so many are trained as
fit, with the schedule over all of them: a run is then repeatable, which one that is cut off by a
clock is not. What it really took stands in its row, with validations, as many for each, and with
what SDSeg spends on the latents of masks it meets for the first time.

Of several classes a case's metrics are the means over its classes, as in `sdseg evaluate`.

Models are the preset's; `--set` changes settings of all of them, or of one:

    --set train.batch_size=16 --set sdseg:model.unet.model_channels=96 --set unet:model.scale=sd

Resumable: rows that are in the file are not made again, and a run that was stopped goes on. Steps
are timed once a file, so each machine has a file of its own.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from itertools import product
from pathlib import Path
from statistics import median

import torch

from benchmarks.comparison_table import table
from benchmarks.gpu_steps import seconds_in_a_row
from benchmarks.results import Results, Row, clock, command, machine, seconds_per_call, told
from sdseg_cli.core.config import RunConfig, models
from sdseg_cli.core.config_file import from_dict, parse_assignment
from sdseg_cli.core.errors import ConfigError
from sdseg_cli.core.presets import for_classes, for_network, preset
from sdseg_cli.data.manifest import Manifest
from sdseg_cli.evaluation.evaluate import evaluate
from sdseg_cli.evaluation.evaluation_split import SplitOptions
from sdseg_cli.inference.engine import Inference, predict_planes
from sdseg_cli.inference.predictor import Predictor
from sdseg_cli.model.runtime import choose_device, gflop
from sdseg_cli.model.weights import WeightStore
from sdseg_cli.runs.checkpoint import Checkpoint
from sdseg_cli.runs.package import networks_of
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training.batches import StepSource, evenly_spaced, open_split
from sdseg_cli.training.calibration import calibrate
from sdseg_cli.training.initialise import initial_checkpoint
from sdseg_cli.training.latents import open_latents
from sdseg_cli.training.objective import decoder_to_train_through
from sdseg_cli.training.step import Trainer
from sdseg_cli.training.train import train

WARM, MEASURED = 3, 12
"""Steps before the clock counts, and steps whose median is a step's time."""
IN_A_ROW, GPU_BUDGET_S = 100, 2.0
"""On a GPU: steps whose mean is a step's time, and for how long predictions are timed."""
VALIDATIONS = 6
DECIDED = {"dataset", "preset", "seed"}
DECIDED |= {f"train.{key}" for key in ("steps", "validate_every", "checkpoint_every")}
"""Not for `--set`: the other options and the budget say it."""


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
    settings: tuple[str, ...] = ()
    """`KEY=VALUE` over the preset."""

    @property
    def sizes(self) -> str:
        """Model, preset and settings, for names of rows."""
        changed = f"[{','.join(self.settings)}]" if self.settings else ""
        return f"{self.model}-{self.preset}{changed}"

    @property
    def name(self) -> str:
        return f"{self.dataset}/{self.sizes}/{self.seconds:g}s/seed{self.seed}"

    @property
    def manifest(self) -> Manifest:
        return Manifest.find(self.workspace, self.dataset)

    @property
    def run(self) -> RunDir:
        # Settings may hold what no folder's name may.
        changed = sha256("\n".join(self.settings).encode()).hexdigest()[:8]
        sizes = f"{self.model}-{self.preset}" + (f"-{changed}" if self.settings else "")
        folder = f"table2-{sizes}-{self.seconds:g}s-seed{self.seed}"
        return RunDir(self.workspace / "runs" / self.dataset / folder)

    def clock(self) -> float:
        """Seconds, as `results.clock` counts them."""
        return clock(self.device)

    def config(self, steps: int | None = None) -> RunConfig:
        """The preset for this model; with `steps`, schedule and validations over all of them."""
        config, classes = for_network(preset(self.preset), self.model), self.manifest.classes
        config = for_classes(config, len(classes), overlapping=classes.overlapping)
        for text in self.settings:
            config = from_dict(parse_assignment(text), config, source="--set")
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


def fitting_steps(budget_s: float, seconds_per_step: float) -> int:
    """How many steps fit, at least one."""
    return max(1, int(budget_s / seconds_per_step))


def step_seconds(task: Task) -> Row:
    """The median time of a training step, of fresh weights."""
    config, slices, store = task.config(), open_split(task.manifest, "train"), WeightStore.default()
    state = initial_checkpoint(config, {}, slices, store)
    decoder = decoder_to_train_through(config, state.weights, task.run, store)
    trainer = Trainer(config, state, task.device, decoder=decoder)
    shape, taken = trainer.model.latent_shape(*slices.plane), []
    with tempfile.TemporaryDirectory() as folder:
        latents = open_latents([Path(folder)], slices, trainer.model, {}, task.device)
        source = StepSource(config, slices, latents, shape)
        if task.device.type == "cuda":
            per_step = seconds_in_a_row(trainer, source, latents, IN_A_ROW)
            return {"seconds_per_step": per_step, **machine(task.device)}
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
        on_step=lambda _: reached.append(task.clock()),
    )
    if report.state != "finished":
        raise KeyboardInterrupt  # asked to stop: the same command goes on
    calibrate(task.run, task.manifest, device=task.device.type, on_warning=lambda finding: None)
    here = report.step - report.begun
    scores = evaluate(
        task.run.path, task.workspace, cases=SplitOptions(device=task.device.type)
    ).to_json()
    # After a stop only the last part was watched, and stands for the whole.
    share = steps / here if here else None
    return {
        "dataset": task.dataset,
        "model": task.model,
        "preset": task.preset,
        "settings": list(task.settings),
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
    chosen = evenly_spaced(slices, count)[:count]
    pixels = slices.batch(chosen).image
    first = pixels[:1].to(task.device)
    used = [value for part in plain.predicting_parts() for value in part.parameters()]
    ask = Inference(predictor.model)
    whole = partial(ask, predict_planes, pixels.numpy(), chosen, seed=0, sample=sample)
    if task.device.type == "cuda":  # all in milliseconds, the first time in many more
        worked = passed = seconds_per_call(whole, task.device, GPU_BUDGET_S)
    else:
        ask(predict_planes, pixels[:1].numpy(), [0], seed=0, sample=sample)
        started, worked = time.perf_counter(), task.clock()
        whole()
        worked, passed = task.clock() - worked, time.perf_counter() - started
    return {
        "parameters": sum(value.numel() for value in used),
        "gflop_per_slice": gflop(lambda: predict_planes(plain, first, [0], seed=0, sample=sample)),
        "slices_per_s": len(chosen) / passed,
        "seconds_per_slice": worked / len(chosen),
    }


def settings_of(model: str, assigned: Sequence[str]) -> tuple[str, ...]:
    """Those of `--set` that a model gets: `KEY=VALUE` is for all, `MODEL:KEY=VALUE` for one.

    Raises:
        ConfigError: There is no such model, or the budget decides the key.
    """
    mine = []
    for text in assigned:
        start, equals, value = text.partition("=")
        owner, _, key = start.rpartition(":")
        if owner and owner not in models():
            raise ConfigError(
                f'--set {text}: there is no model "{owner}".', f"Choose of {', '.join(models())}."
            )
        if key.strip() in DECIDED:
            raise ConfigError(
                f"--set {text}: {key} follows from the other options.", "Leave it out."
            )
        mine += [f"{key}{equals}{value}"] if owner in ("", model) else []
    return tuple(mine)


def row_of(task: Task, results: Results) -> Row:
    """The row of a task, made where it is missing; of a model that does not fit into the GPU's
    memory it holds an "error".
    """
    timed = f"step/{task.dataset}/{task.sizes}"
    step = results.measure(timed, lambda: step_seconds(task))
    if "error" in step:
        return step
    return results.measure(task.name, lambda: measured(task, step["seconds_per_step"]))


def main() -> None:
    """Measure what is not in the file yet, then print the table of all of this preset and budget
    that is.
    """
    parser = command(__doc__)
    parser.add_argument("--workspace", type=Path, required=True, help="folder with prepared/")
    parser.add_argument("--datasets", required=True, help="prepared names, with commas")
    parser.add_argument("--models", default=",".join(models()), help="with commas")
    parser.add_argument("--seconds", type=float, default=600.0, help="of training, for each")
    parser.add_argument("--seeds", default="0", help="with commas")
    parser.add_argument("--preset", default="tiny", help="tiny or sd")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="assigned",
        metavar="[MODEL:]KEY=VALUE",
        help="a setting, as of `sdseg train --set`",
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    results, device = Results(args.out), choose_device(args.device)
    names, sets = args.models.split(","), args.datasets.split(",")
    own = {model: settings_of(model, args.assigned) for model in names}
    # All models once, before any a second time.
    tasks = [
        Task(args.workspace, dataset, model, seed, args.preset, args.seconds, device, own[model])
        for seed, dataset, model in product(map(int, args.seeds.split(",")), sets, names)
    ]
    for task in tasks:
        task.config()  # what is wrong is refused before hours are spent
    for task in tasks:
        row_of(task, results)
    budget = {"preset": args.preset, "budget_s": args.seconds}
    print(table([row for row in results.rows.values() if budget.items() <= row.items()]))


if __name__ == "__main__":
    with told():
        main()
