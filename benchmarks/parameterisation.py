"""What the network should predict, at which t it should train, and with which terms of Eq. 3: how
much computing each choice needs to reach a stated validation Dice from scratch.

    python -m benchmarks.parameterisation --workspace FOLDER --dataset msd-hippocampus \
        --target 0.75 --cap 300 --seeds 0 1 --out results.json

Trains the `tiny` preset once per setting and seed, validating every 40 steps, until the Dice is
reached or the cap is spent, or half of it without a third of the Dice. Counted are the CPU seconds
of the training steps; validations and the encoding of masks, once per data set, are left out.
Results are kept as they come, and a second call goes on.
"""

from __future__ import annotations

import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.made_up import keep_all_latents
from benchmarks.results import Results, Row, StepClock, command
from sdseg_cli.core.config_file import from_dict
from sdseg_cli.core.presets import preset
from sdseg_cli.core.progress import TrainProgress
from sdseg_cli.data.manifest import Manifest
from sdseg_cli.model.weights import WeightStore
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training.batches import open_split
from sdseg_cli.training.initialise import initial_model
from sdseg_cli.training.latents import open_latents
from sdseg_cli.training.train import train

EPS: dict[str, Any] = {"model": {"parameterisation": "eps"}}
V: dict[str, Any] = {"model": {"parameterisation": "v"}}
PAPER_LOSS = {"noise_loss_weight": 1.0, "latent_loss": "l1", "foreground_weight": 0.0}
SETTINGS: dict[str, dict[str, Any]] = {
    "z0, L2, t = 999 (tiny)": {},
    "eps, Eq. 3, t uniform (the paper)": {**EPS, "train": {"timesteps": "uniform", **PAPER_LOSS}},
    "v, L2 on z0, t = 999": V,
    "eps, Eq. 3, t latent-weighted": {
        **EPS,
        "train": {"timesteps": "latent-weighted", **PAPER_LOSS},
    },
    "z0, L2, t uniform": {"train": {"timesteps": "uniform"}},
    "eps, lambda = 0, t uniform": {
        **EPS,
        "train": {"timesteps": "uniform", **PAPER_LOSS, "latent_loss_weight": 0.0},
    },
    "v, L2 on z0, t uniform": {**V, "train": {"timesteps": "uniform"}},
    "z0, L1, t = 999": {"train": {"latent_loss": "l1"}},
}


class _Enough(Exception):  # noqa: N818 - no error
    """The Dice is reached, or the cap spent."""


@dataclass
class _Watch(StepClock):
    """Stops the training where the Dice is reached or the cap is spent."""

    target: float = 0.0
    cap_s: float = 0.0
    reached_s: float | None = None

    @property
    def best(self) -> float:
        return max(self.dice.values(), default=0.0)

    def __call__(self, now: TrainProgress) -> None:
        super().__call__(now)
        if self.steps and self.best >= self.target:
            self.reached_s = self.spent_s
            raise _Enough
        hopeless = self.spent_s > self.cap_s / 2 and self.best < self.target / 3
        if self.spent_s > self.cap_s or hopeless:
            raise _Enough


def measure(
    changes: dict[str, Any], manifest: Manifest, shared: dict[str, Any], on_step: _Watch
) -> Row:
    """One training."""
    base = from_dict(shared, preset("tiny"), source="benchmark")
    config = from_dict(changes, base, source="setting")
    with tempfile.TemporaryDirectory() as folder, suppress(_Enough):
        run = RunDir(Path(folder) / "run")
        if train(config, manifest, run, device="cpu", on_step=on_step).state == "stopped":
            raise SystemExit("stopped; the next call measures what is left")
    return {
        "reached_cpu_s": on_step.reached_s,
        "spent_cpu_s": round(on_step.spent_s, 1),
        "steps": on_step.steps,
        "best": on_step.best,
        "dice": on_step.dice,
    }


def _keep_latents(manifest: Manifest) -> None:
    """So that the first setting does not pay for all."""
    config = preset("tiny")
    slices = open_split(manifest, "train")
    model, _ = initial_model(config, WeightStore.default(), slices)
    folder, data = manifest.root / "latents", manifest.inference_settings()
    latents = open_latents([folder], slices, model, data, torch.device("cpu"))
    keep_all_latents(model.eval(), slices, latents, config.train.flips)


def table(results: Results, seeds: list[int], label: str) -> str:
    """Markdown, quickest first."""
    lines = []
    for name in SETTINGS:
        rows = [results.rows.get(f"{label}/{name}/seed{seed}") for seed in seeds]
        if not all(rows):
            continue
        cells, total = [], 0.0
        for row in rows:
            assert row is not None
            reached = row["reached_cpu_s"]
            total += 1e6 if reached is None else reached
            cells.append(
                f"not in {row['spent_cpu_s']:.0f} (best {row['best']:.3f})"
                if reached is None
                else f"{reached:.0f} ({row['steps']} steps)"
            )
        lines.append((total, f"| {name} | {' | '.join(cells)} |"))
    head = ["| setting | " + " | ".join(f"CPU seconds, seed {seed}" for seed in seeds) + " |"]
    head.append("|---" * (1 + len(seeds)) + "|")
    return "\n".join([*head, *(line for _, line in sorted(lines))])


def main() -> None:
    """Measure what is missing in the results file, and print the table."""
    parser = command(__doc__, workspace=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--target", type=float, required=True, help="validation Dice")
    parser.add_argument("--cap", type=float, required=True, help="CPU seconds of steps")
    parser.add_argument("--steps", type=int, default=1_800, help="the schedule's length")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    manifest, results = Manifest.find(args.workspace, args.dataset), Results(args.out)
    label = f"{manifest.name}/{args.target:g}"
    _keep_latents(manifest)
    for seed in args.seeds:
        for name, changes in SETTINGS.items():
            recipe = {
                "init": "autoencoder",
                "steps": args.steps,
                "validate_every": 40,
                "validation_slices": 32,
                "checkpoint_every": args.steps,
            }
            shared = {"dataset": manifest.name, "seed": seed, "train": recipe}
            on_step = _Watch(target=args.target, cap_s=args.cap)
            results.measure(
                f"{label}/{name}/seed{seed}",
                lambda c=changes, s=shared, w=on_step: measure(c, manifest, s, w),  # type: ignore[misc]
            )
    print(table(results, args.seeds, label))


if __name__ == "__main__":
    main()
