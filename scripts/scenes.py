"""Procedural scans and masks, to warm up a vision encoder and a U-Net on.

A scene is a body (or a plane all of tissue) with up to a dozen organs in it: closed curves
`r(angle) = r0 (1 + harmonics)`, stretched and turned, some hollow, some cut to an arc, some with a
twin on the other side. Each organ is of one of a few tissues, which differ in grey value or colour
and in texture. Blur, shading, noise, coarse voxels and black borders follow. No patient, no
download and no phantom of `sdseg demo` is in it.

Which organs the mask shows is said by a rule that can be seen in the image: the bright ones, the
hollow ones, those with a twin. What a user will ask for is not known, so there are many rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

Plane = NDArray[np.float32]
OUTSIDE, BODY, FIRST_ORGAN = 0, 1, 2
"""Owners of a pixel: the air, the body, then one number per organ."""
MOST_ORGANS = 12
RADIUS_PX = (3.0, 48.0)
HARMONICS = 4


@dataclass(frozen=True)
class Organ:
    """One closed curve. Lengths in pixels of the model's plane."""

    row: float
    column: float
    radius: float
    stretch: float = 1.0
    """Length over width, >= 1."""
    turn: float = 0.0
    """Of the long axis, radians."""
    bends: tuple[complex, ...] = ()
    """Amplitude and phase of each harmonic, from the second."""
    wall: float = 0.0
    """Thickness where it is hollow, else 0."""
    arc: bool = False
    """Hollow and open on one side."""
    twin: bool = False
    """Has its mirror image on the other side."""
    contrast: float = 0.0
    """Grey value less the body's."""
    textured: bool = False


Rule = Callable[[Organ, int], bool]
"""The mask shows an organ in a plane of so many pixels."""

RULES: dict[str, Rule] = {
    "any": lambda organ, size: True,
    "bright": lambda organ, size: organ.contrast > 0.15,
    "dark": lambda organ, size: organ.contrast < -0.15,
    "brightest": lambda organ, size: organ.contrast > 0.55,
    "faint": lambda organ, size: abs(organ.contrast) < 0.3,
    "textured": lambda organ, size: organ.textured,
    "hollow": lambda organ, size: organ.wall > 0,
    "small": lambda organ, size: organ.radius < 9,
    "large": lambda organ, size: organ.radius > 18,
    "long": lambda organ, size: organ.stretch > 1.8,
    "twin": lambda organ, size: organ.twin,
    "upper": lambda organ, size: organ.row < 0.45 * size,
    "central": lambda organ, size: abs(organ.column - size / 2) < 0.15 * size,
}


def random_scene(size: int, rng: np.random.Generator, rule: str) -> tuple[Tensor, Tensor]:
    """One image and its mask.

    Args:
        size: Side of the plane, px. A smaller plane holds organs of the same size, but fewer.
        rng: The only source of randomness.
        rule: A name of `RULES`: which organs the mask shows.

    Returns:
        Image (3,size,size) float32 in [-1,1], three equal channels or colour; mask (size,size)
        bool.
    """
    voxel = 1.0 if rng.random() < 0.5 else float(rng.uniform(1.3, 5.0))
    coarse = math.ceil(size / voxel)
    base, tissues = _tissues(rng)
    organs = _organs(size, rng, base, tissues)
    owner = np.full((coarse, coarse), OUTSIDE, np.uint8)
    if rng.random() < 0.7:
        _draw(owner, _body(size, rng), BODY, voxel)
    else:
        owner[:] = BODY
    for number, (organ, _) in enumerate(organs):
        _draw(owner, organ, FIRST_ORGAN + number, voxel)
    image = _scanned(owner, rng, base, [tissue for _, tissue in organs])
    shown = [False, False, *(RULES[rule](organ, size) for organ, _ in organs)]
    mask = np.array(shown)[owner]
    if rng.random() < 0.2:  # as a rectangular scan is padded
        edge = int(rng.uniform(0.02, 0.2) * coarse)
        for side in (np.s_[:, :edge], np.s_[:, coarse - edge :]):
            image[:, *side], mask[side] = -1, False
    return _enlarged(image, mask, size, rng)


@dataclass(frozen=True)
class _Tissue:
    value: Plane  # (C,), grey or colour
    contrast: float
    grain: float
    stripes: float


def _tissues(rng: np.random.Generator) -> tuple[Plane, list[_Tissue]]:
    """The body's value, (1,) or (3,), and what its organs are made of."""
    colour = rng.random() < 0.25
    base = rng.uniform(-0.6, 0.6, size=1)
    if colour:
        base = base + rng.uniform(-0.3, 0.3, size=3)
    tissues = []
    for _ in range(rng.integers(2, 6)):
        room = (-0.9 - float(base.mean()), 0.9 - float(base.mean()))
        contrast = float(rng.uniform(*room))
        if rng.random() < 0.4:  # most organs differ little from what is around them
            contrast = float(rng.uniform(0.12, 0.35) * rng.choice([-1, 1]))
        value = base + contrast
        if colour:
            value = value + rng.uniform(-0.25, 0.25, size=3)
        kind = rng.random()
        grain = float(rng.uniform(0.12, 0.3)) if kind < 0.25 else 0.0
        stripes = float(rng.uniform(0.12, 0.3)) if kind > 0.8 else 0.0
        tissues.append(_Tissue(value.astype(np.float32), contrast, grain, stripes))
    return base.astype(np.float32), tissues


def _organs(
    size: int, rng: np.random.Generator, base: Plane, tissues: list[_Tissue]
) -> list[tuple[Organ, _Tissue]]:
    """In the order of drawing: a later one covers an earlier one."""
    organs: list[tuple[Organ, _Tissue]] = []
    count = int(rng.integers(3, MOST_ORGANS + 1))
    if size <= 128:
        count = 1 + count // 2
    while len(organs) < count:
        tissue = tissues[rng.integers(len(tissues))]
        radius = math.exp(rng.uniform(math.log(RADIUS_PX[0]), math.log(RADIUS_PX[1])))
        hollow = bool(radius > 6 and rng.random() < 0.2)
        organ = Organ(
            row=float(rng.uniform(0.1, 0.9)) * size,
            column=float(rng.uniform(0.1, 0.9)) * size,
            radius=radius,
            stretch=math.exp(rng.uniform(0, 1.1)),
            turn=float(rng.uniform(0, math.pi)),
            bends=_bends(rng, 0.5),
            wall=float(rng.uniform(2, 6)) if hollow else 0.0,
            arc=hollow and bool(rng.random() < 0.5),
            twin=bool(rng.random() < 0.25),
            contrast=tissue.contrast,
            textured=tissue.grain + tissue.stripes > 0,
        )
        organs.append((organ, tissue))
        if organ.twin:
            bends = tuple(bend.conjugate() for bend in organ.bends)
            column, turn = size - organ.column, math.pi - organ.turn
            organs.append((replace(organ, column=column, turn=turn, bends=bends), tissue))
    return organs


def _bends(rng: np.random.Generator, most: float) -> tuple[complex, ...]:
    amplitude = rng.uniform(0, 1, HARMONICS) * most / np.arange(2, 2 + HARMONICS)
    return tuple((amplitude * np.exp(2j * np.pi * rng.random(HARMONICS))).tolist())


def _body(size: int, rng: np.random.Generator) -> Organ:
    return Organ(
        row=size * float(rng.uniform(0.4, 0.6)),
        column=size * float(rng.uniform(0.45, 0.55)),
        radius=size * float(rng.uniform(0.36, 0.6)),
        stretch=float(rng.uniform(1, 1.6)),
        turn=float(rng.choice([0.0, math.pi / 2])),
        bends=_bends(rng, 0.15),
    )


def _draw(owner: NDArray[np.uint8], organ: Organ, number: int, voxel: float) -> None:
    """Give the organ's pixels its number; `owner` is a grid of that voxel size."""
    reach = organ.radius * math.sqrt(organ.stretch) * (1 + sum(map(abs, organ.bends))) + voxel
    lines = []
    for centre, count in zip((organ.row, organ.column), owner.shape, strict=True):
        first = max(0, int((centre - reach) / voxel))
        last = min(count, int((centre + reach) / voxel) + 1)
        lines.append((np.arange(first, last, dtype=np.float32) + 0.5) * voxel - centre)
    y, x = lines[0][:, None], lines[1][None]
    if y.size == 0 or x.size == 0:
        return
    place = np.s_[
        round((y[0, 0] + organ.row) / voxel - 0.5) :,
        round((x[0, 0] + organ.column) / voxel - 0.5) :,
    ]
    # The plane as complex numbers: a harmonic of the angle is then a power.
    narrow = math.sqrt(organ.stretch)
    cos, sin = math.cos(organ.turn), math.sin(organ.turn)
    along = (x * cos + y * sin) / narrow
    across = (y * cos - x * sin) * narrow
    point = (along + 1j * across).astype(np.complex64)
    distance = np.abs(point)
    unit = point / np.maximum(distance, 1e-6)
    power, edge = unit, np.ones_like(distance)
    for bend in organ.bends:
        power = power * unit
        edge += power.real * bend.real - power.imag * bend.imag
    edge *= organ.radius
    inside = distance < edge
    if organ.wall:
        inside &= distance > edge - organ.wall
    if organ.arc:
        inside &= unit.real > -0.6
    part = owner[place][: inside.shape[0], : inside.shape[1]]
    part[inside] = number


def _scanned(
    owner: NDArray[np.uint8], rng: np.random.Generator, base: Plane, organs: list[_Tissue]
) -> Plane:
    """The image (C,n,n) as a scanner gives it: texture, blur, shading, noise."""
    air = np.float32(-1 if rng.random() < 0.7 else rng.uniform(-1, 1))
    values = np.stack([np.full_like(base, air), base, *(tissue.value for tissue in organs)])
    own = rng.choice([0.0, 0.1])  # the body itself may be grainy
    grain = np.array([0, own, *(tissue.grain for tissue in organs)], np.float32)
    stripes = np.array([0, 0, *(tissue.stripes for tissue in organs)], np.float32)
    image = values[owner].transpose(2, 0, 1)
    texture = np.zeros(owner.shape, np.float32)
    if grain.any():
        texture += grain[owner] * _grain(owner.shape, rng)
    if stripes.any():
        texture += stripes[owner] * _stripes(owner.shape, rng)
    image = image + texture
    if rng.random() < 0.7:
        blur = float(rng.uniform(0.4, 1.4))
        image = np.stack([ndimage.gaussian_filter(one, blur, truncate=2.5) for one in image])
    shading = _smooth(owner.shape, rng) * np.float32(rng.uniform(0, 0.15))
    noise = _noise(owner.shape, rng) * np.float32(0.12 * rng.random() ** 1.5)
    result: Plane = image + (shading + noise) * (owner > OUTSIDE) + 0.2 * noise
    return result


def _noise(shape: tuple[int, ...], rng: np.random.Generator) -> Plane:
    return rng.standard_normal(shape, dtype=np.float32)


def _grain(shape: tuple[int, ...], rng: np.random.Generator) -> Plane:
    """Blotches of two to five pixels, about unit size."""
    cell = int(rng.integers(2, 6))
    small = _noise((shape[0] // cell + 1, shape[1] // cell + 1), rng)
    large = small.repeat(cell, axis=0).repeat(cell, axis=1)
    return large[: shape[0], : shape[1]]


def _stripes(shape: tuple[int, ...], rng: np.random.Generator) -> Plane:
    """Waves of four to ten pixels, bent a little, of size 1."""
    wave = 2 * math.pi / rng.uniform(4, 10)
    turn = rng.uniform(0, math.pi)
    rows = np.arange(shape[0], dtype=np.float32)[:, None] * np.float32(wave * math.sin(turn))
    columns = np.arange(shape[1], dtype=np.float32)[None] * np.float32(wave * math.cos(turn))
    result: Plane = np.sin(rows + columns + 2 * _smooth(shape, rng))
    return result


def _smooth(shape: tuple[int, ...], rng: np.random.Generator) -> Plane:
    """A field that varies over a quarter of the plane, about unit size."""
    small = torch.from_numpy(_noise((1, 1, 5, 5), rng))
    large = F.interpolate(small, size=shape, mode="bilinear", align_corners=True)
    result: Plane = large[0, 0].numpy()
    return result


def _enlarged(
    image: Plane, mask: NDArray[np.bool_], size: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """From voxels to the model's plane, as `prepare` does it: the mask stays in blocks."""
    plane = torch.from_numpy(image)[None]
    if image.shape[-1] != size:
        plane = F.interpolate(plane, size=(size, size), mode="bilinear", align_corners=False)
        line = ((np.arange(size) + 0.5) * mask.shape[0] / size).astype(np.int64)
        mask = mask[line[:, None], line[None]]
    return plane[0].clamp(-1, 1).expand(3, -1, -1), torch.from_numpy(mask.copy())
