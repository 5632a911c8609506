"""What a training step minimises, from prepared inputs to loss terms. For SDSeg Eq. 3 of one batch:

moments, posterior noise --> z0 --Eq. 1--> zt --unet(zt, t, zc)--> estimate --Eq. 3--> loss
image --vision_encoder--> zc ------------------------'

With `train.mask_loss_weight` the mask of the estimate counts, too. For a baseline Dice and
cross-entropy of its mask are all.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from sdseg_cli.core.config import TrainConfig
from sdseg_cli.model import diffusion
from sdseg_cli.model.baselines import Baseline, SliceModel
from sdseg_cli.model.mask_decoder import MaskDecoder
from sdseg_cli.model.runtime import memory_format, reduced_precision
from sdseg_cli.model.sdseg import SDSeg, as_three_channels, foreground_weight
from sdseg_cli.training.latents import MaskLatents, encode_masks
from sdseg_cli.training.mask_loss import DecodedMaskLoss, MaskLoss
from sdseg_cli.training.steps import StepInputs


class Objective(nn.Module):
    """The loss of SDSeg under a recipe, as one module: so DDP can wrap it.

    Args:
        model: On the device that computes.
        recipe: Weights of the terms.
        decoder: On the same device; needed where the mask counts.

    Raises:
        ValueError: The mask counts, and there is no decoder.
    """

    def __init__(
        self, model: SDSeg, recipe: TrainConfig, decoder: MaskDecoder | None = None
    ) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe
        self.mask_loss: DecodedMaskLoss | None = None
        if recipe.mask_loss_weight:
            if decoder is None:
                raise ValueError("a loss of the mask needs a decoder")
            self.mask_loss = DecodedMaskLoss(decoder, model.latent_scale)

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of what the loss is the sum of, in the log."""
        terms = "loss_noise", "loss_latent"
        return terms if self.mask_loss is None else (*terms, "loss_mask")

    @property
    def decoder(self) -> MaskDecoder | None:
        """What masks are decoded by in training, and are to be afterwards; None: the exact one."""
        return None if self.mask_loss is None else self.mask_loss.decoder

    def with_latents(self, inputs: StepInputs, latents: MaskLatents) -> StepInputs:
        """The inputs with the moments of all masks; new ones are computed and kept."""
        new = [i for i, with_latents in enumerate(inputs.known.tolist()) if not with_latents]
        if not new:
            return inputs
        computed = encode_masks(self.model, inputs.foreground[new])
        latents.write([inputs.rows[i] for i in new], computed)
        moments = inputs.moments.clone()
        moments[new] = computed
        return replace(inputs, moments=moments)

    def weight(self, inputs: StepInputs) -> Tensor | None:
        """Where the latent loss looks harder, (B,1,h,w); None where it looks alike everywhere."""
        if not self.recipe.foreground_weight:
            return None
        foreground = inputs.foreground[:, None].float()
        factor = self.model.config.autoencoder.factor
        return foreground_weight(foreground, factor, self.recipe.foreground_weight)

    def forward(
        self, inputs: StepInputs, weight: Tensor | None, mean_weight: Tensor | None
    ) -> Tensor:
        """Loss, L_noise, L_latent and perhaps the mask's of these samples.

        Args:
            inputs: On the device, their moments known.
            weight: (B,1,h,w) of `weight`.
            mean_weight: Its mean over the whole batch, of which these may be a part.

        Returns:
            (3,) or (4,) float32; the first is what is minimised.
        """
        model, recipe = self.model, self.recipe
        image = as_three_channels(inputs.image).contiguous(memory_format=torch.channels_last)
        with reduced_precision(image.device, model.config.precision):
            zc = model.encode_image(image).float()
        z0 = model.sample_latent(inputs.moments, inputs.posterior_noise)
        zt = diffusion.add_noise(z0, inputs.noise, inputs.t)
        estimate = model.denoise(zt, inputs.t, zc)
        loss_noise, loss_latent = diffusion.loss_terms(
            estimate,
            inputs.noise,
            z0,
            weight,
            mean_weight=mean_weight,
            importance=inputs.importance if recipe.timesteps == "latent-weighted" else None,
            squared=recipe.latent_loss == "l2",
        )
        loss = recipe.noise_loss_weight * loss_noise + recipe.latent_loss_weight * loss_latent
        if self.mask_loss is None:
            return torch.stack([loss, loss_noise, loss_latent])
        loss_mask = self.mask_loss(estimate.z0_pred, inputs.foreground)
        loss = loss + recipe.mask_loss_weight * loss_mask
        return torch.stack([loss, loss_noise, loss_latent, loss_mask])


class PlaneObjective(nn.Module):
    """The loss of a baseline: one minus Dice of each slice, and binary cross-entropy, in equal
    parts. Where lower levels answer too, each counts half of the one above, as in nnU-Net.

    Args:
        model: On the device that computes.
    """

    terms: tuple[str, ...] = ("loss_dice", "loss_cross_entropy")
    decoder = None

    def __init__(self, model: Baseline) -> None:
        super().__init__()
        self.model, self.loss = model, MaskLoss()

    def with_latents(self, inputs: StepInputs, latents: MaskLatents) -> StepInputs:
        """The inputs as they are."""
        return inputs

    def weight(self, inputs: StepInputs) -> Tensor | None:
        """None: nothing is weighed."""
        return None

    def forward(
        self, inputs: StepInputs, weight: Tensor | None, mean_weight: Tensor | None
    ) -> Tensor:
        """Loss, Dice loss and cross-entropy of these samples, (3,) float32; see `Objective`."""
        image = as_three_channels(inputs.image)
        image = image.contiguous(memory_format=memory_format(self.model, image.device))
        with reduced_precision(image.device, self.model.config.precision):
            answers = self.model.logits(image).float().unbind(dim=1)
        terms = torch.stack([self.loss(answer, inputs.foreground) for answer in answers])
        share = 0.5 ** torch.arange(len(answers), device=image.device)
        dice, cross_entropy = share / share.sum() @ terms
        return torch.stack([dice + cross_entropy, dice, cross_entropy])


def objective_of(
    model: SliceModel, recipe: TrainConfig, decoder: MaskDecoder | None = None
) -> Objective | PlaneObjective:
    """What the model minimises; arguments as those of `Objective`."""
    if not isinstance(model, SDSeg):
        return PlaneObjective(model)
    return Objective(model, recipe, decoder)
