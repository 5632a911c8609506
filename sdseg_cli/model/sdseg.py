"""SDSeg: the three networks joined.

image --vision_encoder--> zc --------------------.
noise ------------------> zt --unet(zt, t, zc)--> z0_pred --autoencoder.decode--> probability
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from sdseg_cli.core.config import THRESHOLD, AutoencoderConfig, ModelConfig
from sdseg_cli.model import diffusion
from sdseg_cli.model.autoencoder import Autoencoder, Encoder, sample_posterior
from sdseg_cli.model.diffusion import Estimate
from sdseg_cli.model.mask_decoder import MaskDecoder
from sdseg_cli.model.unet import UNet


class VisionEncoder(nn.Module):
    """tau: the autoencoder's encoder and a 1x1 convolution to the latent's channels."""

    def __init__(self, config: AutoencoderConfig, *, dropout: float) -> None:
        super().__init__()
        self.encoder = Encoder(config, dropout=dropout)
        self.out = nn.Conv2d(2 * config.latent_channels, config.latent_channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(B,3,H,W) in [-1,1] -> zc (B,4,H/8,W/8)."""
        zc: Tensor = self.out(self.encoder(image))
        return zc


class SDSeg(nn.Module):
    """The model of the paper.

    Args:
        config: Sizes and parameterisation.
        autoencoder: E and D; frozen here.
        vision_encoder: tau; frozen here too without `config.train_encoder`.
        unet: f.
        latent_scale: What a mask latent is multiplied by to have about unit size.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        autoencoder: Autoencoder,
        vision_encoder: VisionEncoder,
        unet: UNet,
        latent_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.config = config
        self.autoencoder = autoencoder.requires_grad_(False)
        self.vision_encoder = vision_encoder.requires_grad_(config.train_encoder)
        self.unet = unet
        self.latent_scale = latent_scale
        self.threshold = THRESHOLD
        """The probability above which a pixel is foreground, where training chose one."""
        self.mask_decoder: MaskDecoder | None = None
        """In place of the autoencoder's decoder, where predictions are to be fast."""
        self.train()

    def train(self, mode: bool = True) -> SDSeg:
        """As `nn.Module.train`, but what is frozen stays in eval mode, without dropout."""
        super().train(mode)
        self.autoencoder.eval()
        if not self.config.train_encoder:
            self.vision_encoder.eval()
        return self

    def trained_parts(self) -> tuple[nn.Module, ...]:
        """The networks a training step computes again and again."""
        return self.vision_encoder, self.unet

    def predicting_parts(self) -> tuple[nn.Module, ...]:
        """The networks a prediction computes."""
        decoder = self.autoencoder.decoder if self.mask_decoder is None else self.mask_decoder
        return self.vision_encoder, self.unet, decoder

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(4,h,w) for a plane of (H,W) px."""
        sizes = self.config.autoencoder
        return sizes.latent_channels, height // sizes.factor, width // sizes.factor

    def encode_image(self, image: Tensor) -> Tensor:
        """(B,3,H,W) in [-1,1] -> zc (B,4,h,w)."""
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
        """(B,8,h,w) of `mask_moments` and (B,4,h,w) standard normal -> z0 (B,4,h,w): a posterior
        draw times `latent_scale`.
        """
        return sample_posterior(moments, noise) * self.latent_scale

    def denoise(self, zt: Tensor, t: int | Tensor, zc: Tensor) -> Estimate:
        """The network's answer to (B,4,h,w) `zt` at `t`, as noise and as clean latent, float32."""
        # TF32 is a setting of the whole process, which threads on a CPU must not turn.
        exact = full_precision(tf32=self.config.tf32) if zt.is_cuda else nullcontext()
        with exact:
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
        """Scaled latent (B,4,h,w) -> the Score map (B,H,W) in [0,1]: channel mean of (x + 1)/2
        clamped, or what the mask decoder says that is.
        """
        if self.mask_decoder is not None:
            fast: Tensor = self.mask_decoder(z0 / self.latent_scale)
            return fast
        return ((self.decode(z0).float() + 1) / 2).clamp(0, 1).mean(dim=1)


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
        vision_encoder=VisionEncoder(config.autoencoder, dropout=config.encoder_dropout),
        unet=UNet(config.unet, config.autoencoder.latent_channels, fusion=config.fusion),
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


def as_three_channels(plane: Tensor) -> Tensor:
    """(B,H,W) -> (B,3,H,W), the channel repeated (a view); (B,3,H,W) as it is."""
    return plane if plane.ndim == 4 else plane.unsqueeze(1).expand(-1, 3, -1, -1)
