"""Where, how precisely and how fast a model runs: device, mixed precision by part, the averaged
denoiser, a polite stop, and counting arithmetic.
"""

from __future__ import annotations

import contextlib
import copy
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import TypeVar

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sdseg_cli.core.errors import ConfigError
from sdseg_cli.core.progress import no_op
from sdseg_cli.model.interface import SliceModel

Network = TypeVar("Network", bound=nn.Module)

LOWERED = {"mixed": torch.bfloat16, "mixed-float16": torch.float16}
"""`model.precision` -> the format of the encoder and the autoencoder on a GPU."""
MATRIX, BUDGET_S = 2048, 1.0
"""Side of the matrices of `matrix_rate`, and for how long a time is taken again."""
SECOND_SIGINT_S = 1.0
"""One Ctrl-C may arrive twice, from the terminal and from torchrun; later ones are meant."""


def choose_device(name: str) -> torch.device:
    """The device called "auto" (the fastest there is), "cpu", "cuda", "cuda:N" or "mps".

    A GPU that is named by its number becomes torch's current one, for all that asks for "cuda".

    Raises:
        ConfigError: The name is unknown or the device is not there.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(device for device, present in there.items() if present))
    asked = re.fullmatch(r"(cpu|cuda|mps)(?::(\d{1,4}))?", name)
    if asked is None:
        raise ConfigError(
            f'there is no device "{name}".',
            "Choose auto, cpu, cuda, mps, or a GPU by its number, such as cuda:1.",
        )
    kind, number = asked[1], asked[2]
    if not there[kind]:
        raise ConfigError(f"this machine has no {kind} device.", "Choose --device auto or cpu.")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if number is not None and int(number) >= count:
        last = f"numbers 0 to {count - 1}" if count > 1 else "number 0"
        raise ConfigError(
            f'there is no device "{name}": this machine has {count} of {kind}.',
            f"Choose --device {kind}, or of {kind} {last}.",
        )
    if kind != "cuda" or number is None:
        return torch.device(kind)
    torch.cuda.set_device(int(number))
    return torch.device(kind, int(number))


def peak_gpu_bytes(device: torch.device) -> int | None:
    """The most memory tensors have taken so far; None where the device is no GPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


def reduced_precision(
    device: torch.device, precision: str = "mixed"
) -> AbstractContextManager[object]:
    """On a GPU bfloat16 ("mixed") or float16 ("mixed-float16") for the vision encoder and the
    autoencoder; nothing elsewhere.

    The U-Net and Eq. 2 stay outside of it: at t = 999 an error of the noise reaches the latent
    38.66 times larger. bfloat16 needs no loss scaling; float16 does (`needs_loss_scale`), and suits
    GPUs that compute no bfloat16.
    """
    if device.type == "cuda" and precision in LOWERED:
        return torch.autocast("cuda", dtype=LOWERED[precision])
    return contextlib.nullcontext()


def needs_loss_scale(device: torch.device, precision: str) -> bool:
    """True if gradients would vanish in float16 without a loss scale."""
    return device.type == "cuda" and LOWERED.get(precision) == torch.float16


def ran_out_of_memory(error: BaseException) -> bool:
    """True if an error says that a GPU or this computer had no memory left."""
    full = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return full or any(words in str(error) for words in ("can't allocate memory", "ALLOC_FAILED"))


def memory_format(model: nn.Module, device: torch.device) -> torch.memory_format:
    """How the model's planes lie in memory: channels last, which tensor cores want and SDSeg does
    not mind elsewhere.
    """
    last = not isinstance(model, SliceModel) or model.channels_last_on_cpu
    plain = device.type == "cpu" and not last
    return torch.contiguous_format if plain else torch.channels_last


def to_device(model: Network, device: torch.device) -> Network:
    """The network on the device, in its memory format."""
    model.to(device)
    model.to(memory_format=memory_format(model, device))  # type: ignore[call-overload]
    return model


class Ema:
    """Exponential moving average of the U-Net, what prediction uses.

    Args:
        unet: The network that trains; copied.
        decay: Upper bound; early on `(1 + n) / (10 + n)` is used where smaller.
    """

    def __init__(self, unet: nn.Module, decay: float) -> None:
        self.decay = decay
        self.unet = copy.deepcopy(unet).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, unet: nn.Module, step: int) -> None:
        """Move towards `unet` after optimiser step number `step` (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        # All tensors in a few kernels, where a GPU has them.
        torch._foreach_lerp_(list(self.unet.parameters()), list(unet.parameters()), 1 - decay)
        for own, now in zip(self.unet.buffers(), unet.buffers(), strict=True):
            # Statistics of batches are averaged as the weights that gave them; counters are not.
            own.lerp_(now, 1 - decay) if own.is_floating_point() else own.copy_(now)

    @contextmanager
    def in_place_of(self, model: SliceModel) -> Iterator[None]:
        """Within the block `model` predicts with the average, in eval mode."""
        raw, was_training = model.unet, model.training
        model.unet = self.unet
        model.eval()
        try:
            yield
        finally:
            model.unet = raw
            model.train(was_training)


@contextmanager
def stop_signals(on_stop: Callable[[], None] = no_op) -> Iterator[threading.Event]:
    """Within the block SIGINT, SIGTERM and SIGUSR1 (batch systems' notice) set the event instead of
    ending the process. A second SIGINT is taken at its word: KeyboardInterrupt.

    Args:
        on_stop: Called at the first signal, within its handler: it may neither wait nor print.
    """
    stop = threading.Event()
    asked_at = 0.0

    def request(signum: int, frame: FrameType | None) -> None:
        nonlocal asked_at
        again = stop.is_set() and time.monotonic() - asked_at > SECOND_SIGINT_S
        if signum == signal.SIGINT and again:
            raise KeyboardInterrupt
        first = not stop.is_set()
        if first:
            asked_at = time.monotonic()
        stop.set()
        if first:
            on_stop()

    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may take signals
        return
    # Windows has no SIGUSR1.
    there = [getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGUSR1")]
    before = {number: signal.signal(number, request) for number in there if number is not None}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@torch.no_grad()
def gflop(compute: Callable[[], object]) -> float:
    """GFLOP of a computation, a multiplication and an addition counting one each.

    Convolutions and matrix products are counted, those of attention too; the rest is small.
    """
    # The fused kernels of attention are one operation, which is not counted everywhere; nor is that
    # of torch's transformer layers.
    mha, fused = torch.backends.mha, torch.backends.mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            compute()
    finally:
        mha.set_fastpath_enabled(fused)
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
