"""SwinU-Net: a U-Net of which every level is a pair of Swin transformer blocks.

Cao et al., "Swin-Unet: Unet-like Pure Transformer for Medical Image Segmentation", 2021, arXiv
2105.05537, Fig. 1 and Sec. 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.nets.swin_unetr import BasicLayer, PatchMergingV2
from torch import Tensor, nn

PATCH = 4
"""Side of the patches that are cut first, and of those that the last layer gives back, px."""
WINDOW = 8
"""Side of an attention window, in patches."""


class SwinUNet(nn.Module):
    """Encoder, bottleneck and decoder of Swin blocks (Eq. 1 to 6), with skips.

    Simplified: windows of 8, which divide every level of a plane of 256 px, where the paper has 7
    for 224; no stochastic depth. Nothing is pretrained; the paper starts the encoder from
    ImageNet. A level of odd sides is padded on the way down and cut on the way up.

    Args:
        in_channels: Of the image.
        out_channels: Of the answer.
        width: C, of the first level; each further one has twice the one before.
        depths: Blocks of each level, the bottleneck last; even numbers, as every second block
            shifts its windows.
        heads: Of each level.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        width: int,
        depths: Sequence[int],
        heads: Sequence[int],
    ) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(len(depths))]
        levels = list(zip(widths, depths, heads, strict=True))
        self.patches = nn.Conv2d(in_channels, width, PATCH, stride=PATCH)
        self.first_norm = nn.LayerNorm(width)
        self.down = nn.ModuleList(_blocks(*level) for level in levels)
        self.merges = nn.ModuleList(PatchMergingV2(w, spatial_dims=2) for w in widths[:-1])
        self.bottom_norm = nn.LayerNorm(widths[-1])
        self.expands = nn.ModuleList(PatchExpanding(w, 2, w // 2) for w in reversed(widths[1:]))
        self.fuses = nn.ModuleList(nn.Conv2d(2 * w, w, 1) for w in reversed(widths[:-1]))
        self.up = nn.ModuleList(_blocks(*level) for level in reversed(levels[:-1]))
        self.last_norm = nn.LayerNorm(width)
        self.last_expand = PatchExpanding(width, PATCH, width)
        self.head = nn.Conv2d(width, out_channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(B,C,H,W), H and W multiples of 4 px -> logits (B,out_channels,H,W)."""
        x = over_channels(self.first_norm, self.patches(image))
        skips = []
        for level, merge in zip(self.down[:-1], self.merges, strict=True):
            x = level(x)
            skips.append(x)
            x = over_channels(merge, x)
        x = over_channels(self.bottom_norm, self.down[-1](x))
        for expand, fuse, level in zip(self.expands, self.fuses, self.up, strict=True):
            skip = skips.pop()
            height, width = skip.shape[-2:]
            x = level(fuse(torch.cat([expand(x)[..., :height, :width], skip], dim=1)))
        return self.head(self.last_expand(over_channels(self.last_norm, x)))


class PatchExpanding(nn.Module):
    """Each patch to several: "patch expanding layer" of Sec. 3.5, the reverse of merging.

    Args:
        width: Channels before.
        factor: Of either side.
        out: Channels after.
    """

    def __init__(self, width: int, factor: int, out: int) -> None:
        super().__init__()
        self.factor = factor
        self.wider = nn.Conv2d(width, factor**2 * out, 1, bias=False)
        self.norm = nn.LayerNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        """(B,width,h,w) -> (B,out,factor*h,factor*w)."""
        return over_channels(self.norm, F.pixel_shuffle(self.wider(x), self.factor))


def over_channels(module: nn.Module, x: Tensor) -> Tensor:
    """Apply to (B,C,h,w) a module that wants the channels last."""
    return module(x.movedim(1, -1)).movedim(-1, 1)


def _blocks(width: int, depth: int, heads: int) -> nn.Module:
    return BasicLayer(width, depth, heads, (WINDOW, WINDOW), drop_path=[0.0] * depth, qkv_bias=True)
