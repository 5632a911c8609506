"""How much arithmetic a network takes, and how fast a device does it."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

MATRIX, BUDGET_S = 2048, 1.0
"""Side of the matrices, and for how long a time is taken again."""


@torch.no_grad()
def gflop(compute: Callable[[], object]) -> float:
    """GFLOP of a computation, a multiplication and an addition counting one each.

    Convolutions and matrix products are counted, those of attention too; the rest is small.
    """
    # The fused kernels of attention are one operation, which is not counted everywhere.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops() / 1e9


@torch.inference_mode()
def matrix_rate(device: torch.device) -> float:
    """GFLOP/s of a product of two large float32 matrices."""
    one = torch.randn(MATRIX, MATRIX, device=device)
    return 2 * MATRIX**3 / 1e9 / seconds_of(lambda: one @ one, device)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """The shortest of several times; the first, which prepares, does not count."""
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < 2 or time.perf_counter() - started < BUDGET_S:
        _wait_for(device)
        begun = time.perf_counter()
        work()
        _wait_for(device)
        times.append(time.perf_counter() - begun)
    return min(times[1:])


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
