from __future__ import annotations

import torch

from sdseg_cli.model.peers.transunet import TransUNet

SIZES = {
    "stem": 16,
    "blocks": (1, 1, 1),
    "hidden": 16,
    "layers": 1,
    "heads": 2,
    "decoder": (16, 16, 16, 16, 8),
}


def network() -> TransUNet:
    torch.manual_seed(0)
    return TransUNet(3, 2, **SIZES)


@torch.no_grad()
def test_the_transformer_sees_a_16th_of_the_plane() -> None:
    seen: list[tuple[int, ...]] = []
    net = network()
    net.transformer[0].register_forward_hook(lambda _, given, out: seen.append(given[0].shape))
    assert net(torch.zeros(1, 3, 48, 80)).shape == (1, 2, 48, 80)
    assert seen == [(1, 3 * 5, 16)]


@torch.no_grad()
def test_where_something_lies_reaches_the_answer_through_the_positions() -> None:
    net, image = network().eval(), torch.zeros(1, 3, 256, 256)
    before = net(image)
    net.positions[0, :, 3, 7] += 1.0
    assert not torch.equal(net(image), before)


@torch.no_grad()
def test_other_planes_take_the_grid_of_positions_enlarged_or_shrunk() -> None:
    net = network()
    net.positions.fill_(2.0)
    net.patches.weight.zero_()
    net.patches.bias.zero_()
    net.transformer = torch.nn.Identity()
    looked = net._looked_over(torch.zeros(1, 256, 2, 3))
    assert torch.allclose(looked, torch.full((1, 16, 2, 3), 2.0))
