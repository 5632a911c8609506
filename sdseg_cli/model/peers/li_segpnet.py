"""Li-SegPNet: a light U-Net with attention across dimensions, dilated pooling and gated skips.

Sharma et al., "Li-SegPNet: Encoder-Decoder Mode Lightweight Segmentation Network for Colorectal
Polyps Analysis", IEEE Transactions on Biomedical Engineering 70(4), 2023. Of its parts: triplet
attention, Misra et al., 2021, arXiv 2010.03045; atrous spatial pyramid pooling, Chen et al., 2018,
arXiv 1802.02611; attention gates, Oktay et al., 2018, arXiv 1804.03999.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution, SimpleASPP
from torch import Tensor, nn

GROUPS = 8
NORM = ("group", {"num_groups": GROUPS})
AROUND = 7
"""Side of triplet attention's convolutions."""


class LiSegPNet(nn.Module):
    """Encoder blocks with triplet attention, pyramid pooling at the bottom, gates on the skips.

    Only the abstract was at hand, which names these parts. How they are joined, the widths, and
    triplet attention as first published where the paper's is "modified", are ours. Norms are by
    group.

    Args:
        in_channels: Of the image.
        out_channels: Of the answer.
        widths: Of the levels, each at half the sides of the one before; multiples of 32.
    """

    def __init__(self, in_channels: int, out_channels: int, *, widths: Sequence[int]) -> None:
        super().__init__()
        before = [in_channels, *widths[:-1]]
        self.down = nn.ModuleList(
            nn.Sequential(Residual(low, high), TripletAttention())
            for low, high in zip(before, widths, strict=True)
        )
        self.pyramid = SimpleASPP(2, widths[-1], widths[-1] // 4, norm_type=NORM, acti_type="relu")
        steps = list(pairwise(widths))[::-1]
        self.gates = nn.ModuleList(AttentionGate(skip, low) for skip, low in steps)
        self.up = nn.ModuleList(Residual(skip + low, skip) for skip, low in steps)
        self.head = nn.Conv2d(widths[0], out_channels, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(B,C,H,W), H and W at least 32 px -> logits (B,out_channels,H,W)."""
        x, skips = image, []
        for number, level in enumerate(self.down):
            x = level(F.max_pool2d(x, 2) if number else x)
            skips.append(x)
        x = self.pyramid(skips.pop())
        for gate, level in zip(self.gates, self.up, strict=True):
            skip = skips.pop()
            x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
            x = level(torch.cat([gate(skip, x), x], dim=1))
        return self.head(x)


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut of 1x1."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.first = Convolution(2, width, out, kernel_size=3, bias=False, norm=NORM, act="relu")
        self.second = Convolution(2, out, out, kernel_size=3, bias=False, norm=NORM, act=None)
        self.shortcut = nn.Conv2d(width, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B,width,h,w) -> (B,out,h,w)."""
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


class TripletAttention(nn.Module):
    """Each entry is weighed three times: by the other entries of its plane, row and column; the
    mean counts (Fig. 3 of Misra et al.).
    """

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(2, 1, AROUND, padding=AROUND // 2, bias=False), nn.GroupNorm(1, 1)
            )
            for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,h,w) -> the same."""
        weights = [self._weight(gate, x, axis) for axis, gate in enumerate(self.gates, start=1)]
        return x * ((weights[0] + weights[1] + weights[2]) / 3)

    @staticmethod
    def _weight(gate: nn.Module, x: Tensor, axis: int) -> Tensor:
        """In (0,1), for each place of the plane of the two other axes; "Z-pool" (Eq. 1) keeps the
        largest entry and the mean along this one.
        """
        pooled = torch.stack([x.amax(axis), x.mean(axis)], dim=1)
        return gate(pooled).sigmoid().squeeze(1).unsqueeze(axis)


class AttentionGate(nn.Module):
    """What of a skip passes, as the coarser level sees it (Eq. 1 and 2 of Oktay et al.)."""

    def __init__(self, skip: int, low: int) -> None:
        super().__init__()
        inner = skip // 2
        self.of_skip = nn.Conv2d(skip, inner, 1)
        self.of_low = nn.Conv2d(low, inner, 1)
        self.weight = nn.Conv2d(inner, 1, 1)

    def forward(self, skip: Tensor, low: Tensor) -> Tensor:
        """(B,skip,h,w) and (B,low,h,w), enlarged -> (B,skip,h,w)."""
        return skip * self.weight(F.relu(self.of_skip(skip) + self.of_low(low))).sigmoid()
