r"""Correct and continue, simulated: which scans are labelled next, and what that is worth.

    OMP_NUM_THREADS=1 python -m benchmarks.active_learning --workspace FOLDER --dataset op1 \
        --set train.mask_loss_weight=1 --out active.json

A few training cases of a prepared set are labelled, the others' labels are hidden. In each round
some more are: those that `sdseg next` would list first (their masks depend most on the noise), or
as many at random. Then the run goes on as `sdseg train --add` does, with as many steps for both,
and the set's test cases judge it. Both begin with the same run. Resumable, round by round.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.results import Results, Row, command, told
from sdseg_cli.core.config import RunConfig
from sdseg_cli.core.config_file import from_dict, parse_assignment
from sdseg_cli.core.presets import for_classes, preset
from sdseg_cli.data.extend import extended
from sdseg_cli.data.manifest import Manifest, PreparedCase, Staging, link_or_copy
from sdseg_cli.data.spec import Case
from sdseg_cli.data.split import split_sha256
from sdseg_cli.evaluation.evaluate import evaluate
from sdseg_cli.evaluation.evaluation_split import SplitOptions
from sdseg_cli.inference.options import OutputPaths, PredictOptions
from sdseg_cli.inference.predict import predict_file
from sdseg_cli.inference.predictor import Predictor
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training.calibration import calibrate
from sdseg_cli.training.correct import continued
from sdseg_cli.training.train import train

WAYS = ("next", "random")
DRAWS = 3


def started(manifest: Manifest, count: int, seed: int) -> Manifest:
    """The set with so many of its training cases, beside it."""
    train = manifest.cases("train")
    kept = set(random.Random(seed).sample([case.id for case in train], count))
    entries = tuple(c for c in manifest.entries if c.split != "train" or c.id in kept)
    name = f"{manifest.name}-{count}of{len(train)}-seed{seed}"
    staging = Staging(manifest.root.with_name(name))
    split = manifest.split | {"sha256": split_sha256({c.id: c.split for c in entries})}
    few = replace(manifest, name=name, root=staging.final, entries=entries, split=split)
    if not staging.is_current(few.to_text()):
        for case in entries:
            target = staging.building / "cases" / case.id
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(manifest.root / case.folder, target, copy_function=link_or_copy)
        staging.publish(few.to_text(), {case.id for case in entries}, ())
    return few


def chosen(way: str, pool: list[PreparedCase], run: RunDir, count: int, seed: int) -> list[str]:
    """Ids of the cases to label next."""
    if way == "random":
        return random.Random(seed).sample([case.id for case in pool], count)
    predictor, flipped = Predictor(run.path, device="cpu"), {}
    with tempfile.TemporaryDirectory() as folder:
        for case in pool:
            out = OutputPaths(Path(folder) / "mask.nii.gz")
            report = predict_file(case.image, out, predictor, PredictOptions(runs=DRAWS))
            found = report.stability.flipped if report.stability is not None else None
            flipped[case.id] = found or 0.0
    return sorted(flipped, key=lambda id: -flipped[id])[:count]


def judged(config: RunConfig, manifest: Manifest, run: RunDir) -> Row:
    """Train; the number of labelled cases and the mean Dice of the test cases."""
    report = train(config, manifest, run, device="cpu")
    if report.state != "finished":
        raise KeyboardInterrupt  # asked to stop: the same command goes on
    calibrate(run, manifest, device="cpu", on_warning=lambda finding: None)
    workspace = manifest.root.parents[1]
    scores = evaluate(run.path, workspace, cases=SplitOptions(device="cpu")).to_json()
    labelled = len(manifest.cases("train"))
    return {"labelled": labelled, "dice": float(scores["metrics"]["dice"]["mean"])}


@dataclass(frozen=True)
class Simulation:
    """The settings of all rounds, and what is known of them."""

    whole: Manifest
    results: Results
    add: int
    more_steps: int
    seed: int

    def run_of(self, manifest: Manifest, way: str) -> RunDir:
        """The run of a round."""
        return RunDir(manifest.root.parents[1] / "runs" / manifest.name / way)

    def turn(self, way: str, number: int, manifest: Manifest, run: RunDir) -> tuple[Manifest, Row]:
        """One round: the set with the cases that were chosen, and how its run does."""
        there = {case.id for case in manifest.entries}
        pool = [case for case in self.whole.cases("train") if case.id not in there]
        seed = self.seed + number
        picked = self.results.measure(
            f"{way}/{number}/chosen", lambda: {"ids": chosen(way, pool, run, self.add, seed)}
        )["ids"]
        cases = [Case(case.id, case.image, case.label) for case in pool if case.id in picked]
        more = extended(manifest, cases).manifest
        config = continued(run.config(), run.path.absolute(), more.name, self.more_steps)
        row = self.results.measure(
            f"{way}/{number}", lambda: judged(config, more, self.run_of(more, way))
        )
        return more, row | {"added": picked}


def main() -> None:
    """Do the rounds that are not in the file yet, and print the table."""
    parser = command(__doc__, workspace=True)
    parser.add_argument("--dataset", required=True, help="prepared set, whose labels are known")
    parser.add_argument("--start", type=int, default=5, help="labelled cases at first")
    parser.add_argument("--add", type=int, default=3, help="cases labelled in each round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=250, help="of the first run")
    parser.add_argument("--more-steps", type=int, default=120, help="of each round")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], dest="assigned", metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    whole = Manifest.find(args.workspace, args.dataset)
    config = for_classes(preset("tiny"), len(whole.classes), overlapping=whole.classes.overlapping)
    for text in args.assigned:
        config = from_dict(parse_assignment(text), config, source="--set")
    first = started(whole, args.start, args.seed)
    recipe = replace(config.train, steps=args.steps, validate_every=max(1, args.steps // 4))
    config = replace(config, dataset=first.name, seed=args.seed, train=recipe)
    rounds = Simulation(whole, Results(args.out), args.add, args.more_steps, args.seed)
    begun = rounds.run_of(first, "first")
    row = rounds.results.measure("first", lambda: judged(config, first, begun))
    lines = [f"| first | {row['labelled']} | {row['dice']:.3f} | |"]
    for way in WAYS:
        manifest, run = first, begun
        for number in range(1, args.rounds + 1):
            manifest, row = rounds.turn(way, number, manifest, run)
            run = rounds.run_of(manifest, way)
            added = ", ".join(row["added"])
            lines.append(f"| {way} | {row['labelled']} | {row['dice']:.3f} | {added} |")
    print("\n".join(["| chosen by | labelled | test Dice | added |", "|---|---|---|---|", *lines]))


if __name__ == "__main__":
    with told():
        main()
