"""Parity with the official code, and proof that the check would notice the usual mistakes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from sdseg_cli.model import unet
from sdseg_cli.model.pretrained import below, load_official
from sdseg_cli.model.sdseg import SDSeg
from sdseg_cli.model.starts import start_unet
from tests.parity.fill import manifest, state_dict, tiny_checkpoint, tiny_ldm
from tests.parity.reference import (
    TOLERANCE,
    Reference,
    differences,
    flipped_pixels,
    over_tolerance,
)

SIZES = ["tiny", pytest.param("full", marks=pytest.mark.slow)]
Loaded = tuple[SDSeg, SDSeg, Reference]


@pytest.fixture(scope="module", params=SIZES)
def loaded(request: pytest.FixtureRequest) -> Iterator[Loaded]:
    """The raw model, the one with the averaged U-Net, and the recorded outputs."""
    tensors = tiny_checkpoint() if request.param == "tiny" else state_dict(manifest("sdseg_full"))
    raw, averaged = load_official(tensors, ema=False), load_official(tensors)
    yield raw, averaged, Reference(request.param)


@pytest.mark.slow
def test_every_output_is_the_official_codes(loaded: Loaded) -> None:
    model, _, reference = loaded
    found = differences(model, reference)
    assert len(found) == 13
    assert not over_tolerance(found)


def test_the_averaged_unet_is_the_official_codes(loaded: Loaded) -> None:
    _, model, reference = loaded
    with torch.inference_mode():
        ours = model.predict_noise(reference.input["noise"], 999, reference.output["cond_latent"])
    assert reference.difference("eps_t999_ema", ours) <= TOLERANCE
    assert reference.difference("eps_t999", ours) > 0.01  # the raw weights would not do


@pytest.mark.parametrize("name", ["latent", "z0"])
def test_masks_differ_only_where_the_official_margin_is_thin(loaded: Loaded, name: str) -> None:
    model, _, reference = loaded
    flipped, on_the_edge = flipped_pixels(model, reference, name)
    assert flipped <= on_the_edge


def test_timesteps_may_be_given_per_sample(loaded: Loaded) -> None:
    model, _, reference = loaded
    noise, zc = reference.input["noise"], reference.output["cond_latent"]
    with torch.inference_mode():
        ours = model.predict_noise(
            noise.repeat(2, 1, 1, 1), torch.tensor([999, 10]), zc.repeat(2, 1, 1, 1)
        )
    assert reference.difference("eps_t999", ours[:1]) <= TOLERANCE
    assert reference.difference("eps_t10", ours[1:]) <= TOLERANCE


def _half_the_heads(model: SDSeg, patch: pytest.MonkeyPatch) -> None:
    for module in model.unet.modules():
        if isinstance(module, unet.AttentionBlock):
            patch.setattr(module, "heads", module.heads // 2)


def _shift_before_scale(model: SDSeg, patch: pytest.MonkeyPatch) -> None:
    for module in model.unet.modules():
        if isinstance(module, unet.ResBlock):
            layer = module.emb_layers[1]
            for values in (layer.weight.data, layer.bias.data):
                values.copy_(values.roll(len(values) // 2, dims=0))


def _sine_before_cosine(model: SDSeg, patch: pytest.MonkeyPatch) -> None:
    embed = unet.timestep_embedding

    def swapped(t: Tensor, channels: int) -> Tensor:
        return embed(t, channels).roll(channels // 2, dims=1)

    patch.setattr(unet, "timestep_embedding", swapped)


def _condition_before_noise(model: SDSeg, patch: pytest.MonkeyPatch) -> None:
    weight = model.unet.input_blocks[0][0].weight.data
    weight.copy_(weight.roll(4, dims=1))


def _norms_of_the_autoencoder(model: SDSeg, patch: pytest.MonkeyPatch) -> None:
    for module in model.unet.modules():
        if isinstance(module, torch.nn.GroupNorm):
            patch.setattr(module, "eps", 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mistake",
    [
        _half_the_heads,
        _shift_before_scale,
        _sine_before_cosine,
        _condition_before_noise,
        _norms_of_the_autoencoder,
    ],
)
def test_the_check_notices(
    mistake: Callable[[SDSeg, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_official(tiny_checkpoint(), ema=False)
    reference = Reference("tiny")
    assert not over_tolerance(differences(model, reference))
    mistake(model, monkeypatch)
    wrong = over_tolerance(differences(model, reference))
    assert {"eps_t999", "eps_t500", "eps_t10"} <= set(wrong)
    assert not {"cond_latent", "mask_moments", "dec_latent_sub4"} & set(wrong)


@pytest.mark.slow
def test_the_unconditional_unet_padded_with_zeros_is_the_official_import() -> None:
    model, reference = load_official(tiny_checkpoint(), ema=False), Reference("tiny")
    start_unet(model.unet, below(tiny_ldm(), "model.diffusion_model."), source="ldm")
    noise, zc = reference.input["noise"], reference.output["cond_latent"]
    with torch.inference_mode():
        ours = model.predict_noise(noise, 999, zc)
        blind = model.predict_noise(noise, 999, zc * 0)
    assert reference.difference("eps_t999_ldm4_zeropad", ours) <= TOLERANCE
    assert torch.equal(ours, blind)  # at the start the image does not count
