from __future__ import annotations

import pytest
import torch

from sdseg_cli.core.config import AutoencoderConfig, ModelConfig
from sdseg_cli.model.autoencoder import Autoencoder, Downsample, sample_posterior
from sdseg_cli.model.vision_encoder import VisionEncoder

SMALL = AutoencoderConfig(channels=8, channel_mult=(1, 1, 2, 2), blocks_per_level=1, norm_groups=8)


def test_kl_f8_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        kl_f8 = Autoencoder(AutoencoderConfig())
        tau = VisionEncoder(ModelConfig())
    decoder = [*kl_f8.decoder.parameters(), *kl_f8.post_quant_conv.parameters()]
    assert sum(p.numel() for p in decoder) == 49_490_199
    assert sum(p.numel() for p in tau.parameters()) == 34_163_628


def test_a_plane_becomes_a_latent_an_eighth_its_side_and_back() -> None:
    model = Autoencoder(SMALL)
    moments = model.moments(torch.zeros(2, 3, 64, 48))
    assert moments.shape == (2, 8, 8, 6)
    assert model.decode(moments[:, :4]).shape == (2, 3, 64, 48)


def test_downsample_pads_right_and_bottom_only() -> None:
    layer = Downsample(1)
    torch.nn.init.ones_(layer.conv.weight)
    torch.nn.init.zeros_(layer.conv.bias)
    # Windows start at even pixels: the last sees 2x2 of a 4x4 plane of ones, the first 3x3.
    assert layer(torch.ones(1, 1, 4, 4))[0, 0].tolist() == [[9.0, 6.0], [6.0, 4.0]]


def test_a_posterior_of_no_variance_is_its_mean() -> None:
    mean = torch.randn(1, 4, 2, 2)
    moments = torch.cat([mean, torch.full_like(mean, -1000.0)], dim=1)
    # The log-variance is clamped to -30: a standard deviation of 3e-7.
    assert torch.allclose(sample_posterior(moments, torch.randn_like(mean)), mean, atol=3e-6)


def test_a_posterior_draw_has_the_stated_spread() -> None:
    moments = torch.cat([torch.full((1, 4, 64, 64), 5.0), torch.full((1, 4, 64, 64), 1.3862944)], 1)
    noise = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    draw = sample_posterior(moments, noise)
    assert draw.mean().item() == pytest.approx(5.0, abs=0.06)
    assert draw.std().item() == pytest.approx(2.0, abs=0.05)  # exp(1.386 / 2) = 2
