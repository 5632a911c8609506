"""The networks SDSeg is compared with, behind the calls of SDSeg that training and prediction make.

image --unet--> logits of the mask, all in one step and without noise
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pkgutil import resolve_name

import torch
from torch import Tensor, nn

from sdseg_cli.core.config import BASELINES, SDSEG, ModelConfig, SampleConfig, TrainConfig
from sdseg_cli.core.errors import ConfigError
from sdseg_cli.model.interface import (
    LossInputs,
    MaskLossOf,
    SliceModel,
    as_three_channels,
    class_probabilities,
)
from sdseg_cli.model.runtime import memory_format, reduced_precision
from sdseg_cli.model.sdseg import build_sdseg, unfilled_sdseg

LEAST_SHARE = 1e-6
"""Of the pixels, that a class is taken to have at the start."""


class Baseline(SliceModel):
    """A network of planes.

    Args:
        config: Names it, and its scale.
        unet: The network, under the name of SDSeg's, so that averages and checkpoints are alike.
            It answers (B,C,H,W), in training perhaps (B,L,C,H,W): its own answer first, then those
            of its lower levels, enlarged. C is K of one class and of classes that overlap, else
            K + 1 with the background first.
    """

    channels_last_on_cpu = False
    """It would make a step up to 1.5 times as long."""

    def __init__(self, config: ModelConfig, unet: nn.Module) -> None:
        super().__init__(config)
        self.unet = unet

    def trained_parts(self) -> tuple[nn.Module, ...]:
        """All of it."""
        return (self.unet,)

    @torch.no_grad()
    def start_at(self, shares: Tensor) -> None:
        """Answer at first with each class's share of the pixels, not with all alike: it would take
        the first hundreds of steps to learn that most pixels are background.

        Args:
            shares: (K,) in [0,1], of K > 1 classes.
        """
        shares = shares.double().clamp(LEAST_SHARE, 1 - LEAST_SHARE)
        if self.config.overlapping:
            start = torch.logit(shares)
        else:
            background = (1 - shares.sum()).clamp(min=LEAST_SHARE)
            start = torch.cat([background[None], shares]).log()
        for part in BASELINES[self.config.network].answers:
            for module in self.unet.get_submodule(part).modules():
                if isinstance(module, nn.Conv2d) and module.bias is not None:
                    module.bias.copy_(start)

    def logits(self, image: Tensor) -> Tensor:
        """(B,3,H,W) in [-1,1] -> (B,L,C,H,W); L is 1 but for a network that is deeply supervised,
        in training.
        """
        answer: Tensor = self.unet(image)
        return answer if answer.ndim == 5 else answer[:, None]

    def probability(self, image: Tensor) -> Tensor:
        """(B,3,H,W) in [-1,1] -> (B,K,H,W) float32 in [0,1]."""
        return class_probabilities(self.logits(image)[:, 0], self.config.classes)

    def probabilities(
        self, pixels: Tensor, slices: Sequence[int], *, seed: int, sample: SampleConfig
    ) -> Iterator[Tensor]:
        """One answer, free of noise."""
        if not sample.steps == sample.samples == 1 or sample.eta:
            raise ConfigError(
                f"{self.config.network} is no diffusion model: it takes one step and draws no "
                "noise.",
                "Leave out --steps, --eta and --samples.",
            )
        return self._answer(pixels)

    @torch.inference_mode()
    def _answer(self, pixels: Tensor) -> Iterator[Tensor]:
        device = self.device
        image = as_three_channels(pixels.to(device))
        image = image.contiguous(memory_format=memory_format(self, device))
        with reduced_precision(device, self.config.precision):
            probability = self.probability(image)
        yield probability

    @property
    def loss_names(self) -> tuple[str, ...]:
        """The two terms of a loss of the mask."""
        return "loss_dice", "loss_cross_entropy"

    def loss_terms(
        self,
        inputs: LossInputs,
        recipe: TrainConfig,
        mask_loss: MaskLossOf | None,
        weight: Tensor | None,
        mean_weight: Tensor | None,
    ) -> Tensor:
        """One minus Dice of each slice, and binary cross-entropy, in equal parts. Where lower
        levels answer too, each counts half of the one above, as in nnU-Net.
        """
        if mask_loss is None:
            raise ValueError("a baseline learns from a loss of the mask")
        image = as_three_channels(inputs.image)
        image = image.contiguous(memory_format=memory_format(self, image.device))
        with reduced_precision(image.device, self.config.precision):
            answers = self.logits(image).float().unbind(dim=1)
        terms = torch.stack([mask_loss(answer, inputs.masks, inputs.counts) for answer in answers])
        share = 0.5 ** torch.arange(len(answers), device=image.device)
        dice, cross_entropy = share / share.sum() @ terms
        return torch.stack([dice + cross_entropy, dice, cross_entropy])


def build_model(config: ModelConfig) -> SliceModel:
    """The model of these settings, with fresh weights.

    Raises:
        ConfigError: A package that the network needs is not installed.
    """
    return build_sdseg(config) if config.network == SDSEG else build_baseline(config)


def unfilled_model(config: ModelConfig) -> SliceModel:
    """Build a model for weights that `load_strictly` is about to load."""
    return unfilled_sdseg(config) if config.network == SDSEG else build_baseline(config)


def build_baseline(config: ModelConfig) -> Baseline:
    """The network of `BASELINES` that `config.network` names, in the size `config.scale`.

    Raises:
        ConfigError: As `build_model`.
    """
    network = BASELINES[config.network]
    if absent := [name for name in network.needs if find_spec(name) is None]:
        raise ConfigError(
            f"{config.network} needs {' and '.join(absent)}.",
            f"pip install {' '.join(absent)}; or all at once: pip install 'sdseg-cli[baselines]'.",
        )
    sizes = dict(network.tiny if config.scale == "tiny" else network.sd)
    if network.source.startswith("monai."):
        sizes["spatial_dims"] = 2
    alone = config.classes == 1 or config.overlapping
    channels = config.classes if alone else config.classes + 1
    make = resolve_name(network.source)
    return Baseline(config, make(in_channels=3, out_channels=channels, **sizes))
