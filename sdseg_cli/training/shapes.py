"""Procedural masks: endless training data, owed to nobody.

A mask is the union of up to twelve closed curves `r(angle) = r0 (1 + harmonics)`, stretched and
turned, some of them hollow (vessel walls, bone) and some cut to an arc (jaw, rib); or a thresholded
smooth noise field.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

MAX_SHAPES = 12
HARMONICS = 4


def uniform(generator: Generator, shape: tuple[int, ...], low: float, high: float) -> Tensor:
    """Numbers drawn evenly from [low, high)."""
    return low + (high - low) * torch.rand(shape, generator=generator)


def _coordinates(batch: int, size: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Pixel rows and columns, (batch,1,size,size); half of the samples in coarse blocks.

    A mask drawn on a coarse scan and enlarged to the model's plane has stair-cased edges: sampling
    the curve at block centres draws exactly that.
    """
    coarse = torch.rand(batch, generator=generator) < 0.5
    block = torch.where(coarse, uniform(generator, (batch,), 1.5, 6.0), torch.ones(batch))
    block = block[:, None]
    axis = torch.arange(size)[None] + 0.5
    axis = torch.where(block > 1, (axis / block).floor() * block + block / 2, axis)
    return axis[:, None, :, None], axis[:, None, None, :]


def closed_curves(
    batch: int, size: int, generator: Generator, *, radius_px: tuple[float, float]
) -> Tensor:
    """Random filled, hollow and arc shapes, each on its own plane.

    Args:
        batch: Number of samples.
        size: Side of the square plane, px.
        generator: CPU generator, the only source of randomness.
        radius_px: Smallest and largest mean radius; log-uniform between them.

    Returns:
        (batch,12,size,size) bool; absent shapes are empty planes.
    """
    shape = (batch, MAX_SHAPES, 1, 1)
    rows, columns = _coordinates(batch, size, generator)
    low, high = math.log(radius_px[0]), math.log(radius_px[1])
    radius = torch.exp(uniform(generator, shape, low, high))
    dy = rows - uniform(generator, shape, 0, size)
    dx = columns - uniform(generator, shape, 0, size)
    turn = uniform(generator, shape, 0, math.pi)
    stretch = torch.exp(uniform(generator, shape, -0.6, 0.6))
    u = (dx * turn.cos() + dy * turn.sin()) * stretch
    v = (dy * turn.cos() - dx * turn.sin()) / stretch
    distance = torch.sqrt(u * u + v * v)
    angle = torch.atan2(v, u)
    bend = torch.zeros_like(angle)
    for k in range(2, 2 + HARMONICS):
        amplitude = uniform(generator, shape, 0, 0.5 / k)
        bend += amplitude * torch.cos(k * angle + uniform(generator, shape, 0, 2 * math.pi))
    edge = radius * (1 + bend)
    inside = distance < edge
    hollow = (torch.rand(shape, generator=generator) < 0.2) & (radius > 6)
    wall = uniform(generator, shape, 2.0, 6.0)
    inside &= ~hollow | (distance > edge - wall)
    arc = torch.rand(shape, generator=generator) < 0.5
    inside &= ~(hollow & arc) | (angle.abs() < 2.2)
    count = torch.randint(1, MAX_SHAPES + 1, (batch, 1, 1, 1), generator=generator)
    return inside & (torch.arange(MAX_SHAPES)[None, :, None, None] < count)


def smooth_noise(batch: int, size: int, generator: Generator, cell: int) -> Tensor:
    """(batch,1,size,size), about unit variance, correlated over `cell` pixels."""
    small = torch.randn(batch, 1, size // cell + 3, size // cell + 3, generator=generator)
    large = F.interpolate(small, scale_factor=float(cell), mode="bicubic")
    return large[:, :, cell : cell + size, cell : cell + size]


def random_masks(
    batch: int,
    size: int,
    generator: Generator,
    *,
    radius_px: tuple[float, float] = (1.5, 40.0),
) -> Tensor:
    """Masks as SDSeg's autoencoder sees them.

    Args:
        batch: Number of masks.
        size: Side of the plane, px, a multiple of 8.
        generator: CPU generator, the only source of randomness.
        radius_px: Smallest and largest mean radius of a shape.

    Returns:
        (batch,3,size,size) float32, -1 background and +1 foreground, three equal channels.
    """
    mask = closed_curves(batch, size, generator, radius_px=radius_px).any(dim=1, keepdim=True)
    field = smooth_noise(batch, size, generator, 16) > uniform(generator, (batch, 1, 1, 1), 0, 2)
    kind = torch.rand((batch, 1, 1, 1), generator=generator)
    mask = torch.where(kind < 0.12, field, mask)
    mask = mask & (kind < 0.95)  # one in twenty is empty
    return (mask.float() * 2 - 1).expand(-1, 3, -1, -1)
