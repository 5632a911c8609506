from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from scripts.scenes import RULES, Organ, _draw, _organs, _tissues, random_scene

DISK = Organ(row=32.0, column=20.0, radius=10.0, contrast=0.5)


def _drawn(organ: Organ, side: int = 64, voxel: float = 1.0) -> np.ndarray:
    owner = np.zeros((side, side), np.uint8)
    _draw(owner, organ, 7, voxel)
    assert set(np.unique(owner)) <= {0, 7}
    return owner == 7


def test_the_same_seed_gives_the_same_scene() -> None:
    one, two, other = (
        random_scene(64, np.random.default_rng(seed), "bright") for seed in (1, 1, 2)
    )
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert not torch.equal(one[0], other[0])


def test_a_scene_is_an_image_of_the_models_range_and_a_mask() -> None:
    colours = set()
    for seed in range(12):
        image, mask = random_scene(64, np.random.default_rng(seed), "any")
        assert image.shape == (3, 64, 64)
        assert image.dtype == torch.float32
        assert mask.shape == (64, 64)
        assert mask.dtype == torch.bool
        assert image.min() >= -1
        assert image.max() <= 1
        assert mask.any()
        colours.add(torch.equal(image[0], image[1]))
    assert colours == {True, False}  # grey scenes and colour ones


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_shows_a_part_of_all_organs(rule: str) -> None:
    shown = total = 0
    for seed in range(20):
        image, every = random_scene(64, np.random.default_rng(seed), "any")
        same, some = random_scene(64, np.random.default_rng(seed), rule)
        assert torch.equal(image, same)  # a rule changes the mask alone
        assert not (some & ~every).any()
        shown, total = shown + int(some.sum()), total + int(every.sum())
    assert 0 < shown <= total
    assert (shown == total) == (rule == "any")


def test_a_disk_is_drawn_where_it_is_said_to_be() -> None:
    disk = _drawn(DISK)
    assert disk.sum() == pytest.approx(math.pi * 100, rel=0.02)
    rows, columns = np.nonzero(disk)
    # Pixel i covers i to i + 1, so the centre of mass lies half a pixel before.
    assert rows.mean() == pytest.approx(31.5)
    assert columns.mean() == pytest.approx(19.5)


def test_a_coarse_grid_shows_the_same_disk() -> None:
    coarse = _drawn(DISK, side=32, voxel=2.0)
    assert coarse.sum() * 4 == pytest.approx(math.pi * 100, rel=0.05)
    assert np.nonzero(coarse)[0].mean() == pytest.approx(15.5)


def test_stretch_keeps_the_area_and_hollow_leaves_the_wall() -> None:
    long = _drawn(replace(DISK, column=32, stretch=2.25))
    assert long.sum() == pytest.approx(math.pi * 100, rel=0.03)
    rows, columns = np.nonzero(long)
    assert np.ptp(columns) + 1 == 30  # 2 x 10 x sqrt(2.25)
    assert np.ptp(rows) + 1 == pytest.approx(20 / 1.5, abs=1)
    ring = _drawn(replace(DISK, wall=3))
    assert ring.sum() == pytest.approx(math.pi * (100 - 49), rel=0.03)
    assert not ring[32, 20]
    assert _drawn(replace(DISK, wall=3, arc=True)).sum() < ring.sum()


def test_an_organ_outside_the_plane_draws_nothing() -> None:
    assert not _drawn(replace(DISK, row=-40)).any()
    assert not _drawn(replace(DISK, column=400)).any()


def test_a_twin_is_the_mirror_image() -> None:
    found = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        organs = [organ for organ, _ in _organs(256, rng, *_tissues(rng))]
        for organ, other in pairwise(organs):
            if organ.twin and other.twin and organ.radius == other.radius:
                left, right = _drawn(organ, side=256), _drawn(other, side=256)
                assert (left == right[:, ::-1]).mean() > 0.999  # but for rounding at the edge
                found += 1
    assert found > 5


def test_rules_read_off_the_organ() -> None:
    shows = {name for name, rule in RULES.items() if rule(DISK, 256)}
    # Contrast 0.5, radius 10, round, in row 32 of 256 and column 20.
    assert shows == {"any", "bright", "upper"}
    dark = replace(DISK, contrast=-0.2, radius=8, stretch=2, wall=3, twin=True, textured=True)
    dark = replace(dark, row=200, column=120)
    shows = {name for name, rule in RULES.items() if rule(dark, 256)}
    assert shows == {
        *("any", "dark", "faint", "textured", "hollow", "small", "long", "twin", "central")
    }
