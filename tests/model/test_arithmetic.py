from __future__ import annotations

import torch
from torch import nn

from sdseg_cli.model.arithmetic import gflop


def test_a_convolution_is_two_operations_per_weight_and_place() -> None:
    layer, plane = nn.Conv2d(4, 8, 3, padding=1), torch.zeros(1, 4, 10, 20)
    assert gflop(lambda: layer(plane)) == 2 * (4 * 8 * 9) * (10 * 20) / 1e9


def test_attention_is_counted_as_its_two_matrix_products() -> None:
    q = torch.zeros(1, 1, 64, 16)
    attend = nn.functional.scaled_dot_product_attention
    assert gflop(lambda: attend(q, q, q)) == 2 * (2 * 64 * 64 * 16) / 1e9
