"""LPIPS v0.1 with AlexNet features (Zhang et al. 2018): how different two images look.

    image (B,1,H,W) 0..255  ->  3 channels in [-1,1], shifted and scaled per channel
    five AlexNet feature maps, each pixel's feature vector divided by its length
    squared difference -> non-negative 1x1 linear head -> mean over the plane -> sum of the five

No weights come with sdseg. The backbone is the ImageNet AlexNet in torchvision's parameter names
(`features.0.weight`, ...; what is outside `features.` is the classifier and not needed); the linear
heads are the authors' `alex.pth` (`lin0.model.1.weight`, ...).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.errors import WeightsError
from sdseg_cli.metrics.similarity import per_plane

if TYPE_CHECKING:
    from torch import Tensor

MIN_SIDE_PX = 31
"""Below this, AlexNet's second pooling has nothing left to pool."""


@dataclass(frozen=True)
class _Stage:
    """One AlexNet convolution, with the pooling (3x3, stride 2) that precedes it or not."""

    name: str
    shape: tuple[int, int, int, int]
    stride: int
    padding: int
    pool_first: bool


_STAGES = (
    _Stage("features.0", (64, 3, 11, 11), 4, 2, False),
    _Stage("features.3", (192, 64, 5, 5), 1, 2, True),
    _Stage("features.6", (384, 192, 3, 3), 1, 1, True),
    _Stage("features.8", (256, 384, 3, 3), 1, 1, False),
    _Stage("features.10", (256, 256, 3, 3), 1, 1, False),
)
_SHIFT = (-0.030, -0.088, -0.188)  # ImageNet's mean and deviation, for input in [-1,1]
_SCALE = (0.458, 0.448, 0.450)
_EPSILON = 1e-10


def backbone_shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every backbone weight that LPIPS needs."""
    shapes: dict[str, tuple[int, ...]] = {}
    for stage in _STAGES:
        shapes[f"{stage.name}.weight"] = stage.shape
        shapes[f"{stage.name}.bias"] = stage.shape[:1]
    return shapes


def linear_shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of every linear head."""
    return {f"lin{i}.model.1.weight": (1, stage.shape[0], 1, 1) for i, stage in enumerate(_STAGES)}


def _read_weights(path: Path, shapes: dict[str, tuple[int, ...]], what: str) -> dict[str, Tensor]:
    """The tensors named in `shapes`, float32 on the CPU; anything amiss is a WeightsError."""
    import torch
    from safetensors.torch import load_file

    hint = f"give the {what} as .pth or .safetensors with tensors such as {next(iter(shapes))}"
    if not path.is_file():
        raise WeightsError(f"{path}: no such file ({what})", hint)
    try:
        if path.suffix == ".safetensors":
            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # A damaged, foreign or unsafe file surfaces as whatever its reader trips over: pickle,
        # zip, safetensors or key errors. To the user they are one thing.
        raise WeightsError(f"{path}: not a weight file that can be read safely", hint) from error
    if not isinstance(found, dict):
        raise WeightsError(f"{path}: holds no named tensors ({what})", hint)
    weights: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        tensor = found.get(name)
        if not isinstance(tensor, torch.Tensor):
            raise WeightsError(f"{path}: {name} is missing ({what})", hint)
        if tuple(tensor.shape) != shape:
            raise WeightsError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, expected {shape}", hint
            )
        weights[name] = tensor.float()
    return weights


@dataclass(frozen=True)
class Lpips:
    """The measure with its weights, on one device. Build it with `load`."""

    weights: dict[str, Tensor]
    device: str = "cpu"

    @classmethod
    def load(cls, backbone: Path, linear: Path, *, device: str = "cpu") -> Lpips:
        """Read both weight files.

        Args:
            backbone: ImageNet AlexNet, `.pth` or `.safetensors`, in torchvision's names.
            linear: The LPIPS v0.1 heads for AlexNet, likewise.
            device: Where torch computes.

        Returns:
            The measure, ready to call.

        Raises:
            WeightsError: A file is missing, damaged, or holds other names or shapes.
        """
        weights = _read_weights(Path(backbone), backbone_shapes(), "AlexNet backbone")
        weights |= _read_weights(Path(linear), linear_shapes(), "LPIPS linear heads")
        return cls({name: tensor.to(device) for name, tensor in weights.items()}, device)

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
        for stage in _STAGES:
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
