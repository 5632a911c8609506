"""TransU-Net: a ResNet whose last map a transformer looks over, and a U-Net's way back up.

Chen et al., "TransUNet: Transformers Make Strong Encoders for Medical Image Segmentation", 2021,
arXiv 2102.04306, Fig. 1 and Sec. 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from monai.networks.nets.resnet import ResNetBottleneck
from torch import Tensor, nn

GROUPS = 8
"""Of the norms on the way up."""
POSITIONS = 16
"""Side of the learnt grid of positions: that of a plane of 256 px. Others are interpolated."""
EXPANSION = 4
"""Of a bottleneck block, and of a transformer's MLP."""


class TransUNet(nn.Module):
    """The hybrid "R50-ViT" of the paper.

    Simplified: norms by group, also where the decoder's were by batch, so that a step does not
    depend on how its batch is split; no weight standardisation in the ResNet, no dropout. Nothing
    is pretrained; the paper starts both halves from ImageNet.

    Args:
        in_channels: Of the image.
        out_channels: Of the answer.
        stem: Width of the ResNet's first convolution, a multiple of 16; its stages have 4, 8 and
            16 times as many channels.
        blocks: Of each stage, at a 4th, an 8th and a 16th of the plane.
        hidden: Width of the transformer.
        layers: Of the transformer.
        heads: Of its attention.
        decoder: Widths on the way up, at a 16th, an 8th, a 4th, half and the whole of the plane.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stem: int,
        blocks: Sequence[int],
        hidden: int,
        layers: int,
        heads: int,
        decoder: Sequence[int],
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, stem, 7, stride=2, padding=3, bias=False),
            nn.GroupNorm(stem // 2, stem),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.ModuleList()
        width = stem
        for level, count in enumerate(blocks):
            planes = stem * 2**level
            strides = [1 if level == 0 else 2] + [1] * (count - 1)
            stage = []
            for stride in strides:
                stage.append(_bottleneck(width, planes, stride, groups=stem // 2))
                width = EXPANSION * planes
            self.stages.append(nn.Sequential(*stage))
        self.patches = nn.Conv2d(width, hidden, 1)
        self.positions = nn.Parameter(0.02 * torch.randn(1, hidden, POSITIONS, POSITIONS))
        self.transformer = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    hidden,
                    heads,
                    EXPANSION * hidden,
                    dropout=0.0,
                    activation=F.gelu,
                    batch_first=True,
                    norm_first=True,
                )
                for _ in range(layers)
            ),
            nn.LayerNorm(hidden),
        )
        skips = [EXPANSION * stem * 2, EXPANSION * stem, stem, 0]
        self.bottom = _convolution(hidden, decoder[0])
        self.ups = nn.ModuleList(
            nn.Sequential(_convolution(low + skip, width), _convolution(width, width))
            for low, skip, width in zip(decoder[:-1], skips, decoder[1:], strict=True)
        )
        self.head = nn.Conv2d(decoder[-1], out_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """(B,C,H,W), H and W multiples of 8 px -> logits (B,out_channels,H,W)."""
        x = self.stem(image)
        maps = [image, x]
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        x = self.bottom(self._looked_over(maps.pop()))
        # The whole plane is the image's alone: no skip, as in Fig. 1.
        for up, skip in zip(self.ups, reversed(maps), strict=True):
            x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            x = up(x if skip is image else torch.cat([x, skip], dim=1))
        return self.head(x)

    def _looked_over(self, x: Tensor) -> Tensor:
        """The ResNet's map (B,C,h,w) -> (B,hidden,h,w): Eq. 1, then Eq. 2 and 3 in each layer."""
        height, width = x.shape[-2:]
        positions: Tensor = self.positions
        if (height, width) != (POSITIONS, POSITIONS):
            positions = F.interpolate(
                positions, size=(height, width), mode="bicubic", align_corners=False
            )
        tokens = (self.patches(x) + positions).flatten(2).transpose(1, 2)
        tokens = self.transformer(tokens)
        return tokens.transpose(1, 2).unflatten(2, (height, width))


def _bottleneck(width: int, planes: int, stride: int, *, groups: int) -> nn.Module:
    """A block of a ResNet-50; where it changes the shape, a 1x1 convolution is its shortcut."""
    wide = EXPANSION * planes
    shortcut = None
    if stride > 1 or width != wide:
        shortcut = nn.Sequential(
            nn.Conv2d(width, wide, 1, stride=stride, bias=False), nn.GroupNorm(groups, wide)
        )
    norm = ("group", {"num_groups": groups})
    return ResNetBottleneck(
        width, planes, spatial_dims=2, stride=stride, downsample=shortcut, norm=norm
    )


def _convolution(width: int, out: int) -> nn.Module:
    """3x3, norm, ReLU."""
    norm = ("group", {"num_groups": GROUPS})
    return Convolution(2, width, out, kernel_size=3, bias=False, norm=norm, act="relu")
