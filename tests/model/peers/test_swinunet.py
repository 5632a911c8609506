from __future__ import annotations

import pytest
import torch

pytest.importorskip("einops")  # MONAI's Swin blocks need it

from sdseg_cli.model.peers.swinunet import PatchExpanding, SwinUNet


@torch.no_grad()
def test_a_patch_is_expanded_to_the_four_that_its_channels_hold() -> None:
    expand = PatchExpanding(1, 2, 1)
    expand.wider.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]).view(4, 1, 1, 1))
    expand.norm = torch.nn.Identity()
    grid = expand(torch.tensor([10.0, 100.0]).view(1, 1, 1, 2))
    assert grid[0, 0].tolist() == [[10, 20, 100, 200], [30, 40, 300, 400]]


@torch.no_grad()
def test_each_level_has_half_the_sides_and_twice_the_channels() -> None:
    net = SwinUNet(3, 1, width=8, depths=(2, 2, 2), heads=(1, 1, 1))
    seen: list[tuple[int, ...]] = []
    for level in (*net.down, *net.up):
        level.register_forward_hook(lambda _, given, out: seen.append(tuple(out.shape[1:])))
    assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 1, 64, 64)
    assert seen == [(8, 16, 16), (16, 8, 8), (32, 4, 4), (16, 8, 8), (8, 16, 16)]
