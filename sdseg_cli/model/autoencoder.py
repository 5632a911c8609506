"""The KL-regularised autoencoder between masks and latents (kl-f8), in CompVis parameter names.

    mask    (B,3,H,W), -1 or +1   --moments-->  posterior (B,8,h,w), h = H/8, w = W/8
    posterior                     --mean, or sample_posterior-->  latent (B,4,h,w)
    latent  (B,4,h,w)             --decode-->   mask (B,3,H,W), about [-1,1]

The names of the sub-modules are those of the public kl-f8 checkpoint, so that it loads strictly.
`Encoder` also serves as the vision encoder's trunk (see `sdseg.py`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdseg_cli.core.config import AutoencoderConfig

NORM_EPS = 1e-6
LOGVAR_RANGE = (-30.0, 20.0)


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=NORM_EPS)


class ResnetBlock(nn.Module):
    """Two norm-swish-convolution stages around a skip, with a 1x1 skip where the width changes."""

    def __init__(self, width_in: int, width_out: int, *, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = _norm(width_in, groups)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm2 = _norm(width_out, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else None

    def forward(self, x: Tensor) -> Tensor:
        """(B,width_in,H,W) -> (B,width_out,H,W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        skip = x if self.nin_shortcut is None else self.nin_shortcut(x)
        return skip + h


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions, scaled by channels^-0.5."""

    def __init__(self, channels: int, *, groups: int) -> None:
        super().__init__()
        self.norm = _norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,C,H,W)."""
        h = self.norm(x)
        q, k, v = (
            project(h).flatten(2).transpose(1, 2).unsqueeze(1)
            for project in (self.q, self.k, self.v)
        )
        attended = F.scaled_dot_product_attention(q, k, v)  # scale C^-0.5 is its default
        h = attended.squeeze(1).transpose(1, 2).reshape_as(x)
        return x + self.proj_out(h)


class Downsample(nn.Module):
    """Halve the plane: pad right and bottom by one, convolve 3x3 with stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,C,H/2,W/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the plane: nearest neighbour, then convolve 3x3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,C,2H,2W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Middle(nn.Module):
    def __init__(self, channels: int, *, groups: int, dropout: float) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups=groups, dropout=dropout)
        self.attn_1 = AttnBlock(channels, groups=groups)
        self.block_2 = ResnetBlock(channels, channels, groups=groups, dropout=dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class _Level(nn.Module):
    """Residual blocks of one resolution, then perhaps a change of resolution: "down" or "up"."""

    def __init__(
        self, widths: list[tuple[int, int]], *, groups: int, dropout: float, resample: str = ""
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(a, b, groups=groups, dropout=dropout) for a, b in widths
        )
        out = widths[-1][1]
        self.downsample = Downsample(out) if resample == "down" else None
        self.upsample = Upsample(out) if resample == "up" else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        if self.downsample is not None:
            return self.downsample(x)
        return x if self.upsample is None else self.upsample(x)


class Encoder(nn.Module):
    """Image -> twice the latent channels, before `quant_conv`."""

    def __init__(self, config: AutoencoderConfig, *, dropout: float = 0.0) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.channel_mult]
        groups = config.norm_groups
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.down = nn.ModuleList()
        width = config.channels
        for level, out in enumerate(widths):
            pairs = [(width if i == 0 else out, out) for i in range(config.blocks_per_level)]
            resample = "down" if level < len(widths) - 1 else ""
            self.down.append(_Level(pairs, groups=groups, dropout=dropout, resample=resample))
            width = out
        self.mid = _Middle(width, groups=groups, dropout=dropout)
        self.norm_out = _norm(width, groups)
        self.conv_out = nn.Conv2d(width, 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B,3,H,W) in [-1,1] -> (B,8,H/8,W/8)."""
        h = self.conv_in(x)
        for stage in self.down:
            h = stage(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Latent, after `post_quant_conv`, -> image."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.channel_mult]
        groups = config.norm_groups
        width = widths[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, width, 3, padding=1)
        self.mid = _Middle(width, groups=groups, dropout=0.0)
        stages: list[nn.Module] = []
        for level in reversed(range(len(widths))):
            out = widths[level]
            pairs = [(width if i == 0 else out, out) for i in range(config.blocks_per_level + 1)]
            resample = "up" if level > 0 else ""
            # `up.0` is the highest resolution, visited last.
            stages.insert(0, _Level(pairs, groups=groups, dropout=0.0, resample=resample))
            width = out
        self.up = nn.ModuleList(stages)
        self.norm_out = _norm(width, groups)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """(B,4,h,w) -> (B,3,8h,8w)."""
        h = self.mid(self.conv_in(z))
        for stage in reversed(self.up):
            h = stage(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Autoencoder(nn.Module):
    """E and D of the paper: frozen while SDSeg trains, always in eval mode then."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        double = 2 * config.latent_channels
        self.quant_conv = nn.Conv2d(double, double, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)

    def moments(self, x: Tensor) -> Tensor:
        """Mean and log-variance of the latent's posterior.

        Args:
            x: (B,3,H,W) in [-1,1], H and W multiples of 8.

        Returns:
            (B,8,H/8,W/8): the first four channels are the mean, the last four the log-variance
            before clamping to [-30, 20].
        """
        return self.quant_conv(self.encoder(x))

    def decode(self, latent: Tensor) -> Tensor:
        """(B,4,h,w), unscaled -> (B,3,8h,8w), about [-1,1]."""
        return self.decoder(self.post_quant_conv(latent))


def sample_posterior(moments: Tensor, noise: Tensor) -> Tensor:
    """One draw `mean + std * noise` from the posterior.

    Args:
        moments: (B,8,h,w) of `Autoencoder.moments`.
        noise: (B,4,h,w) standard normal.

    Returns:
        (B,4,h,w), unscaled latent.
    """
    mean, logvar = moments.chunk(2, dim=1)
    return mean + torch.exp(0.5 * logvar.clamp(*LOGVAR_RANGE)) * noise
