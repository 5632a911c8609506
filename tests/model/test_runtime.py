from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

import sdseg_cli.model.runtime as runtime_module
from sdseg_cli.core.config import UNetConfig
from sdseg_cli.core.errors import ConfigError
from sdseg_cli.core.presets import PRESETS, for_network
from sdseg_cli.model.baselines import build_model
from sdseg_cli.model.runtime import (
    Ema,
    choose_device,
    gflop,
    matrix_rate,
    memory_format,
    needs_loss_scale,
    ran_out_of_memory,
    reduced_precision,
    seconds_of,
    stop_signals,
)
from sdseg_cli.model.sdseg import build_sdseg
from sdseg_cli.model.unet import UNet
from tests.training.small import (
    lower_as_a_gpu,
    parts_lowered,
    small_config,
    small_inputs,
    small_trainer,
)

SMALL = UNetConfig(model_channels=32, channel_mult=(1,), blocks_per_level=1, attention_levels=())


def test_an_unknown_or_absent_device_is_refused() -> None:
    with pytest.raises(ConfigError, match='no device "tpu"'):
        choose_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no cuda device"):
            choose_device("cuda")
    assert choose_device("cpu").type == "cpu"


def test_the_cpu_computes_in_full_precision() -> None:
    assert isinstance(reduced_precision(torch.device("cpu")), contextlib.nullcontext)


def test_float32_switches_mixed_precision_off_on_a_gpu_too() -> None:
    gpu = torch.device("cuda")
    assert isinstance(reduced_precision(gpu, "float32"), contextlib.nullcontext)


def test_training_lowers_the_vision_encoder_but_never_the_unet(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lower_as_a_gpu(monkeypatch)
    loop = small_trainer(small_config())
    lowered = parts_lowered(loop.model)
    loop.train_step(*small_inputs(loop.config, tmp_path))
    # Masks are encoded once, so as exactly as it goes.
    assert lowered == {"mask encoder": False, "vision encoder": True, "unet": False}


def test_only_float16_needs_a_loss_scale() -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert needs_loss_scale(gpu, "mixed-float16")
    assert not needs_loss_scale(gpu, "mixed")
    assert not needs_loss_scale(gpu, "float32")
    assert not needs_loss_scale(cpu, "mixed-float16")


def test_a_lack_of_memory_is_told_from_other_errors() -> None:
    assert ran_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
    assert ran_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    assert ran_out_of_memory(MemoryError())
    assert not ran_out_of_memory(RuntimeError("shapes do not match"))


def test_the_average_follows_the_published_rule() -> None:
    unet = UNet(SMALL)
    ema = Ema(unet, decay=0.9999)
    with torch.no_grad():
        for value in unet.parameters():
            value.fill_(1.0)
        for value in ema.unet.parameters():
            value.fill_(0.0)
    ema.update(unet, 1)  # decay min(0.9999, 2/11)
    assert next(ema.unet.parameters()).flatten()[0].item() == pytest.approx(9 / 11)
    ema.update(unet, 10**9)  # decay 0.9999
    expected = 9 / 11 + 1e-4 * 2 / 11
    assert next(ema.unet.parameters()).flatten()[0].item() == pytest.approx(expected)


def test_the_average_stands_in_for_the_unet_only_within_the_block() -> None:
    model = build_sdseg(PRESETS["tiny"].model).train()
    raw, ema = model.unet, Ema(model.unet, 0.9)
    with ema.in_place_of(model):
        assert model.unet is ema.unet
        assert not model.training
    assert model.unet is raw
    assert model.training


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_signal_sets_the_event_and_the_old_handler_comes_back(
    number: signal.Signals,
) -> None:
    before = signal.getsignal(number)
    with stop_signals() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.is_set()
    assert signal.getsignal(number) is before


def test_the_first_stop_signal_is_acknowledged_at_once_and_only_it() -> None:
    told: list[bool] = []
    with stop_signals(lambda: told.append(stop.is_set())) as stop:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)
            assert told == [True]


def test_a_second_ctrl_c_ends_at_once_but_not_an_echo_of_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(runtime_module.time, "monotonic", lambda: now)
    with stop_signals() as stop:
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        now += 1.5
        os.kill(os.getpid(), signal.SIGTERM)  # a batch system may say it twice
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("network", "device", "expected"),
    [
        ("sdseg", "cpu", torch.channels_last),
        ("unet", "cpu", torch.contiguous_format),
        ("unet", "cuda", torch.channels_last),
    ],
)
def test_only_a_baseline_on_a_cpu_has_its_channels_first(
    network: str, device: str, expected: torch.memory_format
) -> None:
    model = build_model(for_network(PRESETS["tiny"], network).model)
    assert memory_format(model, torch.device(device)) is expected


def test_a_gpu_is_chosen_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    current: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert choose_device("cuda") == torch.device("cuda") and current == [1]
    with pytest.raises(ConfigError, match="has 2 of cuda") as caught:
        choose_device("cuda:2")
    assert "numbers 0 to 1" in caught.value.hint


@pytest.mark.parametrize("name", ["cpu:1", "cuda:", "cuda:x", "auto:0", "CPU", "cuda:-1"])
def test_what_names_no_device_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"no device|no cuda device"):
        choose_device(name)


@pytest.mark.slow  # torch's counter imports its compiler: more than a second, once a process
def test_a_convolution_is_two_operations_per_weight_and_place() -> None:
    layer, plane = nn.Conv2d(4, 8, 3, padding=1), torch.zeros(1, 4, 10, 20)
    assert gflop(lambda: layer(plane)) == 2 * (4 * 8 * 9) * (10 * 20) / 1e9


@pytest.mark.slow
def test_attention_is_counted_as_its_two_matrix_products() -> None:
    q = torch.zeros(1, 1, 64, 16)
    attend = nn.functional.scaled_dot_product_attention
    assert gflop(lambda: attend(q, q, q)) == 2 * (2 * 64 * 64 * 16) / 1e9


@pytest.mark.slow
def test_a_transformer_layer_that_torch_computes_in_one_operation_is_counted() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    tokens = torch.zeros(1, 4, 8)
    products = 4 * 8 * 24 + 2 * (4 * 4 * 8) + 4 * 8 * 8 + 2 * (4 * 8 * 16)
    assert gflop(lambda: layer(tokens)) == 2 * products / 1e9
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_first_time_does_not_count_and_the_shortest_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Two times are taken whatever the budget, then it is looked at before each: at 0.8 of 1 s it
    # still holds. Times: 0.1 s, which does not count, 0.4 s, 0.2 s.
    clock = iter([0.0, 0.0, 0.1, 0.1, 0.5, 0.8, 0.8, 1.0, 1.1])
    monkeypatch.setattr(runtime_module.time, "perf_counter", lambda: next(clock))
    calls: list[int] = []
    found = seconds_of(lambda: calls.append(1), torch.device("cpu"))
    assert len(calls) == 3
    assert found == pytest.approx(0.2)


def test_the_rate_is_the_products_arithmetic_over_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime_module, "MATRIX", 10)
    monkeypatch.setattr(runtime_module, "seconds_of", lambda *_: 0.5)
    assert matrix_rate(torch.device("cpu")) == 2 * 1000 / 1e9 / 0.5
