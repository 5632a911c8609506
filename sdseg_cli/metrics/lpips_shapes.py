"""What the weights of LPIPS v0.1 with AlexNet are called and how large they are.

The backbone is the ImageNet AlexNet in torchvision's names (`features.0.weight`, ...); the linear
heads are those of its authors' `alex.pth` (`lin0.model.1.weight`, ...). Who reads such weights and
who computes with them both start from here.
"""

from __future__ import annotations

from dataclasses import dataclass

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
