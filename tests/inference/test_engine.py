from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from sdseg_cli.core.config import SampleConfig
from sdseg_cli.core.errors import ConfigError, RunError
from sdseg_cli.core.presets import PRESETS
from sdseg_cli.inference import engine
from sdseg_cli.inference.engine import (
    Inference,
    decoded_by,
    flip_average,
    predict_draws,
    predict_latents,
    predict_planes,
    require_numbers,
    shifted,
)
from sdseg_cli.model import diffusion, sdseg
from sdseg_cli.model.mask_decoder import build_mask_decoder
from sdseg_cli.model.sdseg import SDSeg, build_sdseg
from tests.training.small import lower_as_a_gpu, parts_lowered

SIDE, LATENT = 32, (4, 4, 4)
SQUARES = np.random.default_rng(0).uniform(-1, 1, (5, SIDE, SIDE)).astype(np.float32)
HOW = {"seed": 3, "sample": SampleConfig()}
SLICES = [4, 9, 2, 7, 5]
PIXELS = torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("option", ["batch_size", "threads"])
def test_fewer_than_one_is_refused_by_the_options_name(model: SDSeg, option: str) -> None:
    with pytest.raises(ConfigError, match=rf"--{option.replace('_', '-')} is 0"):
        Inference(model, **{option: 0})


def test_the_answers_are_in_the_order_of_the_slices_whatever_the_number_of_cores(
    model: SDSeg,
) -> None:
    one, three = (
        Inference(model, threads=n)(predict_planes, SQUARES, SLICES, **HOW) for n in (1, 3)
    )
    assert np.array_equal(one, three)
    alone = Inference(model)(predict_planes, SQUARES[1:2], [9], **HOW)
    assert np.array_equal(alone[0], one[1])
    assert not np.array_equal(one[0], one[1])


def test_every_operation_has_one_core_and_the_setting_comes_back(model: SDSeg) -> None:
    seen: list[int] = []

    def compute(model: SDSeg, pixels: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return pixels

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = Inference(model, threads=2)(compute, SQUARES, SLICES, **HOW)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1] * 5
    assert np.array_equal(found, SQUARES)


class Gpu:
    """Takes so many slices at a time, and complains as CUDA does."""

    def __init__(self, room: int) -> None:
        self.room, self.asked = room, list[int]()

    def __call__(
        self, model: SDSeg, pixels: torch.Tensor, slices: list[int], **_: object
    ) -> torch.Tensor:
        self.asked.append(len(pixels))
        assert len(slices) == len(pixels)
        if len(pixels) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return pixels


def on_a_gpu(model: SDSeg, monkeypatch: pytest.MonkeyPatch) -> Inference:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    asked = Inference(model, batch_size=5)
    asked.device = torch.device("cuda")
    return asked


def test_a_gpu_without_memory_gets_half_the_batch_from_then_on(
    model: SDSeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, gpu = on_a_gpu(model, monkeypatch), Gpu(room=2)
    assert np.array_equal(asked(gpu, SQUARES, SLICES, **HOW), SQUARES)
    assert gpu.asked == [5, 2, 2, 1]
    asked(gpu, SQUARES[:4], SLICES[:4], **HOW)
    assert gpu.asked[4:] == [2, 2]


def test_a_gpu_too_small_for_one_slice_is_said_to_be(
    model: SDSeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError, match="one slice does not fit"):
        on_a_gpu(model, monkeypatch)(Gpu(room=0), SQUARES, SLICES, **HOW)


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    model: SDSeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        on_a_gpu(model, monkeypatch)(broken, SQUARES, SLICES, **HOW)


def test_what_suits_a_device_is_taken_where_nothing_is_asked_for(model: SDSeg) -> None:
    assert Inference(model).batch_size == engine.DEFAULT_BATCH["cpu"]
    assert Inference(model).threads == torch.get_num_threads()


def test_what_predicts_is_compiled_when_it_first_computes(
    model: SDSeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    engine.compile_networks(model)
    assert compiled == [model.vision_encoder, model.unet, model.autoencoder.decoder]
    with decoded_by(model, torch.nn.Identity()):
        engine.compile_networks(model)
        assert compiled[-1] is model.mask_decoder


def test_on_a_cpu_the_decoder_that_draws_is_quickened_and_the_unet_never(
    monkeypatch: pytest.MonkeyPatch, model: SDSeg
) -> None:
    replaced: list[object] = []
    monkeypatch.setattr(engine, "use_winograd", replaced.append)
    engine.optimize_for_inference(model)
    assert replaced == [model.vision_encoder, model.autoencoder.decoder]
    with decoded_by(model, torch.nn.Identity()):
        engine.optimize_for_inference(model)
    assert replaced[2:] == [model.vision_encoder]


def test_nan_is_refused_by_scan_and_slice_and_numbers_are_not() -> None:
    found = np.zeros((9, 2, 4, 4), np.float32)
    require_numbers(found, 0, "a.nii.gz")
    found[2, 1, 3, 3] = np.nan
    with pytest.raises(RunError, match=r"^a\.nii\.gz: the model answers NaN on slice 13\.$"):
        require_numbers(found, 10, "a.nii.gz")
    found[2:, 0, 0, 0] = np.nan
    with pytest.raises(RunError, match=r"NaN on slice 3, 4, 5, 6, 7 and 2 more\.$"):
        require_numbers(found, 0, "a.nii.gz")


def test_prediction_lowers_encoder_and_decoder_but_never_the_unet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lower_as_a_gpu(monkeypatch)
    model = build_sdseg(PRESETS["tiny"].model).eval()
    lowered = parts_lowered(model)
    predict_planes(model, torch.zeros(1, SIDE, SIDE), [0], seed=0, sample=SampleConfig(steps=2))
    assert lowered == {"vision encoder": True, "unet": False, "decoder": True}


def _predict(model: SDSeg, slices: list[int], pixels: torch.Tensor = PIXELS, **sample: object):
    """(B,H,W), of the one class."""
    return predict_planes(model, pixels, slices, seed=5, sample=SampleConfig(**sample))[:, 0]


def test_one_sample_at_one_step_is_equation_2_from_the_slices_own_noise(model: SDSeg) -> None:
    noise = diffusion.seeded_noise(5, [7, 8, 9], LATENT)
    with torch.inference_mode():
        zc = model.encode_image(PIXELS.unsqueeze(1).expand(-1, 3, -1, -1).contiguous())
        expected = model.probability(diffusion.single_step(model.denoise, noise, zc))
    assert torch.allclose(_predict(model, [7, 8, 9]), expected, atol=1e-6)


def test_two_samples_are_the_mean_of_two_draws(
    model: SDSeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, both = _predict(model, [7, 8, 9]), _predict(model, [7, 8, 9], samples=2)
    seeded_noise = diffusion.seeded_noise
    second_draw = lambda seed, slices, shape: seeded_noise(seed, slices, shape, 1)  # noqa: E731
    monkeypatch.setattr(diffusion, "seeded_noise", second_draw)
    second = _predict(model, [7, 8, 9])
    assert not torch.allclose(first, second, atol=1e-4)
    assert torch.allclose(both, (first + second) / 2, atol=1e-7)


def test_the_image_is_encoded_once_for_all_samples(
    model: SDSeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    encode_image = model.encode_image
    monkeypatch.setattr(model, "encode_image", lambda x: calls.append(1) or encode_image(x))
    _predict(model, [7, 8, 9], samples=3, steps=2)
    assert len(calls) == 1


@pytest.mark.parametrize("noise", ["slice", "shared"])
def test_slices_of_one_image_differ_by_their_noise_unless_it_is_shared(
    model: SDSeg, noise: str
) -> None:
    same = PIXELS[:1].expand(3, -1, -1)
    settings = {"noise": noise, "steps": 2, "eta": 1.0, "samples": 2}
    first, second, third = _predict(model, [7, 8, 9], same, **settings)
    for other in (second, third):
        assert torch.allclose(first, other, atol=1e-6) is (noise == "shared")


def test_a_slice_alone_is_the_slice_among_others_with_fresh_noise_and_samples(
    model: SDSeg,
) -> None:
    settings = {"steps": 3, "eta": 1.0, "samples": 2}
    among = _predict(model, [7, 8, 9], **settings)
    alone = _predict(model, [8], PIXELS[1:2], **settings)
    assert torch.allclose(alone[0], among[1], atol=1e-5)
    other = _predict(model, [6], PIXELS[1:2], **settings)
    assert not torch.allclose(alone, other, atol=1e-3)


def test_fresh_noise_changes_the_answer_and_the_seed_repeats_it(model: SDSeg) -> None:
    still, stirred, again = (_predict(model, [7, 8, 9], steps=3, eta=eta) for eta in (0, 1, 1))
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

    monkeypatch.setattr(sdseg, "reduced_precision", spied)
    model = build_sdseg(replace(PRESETS["tiny"].model, precision=precision)).eval()
    predict_planes(model, torch.zeros(1, SIDE, SIDE), [0], seed=0, sample=SampleConfig())
    assert asked == [precision, precision]  # the encoder, then the decoder


def test_the_draws_by_themselves_are_those_that_are_averaged(model: SDSeg) -> None:
    sample = SampleConfig(samples=3)
    each = predict_draws(model, PIXELS, [7, 8, 9], seed=5, sample=sample)
    assert each.shape == (3, 3, 1, SIDE, SIDE)
    each = each[:, :, 0]
    assert torch.equal(each[:, 0], _predict(model, [7, 8, 9]))
    assert torch.equal(
        (each[:, 0] + each[:, 1] + each[:, 2]) / 3, _predict(model, [7, 8, 9], samples=3)
    )
    assert not torch.allclose(each[:, 0], each[:, 1], atol=1e-4)


def test_without_noise_the_seed_and_the_slices_number_change_nothing(model: SDSeg) -> None:
    no_op = SampleConfig(noise="zero")
    one, other = (
        predict_planes(model, PIXELS, slices, seed=seed, sample=no_op)
        for slices, seed in (([7, 8, 9], 5), ([1, 2, 3], 6))
    )
    assert torch.equal(one, other)
    one = one[:, 0]
    with torch.inference_mode():
        zc = model.encode_image(PIXELS.unsqueeze(1).expand(-1, 3, -1, -1).contiguous())
        nothing = torch.zeros(3, *LATENT)
        expected = model.probability(diffusion.single_step(model.denoise, nothing, zc))
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


def test_flips_are_part_of_how_it_is_sampled(model: SDSeg) -> None:
    plain = _predict(model, [7, 8, 9])
    mirrored = _predict(model, [7, 8, 9], PIXELS.flip(-1)).flip(-1)
    both = _predict(model, [7, 8, 9], flips="h")
    assert torch.allclose(both, (plain + mirrored) / 2, atol=1e-6)
    assert not torch.allclose(both, plain, atol=1e-4)


def test_a_threshold_comes_to_lie_at_a_half_and_the_ends_stay() -> None:
    values = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    assert torch.equal(shifted(values, 0.5), values)
    # Odds of 0, 1/3, 1, 3, infinity, divided by 3: 0, 1/9, 1/3, 1, infinity.
    expected = torch.tensor([0, 1 / 10, 1 / 4, 1 / 2, 1])
    assert torch.allclose(shifted(values, 0.75), expected, atol=1e-7)


def test_a_model_with_a_threshold_shows_what_lies_above_it(model: SDSeg) -> None:
    plain = _predict(model, [7, 8, 9])
    model.threshold = 0.25
    try:
        moved = _predict(model, [7, 8, 9])
        drawn = predict_latents(model, PIXELS, [7, 8, 9], seed=5)[1]
    finally:
        model.threshold = 0.5
    assert 0 < (plain > 0.5).sum() < (plain > 0.25).sum()
    assert torch.equal(moved > 0.5, plain > 0.25)
    assert torch.equal(drawn, plain), "the fast decoder learns what the exact one says"


def test_latents_are_those_that_are_drawn_and_the_fast_decoder_is_not_asked(
    model: SDSeg,
) -> None:
    with decoded_by(model, build_mask_decoder(model.config.autoencoder)):
        latents, drawn = predict_latents(model, PIXELS, [7, 8, 9], seed=5)
        assert model.mask_decoder is not None
    assert latents.shape == (3, *LATENT)
    assert torch.equal(drawn, _predict(model, [7, 8, 9]))
    with torch.inference_mode():
        again = model.probability(latents * model.latent_scale)
    assert torch.allclose(again, drawn, atol=1e-6)
