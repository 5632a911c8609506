"""From image to probability: what prediction and validation share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sdseg_cli.core.config import THRESHOLD, SampleConfig
from sdseg_cli.model.interface import SliceModel
from sdseg_cli.model.mask_decoder import MaskDecoder
from sdseg_cli.model.sdseg import SDSeg

_FLIP_AXIS = {"h": -1, "v": -2}


@torch.inference_mode()
def predict_planes(
    model: SliceModel, pixels: Tensor, slices: Sequence[int], *, seed: int, sample: SampleConfig
) -> Tensor:
    """The mean of all draws of the noise.

    Args:
        model: In eval mode, on the device that computes.
        pixels: (B,H,W), of pictures (B,3,H,W), float32 in [-1,1].
        slices: B numbers; with the seed they name each slice's own noise.
        seed: Of all noise.
        sample: Reverse steps, and how many draws of the noise and which flips are averaged.

    Returns:
        (B,H,W) float32 in [0,1], on the CPU.
    """
    total = torch.zeros((len(pixels), *pixels.shape[-2:]), device=model.device)
    for probability in draws(model, pixels, slices, seed=seed, sample=sample):
        total += probability
    return (total / sample.samples).cpu()


@torch.inference_mode()
def predict_draws(
    model: SliceModel, pixels: Tensor, slices: Sequence[int], *, seed: int, sample: SampleConfig
) -> Tensor:
    """The draws whose mean `predict_planes` is: (B,K,H,W) float32 in [0,1], on the CPU."""
    each = draws(model, pixels, slices, seed=seed, sample=sample)
    return torch.stack([probability.cpu() for probability in each], dim=1)


def draws(
    model: SliceModel, pixels: Tensor, slices: Sequence[int], *, seed: int, sample: SampleConfig
) -> Iterator[Tensor]:
    """One probability for each draw of the noise; the image is encoded once for all of them.

    Args: as `predict_planes`.

    Returns:
        `sample.samples` times (B,H,W) float32 in [0,1], on the device that computes.

    Raises:
        ConfigError: A baseline, which answers at once, shall take more steps or draw noise.
    """

    def answers(seen: Tensor) -> Iterator[Tensor]:
        drawn = model.probabilities(seen, slices, seed=seed, sample=sample)
        return (shifted(probability, model.threshold) for probability in drawn)

    return flip_average(answers, pixels, sample.flips)


def shifted(probability: Tensor, threshold: float) -> Tensor:
    """Probabilities whose odds are divided by those of the threshold: it comes to lie at 0.5, 0 and
    1 stay where they are, and so does the order.
    """
    if threshold == THRESHOLD:
        return probability
    above, below = probability * (1 - threshold), (1 - probability) * threshold
    return above / (above + below)


@contextmanager
def decoded_by(model: SliceModel, decoder: MaskDecoder | None) -> Iterator[None]:
    """Within the block `model` draws masks by this decoder, on its device; None: the exact one."""
    before, model.mask_decoder = model.mask_decoder, decoder
    try:
        yield
    finally:
        model.mask_decoder = before


@torch.inference_mode()
def predict_latents(
    model: SDSeg, pixels: Tensor, slices: Sequence[int], *, seed: int
) -> tuple[Tensor, Tensor]:
    """What the fast decoder has to draw, and what it should look like.

    Args: as `predict_planes`.

    Returns:
        The unscaled latents (B,4,h,w) of one reverse step, and the exact decoder's probabilities
        (B,H,W), both on the model's device.
    """
    latents: list[Tensor] = []

    def look(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        latents.append(arguments[0])

    on_step = model.autoencoder.post_quant_conv.register_forward_pre_hook(look)
    try:
        with decoded_by(model, None):
            (drawn,) = model.probabilities(pixels, slices, seed=seed, sample=SampleConfig())
    finally:
        on_step.remove()
    return latents[0].float(), drawn


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
