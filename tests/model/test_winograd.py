from __future__ import annotations

import pytest
import torch
from torch import nn

from sdseg_cli.core.presets import PRESETS
from sdseg_cli.model import winograd
from sdseg_cli.model.autoencoder import Autoencoder
from sdseg_cli.model.winograd import WinogradConv, use_winograd


def convolution(deep: int, wide: int, *, bias: bool = True) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(deep, wide, 3, padding=1, bias=bias).requires_grad_(False)


def test_a_single_one_is_spread_by_the_turned_filter() -> None:
    direct = nn.Conv2d(1, 1, 3, padding=1, bias=False).requires_grad_(False)
    direct.weight.copy_(torch.arange(1.0, 10.0).view(1, 1, 3, 3))
    plane = torch.zeros(1, 1, 8, 8)
    plane[0, 0, 4, 3] = 1
    expected = torch.zeros(8, 8)
    expected[3:6, 2:5] = torch.tensor([[9.0, 8.0, 7.0], [6.0, 5.0, 4.0], [3.0, 2.0, 1.0]])
    assert torch.allclose(WinogradConv(direct)(plane)[0, 0], expected, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 5, 8, 8), (2, 5, 12, 16), (1, 5, 7, 10), (1, 5, 1, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_answers_as_the_convolution_whatever_the_size(
    shape: tuple[int, ...], bias: bool
) -> None:
    direct, plane = convolution(5, 3, bias=bias), torch.randn(shape)
    expected = direct(plane)
    found = WinogradConv(direct)(plane)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=2e-5 * float(expected.abs().max()))


def test_strips_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    # In float64: a product of another size may be summed in another order, which float32 shows.
    quick = WinogradConv(convolution(4, 4)).double()
    plane = torch.randn(1, 4, 32, 16, dtype=torch.float64)
    whole = quick(plane)
    monkeypatch.setattr(winograd, "TILES_AT_ONCE", 8)
    assert torch.allclose(quick(plane), whole, rtol=0, atol=1e-13)


def test_the_layout_of_the_plane_changes_nothing() -> None:
    quick, plane = WinogradConv(convolution(6, 4)), torch.randn(1, 6, 16, 16)
    last = plane.contiguous(memory_format=torch.channels_last)
    assert torch.equal(quick(last), quick(plane))


def test_only_wide_three_by_three_convolutions_are_replaced() -> None:
    network = nn.Sequential(
        nn.Conv2d(128, 128, 3, padding=1),
        nn.Conv2d(128, 64, 3, padding=1),
        nn.Conv2d(128, 128, 1),
        nn.Conv2d(128, 128, 3, padding=1, stride=2),
        nn.Conv2d(128, 128, 3),
        nn.Conv2d(128, 128, 3, padding=1, groups=2),
        nn.Sequential(nn.Conv2d(128, 128, 3, padding=1)),
    )
    assert use_winograd(network) == 2
    kinds = [type(layer).__name__ for layer in network]
    assert kinds == ["WinogradConv", *["Conv2d"] * 5, "Sequential"]
    assert isinstance(network[6][0], WinogradConv)


def test_nothing_of_tiny_gains() -> None:
    assert use_winograd(Autoencoder(PRESETS["tiny"].model.autoencoder)) == 0


@pytest.mark.slow
def test_a_decoder_of_the_papers_widths_decodes_the_same() -> None:
    torch.manual_seed(0)
    direct = Autoencoder(PRESETS["sd"].model.autoencoder).eval().requires_grad_(False)
    latent = torch.randn(1, 4, 8, 8)
    expected = direct.decode(latent)
    # 2 blocks of 2 in the middle, 12 blocks of 2, 3 after an upsampling; the last but 3 channels.
    assert use_winograd(direct.decoder) == 2 * 2 + 12 * 2 + 3
    assert torch.allclose(direct.decode(latent), expected, atol=1e-4 * float(expected.abs().max()))
