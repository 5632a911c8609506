"""`SliceModel`: the interface by which SDSeg and every baseline train and predict.

Callers use these methods; only `model/` knows which network it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from sdseg_cli.core.config import THRESHOLD, ModelConfig, SampleConfig, TrainConfig
from sdseg_cli.model.mask_decoder import MaskDecoder

MaskLossOf = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""A loss of a model's estimate, the true masks (B,K,H,W) bool and where they are known: of SDSeg's
z0 a scalar; of a baseline's logits Dice loss and cross-entropy, (2,).
"""


class LossInputs(Protocol):
    """Inputs of a loss; see `training.batches.StepInputs`."""

    @property
    def image(self) -> Tensor: ...
    @property
    def masks(self) -> Tensor: ...
    @property
    def moments(self) -> Tensor: ...
    @property
    def posterior_noise(self) -> Tensor: ...
    @property
    def noise(self) -> Tensor: ...
    @property
    def t(self) -> Tensor: ...
    @property
    def importance(self) -> Tensor: ...
    @property
    def counts(self) -> Tensor | None: ...


class SliceModel(nn.Module, ABC):
    """A model of planes. A base class, no `typing.Protocol`: torch's own functions want a module.

    What is not abstract suits a network that answers at once and has no latents.
    """

    channels_last_on_cpu = True
    """True if a CPU too computes faster with channels last."""
    unet: nn.Module
    """The network whose average is kept and predicts."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.latent_scale = 1.0
        """Factor that gives a mask latent about unit size."""
        self.threshold = THRESHOLD
        """The probability above which a pixel is foreground, where training chose one."""
        self.mirrored: tuple[int, ...] = ()
        """Of K classes, which one each becomes in a left-right mirror image; () where all stay."""
        self.mask_decoder: MaskDecoder | None = None
        """In place of the autoencoder's decoder, where predictions are to be fast."""

    @property
    def device(self) -> torch.device:
        """Device on which it computes."""
        return next(self.parameters()).device

    @abstractmethod
    def trained_parts(self) -> tuple[nn.Module, ...]:
        """The networks a training step computes again and again."""

    def predicting_parts(self) -> tuple[nn.Module, ...]:
        """The networks a prediction computes."""
        return self.trained_parts()

    def winograd_parts(self) -> tuple[nn.Module, ...]:
        """The parts whose wide convolutions may be computed with fewer multiplications."""
        return self.predicting_parts()

    def start_at(self, shares: Tensor) -> None:
        """Let fresh weights of K > 1 classes answer with each class's share of the pixels, (K,)."""

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(4K,h,w) for a plane of (H,W) px, K classes; zeros where there are no latents."""
        return 0, 0, 0

    @abstractmethod
    def probabilities(
        self, pixels: Tensor, slices: Sequence[int], *, seed: int, sample: SampleConfig
    ) -> Iterator[Tensor]:
        """One probability for each draw of the noise, of the pixels as they are: without flips.

        Args:
            pixels: (B,H,W), of pictures (B,3,H,W), float32 in [-1,1].
            slices: B numbers; with the seed they name each slice's own noise.
            seed: Of all noise.
            sample: Reverse steps, and how many draws of the noise.

        Returns:
            `sample.samples` times (B,K,H,W) float32 in [0,1], K classes, on the device that
            computes.

        Raises:
            ConfigError: A baseline, which answers at once, shall take more steps or draw noise.
        """

    @property
    @abstractmethod
    def loss_names(self) -> tuple[str, ...]:
        """Names in the log of what `loss_terms` gives after the loss, but for `loss_mask`."""

    @abstractmethod
    def loss_terms(
        self,
        inputs: LossInputs,
        recipe: TrainConfig,
        mask_loss: MaskLossOf | None,
        weight: Tensor | None,
        mean_weight: Tensor | None,
    ) -> Tensor:
        """The loss of these samples and the terms it is the sum of.

        Args:
            inputs: On the device, their moments known.
            recipe: Weights of the terms.
            mask_loss: For SDSeg None where the mask does not count.
            weight: (B,1,h,w), where the latent loss looks harder; None where it looks alike.
            mean_weight: Its mean over the whole batch, of which these may be a part.

        Returns:
            (1 + terms,) float32; the first is what is minimised.
        """


def class_probabilities(logits: Tensor, classes: int) -> Tensor:
    """Probabilities of K classes.

    Args:
        logits: (B,K,H,W), each class by itself; or (B,K+1,H,W), the background first, of classes
            that exclude each other.
        classes: K.

    Returns:
        (B,K,H,W) float32 in [0,1]; where they exclude each other, their sum is at most 1.
    """
    logits = logits.float()
    return logits.sigmoid() if logits.shape[1] == classes else logits.softmax(dim=1)[:, 1:]


def as_three_channels(plane: Tensor) -> Tensor:
    """(B,H,W) -> (B,3,H,W), the channel repeated (a view); (B,3,H,W) as it is."""
    return plane if plane.ndim == 4 else plane.unsqueeze(1).expand(-1, 3, -1, -1)
