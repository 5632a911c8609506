"""Validation Dice against steps, by what the `tiny` networks start from.

    python -m scripts.warm_up_tiny --state warm.pt --out warm.safetensors
    python -m benchmarks.warm_start --workspace FOLDER --dataset msd-hippocampus --steps 700 \
        --stop 120 --weights warm.safetensors --out results.json

The same seed, slices, flips and learning rates for every start; `--stop` ends a training before its
schedule does. Results are kept as they come, and a second call goes on. CPU seconds are of the
steps, with the masks encoded on the way and without the validations.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from benchmarks.results import Results, Row, StepClock, command
from sdseg_cli.core.config import RunConfig
from sdseg_cli.core.config_file import from_dict
from sdseg_cli.core.presets import preset
from sdseg_cli.core.progress import TrainProgress
from sdseg_cli.data.manifest import Manifest
from sdseg_cli.model.sdseg import SDSeg
from sdseg_cli.model.starts import WARM_PARTS, Origin, fill_warm, start_vision_encoder
from sdseg_cli.model.tensor_files import read_tensors
from sdseg_cli.model.weights import WeightStore
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training import initialise
from sdseg_cli.training.train import train

STARTS: dict[str, tuple[str, ...]] = {
    "autoencoder": (),
    "warm": WARM_PARTS,
    "warm encoder": ("vision_encoder",),
    "warm unet": ("unet",),
}
"""Start -> which warm networks it takes. Otherwise the vision encoder's trunk is the autoencoder's,
as in `--init autoencoder`, and the U-Net is random.
"""


class _Enough(Exception):  # noqa: N818 - no error
    """As far as was asked for."""


@dataclass
class _Watch(StepClock):
    stop: int = 0

    def __call__(self, now: TrainProgress) -> None:
        super().__call__(now)
        if now.step in self.dice:
            print(now.step, self.dice[now.step], f"{self.spent_s:.0f} s", flush=True)
            if now.step >= self.stop:
                raise _Enough


def starter(
    parts: tuple[str, ...], weights: Path
) -> Callable[[SDSeg, WeightStore, Origin], Origin]:
    """In place of `start_networks`: takes only these parts of that file."""

    def start(model: SDSeg, _: WeightStore, origin: Origin) -> Origin:
        origin = start_vision_encoder(model, origin)
        fill_warm(model, read_tensors(weights), source=str(weights), parts=parts)
        return origin

    return start


def measure(
    config: RunConfig, manifest: Manifest, parts: tuple[str, ...], weights: Path, stop: int
) -> Row:
    """One training."""
    on_step = _Watch(stop=stop)
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(initialise, "start_networks", starter(parts, weights)),
        suppress(_Enough),
    ):
        train(config, manifest, RunDir(Path(folder) / "run"), device="cpu", on_step=on_step)
    return {"dice": on_step.dice, "cpu_s": round(on_step.spent_s, 1)}


def main() -> None:
    """Measure what is missing in the results file, and print the table."""
    parser = command(__doc__, workspace=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--steps", type=int, required=True, help="the schedule's length")
    parser.add_argument("--stop", type=int, help="end earlier, at this step")
    parser.add_argument("--every", type=int, default=40, help="validate so often")
    parser.add_argument("--slices", type=int, default=32, help="of a validation")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--starts", nargs="+", choices=list(STARTS), default=list(STARTS))
    parser.add_argument("--lr", type=float, default=preset("tiny").train.learning_rate)
    parser.add_argument("--weights", type=Path, required=True, help="of scripts/warm_up_tiny.py")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    manifest, results = Manifest.find(args.workspace, args.dataset), Results(args.out)
    recipe = {
        "steps": args.steps,
        "learning_rate": args.lr,
        "validate_every": args.every,
        "validation_slices": args.slices,
        "checkpoint_every": args.steps,
        "init": "pretrained",
    }
    for seed in args.seeds:
        shared = {"dataset": manifest.name, "seed": seed, "train": recipe}
        config = from_dict(shared, preset("tiny"), source="benchmark")
        for start in args.starts:
            results.measure(
                f"{manifest.name}/{args.steps} steps, lr {args.lr:g}, {args.slices} slices/"
                f"{start}/seed{seed}",
                lambda c=config, s=start: measure(  # type: ignore[misc]
                    c, manifest, STARTS[s], args.weights, args.stop or args.steps
                ),
            )
    for name, row in results.rows.items():
        print(f"| {name} | {' | '.join(f'{k}: {v:.3f}' for k, v in row['dice'].items())} |")


if __name__ == "__main__":
    main()
