from __future__ import annotations

import pytest
import torch

from sdseg_cli.core.config import AutoencoderConfig, UNetConfig
from sdseg_cli.core.errors import WeightsError
from sdseg_cli.model.naming import below
from sdseg_cli.model.sizes import autoencoder_sizes, unet_sizes
from tests.parity.fill import manifest


def _empty(name: str) -> dict[str, torch.Tensor]:
    """The manifest's tensors, without storage."""
    return {key: torch.empty(shape, device="meta") for key, shape in manifest(name).items()}


@pytest.mark.parametrize(("name", "channels"), [("sdseg_tiny", 32), ("sdseg_full", 192)])
def test_the_unets_sizes_are_read_off_its_shapes(name: str, channels: int) -> None:
    found = unet_sizes(below(_empty(name), "model.diffusion_model."), source="x")
    assert found == UNetConfig(model_channels=channels)


@pytest.mark.parametrize(("name", "channels"), [("klf8_tiny", 32), ("klf8_full", 128)])
def test_the_autoencoders_sizes_are_read_off_its_shapes(name: str, channels: int) -> None:
    assert autoencoder_sizes(_empty(name), source="x") == AutoencoderConfig(channels=channels)


def test_the_unconditional_unet_has_the_same_sizes() -> None:
    found = unet_sizes(below(_empty("lsun_churches_full"), "model.diffusion_model."), source="x")
    assert found == UNetConfig()


@pytest.mark.parametrize("sizes", [unet_sizes, autoencoder_sizes])
def test_weights_of_something_else_are_refused(sizes) -> None:
    with pytest.raises(WeightsError, match="x: these are not the weights of"):
        sizes({"fc.weight": torch.ones(2, 2)}, source="x")
