"""Everything we want to know from a GPU, in one resumable script.

    python -m benchmarks.gpu_suite --out results.json            # the paper's widths, CUDA
    python -m benchmarks.gpu_suite --preset tiny --device cpu --out results.json

Each measurement is stored as soon as it is done, and skipped when the same command is run again.

    train        slices/s and peak memory of a whole training step, per batch size
    predict      slices/s of encoder + U-Net + Eq. 2 + decoder, per batch size, and of each part
    precision    error of z0, Dice and speed by part and format: the table of precision.py

Weights are random in the first two: speed and memory do not depend on them. Precision does, so it
needs a trained run, named with --run and --workspace, and is left out without one.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.made_up import SIZE, made_up_slices, step_zero, stepper
from benchmarks.precision import run_table
from benchmarks.results import Results, Row, machine, seconds_per_call
from sdseg_cli.config import RunConfig
from sdseg_cli.model import diffusion
from sdseg_cli.model.sdseg import SDSeg, as_three_channels, build_sdseg
from sdseg_cli.presets import preset
from sdseg_cli.training.runtime import choose_device, placed, reduced_precision


def peak_gib(device: torch.device) -> float | None:
    """Largest memory the tensors took since the last reset; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None


def training(
    config: RunConfig, batch_size: int, device: torch.device, budget_s: float, compiled: bool
) -> Row:
    """One whole step of `sdseg train`: slices, encoder, U-Net, loss, backward, AdamW, EMA."""
    config = replace(config, train=replace(config.train, batch_size=batch_size))
    with tempfile.TemporaryDirectory() as name:
        slices = made_up_slices(Path(name) / "case", 64)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        _, step = stepper(config, slices, Path(name), step_zero(config), device, compiled=compiled)
        for _ in range(3):
            step()
        taken = seconds_per_call(step, device, budget_s)
    return {"slices_per_s": batch_size / taken, "s_per_step": taken, "peak_gib": peak_gib(device)}


def _inputs(model: SDSeg, batch_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(batch_size, SIZE, SIZE, generator=generator) * 2 - 1
    noise = torch.randn(batch_size, *model.latent_shape(SIZE, SIZE), generator=generator)
    return as_three_channels(image.to(device)), noise.to(device)


@torch.inference_mode()
def prediction(model: SDSeg, batch_size: int, device: torch.device, budget_s: float) -> Row:
    """Slices/s as `predict` computes them, and of each part alone."""
    image, noise = _inputs(model, batch_size, device)
    image = image.contiguous(memory_format=torch.channels_last)

    def encode() -> Tensor:
        with reduced_precision(device):
            return model.encode_image(image).float()

    zc = encode()
    z0 = diffusion.single_step(model.denoise, noise, zc)

    def denoise() -> Tensor:
        return diffusion.single_step(model.denoise, noise, zc)

    def decode() -> Tensor:
        with reduced_precision(device):
            return model.probability(z0)

    def whole() -> Tensor:
        latent = diffusion.single_step(model.denoise, noise, encode())
        with reduced_precision(device):
            return model.probability(latent)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    row: Row = {
        f"{name}_slices_per_s": batch_size / seconds_per_call(part, device, budget_s / 4)
        for name, part in (
            ("whole", whole),
            ("encoder", encode),
            ("unet", denoise),
            ("decoder", decode),
        )
    }
    return {**row, "peak_gib": peak_gib(device)}


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
    for batch in (4, 16, 64) if large else (2, 8):
        results.measure(
            f"{args.preset}/train/batch{batch}",
            lambda batch=batch: training(config, batch, device, args.budget, False),  # type: ignore[misc]
        )
    torch.manual_seed(0)
    model = placed(build_sdseg(config.model).eval().requires_grad_(False), device)
    for batch in (1, 16, 64, 128) if large else (1, 8):
        results.measure(
            f"{args.preset}/predict/batch{batch}",
            lambda batch=batch: prediction(model, batch, device, args.budget),  # type: ignore[misc]
        )
    if args.run is None:
        print("precision: left out, it needs a trained model; give --run and --workspace.")
    else:
        run_table(results, args.run, args.workspace, args.split, args.slices, args.device)


if __name__ == "__main__":
    main()
