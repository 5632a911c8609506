from __future__ import annotations

import torch

from sdseg_cli.training.shapes import random_masks, random_textures


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_masks_are_minus_one_and_plus_one_in_three_equal_channels() -> None:
    masks = random_masks(8, 64, _generator())
    assert masks.shape == (8, 3, 64, 64)
    assert set(masks.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(masks[:, 0], masks[:, 1]) and torch.equal(masks[:, 0], masks[:, 2])


def test_one_seed_gives_one_set_of_masks() -> None:
    assert torch.equal(random_masks(4, 64, _generator(1)), random_masks(4, 64, _generator(1)))
    assert not torch.equal(random_masks(4, 64, _generator(1)), random_masks(4, 64, _generator(2)))


def test_masks_range_from_empty_to_large() -> None:
    share = (random_masks(200, 64, _generator()) > 0).float().mean(dim=(1, 2, 3))
    assert share.min() == 0
    assert 0.05 < share.median() < 0.6
    assert share.max() > 0.8


def test_textures_lie_in_range_and_have_grain() -> None:
    images = random_textures(4, 64, _generator())
    assert images.shape == (4, 3, 64, 64)
    assert -1 <= images.min() and images.max() <= 1
    assert images.std(dim=(1, 2, 3)).min() > 0.02
