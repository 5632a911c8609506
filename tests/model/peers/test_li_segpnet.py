from __future__ import annotations

import math

import pytest
import torch

from sdseg_cli.model.peers.li_segpnet import AttentionGate, LiSegPNet, TripletAttention


@torch.no_grad()
def test_an_entry_is_weighed_by_the_largest_of_its_pixel_its_column_and_its_row() -> None:
    attention = TripletAttention()
    attention.gates = torch.nn.ModuleList(_Largest() for _ in range(3))
    x = torch.tensor([[[0.0, 1.0], [2.0, 3.0]], [[4.0, 5.0], [6.0, 7.0]]])[None]
    # Of the second channel's 4: over channels 4, over its column 6, over its row 5.
    weights = [1 / (1 + math.exp(-most)) for most in (4, 6, 5)]
    assert attention(x)[0, 1, 0, 0] == pytest.approx(4 * sum(weights) / 3, abs=1e-6)


class _Largest(torch.nn.Module):
    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """The first of the two that are pooled."""
        return pooled[:, :1]


@torch.no_grad()
def test_a_gate_that_has_learnt_nothing_lets_half_of_the_skip_pass() -> None:
    gate = AttentionGate(4, 8)
    for value in gate.parameters():
        value.zero_()
    skip = torch.randn(1, 4, 6, 6)
    assert torch.equal(gate(skip, torch.randn(1, 8, 6, 6)), skip / 2)


@torch.no_grad()
def test_every_level_is_gated() -> None:
    net = LiSegPNet(3, 2, widths=(32, 32, 64))
    assert net(torch.zeros(1, 3, 64, 96)).shape == (1, 2, 64, 96)
    assert len(net.gates) == len(net.up) == 2
