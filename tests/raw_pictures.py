"""Small pictures on disk, as a user has them: a bright ellipse on tissue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def polyp(number: int, shape: tuple[int, int] = (48, 64)) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8 colours and (H, W) bool mask."""
    rng = np.random.default_rng(number)
    row, column = np.indices(shape)
    centre = rng.uniform(0.35, 0.65, 2) * shape
    mask = np.hypot((row - centre[0]) / (shape[0] / 4), (column - centre[1]) / (shape[1] / 5)) < 1
    colours = np.where(mask[..., None], (230, 120, 100), (120, 50, 40))
    return (colours + rng.integers(-10, 10, colours.shape)).astype(np.uint8), mask


def save(path: Path, pixels: np.ndarray) -> Path:
    """Write a picture; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def save_pair(image: Path, mask: Path, number: int, shape: tuple[int, int] = (48, 64)) -> None:
    """A picture, and its mask of 0 and 255."""
    colours, found = polyp(number, shape)
    save(image, colours)
    save(mask, found.astype(np.uint8) * 255)


def kvasir_id(number: int) -> str:
    """A name as Kvasir-SEG gives them."""
    return f"cju0qkwl35piu0993l0d{number:05d}"


def touch(root: Path, *names: str) -> None:
    """Empty files, for what is judged by names alone."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
