"""What the network should predict, and at which t it should train, when it starts from scratch.

    python -m benchmarks.parameterisation --workspace demo --dataset btcv --steps 120

Trains the `tiny` preset once per setting on a prepared set, the same seed and number of steps, and
prints the validation Dice at one reverse step. The run folders stay, so a second call goes on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from sdseg_cli.config_file import from_dict
from sdseg_cli.datasets.manifest import Manifest
from sdseg_cli.presets import preset
from sdseg_cli.train import train
from sdseg_cli.training.run_folder import RunDir

PAPER_LOSS = {"noise_loss_weight": 1.0, "latent_loss": "l1"}
SETTINGS: dict[str, dict[str, Any]] = {
    "z0, L2, t = 999 (tiny)": {},
    "z0, L1, t = 999": {"train": {"latent_loss": "l1"}},
    "z0, L2, t uniform": {"train": {"timesteps": "uniform"}},
    "v, L2 on z0, t uniform": {
        "model": {"parameterisation": "v"},
        "train": {"timesteps": "uniform"},
    },
    "eps, Eq. 3, t uniform (paper)": {
        "model": {"parameterisation": "eps"},
        "train": {"timesteps": "uniform", **PAPER_LOSS},
    },
}


def main() -> None:
    """Train each setting and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    manifest = Manifest.find(args.workspace, args.dataset)
    half = max(1, args.steps // 2)
    shared = {
        "dataset": args.dataset,
        "seed": args.seed,
        "train": {"steps": args.steps, "validate_every": half},
    }
    base = from_dict(shared, preset("tiny"), source="benchmark")
    print("| setting | best validation Dice | at step | CPU seconds |\n|---|---|---|---|")
    for number, (name, changes) in enumerate(SETTINGS.items()):
        config = from_dict(changes, base, source=name)
        folder = f"parameterisation-{args.steps}-seed{args.seed}-{number}"
        run = RunDir(args.workspace / "runs" / manifest.name / folder)
        started = time.process_time()
        best = train(config, manifest, run).best
        spent = time.process_time() - started
        print(f"| {name} | {best['val_dice']:.3f} | {best['step']} | {spent:.0f} |", flush=True)


if __name__ == "__main__":
    main()
