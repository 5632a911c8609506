"""Training steps in a row: how long they take in every setting, and how much memory."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import torch

from benchmarks.made_up import initial_checkpoint, made_up_slices, stepper
from benchmarks.results import Row, seconds
from benchmarks.train_speed import milliseconds_by_operator, plain_loop
from sdseg_cli.core.config import RunConfig
from sdseg_cli.model.runtime import ran_out_of_memory
from sdseg_cli.training.batches import StepSource
from sdseg_cli.training.latents import MaskLatents
from sdseg_cli.training.step import StepResult, Trainer

SLICES = 64
PAPER_SLICES = 100_000 * 4
"""Steps of the paper's recipe, times its batch. A larger batch takes as many slices in fewer
steps: what that does to the Dice is another question.
"""
PRECISIONS = ("mixed", "mixed-float16", "float32")


def peak_gib(device: torch.device) -> float | None:
    """Largest memory the tensors took since the last reset; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None


def forget_peak(device: torch.device) -> None:
    """Begin to measure the peak; networks measured before are not part of it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


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


def in_a_row(step: Callable[[], object], count: int) -> None:
    """Steps as in training, where a step's numbers are read while the next is computed."""
    before: object = None
    for _ in range(count):
        now = step()
        if isinstance(before, StepResult):
            before.row()
        before = now


def seconds_in_a_row(
    trainer: Trainer, source: StepSource, latents: MaskLatents, count: int
) -> float:
    """Of one of `count` steps, as a GPU takes them: inputs are made meanwhile by threads, and a
    step's numbers are read during the next. Step by step it would wait for both.
    """
    device, taken = trainer.device, 0.0
    for _ in range(2):  # the second time the latents of the masks are there
        with closing(source.prefetch(0, count, pin=device.type == "cuda")) as ahead:
            steps = partial(in_a_row, lambda: trainer.train_step(next(ahead), latents), count)
            taken = seconds(steps, device)
    return taken / count


def _row(step: Callable[[], object], batch_size: int, device: torch.device, budget_s: float) -> Row:
    for _ in range(3):
        step()
    forget_peak(device)
    count = max(3, min(1000, int(budget_s / seconds(step, device))))
    taken = seconds(partial(in_a_row, step, count), device) / count
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
    """One whole step of `sdseg train`: slices, networks, loss, backward, AdamW, EMA."""
    config = setting.applied(config, batch_size)
    torch.compiler.reset()
    try:
        with tempfile.TemporaryDirectory() as name:
            slices, state = made_up_slices(Path(name) / "case", SLICES), initial_checkpoint(config)
            compiled, folder = setting.compiled, Path(name)
            _, step = stepper(config, slices, folder, state, device, compiled=compiled, kept=True)
            return _row(step, batch_size, device, budget_s)
    except RuntimeError as error:
        if not setting.compiled or ran_out_of_memory(error):
            raise
        return {"error": str(error).splitlines()[0]}  # a machine without a compiler


def plain(config: RunConfig, batch_size: int, device: torch.device, budget_s: float) -> Row:
    """One step of the plain loop."""
    config = Setting().applied(config, batch_size)
    with tempfile.TemporaryDirectory() as name:
        slices = made_up_slices(Path(name) / "case", SLICES)
        return _row(plain_loop(config, slices, device), batch_size, device, budget_s)
