"""What a training step minimises: Eq. 3 of one batch, from prepared inputs to loss terms.

moments, posterior noise --> z0 --Eq. 1--> zt --unet(zt, t, zc)--> estimate --Eq. 3--> loss
image --vision_encoder--> zc ------------------------'
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdseg_cli.config import TrainConfig
from sdseg_cli.model import diffusion
from sdseg_cli.model.sdseg import SDSeg, as_three_channels, foreground_weight
from sdseg_cli.training.runtime import reduced_precision
from sdseg_cli.training.steps import StepInputs


class Objective(nn.Module):
    """The loss of a model under a recipe, as one module: so DDP can wrap it.

    Args:
        model: On the device that computes.
        recipe: Weights of the terms.
    """

    def __init__(self, model: SDSeg, recipe: TrainConfig) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe

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
        """Loss, L_noise and L_latent of these samples.

        Args:
            inputs: On the device, their moments known.
            weight: (B,1,h,w) of `weight`.
            mean_weight: Its mean over the whole batch, of which these may be a part.

        Returns:
            (3,) float32; only the first has a gradient that is used.
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
        return torch.stack([loss, loss_noise, loss_latent])
