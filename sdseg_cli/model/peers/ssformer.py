"""SSFormer: a pyramid transformer whose levels a convolutional decoder fuses step by step.

Wang et al., "Stepwise Feature Fusion: Local Guides Global", 2022, arXiv 2203.03635, Sec. 2. Its
encoder is SegFormer's Mix Transformer: Xie et al., 2021, arXiv 2105.15203, Sec. 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MLP_RATIO = 4
REDUCTIONS = (8, 4, 2, 1)
"""By how much keys and values of each level are coarser, either side."""


class SSFormer(nn.Module):
    """Pyramid transformer encoder, Progressive Locality Decoder.

    Simplified: no stochastic depth. Nothing is pretrained; the paper starts the encoder from
    ImageNet. The decoder's width in `sd` is inferred, not read: of 64 and 256, 256 comes near the
    published count of weights (66.0 of 66.2 million; 64: 61.6).

    Args:
        in_channels: Of the image.
        out_channels: Of the answer.
        widths: Of the levels, at a 4th, an 8th, a 16th and a 32nd of the plane.
        depths: Blocks of each.
        heads: Of each.
        decoder: Width of the decoder.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        widths: Sequence[int],
        depths: Sequence[int],
        heads: Sequence[int],
        decoder: int,
    ) -> None:
        super().__init__()
        before = [in_channels, *widths[:-1]]
        self.levels = nn.ModuleList(
            Level(*sizes, first=number == 0)
            for number, sizes in enumerate(
                zip(before, widths, depths, heads, REDUCTIONS, strict=True)
            )
        )
        self.emphases = nn.ModuleList(LocalEmphasis(width, decoder) for width in widths)
        self.fusions = nn.ModuleList(nn.Conv2d(2 * decoder, decoder, 1) for _ in widths[1:])
        self.head = nn.Conv2d(decoder, out_channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(B,C,H,W), H and W at least 32 px -> logits (B,out_channels,H,W)."""
        x, levels = image, []
        for level in self.levels:
            x = level(x)
            levels.append(x)
        plane = levels[0].shape[-2:]
        deepest, *others = (
            _enlarged(emphasis(level), plane)
            for emphasis, level in reversed(list(zip(self.emphases, levels, strict=True)))
        )
        # "Stepwise feature aggregation": from the deepest level to the finest.
        for fusion, other in zip(self.fusions, others, strict=True):
            deepest = fusion(torch.cat([deepest, other], dim=1))
        return _enlarged(self.head(deepest), image.shape[-2:])


class LocalEmphasis(nn.Module):
    """Convolutions that draw attention back to a pixel's surroundings ("local emphasis")."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, out, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(out, out, 3, padding=1),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B,width,h,w) -> (B,out,h,w)."""
        return self.layers(x)


class Level(nn.Module):
    """A level of the Mix Transformer: overlapping patches, blocks, a norm.

    Args:
        before: Channels of what it gets.
        width: Its own.
        depth: Its blocks.
        heads: Of their attention.
        reduction: As `REDUCTIONS`.
        first: It cuts the image to a 4th; the others halve.
    """

    def __init__(
        self, before: int, width: int, depth: int, heads: int, reduction: int, *, first: bool
    ) -> None:
        super().__init__()
        side, stride = (7, 4) if first else (3, 2)
        self.patches = nn.Conv2d(before, width, side, stride=stride, padding=side // 2)
        self.patch_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(Block(width, heads, reduction) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B,before,H,W) -> (B,width,h,w)."""
        x = self.patches(x)
        plane = x.shape[-2:]
        tokens = self.patch_norm(x.flatten(2).transpose(1, 2))
        for block in self.blocks:
            tokens = block(tokens, plane)
        return _as_map(self.norm(tokens), plane)


class Block(nn.Module):
    """Attention to a coarser map of the level (Eq. 2 of SegFormer), and a Mix-FFN (its Eq. 3),
    each beside a skip.
    """

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.coarser: nn.Module | None = None
        if reduction > 1:
            self.coarser = nn.Conv2d(width, width, reduction, stride=reduction)
            self.coarser_norm = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.wider = nn.Linear(width, MLP_RATIO * width)
        self.around = nn.Conv2d(
            MLP_RATIO * width, MLP_RATIO * width, 3, padding=1, groups=MLP_RATIO * width
        )
        self.back = nn.Linear(MLP_RATIO * width, width)

    def forward(self, tokens: Tensor, plane: Sequence[int]) -> Tensor:
        """(B,h*w,width), of a plane (h,w) -> the same."""
        queries = self.norm1(tokens)
        keys = queries
        if self.coarser is not None:
            coarse = self.coarser(_as_map(queries, plane))
            keys = self.coarser_norm(coarse.flatten(2).transpose(1, 2))
        tokens = tokens + self.attention(queries, keys, keys, need_weights=False)[0]
        around = self.around(_as_map(self.wider(self.norm2(tokens)), plane))
        return tokens + self.back(F.gelu(around).flatten(2).transpose(1, 2))


def _as_map(tokens: Tensor, plane: Sequence[int]) -> Tensor:
    """(B,h*w,C) -> (B,C,h,w)."""
    return tokens.transpose(1, 2).reshape(len(tokens), -1, *plane)


def _enlarged(x: Tensor, plane: Sequence[int]) -> Tensor:
    return F.interpolate(x, size=tuple(plane), mode="bilinear", align_corners=False)
