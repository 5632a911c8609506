"""Cross-attention against weights and sums small enough to do by hand."""

from __future__ import annotations

import math

import pytest
import torch

from sdseg_cli.model.transformer import Attention, FeedForward, SpatialTransformer, TransformerBlock

# Two answering tokens: the first channel is their key, the second their value.
CONTEXT = torch.tensor([[[0.0, 8.0], [math.log(3), 4.0]]])


def _by_hand(attention: Attention) -> Attention:
    """Every channel asks with itself, is answered by the key channel, and takes the value."""
    width = attention.to_q.in_features
    with torch.no_grad():
        attention.to_q.weight.copy_(torch.eye(width))
        attention.to_k.weight.copy_(torch.tensor([[1.0, 0.0]]).expand(width, 2))
        attention.to_v.weight.copy_(torch.tensor([[0.0, 1.0]]).expand(width, 2))
        attention.to_out[0].weight.copy_(torch.eye(width))
        attention.to_out[0].bias.zero_()
    return attention.eval()


def test_a_token_takes_the_values_in_proportion_to_the_exponential_of_query_times_key() -> None:
    attention = _by_hand(Attention(1, 2, heads=1, dropout=0.0))
    asked = attention(torch.tensor([[[1.0], [0.0]]]), CONTEXT)
    # Query 1: exp(0) to exp(ln 3) is 1 to 3, so 8/4 + 3 * 4/4 = 5. Query 0: equal parts, 6.
    assert asked.flatten().tolist() == pytest.approx([5.0, 6.0])


def test_each_head_asks_on_its_own() -> None:
    attention = _by_hand(Attention(2, 2, heads=2, dropout=0.0))
    asked = attention(torch.tensor([[[1.0, 0.0]]]), CONTEXT)
    assert asked.flatten().tolist() == pytest.approx([5.0, 6.0])


def test_products_are_divided_by_the_root_of_the_head_width() -> None:
    attention = _by_hand(Attention(4, 2, heads=1, dropout=0.0))
    # Four channels add up to 2 * ln 3, over sqrt(4) = ln 3: again 1 to 3.
    asked = attention(torch.full((1, 1, 4), 0.5), CONTEXT)
    assert asked.flatten().tolist() == pytest.approx([5.0] * 4)


def test_the_second_half_of_the_feed_forward_gates_the_first() -> None:
    feed = FeedForward(1, dropout=0.0)
    with torch.no_grad():
        feed.net[0].proj.weight.copy_(torch.tensor([3.0] * 4 + [1.0] * 4)[:, None])
        feed.net[0].proj.bias.zero_()
        feed.net[2].weight.fill_(1.0)
        feed.net[2].bias.zero_()
    # Four times 3x * gelu(x); at x = 1 gelu is the normal distribution's 0.841345.
    assert feed(torch.ones(1, 1, 1)).item() == pytest.approx(4 * 3 * 0.841345, rel=1e-5)


def test_the_three_parts_of_a_block_are_residuals_behind_a_norm() -> None:
    block = TransformerBlock(2, 2, heads=1, dropout=0.0)
    for value in block.parameters():
        torch.nn.init.zeros_(value)
    x = torch.tensor([[[1.0, 3.0]]])
    assert torch.equal(block(x, CONTEXT), x)
    for norm, part in ((block.norm1, block.attn1), (block.norm2, block.attn2)):
        torch.nn.init.ones_(norm.bias)  # a norm of weight 0 and bias 1 gives ones
        torch.nn.init.ones_(part.to_v.weight)
        torch.nn.init.eye_(part.to_out[0].weight)
    # attn1 adds 1 + 1 = 2; attn2 the mean over tokens of key + value: (8 + ln 3 + 4) / 2.
    added = 2 + (12 + math.log(3)) / 2
    assert block(x, CONTEXT).flatten().tolist() == pytest.approx([1 + added, 3 + added])


def test_a_fresh_transformer_is_the_identity() -> None:
    x, zc = torch.randn(2, 32, 4, 6), torch.randn(2, 4, 8, 8)
    assert torch.equal(SpatialTransformer(32, 4, heads=4, dropout=0.5)(x, zc), x)


def _awake() -> SpatialTransformer:
    """With a last layer that lets the rest through."""
    transformer = SpatialTransformer(32, 4, heads=4, dropout=0.0)
    torch.nn.init.normal_(transformer.proj_out.weight, generator=torch.Generator().manual_seed(0))
    return transformer.eval()


def test_the_condition_matters_once_the_last_layer_is_not_zero() -> None:
    x, zc = torch.randn(1, 32, 4, 6), torch.randn(1, 4, 8, 8)
    transformer = _awake()
    assert transformer(x, zc).shape == x.shape
    assert not torch.allclose(transformer(x, zc), transformer(x, -zc), atol=1e-3)


def test_tokens_do_not_know_where_they_lie() -> None:
    generator = torch.Generator().manual_seed(1)
    x, zc = torch.randn(1, 32, 4, 6), torch.randn(1, 4, 64, generator=generator)
    shuffled = zc[:, :, torch.randperm(64, generator=generator)]
    transformer = _awake()
    there, elsewhere = (transformer(x, part.reshape(1, 4, 8, 8)) for part in (zc, shuffled))
    assert torch.allclose(there, elsewhere, atol=1e-5)


def test_positions_of_the_plane_keep_their_place() -> None:
    x, zc = torch.randn(1, 32, 4, 6), torch.randn(1, 4, 8, 8)
    transformer = _awake()
    turned = transformer(x.transpose(2, 3), zc).transpose(2, 3)
    assert torch.allclose(turned, transformer(x, zc), atol=1e-5)


def test_names_and_sizes_are_those_of_stable_diffusion() -> None:
    found = {name: tuple(v.shape) for name, v in _awake().state_dict().items()}
    block = "transformer_blocks.0"
    expected = {
        **{f"norm.{kind}": (32,) for kind in ("weight", "bias")},
        **{f"{part}.weight": (32, 32, 1, 1) for part in ("proj_in", "proj_out")},
        **{f"{part}.bias": (32,) for part in ("proj_in", "proj_out")},
        **{f"{block}.norm{n}.{kind}": (32,) for n in (1, 2, 3) for kind in ("weight", "bias")},
        **{f"{block}.attn1.to_{part}.weight": (32, 32) for part in "qkv"},
        f"{block}.attn2.to_q.weight": (32, 32),
        f"{block}.attn2.to_k.weight": (32, 4),
        f"{block}.attn2.to_v.weight": (32, 4),
        **{f"{block}.attn{n}.to_out.0.weight": (32, 32) for n in (1, 2)},
        **{f"{block}.attn{n}.to_out.0.bias": (32,) for n in (1, 2)},
        f"{block}.ff.net.0.proj.weight": (256, 32),
        f"{block}.ff.net.0.proj.bias": (256,),
        f"{block}.ff.net.2.weight": (32, 128),
        f"{block}.ff.net.2.bias": (32,),
    }
    assert found == expected


def test_dropout_acts_in_training_only() -> None:
    transformer = SpatialTransformer(32, 4, heads=4, dropout=0.5)
    torch.nn.init.normal_(transformer.proj_out.weight)
    x, zc = torch.randn(1, 32, 4, 6), torch.randn(1, 4, 8, 8)
    assert not torch.equal(transformer(x, zc), transformer(x, zc))
    transformer.eval()
    assert torch.equal(transformer(x, zc), transformer(x, zc))
