from __future__ import annotations

import pytest
import torch

from sdseg_cli.core.errors import WeightsError
from sdseg_cli.core.presets import PRESETS
from sdseg_cli.model.autoencoder import Autoencoder
from sdseg_cli.model.mask_decoder import (
    MOST_OF_EXACT,
    MaskDecoder,
    autoencoder_hash,
    build_mask_decoder,
    read_mask_decoder,
)
from sdseg_cli.model.runtime import gflop

TINY = PRESETS["tiny"].model.autoencoder


def test_it_draws_a_probability_as_large_as_the_plane() -> None:
    torch.manual_seed(0)
    found = build_mask_decoder(TINY)(torch.randn(2, 4, 5, 7))
    assert found.shape == (2, 40, 56)
    assert found.dtype == torch.float32
    assert 0 <= float(found.detach().min()) < float(found.detach().max()) <= 1


def test_each_place_of_the_latent_answers_for_its_own_square() -> None:
    decoder = MaskDecoder(1, latent_channels=1, factor=2)
    with torch.no_grad():
        for value in decoder.parameters():
            value.zero_()
        decoder.enter.weight[0, 0, 1, 1] = 1.0
        decoder.leave.weight[:, 0, 0, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    value = torch.nn.functional.silu(torch.tensor(5.0))
    found = decoder.logits(torch.tensor([[[[5.0, 0.0]]]]))
    assert torch.allclose(found[0], value * torch.tensor([[1.0, 2.0, 0, 0], [3.0, 4.0, 0, 0]]))


def test_logits_above_zero_are_probabilities_above_one_half() -> None:
    torch.manual_seed(1)
    decoder, latent = build_mask_decoder(TINY), torch.randn(1, 4, 8, 8)
    assert torch.equal(decoder.logits(latent) > 0, decoder(latent) > 0.5)


@pytest.mark.slow  # as in test_runtime: what counts imports a compiler
@pytest.mark.parametrize(("name", "exact"), [("tiny", 4.423), ("sd", 622.2)])
def test_its_arithmetic_is_a_small_share_of_the_decoders(name: str, exact: float) -> None:
    sizes = PRESETS[name].model.autoencoder
    with torch.device("meta"):
        decoder, latent = build_mask_decoder(sizes), torch.empty(1, 4, 32, 32)
        whole = Autoencoder(sizes)
        assert gflop(lambda: whole.decode(latent)) == pytest.approx(exact, rel=1e-3)
        assert gflop(lambda: decoder(latent)) <= MOST_OF_EXACT * exact


def test_an_autoencoder_is_known_by_its_weights_as_float16() -> None:
    torch.manual_seed(2)
    one = Autoencoder(TINY)
    name = autoencoder_hash(one)
    one.load_state_dict({key: value.half().float() for key, value in one.state_dict().items()})
    assert autoencoder_hash(one) == name
    with torch.no_grad():
        one.decoder.conv_in.bias[0] += 1
    assert autoencoder_hash(one) != name


def test_weights_of_something_else_are_refused() -> None:
    tensors = MaskDecoder(8).state_dict()
    with pytest.raises(WeightsError, match="another architecture"):
        read_mask_decoder(tensors, TINY, source="there")
    fitting = build_mask_decoder(TINY)
    again = read_mask_decoder(fitting.state_dict(), TINY, source="there")
    assert not again.training
    latent = torch.randn(1, 4, 4, 4)
    assert torch.equal(again(latent), fitting(latent))
