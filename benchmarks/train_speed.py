"""A training step against a plain loop, and where its time goes.

    python -m benchmarks.train_speed --dataset openkbp --workspace FOLDER --out results.json

Both train the same networks on the same prepared slices. The plain loop is what one writes first:
a default DataLoader, masks encoded in every step, planes in PyTorch's default layout, float32,
PyTorch's default AdamW, the average kept tensor by tensor. The two take turns, so that a noisy
machine slows both; the figure is the ratio of the medians.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, Dataset

from benchmarks.made_up import initial_checkpoint, made_up_slices, stepper
from benchmarks.results import Results, Row, command, machine, seconds
from sdseg_cli.core.config import RunConfig
from sdseg_cli.core.presets import preset
from sdseg_cli.data.manifest import Manifest
from sdseg_cli.model import diffusion
from sdseg_cli.model.interface import as_three_channels
from sdseg_cli.model.runtime import choose_device
from sdseg_cli.model.sdseg import build_sdseg, foreground_weight, full_precision
from sdseg_cli.training.batches import PreparedSlices, open_split


class _Slices(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, slices: PreparedSlices) -> None:
        self.slices = slices

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        batch = self.slices.batch([position])
        return batch.image[0], self.slices.masks(batch.labels)[0, 0]


def plain_loop(
    config: RunConfig, slices: PreparedSlices, device: torch.device
) -> Callable[[], None]:
    """The next step of the plain loop."""
    recipe = config.train
    torch.manual_seed(0)
    model = build_sdseg(config.model).to(device).train()
    average = {name: value.clone() for name, value in model.unet.named_parameters()}
    trained = [value for value in model.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.learning_rate, foreach=False)
    positions = slices.with_foreground if recipe.foreground_fraction else range(len(slices))
    drawn: Any = torch.utils.data.Subset(_Slices(slices), list(positions))
    loader = DataLoader(drawn, batch_size=recipe.batch_size, shuffle=True, drop_last=True)

    def endless() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from loader

    batches = endless()

    def step() -> None:
        image, foreground = (value.to(device) for value in next(batches))
        z0 = model.sample_latent(
            model.mask_moments(as_three_channels(foreground.float() * 2 - 1).contiguous()),
            torch.randn(len(image), *model.latent_shape(*image.shape[-2:]), device=device),
        )
        noise = torch.randn_like(z0)
        t = torch.randint(diffusion.TIMESTEPS, (len(image),), device=device)
        zc = model.encode_image(as_three_channels(image).contiguous())
        estimate = model.denoise(diffusion.add_noise(z0, noise, t), t, zc)
        factor = config.model.autoencoder.factor
        weight = foreground_weight(foreground[:, None].float(), factor, recipe.foreground_weight)
        loss_noise, loss_latent = diffusion.loss_terms(estimate, noise, z0, weight)
        loss = recipe.noise_loss_weight * loss_noise + recipe.latent_loss_weight * loss_latent
        loss.item()
        optimizer.zero_grad()
        with full_precision():
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        with torch.no_grad():
            for name, value in model.unet.named_parameters():
                average[name].lerp_(value, 0.01)

    return step


def compare(
    config: RunConfig, slices: PreparedSlices, device: torch.device, *, rounds: int, compiled: bool
) -> Row:
    """Seconds per step of both, in turn, after the latents of all drawn masks are kept."""
    with tempfile.TemporaryDirectory() as name:
        state, folder = initial_checkpoint(config), Path(name)
        _, ours = stepper(config, slices, folder, state, device, compiled=compiled, kept=True)
        plain = plain_loop(config, slices, device)
        taken: dict[str, list[float]] = {"ours": [], "plain": []}
        for number in range(-3, rounds):
            for key, step in (("ours", ours), ("plain", plain)):
                spent = seconds(step, device)
                if number >= 0:
                    taken[key].append(spent)
        row: Row = {f"{key}_s_per_step": median(values) for key, values in taken.items()}
        row["ratio"] = row["plain_s_per_step"] / row["ours_s_per_step"]
        return {**row, "rounds": rounds, "batch_size": config.train.batch_size}


def milliseconds_by_operator(
    step: Callable[[], object], device: torch.device, count: int
) -> dict[str, float]:
    """Of one step, by PyTorch's profiler over `count` steps: on a GPU by kernel, which is what it
    was busy with; on a CPU by operator.
    """
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as taken:
        for _ in range(count):
            seconds(step, device)
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    return {
        event.key: getattr(event, key) / 1000 / count
        for event in taken.key_averages()
        # Operators that launched a kernel, and spans such as "Optimizer.step", have its time too.
        if not on_gpu or (event.device_type.name == "CUDA" and not event.is_user_annotation)
    }


def where_time_goes(config: RunConfig, slices: PreparedSlices, device: torch.device) -> Row:
    """Milliseconds of a step by operator, most expensive first."""
    with tempfile.TemporaryDirectory() as name:
        _, step = stepper(config, slices, Path(name), initial_checkpoint(config), device, kept=True)
        for _ in range(3):
            step()
        count = 4
        started = time.perf_counter()
        spent = milliseconds_by_operator(step, device, count)
        whole = (time.perf_counter() - started) / count
    largest = sorted(spent.items(), key=lambda item: -item[1])[:14]
    total = sum(spent.values())
    return {
        "step_ms": whole * 1000,
        "operators_ms": {name: round(ms, 2) for name, ms in largest},
        "others_ms": round(total - sum(ms for _, ms in largest), 2),
    }


def main() -> None:
    """Measure what is missing in the results file."""
    parser = command(__doc__)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--dataset", help="a prepared set; made-up slices without it")
    parser.add_argument("--workspace", type=Path, default=Path())
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    device, config = choose_device(args.device), preset(args.preset)
    if args.batch_size:
        config = replace(config, train=replace(config.train, batch_size=args.batch_size))
    results = Results(args.out)
    results.measure("machine", lambda: machine(device))
    with tempfile.TemporaryDirectory() as name:
        if args.dataset:
            slices = open_split(Manifest.find(args.workspace, args.dataset), "train")
        else:
            slices = made_up_slices(Path(name) / "case", 64)
        label = f"{args.preset}/batch{config.train.batch_size}/compile{int(args.compile)}"
        results.measure(
            f"{label}/compare",
            lambda: compare(config, slices, device, rounds=args.rounds, compiled=args.compile),
        )
        results.measure(f"{label}/profile", lambda: where_time_goes(config, slices, device))


if __name__ == "__main__":
    main()
