"""The vision encoder tau: image -> condition zc of the U-Net, at the latent's resolution.

The paper's is the autoencoder's encoder with a 1x1 convolution behind it. `PatchEncoder` is one
made for the job: it works at a quarter of the plane and below, where a CPU is fast and channels are
many.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from sdseg_cli.core.config import ModelConfig
from sdseg_cli.model.autoencoder import Encoder

AROUND, EXPANSION = 7, 3


class VisionEncoder(nn.Module):
    """The autoencoder's encoder and a 1x1 convolution to the condition's channels (the paper)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config.autoencoder, dropout=config.encoder_dropout)
        self.out = nn.Conv2d(2 * config.autoencoder.latent_channels, config.condition_channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(B,3,H,W) in [-1,1] -> zc (B,C,H/8,W/8)."""
        zc: Tensor = self.out(self.encoder(image))
        return zc


class PatchBlock(nn.Module):
    """A look around within each channel, then across the channels, beside a skip."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.around = nn.Conv2d(width, width, AROUND, padding=AROUND // 2, groups=width)
        self.norm = nn.GroupNorm(1, width)
        self.wider = nn.Conv2d(width, EXPANSION * width, 1)
        self.dropout = nn.Dropout(dropout)
        self.back = nn.Conv2d(EXPANSION * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B,width,h,w) -> the same."""
        h = F.gelu(self.wider(self.norm(self.around(x))))
        return x + self.back(self.dropout(h))


class PatchEncoder(nn.Module):
    """Overlapping patches, then blocks at each resolution, then a 1x1 convolution.

    The plane is cut to the first width by one convolution of twice its stride, and halved between
    the widths, so that the last lies at the latent's resolution.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths, dropout = config.vision.widths, config.encoder_dropout
        stride = config.autoencoder.factor // 2 ** (len(widths) - 1)
        self.patches = nn.Conv2d(3, widths[0], 2 * stride, stride=stride, padding=stride // 2)
        self.levels, self.halvings = nn.ModuleList(), nn.ModuleList()
        for level, (width, blocks) in enumerate(zip(widths, config.vision.blocks, strict=True)):
            self.levels.append(nn.Sequential(*(PatchBlock(width, dropout) for _ in range(blocks))))
            if level < len(widths) - 1:
                self.halvings.append(nn.Conv2d(width, widths[level + 1], 2, stride=2))
        self.out = nn.Conv2d(widths[-1], config.condition_channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(B,3,H,W) in [-1,1] -> zc (B,C,H/8,W/8)."""
        x = self.levels[0](self.patches(image))
        for halved, level in zip(self.halvings, self.levels[1:], strict=True):
            x = level(halved(x))
        zc: Tensor = self.out(x)
        return zc


def build_vision_encoder(config: ModelConfig) -> nn.Module:
    """The one of these settings, with fresh weights."""
    return PatchEncoder(config) if config.vision.widths else VisionEncoder(config)
