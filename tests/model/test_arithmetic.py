from __future__ import annotations

import pytest
import torch
from torch import nn

from sdseg_cli.model import arithmetic
from sdseg_cli.model.arithmetic import gflop, matrix_rate, seconds_of


@pytest.mark.slow
def test_a_convolution_is_two_operations_per_weight_and_place() -> None:
    layer, plane = nn.Conv2d(4, 8, 3, padding=1), torch.zeros(1, 4, 10, 20)
    assert gflop(lambda: layer(plane)) == 2 * (4 * 8 * 9) * (10 * 20) / 1e9


def test_attention_is_counted_as_its_two_matrix_products() -> None:
    q = torch.zeros(1, 1, 64, 16)
    attend = nn.functional.scaled_dot_product_attention
    assert gflop(lambda: attend(q, q, q)) == 2 * (2 * 64 * 64 * 16) / 1e9


def test_the_first_time_does_not_count_and_the_shortest_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Two times are taken whatever the budget, then it is looked at before each: at 0.8 of 1 s it
    # still holds. Times: 0.1 s, which does not count, 0.4 s, 0.2 s.
    clock = iter([0.0, 0.0, 0.1, 0.1, 0.5, 0.8, 0.8, 1.0, 1.1])
    monkeypatch.setattr(arithmetic.time, "perf_counter", lambda: next(clock))
    calls: list[int] = []
    found = seconds_of(lambda: calls.append(1), torch.device("cpu"))
    assert len(calls) == 3
    assert found == pytest.approx(0.2)


def test_the_rate_is_the_products_arithmetic_over_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(arithmetic, "MATRIX", 10)
    monkeypatch.setattr(arithmetic, "seconds_of", lambda *_: 0.5)
    assert matrix_rate(torch.device("cpu")) == 2 * 1000 / 1e9 / 0.5
