"""A loss of the mask itself, in pixels: what baselines are trained by, and what SDSeg may add.

SDSeg's mask comes out of the fast decoder, which is small enough to train through:

z0_pred --mask decoder, frozen--> logits --> one minus Dice, and cross-entropy
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sdseg_cli.core.config import RunConfig
from sdseg_cli.core.errors import ConfigError
from sdseg_cli.inference.decoders import (
    DecoderCheck,
    find_mask_decoder,
    keep_with_run,
    kept_for_training,
    read_check,
)
from sdseg_cli.model.autoencoder import Autoencoder
from sdseg_cli.model.mask_decoder import MaskDecoder
from sdseg_cli.model.naming import below
from sdseg_cli.model.store import WeightStore
from sdseg_cli.model.tensor_files import load_strictly
from sdseg_cli.runs.run_folder import RunDir


class MaskLoss(nn.Module):
    """One minus Dice, a mean over the slices, and binary cross-entropy, a mean over the pixels."""

    def __init__(self) -> None:
        super().__init__()
        from monai.losses import DiceLoss

        self.dice = DiceLoss(sigmoid=True)
        self.cross_entropy = nn.BCEWithLogitsLoss()

    def forward(self, logits: Tensor, foreground: Tensor) -> Tensor:
        """(B,1,H,W) float32 and (B,H,W) bool -> both, (2,) float32."""
        truth = foreground[:, None].float()
        return torch.stack([self.dice(logits, truth), self.cross_entropy(logits, truth)])


class DecodedMaskLoss(nn.Module):
    """`MaskLoss` of a clean latent, through a decoder that stays as it is.

    Args:
        decoder: Of the model's autoencoder.
        latent_scale: The model's.
    """

    def __init__(self, decoder: MaskDecoder, latent_scale: float) -> None:
        super().__init__()
        self.decoder, self.latent_scale = decoder.requires_grad_(False).eval(), latent_scale
        self.loss = MaskLoss()

    def forward(self, z0_pred: Tensor, foreground: Tensor) -> Tensor:
        """Scaled (B,4,h,w) and (B,H,W) bool -> the sum of both, a scalar."""
        logits = self.decoder.logits(z0_pred / self.latent_scale)[:, None].float()
        total: Tensor = self.loss(logits, foreground).sum()
        return total


def decoder_to_train_through(
    config: RunConfig, weights: Mapping[str, Tensor], run: RunDir, store: WeightStore
) -> MaskDecoder | None:
    """The fast decoder of a training whose masks count, None of any other. A run keeps the one it
    began with, whatever is distilled meanwhile.

    Args:
        config: Every setting.
        weights: Of the model, with its autoencoder.
        run: Where the training goes on, if it began before.
        store: Where mask decoders are.

    Raises:
        ConfigError: Its autoencoder has no fast decoder.
        WeightsError: A file is damaged.
    """
    if not config.train.mask_loss_weight:
        return None
    sizes = config.model.autoencoder
    if (kept := kept_for_training(run, sizes)) is not None:
        return kept
    autoencoder = Autoencoder(sizes)
    load_strictly(autoencoder, below(weights, "autoencoder."), source="checkpoint")
    found = find_mask_decoder(autoencoder, sizes, store)
    if found is None:
        raise ConfigError(
            "train.mask_loss_weight: this autoencoder has no fast decoder to train through.",
            "`sdseg distill` makes one, from any run with the same autoencoder.",
        )
    return found


def keep_for_training(run: RunDir, decoder: MaskDecoder) -> None:
    """Let the run keep the decoder it is trained through; once.

    Raises:
        RunError: The disk refused.
    """
    check = read_check(run.path)
    if check is None or not check.trained_through:
        keep_with_run(run, decoder, DecoderCheck(0, 0, 0.0, 0.0, trained_through=True))
