"""The denoiser f: a U-Net over latents, in CompVis parameter names.

    zt (B,4,h,w), condition zc (B,4,h,w), timestep t  ->  output (B,4,h,w)

Fusion, how the condition comes in: "concat" (the paper) puts zc beside zt before the first
convolution; "cross-attention" attends to it wherever "concat" attends to the plane alone
(`SpatialTransformer`).

A token of zc does not know where it lies: shuffled over its positions it gives the same answer,
whereas the concatenation hands each position its own. With "concat" the sub-modules have the names
of the public LDM-8 checkpoint, so that it loads strictly; those of the transformer are as in public
Stable Diffusion checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdseg_cli.core.config import UNET_NORM_GROUPS, UNetConfig

TRANSFORMER_NORM_EPS = 1e-6
EXPANSION = 4
"""Width within the feed-forward network over its width outside."""

NORM_EPS = 1e-5


def timestep_embedding(t: Tensor, channels: int) -> Tensor:
    """Sinusoids of the timestep: cosines first, then sines, of `t exp(-ln(10000) i / half)`.

    Args:
        t: (B,) timesteps.
        channels: Even number of channels.

    Returns:
        (B,channels) float32.
    """
    half = channels // 2
    frequency = torch.exp(-math.log(10000.0) * torch.arange(half, device=t.device) / half)
    angle = t.float()[:, None] * frequency[None]
    return torch.cat([angle.cos(), angle.sin()], dim=1)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(UNET_NORM_GROUPS, channels, eps=NORM_EPS)


def _zeroed(conv: nn.Conv1d | nn.Conv2d) -> nn.Conv1d | nn.Conv2d:
    """A residual branch that starts as nothing."""
    nn.init.zeros_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


class ResBlock(nn.Module):
    """Residual block steered by the timestep (scale and shift); may halve or double the plane.

    Args:
        width_in: Channels in.
        width_out: Channels out; a 1x1 skip where they differ.
        embedding: Channels of the timestep embedding.
        dropout: Probability before the last convolution.
        resample: "down" averages 2x2, "up" repeats 2x2, "" keeps the plane.
    """

    def __init__(
        self, width_in: int, width_out: int, embedding: int, *, dropout: float, resample: str = ""
    ) -> None:
        super().__init__()
        self.resample = resample
        self.in_layers = nn.Sequential(
            _norm(width_in), nn.SiLU(), nn.Conv2d(width_in, width_out, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * width_out))
        self.out_layers = nn.Sequential(
            _norm(width_out),
            nn.SiLU(),
            nn.Dropout(dropout),
            _zeroed(nn.Conv2d(width_out, width_out, 3, padding=1)),
        )
        self.skip_connection: nn.Module = nn.Identity()
        if width_in != width_out:
            self.skip_connection = nn.Conv2d(width_in, width_out, 1)

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(B,width_in,h,w) and (B or 1,embedding) -> (B,width_out,h',w')."""
        h = self.in_layers[2](self._resampled(self.in_layers[1](self.in_layers[0](x))))
        scale, shift = self.emb_layers(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.out_layers[0](h) * (1 + scale) + shift
        return self.skip_connection(self._resampled(x)) + self.out_layers[1:](h)


class AttentionBlock(nn.Module):
    """Self-attention over all positions; q, k, v are laid out head by head."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = _norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = _zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,h,w) -> (B,C,h,w)."""
        b, c, h, w = x.shape
        flat = x.reshape(b, c, h * w)
        qkv = self.qkv(self.norm(flat)).reshape(b, self.heads, 3, c // self.heads, h * w)
        q, k, v = qkv.transpose(-1, -2).unbind(dim=2)  # each (B,heads,positions,head width)
        attended = F.scaled_dot_product_attention(q, k, v)
        return (flat + self.proj_out(attended.transpose(-1, -2).reshape(b, c, h * w))).view_as(x)


class Stage(nn.ModuleList):
    """Layers in a row: residual blocks also take the timestep embedding, transformers zc."""

    def forward(self, x: Tensor, embedding: Tensor, zc: Tensor) -> Tensor:
        """(B,C,h,w), (B or 1,embedding) and the condition -> (B,C',h',w')."""
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, embedding)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, zc)
            else:
                x = layer(x)
        return x


class UNet(nn.Module):
    """f of the paper.

    Args:
        config: Sizes.
        latent_channels: Channels of a latent (4).
        fusion: How the condition comes in: "concat" or "cross-attention".
        classes: K, whose latents are denoised side by side: only the first and the last
            convolution are wider, and the last level where 4K channels are more than it has.
        condition_channels: Channels of the condition (4).
    """

    def __init__(
        self,
        config: UNetConfig,
        latent_channels: int = 4,
        *,
        fusion: str = "concat",
        classes: int = 1,
        condition_channels: int = 4,
    ) -> None:
        super().__init__()
        self.condition_channels = condition_channels
        self.classes, noisy = classes, classes * latent_channels
        self.config, self.latent_channels = config, latent_channels
        self.concat = fusion == "concat"
        base = config.model_channels
        self.embedding = 4 * base
        self.time_embed = nn.Sequential(
            nn.Linear(base, self.embedding), nn.SiLU(), nn.Linear(self.embedding, self.embedding)
        )
        widths = [base * m for m in config.channel_mult]
        channels = noisy + (condition_channels if self.concat else 0)
        first = nn.Conv2d(channels, base, 3, padding=1)
        self.input_blocks = nn.ModuleList([Stage([first])])
        skips = [base]
        width = base
        for level, out in enumerate(widths):
            for _ in range(config.blocks_per_level):
                self.input_blocks.append(Stage(self._blocks(width, out, level)))
                width = out
                skips.append(width)
            if level < len(widths) - 1:
                self.input_blocks.append(Stage([self._res(width, width, "down")]))
                skips.append(width)
        self.middle_block = Stage(
            [self._res(width, width), self._attention(width), self._res(width, width)]
        )
        self.output_blocks = nn.ModuleList()
        widths[0] = max(widths[0], UNET_NORM_GROUPS * math.ceil(noisy / UNET_NORM_GROUPS))
        for level, out in reversed(list(enumerate(widths))):
            for i in range(config.blocks_per_level + 1):
                layers = [*self._blocks(width + skips.pop(), out, level)]
                width = out
                if level > 0 and i == config.blocks_per_level:
                    layers.append(self._res(width, width, "up"))
                self.output_blocks.append(Stage(layers))
        self.out = nn.Sequential(
            _norm(width), nn.SiLU(), _zeroed(nn.Conv2d(width, noisy, 3, padding=1))
        )

    def _res(self, width_in: int, width_out: int, resample: str = "") -> ResBlock:
        dropout = self.config.dropout
        return ResBlock(width_in, width_out, self.embedding, dropout=dropout, resample=resample)

    def _attention(self, width: int) -> nn.Module:
        heads, dropout = self.config.heads, self.config.dropout
        if self.concat:
            return AttentionBlock(width, heads)
        return SpatialTransformer(width, self.condition_channels, heads, dropout=dropout)

    def _blocks(self, width_in: int, width_out: int, level: int) -> Iterable[nn.Module]:
        yield self._res(width_in, width_out)
        if level in self.config.attention_levels:
            yield self._attention(width_out)

    def forward(self, zt: Tensor, t: int | Tensor, zc: Tensor) -> Tensor:
        """Denoise, conditioned on the image.

        Args:
            zt: (B,4K,h,w) noisy latent; h and w divisible by 2^(levels-1).
            t: (B,) timesteps, or one for all.
            zc: (B,C,h,w) condition.

        Returns:
            (B,4K,h,w), read by `diffusion.read_output`.
        """
        # One timestep for all is embedded once: rows of a matrix product may round differently with
        # their number.
        steps = torch.as_tensor(t, device=zt.device).reshape(-1)
        embedding = self.time_embed(timestep_embedding(steps, self.config.model_channels))
        h = torch.cat([zt, zc], dim=1) if self.concat else zt  # noise first, condition second
        skips = []
        for stage in self.input_blocks:
            h = stage(h, embedding, zc)
            skips.append(h)
        h = self.middle_block(h, embedding, zc)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, skips.pop()], dim=1), embedding, zc)
        return self.out(h)


class Attention(nn.Module):
    """Tokens that ask and tokens that answer; with itself as context, self-attention.

    Args:
        width: Channels of the asking tokens; divisible by `heads`.
        context_width: Channels of the answering tokens.
        heads: Parts of the width that attend on their own.
        dropout: Probability behind the last layer.
    """

    def __init__(self, width: int, context_width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context_width, width, bias=False)
        self.to_v = nn.Linear(context_width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(dropout))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(B,n,width) and (B,m,context_width) -> (B,n,width): softmax(q k / sqrt(head width)) v."""
        q, k, v = (
            values.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B,heads,tokens,head width)
            for values in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(attended.transpose(1, 2).flatten(2))


class Geglu(nn.Module):
    """A linear layer whose second half gates its first (arXiv 2002.05202)."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width_in, 2 * width_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B,n,width_in) -> (B,n,width_out): `value * gelu(gate)`."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """Two layers on each token alone."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        wide = EXPANSION * width
        self.net = nn.Sequential(Geglu(width, wide), nn.Dropout(dropout), nn.Linear(wide, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B,n,width) -> (B,n,width)."""
        return self.net(x)


class TransformerBlock(nn.Module):
    """Attention among the tokens, attention to the context, feed-forward: each a residual."""

    def __init__(self, width: int, context_width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attn1 = Attention(width, width, heads, dropout)
        self.attn2 = Attention(width, context_width, heads, dropout)
        self.ff = FeedForward(width, dropout)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(B,n,width) and (B,m,context_width) -> (B,n,width)."""
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Stands where the concatenating U-Net has an `AttentionBlock`; starts as the identity.

    Args:
        width: Channels of the plane.
        context_width: Channels of the condition (4).
        heads: Heads of both attentions.
        dropout: Probability behind each attention and within the feed-forward network.
    """

    def __init__(self, width: int, context_width: int, heads: int, *, dropout: float) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(UNET_NORM_GROUPS, width, eps=TRANSFORMER_NORM_EPS)
        self.proj_in = nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList(
            [TransformerBlock(width, context_width, heads, dropout)]
        )
        self.proj_out = nn.Conv2d(width, width, 1)
        for value in self.proj_out.parameters():
            nn.init.zeros_(value)

    def forward(self, x: Tensor, zc: Tensor) -> Tensor:
        """(B,width,h,w) and (B,context_width,h',w') -> (B,width,h,w)."""
        tokens = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)  # (B,hw,width)
        context = zc.flatten(2).transpose(1, 2)  # (B,h'w',context_width)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return x + self.proj_out(tokens.transpose(1, 2).reshape(x.shape))
