r"""One change of the recipe at a time: the same data, steps and seeds, and what each is worth.

    python -m benchmarks.ablations collapse --workspace FOLDER --datasets openkbp,ibsi --steps 150 \
        --seeds 0,1 --split '' --out collapse.json
    python -m benchmarks.ablations table6 --workspace FOLDER --datasets msd-hippocampus,kseg \
        --steps 300 --seeds 0,1 --out table6.json

A variant is the `tiny` preset with some values changed. Rows are kept as they come; a second call
goes on, and so does a run that was stopped.

collapse: the collapse of a latent loss on sparse masks, and what cures it. Where a few latent
pixels of a thousand hold the structure, the median of what z0 may be is the empty mask, and the
mean absolute error, which asks for the median, is content with that. From there each variant
changes as little as it can. All predict z0 at t = 999.

table6: Table 6 of the paper, on one's own data: does each part help? The paper's four rows at the
sizes of the `tiny` preset, by the paper's loss, Eq. 3 at uniform t, with the velocity in place of
the noise: eps, from scratch, finds next to nothing in minutes (docs/PERFORMANCE.md, "What reaches a
Dice soonest"). The last two, lambda 0 and 1, are the runs `fig3.py` is meant for. Then the same
four by the recipe of `tiny` (z0, t = 999), where L_noise is L_latent as L1, 39 times smaller: its
fourth row shows the weighted L2, and no branch of its own.

    latent estimation   L_latent of Eq. 3; without it L_noise alone
    concatenation       the image's latent is concatenated to zt; without it, cross-attention
    trainable encoder   of the image; without it, it stays as the autoencoder's was
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.results import Results, Row, StepClock, command, machine, told
from sdseg_cli.core.config import RunConfig
from sdseg_cli.core.config_file import from_dict
from sdseg_cli.core.presets import preset
from sdseg_cli.data.manifest import Manifest
from sdseg_cli.evaluation.evaluate import evaluate
from sdseg_cli.evaluation.evaluation_split import SplitOptions
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training.calibration import calibrate
from sdseg_cli.training.train import train

VALIDATIONS = 4


@dataclass(frozen=True)
class Ablation:
    """A study: its name, and its variants by theirs."""

    name: str
    variants: Mapping[str, Mapping[str, Any]]


PAPER = {"latent_loss": "l1", "foreground_weight": 0.0, "foreground_fraction": 0.0}
COLLAPSE = Ablation(
    "collapse",
    {
        "L1 (the paper)": {"train": PAPER},
        "L1, slices with foreground oversampled": {"train": {**PAPER, "foreground_fraction": 0.75}},
        "L1, foreground weighs 21": {"train": {**PAPER, "foreground_weight": 20.0}},
        "L2": {"train": {**PAPER, "latent_loss": "l2"}},
        "L1 and the mask's Dice": {"train": {**PAPER, "mask_loss_weight": 1.0}},
        "L2, oversampled, foreground weighs 21 (tiny)": {},
        "L2, oversampled": {"train": {"foreground_weight": 0.0}},
        "tiny and the mask's Dice": {"train": {"mask_loss_weight": 1.0}},
        "L2, oversampled, and the mask's Dice": {
            "train": {"foreground_weight": 0.0, "mask_loss_weight": 1.0}
        },
        "the mask's Dice alone, oversampled": {
            "train": {"latent_loss_weight": 0.0, "mask_loss_weight": 1.0}
        },
    },
)

NOISE_ALONE = {"noise_loss_weight": 1.0, "latent_loss_weight": 0.0}
EQ_3 = {"noise_loss_weight": 1.0, "latent_loss": "l1", "foreground_weight": 0.0}
PARTS: dict[str, dict[str, Any]] = {
    "none": {
        "model": {"fusion": "cross-attention", "train_encoder": False},
        "train": NOISE_ALONE,
    },
    "concatenation": {"model": {"train_encoder": False}, "train": NOISE_ALONE},
    "concatenation, trainable encoder": {"train": NOISE_ALONE},
    "all three": {},
}


def at_uniform_t(values: dict[str, Any]) -> dict[str, Any]:
    """The same row by the paper's loss."""
    model = {**values.get("model", {}), "parameterisation": "v"}
    return {"model": model, "train": {"timesteps": "uniform", **EQ_3, **values.get("train", {})}}


TABLE6 = Ablation(
    "table6",
    {name: at_uniform_t(values) for name, values in PARTS.items()}
    | {f"{name} (z0, t = 999)": values for name, values in PARTS.items()},
)
STUDIES = {study.name: study for study in (COLLAPSE, TABLE6)}


@dataclass(frozen=True)
class Training:
    """One run of one variant."""

    study: str
    variant: str
    values: Mapping[str, Any]
    workspace: Path
    dataset: str
    steps: int
    seed: int
    split: str
    constant: bool = False
    """No cosine: over few steps its rate is down before a sparse mask is found."""

    @property
    def name(self) -> str:
        where = f"{self.dataset}/{self.variant}/{self.steps}steps{'-constant' * self.constant}"
        return f"{where}/{self.split or 'validations'}/seed{self.seed}"

    @property
    def run(self) -> RunDir:
        words = [self.study, *self.variant.split(), f"{self.steps}steps", f"seed{self.seed}"]
        words += ["constant"] * self.constant
        folder = "-".join("".join(c for c in word if c.isalnum()) for word in words)
        return RunDir(self.workspace / "runs" / self.dataset / folder)

    def config(self) -> RunConfig:
        """`tiny` over so many steps, and what the variant changes."""
        every = max(1, self.steps // VALIDATIONS)
        # The same for all: warm networks would fit some variants only.
        recipe: Row = {"init": "autoencoder", "steps": self.steps}
        recipe |= {"validate_every": every, "checkpoint_every": every}
        if self.constant:
            recipe["schedule"] = "constant"
        shared = {"dataset": self.dataset, "seed": self.seed, "train": recipe}
        base = from_dict(shared, preset("tiny"), source="benchmark")
        return from_dict(dict(self.values), base, source=self.variant)

    def measure(self) -> Row:
        """Train, and score a split, if one is named, on the scans' own grids."""
        on_step = StepClock()
        manifest = Manifest.find(self.workspace, self.dataset)
        report = train(self.config(), manifest, self.run, device="cpu", on_step=on_step)
        if report.state == "stopped":
            raise KeyboardInterrupt  # asked to stop: the same command goes on
        calibrate(self.run, manifest, device="cpu", on_warning=lambda finding: None)
        scores: Row = {"cases": []}
        if self.split:
            cases = SplitOptions(self.split, device="cpu")
            scores = evaluate(self.run.path, self.workspace, cases=cases).to_json()
        return {
            "dataset": self.dataset,
            "variant": self.variant,
            "seed": self.seed,
            "steps": self.steps,
            "split": self.split,
            "step_s": on_step.per_step,
            "val_dice": validations(self.run),
            "decoder": scores.get("decoder"),
            "cases": scores["cases"],
            **machine(torch.device("cpu")),
        }


def validations(run: RunDir) -> dict[int, float]:
    """Step -> validation Dice, of the run's log."""
    rows = [json.loads(line) for line in run.log_file.read_text().splitlines()]
    return {row["step"]: row["val_dice"] for row in rows if "val_dice" in row}


def found_share(row: Row) -> float:
    """Predicted foreground over that of the reference, in voxels: 0 is a collapse. NaN without a
    reference.
    """
    predicted = sum(case["predicted_voxels"] for case in row["cases"])
    reference: int = sum(case["reference_voxels"] for case in row["cases"])
    return float(predicted / reference) if reference else float("nan")


def case_mean(row: Row, metric: str) -> float:
    """Mean over the cases that have the metric; NaN if none has."""
    found = [case[metric] for case in row["cases"] if case.get(metric) is not None]
    return fmean(found) if found else float("nan")


def table(rows: Sequence[Row]) -> str:
    """Markdown: a block per data set, a line per variant; where there are seeds, mean and each."""
    lines: list[str] = []
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        here = [row for row in rows if row["dataset"] == dataset]
        steps = sorted(map(int, here[0]["val_dice"]))
        head = [dataset, *(f"validation Dice, step {step}" for step in steps)]
        scored = all(row["cases"] for row in here)
        if scored:
            head += [f"{here[0]['split']} Dice", "IoU", "foreground found / true", "decoder"]
        head += ["s/step", "seeds"]
        lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for variant in dict.fromkeys(row["variant"] for row in here):
            mine = [row for row in here if row["variant"] == variant]
            at = [{int(step): dice for step, dice in row["val_dice"].items()} for row in mine]
            cells = [_with_each([dice[step] for dice in at]) for step in steps]
            if scored:
                means = [[case_mean(row, key) for row in mine] for key in ("dice", "iou")]
                cells += [*map(_with_each, means)]
                cells.append(_with_each([found_share(row) for row in mine], ".2f"))
                cells.append(", ".join(dict.fromkeys(row.get("decoder") or "-" for row in mine)))
            timed = [row["step_s"] for row in mine if row["step_s"] is not None]
            cells += [f"{fmean(timed):.2f}" if timed else "-", str(len(mine))]
            lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join(lines).lstrip("\n")


def _with_each(values: Sequence[float], form: str = ".3f") -> str:
    mean = format(fmean(values), form)
    return mean if len(values) == 1 else f"{mean} ({', '.join(format(v, form) for v in values)})"


def main() -> None:
    """Measure what the file lacks, then print the table of what was asked for."""
    parser = command(__doc__, workspace=True)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--datasets", required=True, help="prepared names, with commas")
    parser.add_argument("--variants", default="", help="numbers from 1, with commas; default: all")
    parser.add_argument("--steps", type=int, required=True, help="of each training")
    parser.add_argument("--seeds", default="0,1", help="with commas")
    parser.add_argument("--split", default="test", help="that is scored at the end; '': none")
    parser.add_argument("--constant", action="store_true", help="rate after the warm-up")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    study, results, rows = STUDIES[args.study], Results(args.out), list[Row]()
    numbered = {str(number): name for number, name in enumerate(study.variants, start=1)}
    asked = args.variants.split(",") if args.variants else list(numbered)
    if unknown := [number for number in asked if number not in numbered]:
        parser.error(f"--variants: no {', '.join(unknown)}; there are 1 to {len(numbered)}")
    chosen = [numbered[number] for number in asked]
    for seed in map(int, args.seeds.split(",")):  # all variants once, before any a second time
        for dataset in args.datasets.split(","):
            for variant in chosen:
                values = study.variants[variant]
                which = (args.workspace, dataset, args.steps, seed, args.split, args.constant)
                training = Training(study.name, variant, values, *which)
                with told():
                    rows.append(results.measure(training.name, training.measure))
    print(table(rows))


if __name__ == "__main__":
    main()
