from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sdseg_cli.training.runtime as runtime_module
from sdseg_cli.config import SampleConfig, UNetConfig
from sdseg_cli.errors import ConfigError
from sdseg_cli.model import diffusion
from sdseg_cli.model.sdseg import SDSeg, build_sdseg
from sdseg_cli.model.unet import UNet
from sdseg_cli.presets import PRESETS
from sdseg_cli.training import objective, runtime
from sdseg_cli.training.runtime import (
    Ema,
    choose_device,
    flip_average,
    needs_loss_scale,
    predict_draws,
    predict_planes,
    ran_out_of_memory,
    reduced_precision,
    stop_signals,
    use_threads,
)
from tests.training.small import small_config, small_inputs, small_trainer

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


def lower_as_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What CUDA gets of `reduced_precision`, on the CPU."""

    def lowered(device: torch.device, precision: str = "mixed") -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16)

    monkeypatch.setattr(runtime, "reduced_precision", lowered)
    monkeypatch.setattr(objective, "reduced_precision", lowered)


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
    predict_planes(model, torch.zeros(1, 32, 32), [0], seed=0, sample=SampleConfig(steps=2))
    assert lowered == {"vision encoder": True, "unet": False, "decoder": True}


def test_training_lowers_the_vision_encoder_but_never_the_unet(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lower_as_a_gpu(monkeypatch)
    loop = small_trainer(small_config())
    lowered = watch(loop.model)
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


@pytest.fixture(scope="module")
def lively() -> SDSeg:
    """A model whose answer depends on its noise: a fresh U-Net would answer zero."""
    model = build_sdseg(PRESETS["tiny"].model).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.1, generator=generator)
    return model


PIXELS = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1


def _predict(model: SDSeg, slices: list[int], pixels: torch.Tensor = PIXELS, **sample: object):
    return predict_planes(model, pixels, slices, seed=5, sample=SampleConfig(**sample))


def test_one_sample_at_one_step_is_equation_2_from_the_slices_own_noise(lively: SDSeg) -> None:
    noise = diffusion.seeded_noise(5, [7, 8, 9], (4, 8, 8))
    with torch.inference_mode():
        zc = lively.encode_image(PIXELS.unsqueeze(1).expand(-1, 3, -1, -1).contiguous())
        expected = lively.probability(diffusion.single_step(lively.denoise, noise, zc))
    assert torch.allclose(_predict(lively, [7, 8, 9]), expected, atol=1e-6)


def test_two_samples_are_the_mean_of_two_draws(
    lively: SDSeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, both = _predict(lively, [7, 8, 9]), _predict(lively, [7, 8, 9], samples=2)
    seeded_noise = diffusion.seeded_noise
    second_draw = lambda seed, slices, shape: seeded_noise(seed, slices, shape, 1)  # noqa: E731
    monkeypatch.setattr(diffusion, "seeded_noise", second_draw)
    second = _predict(lively, [7, 8, 9])
    assert not torch.allclose(first, second, atol=1e-4)
    assert torch.allclose(both, (first + second) / 2, atol=1e-7)


def test_the_image_is_encoded_once_for_all_samples(
    lively: SDSeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    encode_image = lively.encode_image
    monkeypatch.setattr(lively, "encode_image", lambda x: calls.append(1) or encode_image(x))
    _predict(lively, [7, 8, 9], samples=3, steps=2)
    assert len(calls) == 1


@pytest.mark.parametrize("noise", ["slice", "shared"])
def test_slices_of_one_image_differ_by_their_noise_unless_it_is_shared(
    lively: SDSeg, noise: str
) -> None:
    same = PIXELS[:1].expand(3, -1, -1)
    settings = {"noise": noise, "steps": 2, "eta": 1.0, "samples": 2}
    first, second, third = _predict(lively, [7, 8, 9], same, **settings)
    for other in (second, third):
        assert torch.allclose(first, other, atol=1e-6) is (noise == "shared")


def test_a_slice_alone_is_the_slice_among_others_with_fresh_noise_and_samples(
    lively: SDSeg,
) -> None:
    settings = {"steps": 3, "eta": 1.0, "samples": 2}
    among = _predict(lively, [7, 8, 9], **settings)
    alone = _predict(lively, [8], PIXELS[1:2], **settings)
    assert torch.allclose(alone[0], among[1], atol=1e-5)
    other = _predict(lively, [6], PIXELS[1:2], **settings)
    assert not torch.allclose(alone, other, atol=1e-3)


def test_fresh_noise_changes_the_answer_and_the_seed_repeats_it(lively: SDSeg) -> None:
    still, stirred, again = (_predict(lively, [7, 8, 9], steps=3, eta=eta) for eta in (0, 1, 1))
    assert not torch.allclose(still, stirred, atol=1e-3)
    assert torch.equal(stirred, again)


@pytest.mark.parametrize("precision", ["mixed", "float32"])
def test_prediction_computes_in_the_precision_of_the_model(
    monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    asked: list[str] = []

    def spied(device: torch.device, chosen: str = "mixed") -> contextlib.nullcontext[None]:
        asked.append(chosen)
        return contextlib.nullcontext()

    monkeypatch.setattr(runtime_module, "reduced_precision", spied)
    model = build_sdseg(replace(PRESETS["tiny"].model, precision=precision)).eval()
    predict_planes(model, torch.zeros(1, 64, 64), [0], seed=0, sample=SampleConfig())
    assert asked == [precision, precision]  # the encoder, then the decoder


def test_the_draws_by_themselves_are_those_that_are_averaged(lively: SDSeg) -> None:
    sample = SampleConfig(samples=3)
    each = predict_draws(lively, PIXELS, [7, 8, 9], seed=5, sample=sample)
    assert each.shape == (3, 3, 64, 64)
    assert torch.equal(each[:, 0], _predict(lively, [7, 8, 9]))
    assert torch.equal(
        (each[:, 0] + each[:, 1] + each[:, 2]) / 3, _predict(lively, [7, 8, 9], samples=3)
    )
    assert not torch.allclose(each[:, 0], each[:, 1], atol=1e-4)


def test_without_noise_the_seed_and_the_slices_number_change_nothing(lively: SDSeg) -> None:
    silent = SampleConfig(noise="zero")
    one, other = (
        predict_planes(lively, PIXELS, slices, seed=seed, sample=silent)
        for slices, seed in (([7, 8, 9], 5), ([1, 2, 3], 6))
    )
    assert torch.equal(one, other)
    with torch.inference_mode():
        zc = lively.encode_image(PIXELS.unsqueeze(1).expand(-1, 3, -1, -1).contiguous())
        nothing = torch.zeros(3, 4, 8, 8)
        expected = lively.probability(diffusion.single_step(lively.denoise, nothing, zc))
    assert torch.allclose(one, expected, atol=1e-6)


def corner(pixels: torch.Tensor) -> Iterator[torch.Tensor]:
    """An answer that no flip leaves as it is: the upper left pixel's value there, 0 elsewhere."""
    answer = torch.zeros(pixels.shape[0], *pixels.shape[-2:])
    answer[:, 0, 0] = pixels.reshape(len(pixels), -1, *pixels.shape[-2:])[:, 0, 0, 0]
    yield answer
    yield 10 * answer


@pytest.mark.parametrize(
    ("flips", "expected"),
    [
        ("", [[8.0, 0.0], [0.0, 0.0]]),
        ("h", [[4.0, 2.0], [0.0, 0.0]]),
        ("v", [[4.0, 0.0], [6.0, 0.0]]),
        ("hv", [[2.0, 1.0], [3.0, 5.0]]),
    ],
)
def test_each_flip_is_asked_and_its_answer_flipped_back(
    flips: str, expected: list[list[float]]
) -> None:
    plane = torch.tensor([[[8.0, 4.0], [12.0, 20.0]]])
    for pixels in (plane, plane.unsqueeze(1).expand(-1, 3, -1, -1)):
        first, second = flip_average(corner, pixels, flips)
        assert first.tolist() == [expected]
        assert torch.equal(second, 10 * first)


def test_flips_are_part_of_how_it_is_sampled(lively: SDSeg) -> None:
    plain = _predict(lively, [7, 8, 9])
    mirrored = _predict(lively, [7, 8, 9], PIXELS.flip(-1)).flip(-1)
    both = _predict(lively, [7, 8, 9], flips="h")
    assert torch.allclose(both, (plain + mirrored) / 2, atol=1e-6)
    assert not torch.allclose(both, plain, atol=1e-4)


def test_fewer_than_one_thread_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    with pytest.raises(ConfigError, match="--threads is 0"):
        use_threads(0)
    use_threads(None)
    assert asked == []
    use_threads(3)
    assert asked == [3]
