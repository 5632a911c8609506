"""SDSeg: the three networks joined.

image --vision_encoder--> zc --------------------.
noise ------------------> zt --unet(zt, t, zc)--> z0_pred --autoencoder.decode--> probability
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TypeGuard

import torch
from torch import Tensor, nn

from sdseg_cli.core.config import ModelConfig, SampleConfig, TrainConfig
from sdseg_cli.model import diffusion
from sdseg_cli.model.autoencoder import Autoencoder, sample_posterior
from sdseg_cli.model.diffusion import Estimate
from sdseg_cli.model.interface import (
    LossInputs,
    MaskLossOf,
    SliceModel,
    as_three_channels,
    class_probabilities,
)
from sdseg_cli.model.mask_decoder import MaskDecoder
from sdseg_cli.model.runtime import reduced_precision
from sdseg_cli.model.unet import UNet
from sdseg_cli.model.vision_encoder import build_vision_encoder

LEAST = 1e-4
"""Probability of a class that the exact decoder draws, at least, before it competes with others."""
NOT_DRAWN = -12.0
"""Logit of a class that is not decoded: a probability of 6e-6."""


class SDSeg(SliceModel):
    """The model of the paper.

    Args:
        config: Sizes and parameterisation.
        autoencoder: E and D; frozen here.
        vision_encoder: tau; frozen here too without `config.train_encoder`.
        unet: f.
        latent_scale: What a mask latent is multiplied by to have about unit size.

    Of K classes (`config.classes`) each has a mask latent of its own, side by side in (B,4K,h,w):
    Eq. 1 to 3 hold as they stand, and one call of the U-Net serves all. `class_scale` is then what
    the latent of each class is multiplied by besides, and `background` the logit of no class, where
    a pixel has one class at most.
    """

    unet: UNet

    def __init__(
        self,
        config: ModelConfig,
        *,
        autoencoder: Autoencoder,
        vision_encoder: nn.Module,
        unet: UNet,
        latent_scale: float = 1.0,
    ) -> None:
        super().__init__(config)
        self.autoencoder = autoencoder.requires_grad_(False)
        self.vision_encoder = vision_encoder.requires_grad_(config.train_encoder)
        self.unet = unet
        self.latent_scale = latent_scale
        if config.classes > 1:
            self.class_scale: Tensor
            self.register_buffer("class_scale", torch.ones(config.classes))
            if not config.overlapping:
                self.background = nn.Parameter(torch.zeros(()))
        self.train()

    def train(self, mode: bool = True) -> SDSeg:
        """As `nn.Module.train`, but what is frozen stays in eval mode, without dropout."""
        super().train(mode)
        self.autoencoder.eval()
        if not self.config.train_encoder:
            self.vision_encoder.eval()
        return self

    def trained_parts(self) -> tuple[nn.Module, ...]:
        """Without the frozen autoencoder, whose latents are kept."""
        return self.vision_encoder, self.unet

    def predicting_parts(self) -> tuple[nn.Module, ...]:
        """With whichever decoder draws."""
        decoder = self.autoencoder.decoder if self.mask_decoder is None else self.mask_decoder
        return self.vision_encoder, self.unet, decoder

    def winograd_parts(self) -> tuple[nn.Module, ...]:
        """Not the U-Net: an error of the noise may reach the latent 38.66 times larger."""
        if self.mask_decoder is not None:
            return (self.vision_encoder,)
        return self.vision_encoder, self.autoencoder.decoder

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(4K,h,w) for a plane of (H,W) px."""
        sizes, classes = self.config.autoencoder, self.config.classes
        return classes * sizes.latent_channels, height // sizes.factor, width // sizes.factor

    def encode_image(self, image: Tensor) -> Tensor:
        """(B,3,H,W) in [-1,1] -> zc (B,C,h,w), C = 4 in the paper."""
        zc: Tensor = self.vision_encoder(image)
        return zc

    def mask_moments(self, mask: Tensor) -> Tensor:
        """(B,3,H,W), -1 or +1 -> posterior mean and log-variance (B,8,h,w), unscaled."""
        with torch.no_grad():
            return self.autoencoder.moments(mask)

    def encode_mask(self, mask: Tensor) -> Tensor:
        """(B,3,H,W), -1 or +1 -> z0 (B,4,h,w): the posterior's mean times `latent_scale`."""
        return self.mask_moments(mask).chunk(2, dim=1)[0] * self.latent_scale

    def sample_latent(self, moments: Tensor, noise: Tensor) -> Tensor:
        """(B,8K,h,w) of `mask_moments`, K classes side by side, and (B,4K,h,w) standard normal ->
        z0 (B,4K,h,w): a posterior draw of each class times `latent_scale`.
        """
        channels, plane = self.config.autoencoder.latent_channels, noise.shape[-2:]
        each = moments.reshape(-1, 2 * channels, *plane), noise.reshape(-1, channels, *plane)
        return sample_posterior(*each).reshape(noise.shape) * self.scale()

    def scale(self) -> float | Tensor:
        """What a latent is multiplied by to have about unit size: `latent_scale`, of several
        classes (4K,1,1).
        """
        if self.config.classes == 1:
            return self.latent_scale
        channels = self.config.autoencoder.latent_channels
        return (self.latent_scale * self.class_scale).repeat_interleave(channels)[:, None, None]

    def _unscaled(self, z0: Tensor) -> Tensor:
        """Scaled (B,4K,h,w) -> a latent for each class, as the autoencoder makes it, (BK,4,h,w)."""
        channels, latent = self.config.autoencoder.latent_channels, z0 / self.scale()
        # Even a reshape that changes nothing may change strides, and with them how sums round.
        several = self.config.classes > 1
        if not several:
            return latent
        each = latent.reshape(-1, channels, *z0.shape[-2:])
        return each.contiguous(memory_format=torch.channels_last)

    def _exact(self, device: torch.device) -> AbstractContextManager[None]:
        """TF32 as configured, on a GPU: it is the whole process's, so CPU threads leave it."""
        cuda = device.type == "cuda"
        return full_precision(tf32=self.config.tf32) if cuda else nullcontext()

    def denoise(self, zt: Tensor, t: int | Tensor, zc: Tensor) -> Estimate:
        """The network's answer to (B,4,h,w) `zt` at `t`, as noise and as clean latent, float32."""
        with self._exact(zt.device):
            output = self.unet(zt, t, zc)
        return diffusion.read_output(output, zt, t, self.config.parameterisation)

    def predict_noise(self, zt: Tensor, t: int | Tensor, zc: Tensor) -> Tensor:
        """`noise_pred`, (B,4,h,w) float32; `t` an int or (B,)."""
        return self.denoise(zt, t, zc).noise_pred

    def estimate_z0(self, zt: Tensor, noise_pred: Tensor, t: int | Tensor) -> Tensor:
        """Eq. 2: `z0_pred`, (B,4,h,w) float32."""
        return diffusion.estimate_z0(zt, noise_pred, t)

    def decode(self, z0: Tensor) -> Tensor:
        """Scaled latent (B,4,h,w) -> (B,3,H,W), about [-1,1]."""
        return self.autoencoder.decode(z0 / self.latent_scale)

    def probability(self, z0: Tensor) -> Tensor:
        """Scaled latent (B,4,h,w) of one class -> the Score map (B,H,W) in [0,1]: channel mean of
        (x + 1)/2 clamped, or what the mask decoder says that is.
        """
        return self._each_probability(z0)

    def _each_probability(self, z0: Tensor) -> Tensor:
        """`probability` of each class by itself, (BK,H,W)."""
        latents = self._unscaled(z0)
        if self.mask_decoder is not None:
            fast: Tensor = self.mask_decoder(latents)
            return fast
        return ((self.autoencoder.decode(latents).float() + 1) / 2).clamp(0, 1).mean(dim=1)

    def class_probabilities(self, z0: Tensor) -> Tensor:
        """Scaled latent (B,4K,h,w) -> probability of each class, (B,K,H,W) in [0,1]. Classes that
        exclude each other share one softmax with the background.
        """
        classes = self.config.classes
        if classes == 1 or self.config.overlapping:
            return self._of_classes(self._each_probability(z0))
        if self.mask_decoder is not None:
            return class_probabilities(self.mask_logits(z0, self.mask_decoder), classes)
        drawn = self._each_probability(z0).clamp(LEAST, 1 - LEAST)
        return class_probabilities(self._beside_background(torch.logit(drawn)), classes)

    def mask_logits(self, z0: Tensor, decoder: MaskDecoder, chosen: Tensor | None = None) -> Tensor:
        """Logits by a mask decoder, as `interface.class_probabilities` reads them.

        Args:
            z0: Scaled latent (B,4K,h,w).
            decoder: Of this autoencoder.
            chosen: (B,K) bool: the classes that are decoded; the others are `NOT_DRAWN` everywhere.
                None: all.

        Returns:
            (B,K,H,W) float32, or with the background's first (B,K+1,H,W).
        """
        latents = self._unscaled(z0)
        if chosen is None:
            logits = decoder.logits(latents).float()
        else:
            places = chosen.flatten().nonzero().flatten()
            some = decoder.logits(latents[places]).float()
            logits = some.new_full((len(latents), *some.shape[1:]), NOT_DRAWN)
            logits = logits.index_copy(0, places, some)
        if self.config.classes == 1 or self.config.overlapping:
            return self._of_classes(logits)
        return self._beside_background(logits)

    def _of_classes(self, planes: Tensor) -> Tensor:
        """(BK,H,W) -> (B,K,H,W)."""
        return planes.reshape(-1, self.config.classes, *planes.shape[-2:])

    def _beside_background(self, logits: Tensor) -> Tensor:
        """(BK,H,W) -> (B,K+1,H,W)."""
        each = self._of_classes(logits)
        background = self.background.float().expand(len(each), 1, *each.shape[-2:])
        return torch.cat([background, each], dim=1)

    @torch.inference_mode()
    def probabilities(
        self, pixels: Tensor, slices: Sequence[int], *, seed: int, sample: SampleConfig
    ) -> Iterator[Tensor]:
        """Each part in its precision; the image is encoded once for all draws."""
        device = self.device
        lowered = partial(reduced_precision, device, self.config.precision)
        image = as_three_channels(pixels.to(device))
        with self._exact(device), lowered():
            zc = self.encode_image(image.contiguous(memory_format=torch.channels_last)).float()
        shape = self.latent_shape(*pixels.shape[-2:])
        names = ["shared"] * len(slices) if sample.noise == "shared" else slices

        def noise(*draw: int) -> Tensor:
            if sample.noise == "zero":
                return torch.zeros((len(slices), *shape), device=device)
            return diffusion.seeded_noise(seed, names, shape, *draw).to(device)

        for number in range(sample.samples):
            start, fresh = noise(number) if number else noise(), partial(noise, number)
            with self._exact(device):
                z0 = diffusion.ddim(
                    self.denoise, start, zc, sample.steps, eta=sample.eta, fresh=fresh
                )
                with lowered():
                    probability = self.class_probabilities(z0)
            yield probability

    @property
    def loss_names(self) -> tuple[str, ...]:
        """The two terms of Eq. 3."""
        return "loss_noise", "loss_latent"

    def loss_terms(
        self,
        inputs: LossInputs,
        recipe: TrainConfig,
        mask_loss: MaskLossOf | None,
        weight: Tensor | None,
        mean_weight: Tensor | None,
    ) -> Tensor:
        """Eq. 3, and perhaps the mask of the estimate.

        moments, posterior noise --> z0 --Eq. 1--> zt --unet(zt, t, zc)--> estimate --Eq. 3--> loss
        image --vision_encoder--> zc ------------------------'
        """
        image = as_three_channels(inputs.image).contiguous(memory_format=torch.channels_last)
        with reduced_precision(image.device, self.config.precision):
            zc = self.encode_image(image).float()
        z0 = self.sample_latent(inputs.moments, inputs.posterior_noise)
        zt = diffusion.add_noise(z0, inputs.noise, inputs.t)
        estimate = self.denoise(zt, inputs.t, zc)
        loss_noise, loss_latent = diffusion.loss_terms(
            estimate,
            inputs.noise,
            z0,
            weight,
            mean_weight=mean_weight,
            importance=inputs.importance if recipe.timesteps == "latent-weighted" else None,
            partly=inputs.counts is not None or recipe.takes_shortcuts,
            squared=recipe.latent_loss == "l2",
        )
        loss = recipe.noise_loss_weight * loss_noise + recipe.latent_loss_weight * loss_latent
        if mask_loss is None:
            return torch.stack([loss, loss_noise, loss_latent])
        loss_mask = mask_loss(estimate.z0_pred, inputs.masks, inputs.counts)
        loss = loss + recipe.mask_loss_weight * loss_mask
        return torch.stack([loss, loss_noise, loss_latent, loss_mask])


def has_latents(model: SliceModel) -> TypeGuard[SDSeg]:
    """True if it works on latents, and so has an autoencoder and a decoder."""
    return isinstance(model, SDSeg)


@contextmanager
def full_precision(*, tf32: bool = False) -> Iterator[None]:
    """float32 within, without TF32 unless asked for."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def build_sdseg(config: ModelConfig) -> SDSeg:
    """SDSeg with fresh weights."""
    return SDSeg(
        config,
        autoencoder=Autoencoder(config.autoencoder),
        vision_encoder=build_vision_encoder(config),
        unet=UNet(
            config.unet,
            config.autoencoder.latent_channels,
            fusion=config.fusion,
            classes=config.classes,
            condition_channels=config.condition_channels,
        ),
    )


def unfilled_sdseg(config: ModelConfig) -> SDSeg:
    """SDSeg whose weights are about to be loaded, by `load_strictly`: its tensors are only shapes,
    and the seconds of drawing random ones are saved.
    """
    with torch.device("meta"):
        return build_sdseg(config)


def foreground_weight(foreground: Tensor, factor: int, strength: float) -> Tensor:
    """Where the latent loss looks harder: `1 + strength` on and one latent pixel beside the
    foreground.

    Args:
        foreground: (B,1,H,W), 1 on the foreground, 0 elsewhere.
        factor: Plane side over latent side (8).
        strength: Extra weight, >= 0.

    Returns:
        (B,1,h,w) float32.
    """
    touched = nn.functional.max_pool2d(foreground, factor)
    return 1 + strength * nn.functional.max_pool2d(touched, 3, stride=1, padding=1)
