"""LPIPS v0.1 with AlexNet features (Zhang et al. 2018): how different two images look.

    image (B,1,H,W) 0..255  ->  3 channels in [-1,1], shifted and scaled per channel
    five AlexNet feature maps, each pixel's feature vector divided by its length
    squared difference -> non-negative 1x1 linear head -> mean over the plane -> sum of the five

No weights come with sdseg; `model/pretrained.py` reads them. The backbone is the ImageNet AlexNet
in torchvision's names (`features.0.weight`, ...); the linear heads are those of its authors'
`alex.pth` (`lin0.model.1.weight`, ...).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.metrics.similarity import per_plane

if TYPE_CHECKING:
    from torch import Tensor

MIN_SIDE_PX = 31
"""Below this, AlexNet's second pooling has nothing left to pool."""

_SHIFT = (-0.030, -0.088, -0.188)  # ImageNet's mean and deviation, for input in [-1,1]
_SCALE = (0.458, 0.448, 0.450)
_EPSILON = 1e-10

BACKBONE, HEADS = "lpips-alexnet", "lpips-linear"
"""Kinds in the weight store, and names of what can be fetched."""


@dataclass(frozen=True)
class Stage:
    """One AlexNet convolution, with the pooling (3x3, stride 2) that precedes it or not."""

    name: str
    shape: tuple[int, int, int, int]
    stride: int
    padding: int
    pool_first: bool


STAGES = (
    Stage("features.0", (64, 3, 11, 11), 4, 2, False),
    Stage("features.3", (192, 64, 5, 5), 1, 2, True),
    Stage("features.6", (384, 192, 3, 3), 1, 1, True),
    Stage("features.8", (256, 384, 3, 3), 1, 1, False),
    Stage("features.10", (256, 256, 3, 3), 1, 1, False),
)


def backbone_shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every backbone weight that LPIPS needs."""
    shapes: dict[str, tuple[int, ...]] = {}
    for stage in STAGES:
        shapes[f"{stage.name}.weight"] = stage.shape
        shapes[f"{stage.name}.bias"] = stage.shape[:1]
    return shapes


def linear_shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every linear head."""
    return {f"lin{i}.model.1.weight": (1, stage.shape[0], 1, 1) for i, stage in enumerate(STAGES)}


@dataclass(frozen=True)
class Lpips:
    """The measure with its weights, on one device."""

    weights: dict[str, Tensor]
    """Float32, all names and shapes of `backbone_shapes` and `linear_shapes`."""
    device: str = "cpu"

    @classmethod
    def of(
        cls, backbone: Mapping[str, Tensor], heads: Mapping[str, Tensor], *, device: str = "cpu"
    ) -> Lpips:
        """Put both halves, named as in `backbone_shapes` and `linear_shapes`, on a device.

        Raises:
            ValueError: A name or a shape is wrong: recognise weights before they come here.
        """
        for given, shapes in ((backbone, backbone_shapes()), (heads, linear_shapes())):
            if {name: tuple(value.shape) for name, value in given.items()} != shapes:
                raise ValueError("weights of LPIPS with wrong names or shapes")
        weights = {**backbone, **heads}
        return cls({name: value.float().to(device) for name, value in weights.items()}, device)

    def features(self, planes: Tensor) -> list[Tensor]:
        """The five feature maps, each pixel's vector at unit length.

        Args:
            planes: (B,1,H,W) float32 in 0..255, on the device of the weights.

        Returns:
            (B,C,h,w) with C of 64, 192, 384, 256, 256.
        """
        import torch
        import torch.nn.functional as F

        shift = torch.tensor(_SHIFT, device=planes.device)[None, :, None, None]
        scale = torch.tensor(_SCALE, device=planes.device)[None, :, None, None]
        h = ((planes / 127.5 - 1) - shift) / scale  # one channel becomes three
        maps = []
        for stage in STAGES:
            if stage.pool_first:
                h = F.max_pool2d(h, kernel_size=3, stride=2)
            weight, bias = self.weights[f"{stage.name}.weight"], self.weights[f"{stage.name}.bias"]
            h = F.relu(F.conv2d(h, weight, bias, stride=stage.stride, padding=stage.padding))
            length = h.square().sum(dim=1, keepdim=True).sqrt()
            maps.append(h / (length + _EPSILON))
        return maps

    def distance(self, first: Tensor, other: Tensor) -> Tensor:
        """(B,1,H,W) float32 in 0..255, twice -> (B,) distances."""
        import torch.nn.functional as F

        total = first.new_zeros(len(first))
        pairs = zip(self.features(first), self.features(other), strict=True)
        for i, (x, y) in enumerate(pairs):
            head = self.weights[f"lin{i}.model.1.weight"]
            total = total + F.conv2d((x - y).square(), head).mean(dim=(1, 2, 3))
        return total

    def __call__(
        self, first: NDArray[np.generic], other: NDArray[np.generic]
    ) -> NDArray[np.float64]:
        """The distance between planes, pair by pair.

        Args:
            first: (S,H,W), grey values in 0..255, sides of at least 31 px.
            other: The same shape and range.

        Returns:
            (S,) float64, 0 where the two planes are identical; larger is less alike.

        Raises:
            ValueError: The shapes differ, or the planes are too small.
        """
        if first.shape != other.shape or first.ndim != 3 or min(first.shape[1:]) < MIN_SIDE_PX:
            raise ValueError(f"LPIPS of planes {first.shape} and {other.shape}")
        return per_plane(first, other, self.distance, identical=0.0, device=self.device)
