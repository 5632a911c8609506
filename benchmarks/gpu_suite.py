"""Everything we want to know from a GPU, in one resumable script.

    python -m benchmarks.gpu_suite --out results.json            # the paper's widths, CUDA
    python -m benchmarks.gpu_suite --preset tiny --device cpu --out results.json

Each measurement is stored as soon as it is done, and skipped when the same command is run again.

    train        a whole step of `sdseg train`, per batch size and setting (precision, TF32 in the
                 U-Net, compiled): slices/s, peak memory, the share of the time the GPU is busy, and
                 the hours that the paper's 100,000 steps of batch 4 take
    plain        the same by the plain loop of train_speed.py, for the ratio
    bench        `sdseg bench`: slices/s of prediction by decoder, precision and batch size, each
                 part alone, and the plain loop
    file         a CT of 128 slices from file to file, exact and fast; needs nibabel
    precision    error of z0, Dice and speed by part and format: the table of precision.py

Weights are random in all but the last: speed and memory do not depend on them. Precision does, so
it needs a trained run, named with --run and --workspace, and is left out without one.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import torch

from benchmarks.made_up import SIZE, made_up_slices, step_zero, stepper
from benchmarks.precision import run_table
from benchmarks.results import Results, Row, machine, seconds
from benchmarks.train_speed import milliseconds_by_operator, plain_loop
from sdseg_cli.bench import bench
from sdseg_cli.config import RunConfig
from sdseg_cli.imaging.intensity import CT_WINDOW_HU, Normalisation
from sdseg_cli.imaging.phantom import make_phantom
from sdseg_cli.model.mask_decoder import autoencoder_hash, build_mask_decoder
from sdseg_cli.model.sdseg import build_sdseg
from sdseg_cli.model.store import WeightStore
from sdseg_cli.model.tensor_files import write_tensors
from sdseg_cli.presets import preset
from sdseg_cli.training.checkpoint import Checkpoint
from sdseg_cli.training.fast_decoder import stored_decoder
from sdseg_cli.training.package import write_package
from sdseg_cli.training.runtime import choose_device
from sdseg_cli.training.trainer import StepResult

SLICES = 64
PAPER_SLICES = 100_000 * 4
"""Steps of the paper's recipe, times its batch. A larger batch takes as many slices in fewer
steps: what that does to the Dice is another question.
"""
PRECISIONS = ("mixed", "mixed-float16", "float32")


def peak_gib(device: torch.device) -> float | None:
    """Largest memory the tensors took since the last reset; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None


@dataclass(frozen=True)
class Setting:
    """How a training computes."""

    precision: str = "mixed"
    tf32: bool = False
    compiled: bool = False

    @property
    def name(self) -> str:
        """As in the results file."""
        return self.precision + "/tf32" * self.tf32 + "/compiled" * self.compiled

    def applied(self, config: RunConfig, batch_size: int) -> RunConfig:
        """The configuration with this setting and batch."""
        return replace(
            config,
            model=replace(config.model, precision=self.precision, tf32=self.tf32),
            train=replace(config.train, batch_size=batch_size),
        )


ALL = tuple(Setting(*values) for values in product(PRECISIONS, (False, True), (False, True)))
FASTEST = tuple(one for one in ALL if one.precision == "mixed")
"""Measured for large batches too."""


def _row(step: Callable[[], object], batch_size: int, device: torch.device, budget_s: float) -> Row:
    """Steps in a row as in training, where a step's numbers are read while the next is computed."""
    for _ in range(3):
        step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    count = max(3, min(1000, int(budget_s / seconds(step, device))))

    def steps() -> None:
        before: object = None
        for _ in range(count):
            now = step()
            if isinstance(before, StepResult):
                before.row()
            before = now

    taken = seconds(steps, device) / count
    row: Row = {
        "s_per_step": taken,
        "slices_per_s": batch_size / taken,
        "paper_hours": PAPER_SLICES * taken / batch_size / 3600,
        "peak_gib": peak_gib(device),
    }
    if device.type == "cuda":
        # Kernels take no longer under the profiler, steps do: so its kernels, but our clock.
        row["gpu_busy"] = sum(milliseconds_by_operator(step, device, 10).values()) / 1000 / taken
    return row


def training(
    config: RunConfig, batch_size: int, device: torch.device, budget_s: float, setting: Setting
) -> Row:
    """One whole step of `sdseg train`: slices, encoder, U-Net, loss, backward, AdamW, EMA."""
    config = setting.applied(config, batch_size)
    torch.compiler.reset()
    try:
        with tempfile.TemporaryDirectory() as name:
            slices, state = made_up_slices(Path(name) / "case", SLICES), step_zero(config)
            compiled, folder = setting.compiled, Path(name)
            _, step = stepper(config, slices, folder, state, device, compiled=compiled, kept=True)
            return _row(step, batch_size, device, budget_s)
    except RuntimeError as error:
        if not setting.compiled or isinstance(error, torch.OutOfMemoryError):
            raise
        return {"error": str(error).splitlines()[0]}  # a machine without a compiler


def plain(config: RunConfig, batch_size: int, device: torch.device, budget_s: float) -> Row:
    """One step of the plain loop."""
    config = Setting().applied(config, batch_size)
    with tempfile.TemporaryDirectory() as name:
        slices = made_up_slices(Path(name) / "case", SLICES)
        return _row(plain_loop(config, slices, device), batch_size, device, budget_s)


def summary(rows: dict[str, Row], preset_name: str, batch_size: int) -> str:
    """The fastest training with this batch, against the plain loop and the paper."""
    start = f"{preset_name}/train/batch{batch_size}/"
    speed = {
        n: row["slices_per_s"]
        for n, row in rows.items()
        if n.startswith(start) and "slices_per_s" in row
    }
    if not speed:
        return f"batch {batch_size}: nothing measured"
    best = max(speed, key=lambda name: speed[name])
    text = (
        f"batch {batch_size}: {best.removeprefix(start)} is fastest, {speed[best]:.1f} slices/s; "
    )
    text += f"the paper's {PAPER_SLICES:,} slices in {rows[best]['paper_hours']:.2f} hours"
    slow = rows.get(f"{preset_name}/plain/batch{batch_size}", {}).get("slices_per_s")
    return text + (f"; {speed[best] / slow:.2f} times the plain loop" if slow else "")


def file_to_file(config: RunConfig, decoder: str, device: torch.device) -> Row:
    """A scan of 128 slices of 512x512, from a NIfTI file to its mask's, by an untrained model."""
    import nibabel as nib

    from sdseg_cli.predict import Predictor
    from sdseg_cli.predict_file import predict_file

    torch.manual_seed(0)
    data = {
        "normalisation": Normalisation("window", *CT_WINDOW_HU).to_dict(),
        "crop": "none",
        "size": SIZE,
        "dataset": "made-up",
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = build_sdseg(config.model)
        write_package(Checkpoint.begin(config, model, data), folder / "package")
        key = autoencoder_hash(model.autoencoder)
        own = stored_decoder(WeightStore(folder / "store"), key)
        own.parent.mkdir(parents=True)
        write_tensors(build_mask_decoder(config.model.autoencoder).state_dict(), own)
        os.environ["SDSEG_WEIGHTS"] = str(folder / "store")
        scan = make_phantom(0, 1, (512, 512, 128), (0.7, 0.7, 1.6)).scan
        nib.save(nib.Nifti1Image(scan.array, scan.geometry.affine), folder / "scan.nii.gz")
        started = time.perf_counter()
        predictor = Predictor(folder / "package", device=device.type, decoder=decoder)
        loaded = time.perf_counter()
        report = predict_file(folder / "scan.nii.gz", folder / "mask.nii.gz", predictor)
        return {
            "load_s": loaded - started,
            "predict_s": report.seconds,
            "slices_per_s": report.slices / report.seconds,
            "peak_gib": peak_gib(device),
        }


def main() -> None:
    """Run what is missing in the results file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="sd")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--budget", type=float, default=8.0, help="seconds per measurement")
    parser.add_argument("--run", type=Path, help="a trained run, for the precision table")
    parser.add_argument("--workspace", type=Path, default=Path(os.environ.get("SDSEG_HOME", ".")))
    parser.add_argument("--split", default="val", help="whose slices the precision table is of")
    parser.add_argument("--slices", type=int, default=48, help="how many of them")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    device = choose_device(args.device)
    config = preset(args.preset)
    results = Results(args.out)
    large = device.type == "cuda"
    results.measure(f"{args.preset}/machine", lambda: machine(device))
    batches = (4, 16, 64) if large else (2, 8)
    for batch in batches:
        if not large:
            settings: tuple[Setting, ...] = (Setting(),)  # a CPU lowers nothing
        else:
            settings = ALL if batch == batches[0] else FASTEST
        for setting in settings:
            results.measure(
                f"{args.preset}/train/batch{batch}/{setting.name}",
                partial(training, config, batch, device, args.budget, setting),
            )
        results.measure(
            f"{args.preset}/plain/batch{batch}", partial(plain, config, batch, device, args.budget)
        )
    for batch in batches:
        print(summary(results.rows, args.preset, batch))
    results.measure(
        f"{args.preset}/bench",
        lambda: bench(
            preset_name=args.preset, slices=128 if large else 2, device=device.type
        ).to_json(),
    )
    if importlib.util.find_spec("nibabel") is None:
        print("file to file: left out, nibabel is not installed.")
    else:
        for decoder in ("exact", "fast"):
            results.measure(
                f"{args.preset}/file/{decoder}", partial(file_to_file, config, decoder, device)
            )
    if args.run is None:
        print("precision: left out, it needs a trained model; give --run and --workspace.")
    else:
        run_table(results, args.run, args.workspace, args.split, args.slices, args.device)


if __name__ == "__main__":
    main()
