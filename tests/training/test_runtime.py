from __future__ import annotations

import contextlib
import os
import signal

import pytest
import torch

from sdseg_cli.config import PRESETS, RunConfig, UNetConfig
from sdseg_cli.errors import ConfigError
from sdseg_cli.model.sdseg import SDSeg, build_sdseg
from sdseg_cli.model.unet import UNet
from sdseg_cli.training import runtime, trainer
from sdseg_cli.training.batches import Batch
from sdseg_cli.training.checkpoint import Checkpoint, config_values
from sdseg_cli.training.runtime import (
    Ema,
    choose_device,
    predict_planes,
    reduced_precision,
    stop_signals,
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


def lower_as_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What CUDA gets of `reduced_precision`, on the CPU."""

    def lowered(device: torch.device) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16)

    monkeypatch.setattr(runtime, "reduced_precision", lowered)
    monkeypatch.setattr(trainer, "reduced_precision", lowered)


def watch(model: SDSeg) -> dict[str, bool]:
    """Filled while the model computes: whether each part did so under autocast."""
    lowered: dict[str, bool] = {}
    parts = {
        "mask encoder": model.autoencoder.encoder,
        "vision encoder": model.vision_encoder,
        "unet": model.unet,
        "decoder": model.autoencoder.decoder,
    }
    for name, part in parts.items():
        part.register_forward_pre_hook(
            lambda *_, name=name: lowered.update({name: torch.is_autocast_enabled("cpu")})
        )
    return lowered


def test_prediction_lowers_encoder_and_decoder_but_never_the_unet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lower_as_a_gpu(monkeypatch)
    model = build_sdseg(PRESETS["tiny"].model).eval()
    lowered = watch(model)
    predict_planes(model, torch.zeros(1, 32, 32), [0], seed=0, steps=2)
    assert lowered == {"vision encoder": True, "unet": False, "decoder": True}


def test_training_lowers_both_encoders_but_never_the_unet(monkeypatch: pytest.MonkeyPatch) -> None:
    lower_as_a_gpu(monkeypatch)
    config = RunConfig(model=PRESETS["tiny"].model)
    fresh = build_sdseg(config.model)
    state = Checkpoint(
        step=0,
        config=config_values(config),
        data={},
        latent_scale=1.0,
        weights=fresh.state_dict(),
        ema=fresh.unet.state_dict(),
    )
    loop = trainer.Trainer(config, state, torch.device("cpu"))
    lowered = watch(loop.model)
    plane = torch.zeros(1, 32, 32)
    loop._losses(Batch(plane, plane > 0), torch.Generator())
    assert lowered == {"mask encoder": True, "vision encoder": True, "unet": False}


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_signal_sets_the_event_and_the_old_handler_comes_back(
    number: signal.Signals,
) -> None:
    before = signal.getsignal(number)
    with stop_signals() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.is_set()
    assert signal.getsignal(number) is before
