r"""What a threshold from the validation cases is worth, on runs that were trained without.

    python -m benchmarks.threshold --workspace FOLDER --runs kseg/one,openkbp/other --out out.json

A run's best weights predict the validation slices as it predicts by default, and the test cases are
scored at 0.5 and with the threshold that has the highest Dice there. `train.threshold =
"validation"` does so with each validation, by the decoder of training, and may choose other
weights. Resumable.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.ablations import case_mean, found_share
from benchmarks.comparison_table import by_case, paired_difference, with_interval
from benchmarks.results import Results, Row, command, machine, told
from sdseg_cli.core.config import THRESHOLD
from sdseg_cli.data.manifest import Manifest
from sdseg_cli.evaluation.evaluate import evaluate
from sdseg_cli.evaluation.evaluation_split import SplitOptions
from sdseg_cli.inference.decoders import choose_decoder
from sdseg_cli.inference.engine import decoded_by
from sdseg_cli.model.distributed import Ranks
from sdseg_cli.model.weights import WeightStore
from sdseg_cli.runs.checkpoint import Checkpoint
from sdseg_cli.runs.package import networks_of
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training.batches import evenly_spaced, open_split
from sdseg_cli.training.step import THRESHOLDS, Validation, validation

CPU = torch.device("cpu")


def on_validation(run: RunDir, manifest: Manifest) -> Validation:
    """The threshold that suits the best weights, and their validation Dice with it."""
    best, slices = Checkpoint.load(run.best), open_split(manifest, "val")
    model = networks_of(best, CPU, source=str(run.path))
    model.threshold = THRESHOLD  # raw probabilities are compared
    positions = evenly_spaced(slices, run.config().train.validation_slices)
    decoder = choose_decoder("auto", run.path, best, model, WeightStore.default())
    with decoded_by(model, decoder):
        return validation(
            model, slices, positions, (), Ranks(), batch_size=4, thresholds=THRESHOLDS
        )


def scored(run: RunDir, threshold: float, workspace: Path) -> Row:
    """The test cases' scores, by the best weights with this threshold."""
    best = Checkpoint.load(run.best)
    with tempfile.TemporaryDirectory() as folder:
        copy = RunDir(Path(folder) / run.path.name)
        unneeded = shutil.ignore_patterns("predictions", "report", "latents", "best.pt*", "step*")
        shutil.copytree(run.path, copy.path, ignore=unneeded)
        replace(best, best={**best.best, "threshold": threshold}).save(copy.best)
        report = evaluate(copy.path, workspace, cases=SplitOptions(device="cpu")).to_json()
    return {"threshold": threshold, "decoder": report["decoder"], "cases": report["cases"]}


def measured(name: str, workspace: Path) -> Row:
    """A run, at 0.5 and with its own threshold."""
    dataset, _, folder = name.partition("/")
    run, manifest = RunDir(workspace / "runs" / dataset / folder), Manifest.find(workspace, dataset)
    found = on_validation(run, manifest)
    return {
        "validation_dice": found.dice,
        "half": scored(run, THRESHOLD, workspace),
        "own": scored(run, found.threshold, workspace),
        **machine(CPU),
    }


def table(rows: dict[str, Row]) -> str:
    """Markdown: two lines a run."""
    lines = ["| run | threshold | test Dice | less 0.5 | precision | recall | found / true |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        half = by_case([row["half"]], "dice")
        for key in ("half", "own"):
            dice = by_case([row[key]], "dice")
            cells = [name, f"{row[key]['threshold']:.2f}", with_interval(dice)]
            cells.append("-" if key == "half" else paired_difference(half, dice))
            cells += [f"{case_mean(row[key], metric):.2f}" for metric in ("precision", "recall")]
            cells.append(f"{found_share(row[key]):.2f}")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing in the file, and print the table of the runs asked for."""
    parser = command(__doc__)
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--runs", required=True, help="DATASET/RUN, with commas")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    results, names = Results(args.out), args.runs.split(",")
    if wrong := [name for name in names if not all(name.partition("/"))]:
        parser.error(f"--runs: {', '.join(wrong)}; give DATASET/RUN")
    rows = {
        name: results.measure(name, lambda one=name: measured(one, args.workspace))  # type: ignore[misc]
        for name in names
    }
    print(table({name: row for name, row in rows.items() if "error" not in row}))


if __name__ == "__main__":
    with told():
        main()
