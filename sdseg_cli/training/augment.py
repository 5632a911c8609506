"""Random changes of training slices: moved, with other intensities, with foreground pasted in.

Scans and photographs each have their own lists. What is drawn is a function of the generator, for
the whole batch; each slice is then changed by itself, so that it does not depend on its neighbours.
Mirrors are drawn elsewhere (`batches.flip_codes`), because they may exchange classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sdseg_cli.core.config import NO_AUGMENTATION

Range = tuple[float, float, float]
"""Probability of a change, and the ends of the range its strength is drawn from."""
Change = dict[str, float]
"""The changes of one slice: name -> strength; those that are absent were not drawn."""

MOVES = ("rotation", "scale", "shear", "shift_x", "shift_y")
"""Changes of the geometry; the mask moves along."""
FACTORS = ("scale", "brightness", "contrast", "gamma", "inverted_gamma", "saturation")
"""Drawn on a logarithmic scale, so that twice is as likely as half."""
SIDE_SAFE_DEGREES = 30.0
"""Rotations up to here leave left and right where they are."""

SCAN_LIGHT: dict[str, Range] = {
    "rotation": (0.2, -15, 15),  # degrees, anticlockwise
    "scale": (0.2, 0.78, 1.28),
    "shift_x": (0.15, -0.1, 0.1),  # shares of the plane
    "shift_y": (0.15, -0.1, 0.1),
    "noise": (0.1, 0, 0.06),  # standard deviation; black to white is 2
    "blur": (0.15, 0.5, 1),  # standard deviation, pixels of a 256 plane
    "brightness": (0.15, 0.8, 1.25),
    "contrast": (0.15, 0.8, 1.25),
    "low_resolution": (0.15, 0.5, 1),  # share of the plane's pixels along each side
    "gamma": (0.3, 0.7, 1.5),
    "inverted_gamma": (0.1, 0.7, 1.5),
}
SCAN_STRONG: dict[str, Range] = SCAN_LIGHT | {
    "rotation": (0.4, -30, 30),
    "scale": (0.4, 0.7, 1.4),
    "shift_x": (0.25, -0.1, 0.1),
    "shift_y": (0.25, -0.1, 0.1),
    "noise": (0.2, 0, 0.12),
    "blur": (0.2, 0.5, 1.5),
    "brightness": (0.25, 0.7, 1.4),
    "contrast": (0.25, 0.7, 1.4),
    "low_resolution": (0.25, 0.4, 1),
    "gamma": (0.4, 0.6, 1.7),
    "inverted_gamma": (0.15, 0.6, 1.7),
}
PHOTOGRAPH_LIGHT: dict[str, Range] = SCAN_LIGHT | {
    "rotation": (0.4, -180, 180),
    "shear": (0.2, -10, 10),  # degrees
    "gamma": (0.2, 0.8, 1.25),
    "inverted_gamma": (0, 1, 1),
    "brightness": (0.3, 0.75, 1.33),
    "saturation": (0.3, 0.8, 1.25),
    "hue": (0.3, -0.01, 0.01),  # turns of the colour circle
}
PHOTOGRAPH_STRONG: dict[str, Range] = SCAN_STRONG | {
    "rotation": (0.8, -180, 180),
    "scale": (0.5, 0.7, 1.4),
    "shear": (0.4, -22.5, 22.5),
    "shift_x": (0.4, -0.125, 0.125),
    "shift_y": (0.4, -0.125, 0.125),
    "gamma": (0.3, 0.7, 1.5),
    "inverted_gamma": (0, 1, 1),
    "brightness": (0.5, 0.6, 1.6),
    "saturation": (0.5, 0.7, 1.4),
    "hue": (0.5, -0.02, 0.02),
}
RANGES = {
    ("light", False): SCAN_LIGHT,
    ("strong", False): SCAN_STRONG,
    ("light", True): PHOTOGRAPH_LIGHT,
    ("strong", True): PHOTOGRAPH_STRONG,
}
"""(`train.augment`, of photographs) -> every change."""
BLACK_BELOW = 0.02
"""Of white; a photograph's dark frame is not quite black."""
LEAST_MARGIN, MOST_MARGIN = 0.01, 0.06
"""Around pasted foreground, shares of the plane's longer side."""


def draw_changes(
    augment: str, count: int, generator: torch.Generator, *, colour: bool, sided: bool = False
) -> list[Change]:
    """What happens to each of `count` slices.

    Args:
        augment: "none", "light" or "strong".
        count: Slices of the whole batch.
        generator: A CPU generator.
        colour: They are photographs, (3,H,W), not slices of scans.
        sided: Classes are named left and right: no rotation may exchange them.
    """
    changes: list[Change] = [{} for _ in range(count)]
    if augment == NO_AUGMENTATION:
        return changes
    for name, (probability, low, high) in RANGES[augment, colour].items():
        hit, where = torch.rand((2, count), generator=generator, dtype=torch.float64)
        if name == "rotation" and sided:
            low, high = max(low, -SIDE_SAFE_DEGREES), min(high, SIDE_SAFE_DEGREES)
        for change, lot, share in zip(changes, hit.tolist(), where.tolist(), strict=True):
            if lot < probability:
                even = low + (high - low) * share
                change[name] = low * (high / low) ** share if name in FACTORS else even
    seeds = torch.randint(2**31, (count,), generator=generator).tolist()
    return [
        {**c, "noise_seed": seed} if "noise" in c else c
        for c, seed in zip(changes, seeds, strict=True)
    ]


def moves(change: Change) -> bool:
    """Whether the mask is another one afterwards."""
    return any(name in change for name in MOVES)


def changed(image: Tensor, labels: Tensor, change: Change) -> tuple[Tensor, Tensor]:
    """One slice after its changes.

    Args:
        image: (H,W), of photographs (3,H,W), float32 in [-1,1].
        labels: (H,W) uint8 or int32.
        change: Of `draw_changes`.

    Returns:
        Both, of the same shapes and types; the image in [-1,1], no new label.
    """
    if moves(change):
        image, labels = _moved(image, labels, change)
    if any(name not in MOVES for name in change):
        image = _recoloured(image, change)
    return image, labels


def _moved(image: Tensor, labels: Tensor, change: Change) -> tuple[Tensor, Tensor]:
    """Sheared, rotated, scaled about the middle, then shifted. Beyond the edges of the plane there
    is what planes are padded to squares with: black, and no structure. (A photograph that is
    mirrored there shows its bars again, and a second polyp behind them.)
    """
    height, width = labels.shape
    angle, scale = math.radians(change.get("rotation", 0)), change.get("scale", 1)
    shear = math.tan(math.radians(change.get("shear", 0)))
    # The way back, from where a pixel is to where it was; pixels from the middle, y downwards.
    x = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    y = torch.arange(height, dtype=torch.float64)[:, None] - (height - 1) / 2
    x, y = x - change.get("shift_x", 0) * width, y - change.get("shift_y", 0) * height
    x, y = x / scale, y / scale
    x, y = math.cos(angle) * x - math.sin(angle) * y, math.sin(angle) * x + math.cos(angle) * y
    x = x - shear * y
    grid = torch.stack([2 * x / width, 2 * y / height], dim=-1)[None]
    sample = partial(functional.grid_sample, padding_mode="zeros", align_corners=False)
    planes = image.reshape(1, -1, height, width) + 1  # so that 0 is black
    found = sample(planes, grid.float(), mode="bilinear").reshape(image.shape) - 1
    # float64 holds any label exactly.
    numbers = sample(labels[None, None].double(), grid, mode="nearest")
    return found.clamp(-1, 1), numbers[0, 0].to(labels.dtype)


def _recoloured(image: Tensor, change: Change) -> Tensor:
    """Other intensities, (H,W) or (3,H,W), in [-1,1]."""
    planes = (image if image.ndim == 3 else image[None]).add(1).div(2)
    if "noise" in change:
        drawn = torch.Generator().manual_seed(int(change["noise_seed"]))
        noise = change["noise"] / 2 * torch.randn(planes.shape, generator=drawn)
        planes = torch.where(_black(planes), planes, planes + noise)
    if "blur" in change:
        planes = _blurred(planes, change["blur"] * max(planes.shape) / 256)
    if "brightness" in change:
        planes = planes * change["brightness"]
    if "contrast" in change:
        low, high, mean = float(planes.min()), float(planes.max()), _mean(planes)
        spread = (mean + (planes - mean) * change["contrast"]).clamp(low, high)
        planes = torch.where(_black(planes), planes, spread)
    if "low_resolution" in change:
        planes = _coarse(planes, change["low_resolution"])
    planes = planes.clamp(0, 1)
    if "gamma" in change:
        planes = planes ** change["gamma"]
    if "inverted_gamma" in change:
        planes = 1 - (1 - planes) ** change["inverted_gamma"]
    if "saturation" in change or "hue" in change:
        planes = _tinted(planes, change.get("saturation", 1), change.get("hue", 0))
    return planes.mul(2).sub(1).clamp(-1, 1).reshape(image.shape)


def _black(planes: Tensor) -> Tensor:
    """Where (C,H,W) is padding or air below the window, (1,H,W) bool: black in every prediction, so
    that neither noise nor contrast may show there.
    """
    return planes.amax(dim=0, keepdim=True) < BLACK_BELOW


def _mean(planes: Tensor) -> float:
    """Summed up by NumPy in one thread: the same bits on any number of cores."""
    return float(planes.numpy().mean(dtype="float64"))


def _blurred(planes: Tensor, sigma: float) -> Tensor:
    """(C,H,W) through a Gaussian, at the edges that of the mirrored plane."""
    reach = min(max(1, math.ceil(3 * sigma)), min(planes.shape[1:]) - 1)
    kernel = torch.exp(-(torch.arange(-reach, reach + 1, dtype=torch.float32) ** 2) / 2 / sigma**2)
    kernel = kernel / kernel.sum()
    padded = functional.pad(planes[:, None], (reach,) * 4, mode="reflect")
    return functional.conv2d(
        functional.conv2d(padded, kernel[None, None, None]), kernel[None, None, :, None]
    )[:, 0]


def _coarse(planes: Tensor, share: float) -> Tensor:
    """(C,H,W) as if scanned with fewer pixels."""
    size = planes.shape[1:]
    smaller = [max(1, round(side * share)) for side in size]
    few = functional.interpolate(planes[None], smaller, mode="area")
    return functional.interpolate(few, size, mode="bilinear", align_corners=False)[0]


def _tinted(planes: Tensor, saturation: float, hue: float) -> Tensor:
    """(3,H,W) in [0,1]: chroma scaled and turned in YIQ, the colours of analogue television."""
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    cos, sin = math.cos(2 * math.pi * hue), math.sin(2 * math.pi * hue)
    turn = np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) * [[1], [saturation], [saturation]]
    matrix = (np.linalg.inv(to_yiq) @ turn @ to_yiq).tolist()
    red, green, blue = planes
    mixed = [row[0] * red + row[1] * green + row[2] * blue for row in matrix]
    return torch.stack(mixed).clamp(0, 1)


@dataclass(frozen=True)
class Paste:
    """Foreground of another slice of the batch that is laid over a slice."""

    source: int
    """The other's place in the batch."""
    choice: float
    """Which of the classes it has, in [0,1)."""
    margin: float
    """What is taken around the class, share of the plane's longer side."""
    boxed: bool
    """The box around it, not its own shape."""


def draw_pastes(probability: float, count: int, generator: torch.Generator) -> list[Paste | None]:
    """What is pasted into each of `count` slices, the whole batch."""
    if probability == 0 or count < 2:
        return [None] * count
    lots = torch.rand((5, count), generator=generator, dtype=torch.float64).T.tolist()
    pastes: list[Paste | None] = []
    for place, (hit, other, choice, margin, shape) in enumerate(lots):
        source = (place + 1 + int(other * (count - 1))) % count
        around = LEAST_MARGIN + (MOST_MARGIN - LEAST_MARGIN) * margin
        paste = Paste(source, choice, around, boxed=shape < 0.5)
        pastes.append(paste if hit < probability else None)
    return pastes


def pasted_region(masks: Tensor, paste: Paste) -> Tensor:
    """Which pixels are taken of a slice, (H,W) bool: one of its classes and what is around it.

    Args:
        masks: (K,H,W) bool, of the slice that is pasted.
        paste: Of `draw_pastes`.
    """
    present = masks.flatten(1).any(dim=1).nonzero().flatten().tolist()
    if not present:
        return torch.zeros(masks.shape[1:], dtype=torch.bool)
    mask = masks[present[int(paste.choice * len(present))]].float()[None, None]
    reach = max(1, round(paste.margin * max(mask.shape)))
    for side, pad in (((2 * reach + 1, 1), (reach, 0)), ((1, 2 * reach + 1), (0, reach))):
        mask = functional.max_pool2d(mask, side, stride=1, padding=pad)
    region = mask[0, 0] > 0
    if paste.boxed:
        rows, columns = (region.any(dim=axis).nonzero().flatten().tolist() for axis in (1, 0))
        region[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return region
