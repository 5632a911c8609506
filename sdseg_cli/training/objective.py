"""What a training step minimises. For SDSeg Eq. 3 of one batch; with `train.mask_loss_weight` the
mask of the estimate counts, too. For a baseline Dice and cross-entropy of its mask are all.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from sdseg_cli.core.config import TrainConfig
from sdseg_cli.model.interface import SliceModel
from sdseg_cli.model.mask_decoder import MaskDecoder
from sdseg_cli.model.sdseg import foreground_weight, has_latents
from sdseg_cli.training.latents import MaskLatents, encode_masks
from sdseg_cli.training.mask_loss import DecodedMaskLoss, MaskLoss
from sdseg_cli.training.steps import StepInputs


class Objective(nn.Module):
    """The loss of a model under a recipe, as one module: so DDP can wrap it.

    Args:
        model: On the device that computes.
        recipe: Weights of the terms.
        decoder: Of an SDSeg whose mask counts, on the same device.

    Raises:
        ValueError: The mask of an SDSeg counts, and there is no decoder.
    """

    def __init__(
        self, model: SliceModel, recipe: TrainConfig, decoder: MaskDecoder | None = None
    ) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe
        self.mask_loss: DecodedMaskLoss | MaskLoss | None = None
        if not has_latents(model):
            self.mask_loss = MaskLoss()
        elif recipe.mask_loss_weight:
            if decoder is None:
                raise ValueError("a loss of the mask needs a decoder")
            self.mask_loss = DecodedMaskLoss(decoder, model.latent_scale)

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of what the loss is the sum of, in the log."""
        decoded = isinstance(self.mask_loss, DecodedMaskLoss)
        return self.model.loss_names + (("loss_mask",) if decoded else ())

    @property
    def decoder(self) -> MaskDecoder | None:
        """What masks are decoded by in training, and are to be afterwards; None: the exact one."""
        return self.mask_loss.decoder if isinstance(self.mask_loss, DecodedMaskLoss) else None

    def with_latents(self, inputs: StepInputs, latents: MaskLatents) -> StepInputs:
        """The inputs with the moments of all masks; new ones are computed and kept."""
        new = [i for i, with_latents in enumerate(inputs.known.tolist()) if not with_latents]
        if not new or not has_latents(self.model):
            return inputs
        computed = encode_masks(self.model, inputs.foreground[new])
        latents.write([inputs.rows[i] for i in new], computed)
        moments = inputs.moments.clone()
        moments[new] = computed
        return replace(inputs, moments=moments)

    def weight(self, inputs: StepInputs) -> Tensor | None:
        """Where the latent loss looks harder, (B,1,h,w); None where it looks alike everywhere."""
        if not self.recipe.foreground_weight or not has_latents(self.model):
            return None
        foreground = inputs.foreground[:, None].float()
        factor = self.model.config.autoencoder.factor
        return foreground_weight(foreground, factor, self.recipe.foreground_weight)

    def forward(
        self, inputs: StepInputs, weight: Tensor | None, mean_weight: Tensor | None
    ) -> Tensor:
        """`loss_terms` of the model, as DDP calls it."""
        return self.model.loss_terms(inputs, self.recipe, self.mask_loss, weight, mean_weight)
