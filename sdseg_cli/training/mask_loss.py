"""A loss of the mask itself, in pixels: what baselines are trained by, and what SDSeg may add.

SDSeg's mask comes out of the fast decoder, which is small enough to train through:

z0_pred --mask decoder, frozen--> logits --> one minus Dice, and cross-entropy
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdseg_cli.errors import ConfigError
from sdseg_cli.model.mask_decoder import MaskDecoder
from sdseg_cli.model.sdseg import SDSeg
from sdseg_cli.model.store import WeightStore
from sdseg_cli.training.fast_decoder import find_mask_decoder


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


def decoded_mask_loss(model: SDSeg) -> DecodedMaskLoss:
    """Of this model, on its device.

    Raises:
        ConfigError: Its autoencoder has no fast decoder.
    """
    store, device = WeightStore.default(), next(model.parameters()).device
    decoder = find_mask_decoder(model.autoencoder, model.config.autoencoder, store)
    if decoder is None:
        raise ConfigError(
            "train.mask_loss_weight: this autoencoder has no fast decoder to train through.",
            "`sdseg distill` makes one, from any run with the same autoencoder.",
        )
    return DecodedMaskLoss(decoder, model.latent_scale).to(device)
