"""Where and how precisely it runs: device, mixed precision by part, the averaged denoiser, a polite
stop.
"""

from __future__ import annotations

import contextlib
import copy
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from types import FrameType

import torch
from torch import Tensor

from sdseg_cli.config import SampleConfig
from sdseg_cli.errors import ConfigError
from sdseg_cli.model import diffusion
from sdseg_cli.model.sdseg import SDSeg, as_three_channels
from sdseg_cli.model.unet import UNet

LOWERED = {"mixed": torch.bfloat16, "mixed-float16": torch.float16}
"""`model.precision` -> the format of the encoder and the autoencoder on a GPU."""
_FLIP_AXIS = {"h": -1, "v": -2}
SECOND_SIGINT_S = 1.0
"""One Ctrl-C may arrive twice, from the terminal and from torchrun; later ones are meant."""


def choose_device(name: str) -> torch.device:
    """The device called "auto", "cpu", "cuda" or "mps"; "auto" takes the fastest there is.

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
    if name not in there:
        raise ConfigError(f'there is no device "{name}".', "Choose auto, cpu, cuda or mps.")
    if not there[name]:
        raise ConfigError(f"this machine has no {name} device.", "Choose --device auto or cpu.")
    return torch.device(name)


def use_threads(threads: int | None) -> None:
    """Let one operation use so many threads of the CPU; None leaves what torch chose.

    Raises:
        ConfigError: Fewer than one.
    """
    if threads is None:
        return
    if threads < 1:
        raise ConfigError(f"--threads is {threads}.", "Give at least 1.")
    torch.set_num_threads(threads)


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
    """Whether gradients would vanish in float16 without a loss scale."""
    return device.type == "cuda" and LOWERED.get(precision) == torch.float16


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a GPU or this computer had no memory left."""
    full = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return full or "can't allocate memory" in str(error)


def placed(model: SDSeg, device: torch.device) -> SDSeg:
    """The model on the device, convolutions channels last (on a CPU about twice as fast)."""
    model.to(device)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


@torch.inference_mode()
def predict_planes(
    model: SDSeg, pixels: Tensor, slices: Sequence[int], *, seed: int, sample: SampleConfig
) -> Tensor:
    """From image to probability, each part in its precision: what prediction and validation share.

    Args:
        model: In eval mode, on the device that computes.
        pixels: (B,H,W), of pictures (B,3,H,W), float32 in [-1,1].
        slices: B numbers; with the seed they name each slice's own noise.
        seed: Of all noise.
        sample: Reverse steps, and how many draws of the noise and which flips are averaged.

    Returns:
        (B,H,W) float32 in [0,1], on the CPU: the mean over the samples.
    """
    total = torch.zeros((len(pixels), *pixels.shape[-2:]), device=next(model.parameters()).device)
    for probability in draws(model, pixels, slices, seed=seed, sample=sample):
        total += probability
    return (total / sample.samples).cpu()


def predict_draws(
    model: SDSeg, pixels: Tensor, slices: Sequence[int], *, seed: int, sample: SampleConfig
) -> Tensor:
    """The draws whose mean `predict_planes` is: (B,K,H,W) float32 in [0,1], on the CPU."""
    each = draws(model, pixels, slices, seed=seed, sample=sample)
    return torch.stack([probability.cpu() for probability in each], dim=1)


def draws(
    model: SDSeg, pixels: Tensor, slices: Sequence[int], *, seed: int, sample: SampleConfig
) -> Iterator[Tensor]:
    """One probability for each draw of the noise; the image is encoded once for all of them.

    Args: as `predict_planes`.

    Returns:
        `sample.samples` times (B,H,W) float32 in [0,1], on the device that computes.
    """
    as_seen = partial(_draws_as_seen, model, slices=slices, seed=seed, sample=sample)
    return flip_average(as_seen, pixels, sample.flips)


def flip_average(
    predict: Callable[[Tensor], Iterator[Tensor]], pixels: Tensor, flips: str
) -> Iterator[Tensor]:
    """Test-time augmentation: the mean over planes and their flips, each answer flipped back.

    Args:
        predict: Gives one or more answers (B,H,W) for pixels as below.
        pixels: (B,H,W) or (B,3,H,W).
        flips: Letters of `SampleConfig.flips`.

    Yields:
        (B,H,W), as often as `predict` answers.
    """
    allowed = {_FLIP_AXIS[letter] for letter in flips}
    ways = [axes for axes in ((), (-1,), (-2,), (-2, -1)) if allowed.issuperset(axes)]
    for answers in zip(*(predict(pixels.flip(axes)) for axes in ways), strict=True):
        back = [answer.flip(axes) for answer, axes in zip(answers, ways, strict=True)]
        yield torch.stack(back).mean(dim=0)


@torch.inference_mode()
def _draws_as_seen(
    model: SDSeg, pixels: Tensor, slices: Sequence[int], seed: int, sample: SampleConfig
) -> Iterator[Tensor]:
    """`draws` of the pixels as they are, without flips."""
    device = next(model.parameters()).device
    image = as_three_channels(pixels.to(device))
    with reduced_precision(device, model.config.precision):
        zc = model.encode_image(image.contiguous(memory_format=torch.channels_last)).float()
    shape = model.latent_shape(*pixels.shape[-2:])
    names = ["shared"] * len(slices) if sample.noise == "shared" else slices

    def noise(*draw: int) -> Tensor:
        if sample.noise == "zero":
            return torch.zeros((len(slices), *shape), device=device)
        return diffusion.seeded_noise(seed, names, shape, *draw).to(device)

    for number in range(sample.samples):
        start, fresh = noise(number) if number else noise(), partial(noise, number)
        z0 = diffusion.ddim(model.denoise, start, zc, sample.steps, eta=sample.eta, fresh=fresh)
        with reduced_precision(device, model.config.precision):
            probability = model.probability(z0)
        yield probability


class Ema:
    """Exponential moving average of the U-Net, what prediction uses.

    Args:
        unet: The network that trains; copied.
        decay: Upper bound; early on `(1 + n) / (10 + n)` is used where smaller.
    """

    def __init__(self, unet: UNet, decay: float) -> None:
        self.decay = decay
        self.unet = copy.deepcopy(unet).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, unet: UNet, step: int) -> None:
        """Move towards `unet` after optimiser step number `step` (from 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        # All tensors in a few kernels, where a GPU has them.
        torch._foreach_lerp_(list(self.unet.parameters()), list(unet.parameters()), 1 - decay)

    @contextmanager
    def in_place_of(self, model: SDSeg) -> Iterator[None]:
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
def stop_signals() -> Iterator[threading.Event]:
    """Within the block SIGINT, SIGTERM and SIGUSR1 (batch systems' notice) set the event instead of
    ending the process. A second SIGINT is taken at its word: KeyboardInterrupt.
    """
    stop = threading.Event()
    asked_at = 0.0

    def request(signum: int, frame: FrameType | None) -> None:
        nonlocal asked_at
        again = stop.is_set() and time.monotonic() - asked_at > SECOND_SIGINT_S
        if signum == signal.SIGINT and again:
            raise KeyboardInterrupt
        if not stop.is_set():
            asked_at = time.monotonic()
        stop.set()

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
