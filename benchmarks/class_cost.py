r"""What several classes cost: a training step and a prediction of K classes against those of one.

    OMP_NUM_THREADS=1 python -m benchmarks.class_cost --workspace FOLDER --several op7 --one op1 \
        --out cost.json

Both sets hold the same slices. Trainings of `tiny` take turns, so that a noisy machine slows all
alike; a figure is the median of the processor's seconds. Latents that are kept are there before the
clock counts. Predictions are those of the fast decoder, with weights as a training starts from.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import torch

from benchmarks.results import Results, Row, clock, command, machine
from sdseg_cli.core.config import RunConfig
from sdseg_cli.core.presets import for_classes, preset
from sdseg_cli.data.manifest import Manifest
from sdseg_cli.inference.decoders import find_mask_decoder
from sdseg_cli.inference.engine import Inference, predict_planes
from sdseg_cli.model.runtime import gflop
from sdseg_cli.model.sdseg import has_latents
from sdseg_cli.model.weights import WeightStore
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training.batches import StepSource, evenly_spaced, open_split
from sdseg_cli.training.initialise import initial_checkpoint, initial_model
from sdseg_cli.training.latents import open_latents
from sdseg_cli.training.objective import decoder_to_train_through
from sdseg_cli.training.step import Trainer

CPU = torch.device("cpu")
SLICES = 20


def variants(one: Manifest, several: Manifest) -> dict[str, tuple[Manifest, RunConfig]]:
    """Name -> the set and the settings of a training."""
    classes, tiny = several.classes, preset("tiny")
    many = for_classes(tiny, len(classes), overlapping=classes.overlapping)
    pixels = replace(tiny, train=replace(tiny.train, mask_loss_weight=1.0))
    whole = replace(many, train=replace(many.train, shortcuts=False))
    plain = {
        "one class": (one, tiny),
        "one class, and the mask's loss": (one, pixels),
        f"{len(classes)} classes": (several, many),
        f"{len(classes)} classes, no shortcuts": (several, whole),
    }
    moved = {
        f"{name}, augment=light": (where, replace(of, train=replace(of.train, augment="light")))
        for name, (where, of) in plain.items()
    }
    return plain | moved


def next_step(manifest: Manifest, config: RunConfig, folder: Path) -> Callable[[], float]:
    """What does the next step and says how long it took."""
    slices, store = open_split(manifest, "train"), WeightStore.default()
    state = initial_checkpoint(config, {}, slices, store)
    decoder = decoder_to_train_through(config, state.weights, RunDir(folder / "run"), store)
    trainer = Trainer(config, state, CPU, decoder=decoder)
    latents = open_latents([folder], slices, trainer.model, {}, CPU)
    source = StepSource(config, slices, latents, trainer.model.latent_shape(*slices.plane))

    def timed() -> float:
        number = trainer.step
        trainer.train_step(source.inputs(number), latents).row()  # keeps the masks' latents
        started = clock(CPU)
        trainer.train_step(source.inputs(number), latents).row()
        return clock(CPU) - started

    return timed


def prediction(manifest: Manifest, config: RunConfig) -> tuple[Callable[[], float], float]:
    """What predicts some slices and says how long it took, and GFLOP of one."""
    slices, store = open_split(manifest, "test"), WeightStore.default()
    model, _ = initial_model(config, store, open_split(manifest, "train"))
    if not has_latents(model):
        raise TypeError("SDSeg alone has a fast decoder")
    model.eval()
    model.mask_decoder = find_mask_decoder(model.autoencoder, config.model.autoencoder, store)
    chosen = evenly_spaced(slices, SLICES)[:SLICES]
    pixels = slices.batch(chosen).image
    ask = Inference(model)

    def timed() -> float:
        started = clock(CPU)
        ask(predict_planes, pixels.numpy(), chosen, seed=0, sample=config.sample)
        return clock(CPU) - started

    one = partial(predict_planes, model, pixels[:1], [0], seed=0, sample=config.sample)
    return timed, gflop(one)


def measured(one: Manifest, several: Manifest, rounds: int) -> Row:
    """Medians of all variants, in seconds."""
    found = variants(one, several)
    with tempfile.TemporaryDirectory() as folder:
        steps = {
            name: next_step(where, config, Path(folder) / str(number))
            for number, (name, (where, config)) in enumerate(found.items())
        }
        taken: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(rounds):
            for name, step in steps.items():
                taken[name].append(step())
    names = list(found)
    asks = {name: prediction(*found[name]) for name in (names[0], names[2])}
    for name in asks:
        taken[f"{SLICES} slices, {name}"] = []
    for _ in range(rounds):
        for name, (ask, _) in asks.items():
            taken[f"{SLICES} slices, {name}"].append(ask())
    return {
        "seconds": {name: median(values) for name, values in taken.items()},
        "gflop_per_slice": {name: amount for name, (_, amount) in asks.items()},
        **machine(CPU),
    }


def table(row: Row) -> str:
    """Markdown: a training step of each kind, and a prediction, against one class."""
    seconds = row["seconds"]
    lines = ["| | s | times one class |", "|---|---|---|"]
    for name, taken in seconds.items():
        prefix = f"{SLICES} slices, " if name.startswith(f"{SLICES} slices") else ""
        light = ", augment=light" if name.endswith("augment=light") else ""
        base = seconds[f"{prefix}one class{light}"]
        lines.append(f"| {name} | {taken:.2f} | {taken / base:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print the table."""
    parser = command(__doc__, workspace=True)
    parser.add_argument("--several", required=True, help="prepared set of several classes")
    parser.add_argument("--one", required=True, help="the same slices, prepared with one class")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    one, several = (Manifest.find(args.workspace, name) for name in (args.one, args.several))
    results = Results(args.out)
    print(table(results.measure("cost", lambda: measured(one, several, args.rounds))))


if __name__ == "__main__":
    main()
