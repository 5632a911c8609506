from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from sdseg_cli.core.config import ModelConfig, UNetConfig
from sdseg_cli.core.presets import PRESETS
from sdseg_cli.model.diffusion import ALPHA_BAR, LAST
from sdseg_cli.model.interface import as_three_channels
from sdseg_cli.model.sdseg import SDSeg, build_sdseg, foreground_weight

TINY = PRESETS["tiny"].model


def test_the_autoencoder_is_frozen_and_stays_in_eval_mode() -> None:
    model = build_sdseg(TINY).train()
    assert not model.autoencoder.training
    assert not any(p.requires_grad for p in model.autoencoder.parameters())
    assert all(p.requires_grad for p in model.vision_encoder.parameters())
    assert model.unet.training


def test_a_frozen_vision_encoder_stays_in_eval_mode() -> None:
    frozen = dataclasses.replace(TINY, train_encoder=False, encoder_dropout=0.5)
    image = as_three_channels(torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(0)))
    for config, same in ((frozen, True), (dataclasses.replace(frozen, train_encoder=True), False)):
        model = build_sdseg(config)
        for each in (model, model.train()):  # as built, and when told to train
            assert each.vision_encoder.training is not same
            assert each.unet.training
        assert torch.equal(model.encode_image(image), model.encode_image(image)) is same
        assert any(p.requires_grad for p in model.vision_encoder.parameters()) is not same


def test_the_fusion_of_the_settings_is_that_of_the_unet() -> None:
    model = build_sdseg(dataclasses.replace(TINY, fusion="cross-attention")).eval()
    assert not model.unet.concat
    zc = model.encode_image(as_three_channels(torch.zeros(2, 64, 64)))
    assert model.predict_noise(torch.zeros(2, 4, 8, 8), 999, zc).shape == (2, 4, 8, 8)


def test_shapes_from_image_to_probability() -> None:
    model = build_sdseg(TINY).eval()
    image = as_three_channels(torch.zeros(2, 64, 64))
    zc = model.encode_image(image)
    assert zc.shape == (2, 32, 8, 8)
    assert model.latent_shape(64, 64) == (4, 8, 8)
    assert model.mask_moments(image).shape == (2, 8, 8, 8)
    zt = torch.zeros(2, 4, 8, 8)
    z0 = model.estimate_z0(zt, model.predict_noise(zt, 999, zc), 999)
    assert model.decode(z0).shape == (2, 3, 64, 64)
    assert model.probability(z0).shape == (2, 64, 64)


def test_decode_undoes_the_latent_scale() -> None:
    model = build_sdseg(TINY).eval()
    z0 = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = model.decode(z0)
    model.latent_scale = 0.125
    assert torch.allclose(model.decode(z0 * 0.125), plain, atol=1e-5)
    mask = torch.ones(1, 3, 64, 64)
    mean = model.mask_moments(mask)[:, :4]
    assert torch.allclose(model.encode_mask(mask), 0.125 * mean)


def test_probability_clamps_each_channel_before_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_sdseg(TINY).eval()
    decoded = torch.tensor([-5.0, 0.0, 1.0]).reshape(1, 3, 1, 1)  # 0, 0.5 and 1 after the clamp
    monkeypatch.setattr(model.autoencoder, "decode", lambda latent: decoded)
    assert model.probability(torch.zeros(1, 4, 1, 1)).item() == 0.5


def test_the_parameterisations_share_one_network_and_differ_in_what_it_means() -> None:
    model = build_sdseg(dataclasses.replace(TINY, parameterisation="eps")).eval()
    zt = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    zc = torch.zeros(1, 32, 8, 8)
    assert model.denoise(zt, 999, zc).noise_pred.abs().max() == 0  # a fresh U-Net answers zero
    model.config = dataclasses.replace(TINY, parameterisation="z0")
    assert model.denoise(zt, 999, zc).z0_pred.abs().max() == 0


class PerfectDenoiser(nn.Module):
    """Is told z0 as its condition, so it knows the noise: Eq. 1 solved for n, a 1x1 convolution."""

    def __init__(self, error: float = 0.0) -> None:
        super().__init__()
        self.error = error
        self.solve = nn.Conv2d(8, 4, 1, bias=False)
        a, s = ALPHA_BAR[LAST].sqrt(), (1 - ALPHA_BAR[LAST]).sqrt()
        with torch.no_grad():
            self.solve.weight[:, :, 0, 0] = torch.cat([torch.eye(4) / s, -torch.eye(4) * a / s], 1)

    def forward(self, zt: Tensor, t: int | Tensor, zc: Tensor) -> Tensor:
        noise_pred: Tensor = self.solve(torch.cat([zt, zc], dim=1)) + self.error
        return noise_pred


def perfect_model(error: float = 0.0) -> SDSeg:
    """Predicts the noise, as in the paper, and knows it but for `error`."""
    model = build_sdseg(dataclasses.replace(TINY, parameterisation="eps")).eval()
    model.unet = PerfectDenoiser(error)
    return model.requires_grad_(False)


def test_an_error_of_the_noise_reaches_z0_multiplied_by_38_66() -> None:
    zt, z0 = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(perfect_model().denoise(zt, LAST, z0).z0_pred, z0, atol=1e-4)
    error = 2**-9  # bfloat16's rounding of a number just above 1
    found = perfect_model(error).denoise(zt, LAST, z0).z0_pred
    assert torch.allclose(z0 - found, torch.tensor(38.659 * error), atol=1e-4)  # 0.0755


def test_bfloat16_harms_in_the_unet_what_it_does_not_in_the_encoder() -> None:
    """Why the U-Net stays out of mixed precision: both see the same rounding, one amplifies it."""
    model = perfect_model()
    zt, z0 = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    encoder_low = model.denoise(zt, LAST, z0.bfloat16().float()).z0_pred
    with torch.autocast("cpu", torch.bfloat16):
        unet_low = model.denoise(zt, LAST, z0).z0_pred
    encoder_error, unet_error = (encoder_low - z0).abs(), (unet_low - z0).abs()
    assert (encoder_error <= 2**-8 * z0.abs() + 1e-4).all()  # half a unit of bfloat16's 8 bits
    assert unet_error.mean() > 20 * encoder_error.mean()
    assert unet_error.mean() > 0.03


def test_the_paper_sizes_are_the_defaults() -> None:
    assert UNetConfig() == ModelConfig().unet == PRESETS["sd"].model.unet
    assert PRESETS["sd"].model.parameterisation == "eps"


def test_foreground_weight_covers_the_touched_latent_pixel_and_its_neighbours() -> None:
    foreground = torch.zeros(1, 1, 40, 40)
    foreground[0, 0, 17, 23] = 1  # latent pixel (2, 2)
    weight = foreground_weight(foreground, 8, 20.0)
    expected = torch.ones(5, 5)
    expected[1:4, 1:4] = 21
    assert torch.equal(weight[0, 0], expected)
