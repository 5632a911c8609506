from __future__ import annotations

import torch

from sdseg_cli.model.peers.ssformer import Block, SSFormer

SIZES = {"widths": (8, 8, 8, 8), "depths": (1, 1, 1, 1), "heads": (1, 1, 1, 1), "decoder": 8}


@torch.no_grad()
def test_a_block_attends_to_a_map_that_is_coarser_by_its_reduction() -> None:
    keys: list[int] = []
    for reduction in (1, 4):
        block = Block(8, heads=2, reduction=reduction)
        block.attention.register_forward_hook(lambda _, given, out: keys.append(given[1].shape[1]))
        assert block(torch.zeros(2, 8 * 12, 8), (8, 12)).shape == (2, 96, 8)
    assert keys == [96, 6]


@torch.no_grad()
def test_levels_lie_at_a_4th_to_a_32nd_and_are_fused_from_the_deepest_at_a_4th() -> None:
    net = SSFormer(3, 2, **SIZES)
    seen: list[tuple[int, ...]] = []
    for part in (*net.levels, *net.fusions):
        part.register_forward_hook(lambda _, given, out: seen.append(tuple(out.shape[2:])))
    assert net(torch.zeros(1, 3, 64, 96)).shape == (1, 2, 64, 96)
    assert seen == [(16, 24), (8, 12), (4, 6), (2, 3), (16, 24), (16, 24), (16, 24)]
