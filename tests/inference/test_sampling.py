from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from sdseg_cli.core.config import SampleConfig
from sdseg_cli.core.presets import PRESETS
from sdseg_cli.inference.engine import (
    flip_average,
    predict_draws,
    predict_latents,
    predict_planes,
    shifted,
)
from sdseg_cli.model import diffusion, sdseg
from sdseg_cli.model.mask_decoder import build_mask_decoder
from sdseg_cli.model.sdseg import SDSeg, build_sdseg
from tests.training.small import lower_as_a_gpu, parts_lowered


def test_prediction_lowers_encoder_and_decoder_but_never_the_unet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lower_as_a_gpu(monkeypatch)
    model = build_sdseg(PRESETS["tiny"].model).eval()
    lowered = parts_lowered(model)
    predict_planes(model, torch.zeros(1, 32, 32), [0], seed=0, sample=SampleConfig(steps=2))
    assert lowered == {"vision encoder": True, "unet": False, "decoder": True}


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

    monkeypatch.setattr(sdseg, "reduced_precision", spied)
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
    no_op = SampleConfig(noise="zero")
    one, other = (
        predict_planes(lively, PIXELS, slices, seed=seed, sample=no_op)
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


def test_a_threshold_comes_to_lie_at_a_half_and_the_ends_stay() -> None:
    values = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    assert torch.equal(shifted(values, 0.5), values)
    # Odds of 0, 1/3, 1, 3, infinity, divided by 3: 0, 1/9, 1/3, 1, infinity.
    expected = torch.tensor([0, 1 / 10, 1 / 4, 1 / 2, 1])
    assert torch.allclose(shifted(values, 0.75), expected, atol=1e-7)


def test_a_model_with_a_threshold_shows_what_lies_above_it(lively: SDSeg) -> None:
    plain = _predict(lively, [7, 8, 9])
    lively.threshold = 0.25
    try:
        moved = _predict(lively, [7, 8, 9])
        drawn = predict_latents(lively, PIXELS, [7, 8, 9], seed=5)[1]
    finally:
        lively.threshold = 0.5
    assert 0 < (plain > 0.5).sum() < (plain > 0.25).sum()
    assert torch.equal(moved > 0.5, plain > 0.25)
    assert torch.equal(drawn, plain), "the fast decoder learns what the exact one says"


def test_latents_are_those_that_are_drawn_and_the_fast_decoder_is_not_asked(
    lively: SDSeg,
) -> None:
    lively.mask_decoder = build_mask_decoder(lively.config.autoencoder)
    try:
        latents, drawn = predict_latents(lively, PIXELS, [7, 8, 9], seed=5)
        assert lively.mask_decoder is not None
    finally:
        lively.mask_decoder = None
    assert latents.shape == (3, 4, 8, 8)
    assert torch.equal(drawn, _predict(lively, [7, 8, 9]))
    with torch.inference_mode():
        again = lively.probability(latents * lively.latent_scale)
    assert torch.allclose(again, drawn, atol=1e-6)
