"""How much arithmetic a network takes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def gflop(compute: Callable[[], object]) -> float:
    """GFLOP of a computation, a multiplication and an addition counting one each.

    Convolutions and matrix products are counted, those of attention too; the rest is small.
    """
    # The fused kernels of attention are one operation, which is not counted everywhere.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops() / 1e9
