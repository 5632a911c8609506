from __future__ import annotations

import math

import pytest
import torch

from sdseg_cli.core.config import UNetConfig
from sdseg_cli.model.unet import (
    Attention,
    AttentionBlock,
    FeedForward,
    ResBlock,
    SpatialTransformer,
    TransformerBlock,
    UNet,
    timestep_embedding,
)

# Two answering tokens: the first channel is their key, the second their value.
CONTEXT = torch.tensor([[[0.0, 8.0], [math.log(3), 4.0]]])

SMALL = UNetConfig(
    model_channels=32, channel_mult=(1, 2), blocks_per_level=1, attention_levels=(1,), heads=4
)


def _random(model: torch.nn.Module) -> torch.nn.Module:
    """Without the zero-initialised convolutions, which would hide every mistake."""
    generator = torch.Generator().manual_seed(0)
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.1, generator=generator)
    return model.eval()


def test_the_papers_unet_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = UNet(UNetConfig())
    assert sum(p.numel() for p in model.parameters()) == 294_973_828


def test_concatenation_keeps_the_names_and_sizes_of_the_published_unet() -> None:
    with torch.device("meta"):
        found = {name: tuple(v.shape) for name, v in UNet(UNetConfig()).state_dict().items()}
    assert found["input_blocks.0.0.weight"] == (192, 8, 3, 3)
    attention = {n.removeprefix("middle_block.1."): s for n, s in found.items() if "block.1." in n}
    assert attention == {
        "norm.weight": (768,),
        "norm.bias": (768,),
        "qkv.weight": (2304, 768, 1),
        "qkv.bias": (2304,),
        "proj_out.weight": (768, 768, 1),
        "proj_out.bias": (768,),
    }


def test_cross_attention_stands_where_concatenation_has_self_attention() -> None:
    concat, cross = (UNet(SMALL, fusion=fusion) for fusion in ("concat", "cross-attention"))
    assert cross.input_blocks[0][0].weight.shape == (32, 4, 3, 3)
    places = [
        {name for name, part in model.named_modules() if isinstance(part, kind)}
        for model, kind in ((concat, AttentionBlock), (cross, SpatialTransformer))
    ]
    assert places[0] == places[1]
    assert "middle_block.1" in places[0] and len(places[0]) == 4
    # Of width C, self-attention has 4 C^2 + 6 C parameters and the transformer 20 C^2 + 29 C; here
    # all four are of width 64. The first convolution has 4 input channels less: 4 * 32 * 9 weights.
    more = 4 * (16 * 64**2 + 23 * 64) - 4 * 32 * 9
    counts = [sum(p.numel() for p in model.parameters()) for model in (concat, cross)]
    assert counts[1] - counts[0] == more


def test_with_cross_attention_the_answer_depends_on_noise_condition_and_timestep() -> None:
    model = _random(UNet(SMALL, fusion="cross-attention"))
    zt, zc = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    base = model(zt, 10, zc)
    assert base.shape == (1, 4, 8, 8)
    assert not torch.allclose(base, model(zt, 900, zc))
    assert not torch.allclose(base, model(zt, 10, -zc))
    assert not torch.allclose(base, model(-zt, 10, zc))


def test_only_concatenation_tells_the_unet_where_in_the_image_it_looks() -> None:
    zt, zc = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    for fusion, knows in (("concat", True), ("cross-attention", False)):
        model = _random(UNet(SMALL, fusion=fusion))
        same = torch.allclose(model(zt, 10, zc), model(zt, 10, zc.flip(-1)), atol=1e-4)
        assert same is not knows


def test_timestep_embedding_has_cosines_before_sines() -> None:
    found = timestep_embedding(torch.tensor([3]), 4)[0].tolist()
    slow = 3 * math.exp(-math.log(10000.0) / 2)  # 0.03
    assert found == pytest.approx([math.cos(3), math.cos(slow), math.sin(3), math.sin(slow)])


def test_a_fresh_unet_answers_zero() -> None:
    latent = torch.randn(2, 4, 8, 8)
    assert UNet(SMALL)(latent, 5, latent).abs().max().item() == 0.0


def test_the_answer_depends_on_noise_condition_and_timestep() -> None:
    model = _random(UNet(SMALL))
    zt, zc = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    base = model(zt, 10, zc)
    assert base.shape == (1, 4, 8, 8)
    assert not torch.allclose(base, model(zt, 900, zc))
    assert not torch.allclose(base, model(zt, 10, -zc))


def test_the_noise_comes_first_and_the_condition_second() -> None:
    model = _random(UNet(SMALL))
    model.input_blocks[0][0].weight.data[:, 4:] = 0  # deaf to the last four channels
    zt, zc = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model(zt, 10, zc), model(zt, 10, -zc))
    assert not torch.allclose(model(zt, 10, zc), model(-zt, 10, zc))


def test_one_timestep_for_all_equals_one_each() -> None:
    model = _random(UNet(SMALL))
    zt, zc = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    each = model(zt, torch.tensor([7, 7, 7]), zc)
    assert torch.allclose(model(zt, 7, zc), each, atol=1e-6)


def test_res_block_resamples_both_ways_round_the_skip() -> None:
    embedding = torch.zeros(1, 8)
    x = torch.arange(4.0).reshape(1, 1, 2, 2).expand(1, 32, 2, 2)
    # Fresh blocks end in a zeroed convolution: only the resampled skip remains.
    wide = torch.arange(16.0).reshape(1, 1, 4, 4).expand(1, 32, 4, 4)
    down = ResBlock(32, 32, 8, dropout=0.0, resample="down")(wide, embedding)
    assert down[0, 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    up = ResBlock(32, 32, 8, dropout=0.0, resample="up")(x, embedding)
    assert up[0, 0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]


def test_the_first_half_of_the_embedding_scales_and_the_second_shifts() -> None:
    block = ResBlock(32, 32, 2, dropout=0.0)
    linear, conv = block.emb_layers[1], block.out_layers[3]
    torch.nn.init.zeros_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    linear.bias.data[32:] = 2.0  # shift by 2, scale by 1 + 0
    torch.nn.init.dirac_(conv.weight)
    x = torch.zeros(1, 32, 4, 4)
    torch.nn.init.zeros_(block.in_layers[2].weight)
    torch.nn.init.zeros_(block.in_layers[2].bias)
    # norm(0) * 1 + 2 = 2; silu(2) = 1.7616; centre pixel of an identity convolution.
    found = block(x, torch.zeros(1, 2))[0, 0, 1, 1].item()
    assert found == pytest.approx(2 / (1 + math.exp(-2)), rel=1e-5)


def test_attention_reads_q_k_v_head_by_head() -> None:
    block = AttentionBlock(32, heads=4)
    generator = torch.Generator().manual_seed(3)
    for value in (block.qkv.weight, block.qkv.bias, block.proj_out.weight):
        torch.nn.init.normal_(value, std=0.3, generator=generator)
    x = torch.randn(1, 32, 2, 3, generator=generator)
    h = block.qkv(block.norm(x.reshape(1, 32, 6)))[0]  # (96, 6)
    heads = []
    for head in range(4):
        q, k, v = h[24 * head : 24 * head + 24].split(8)
        weight = torch.softmax(q.T @ k / math.sqrt(8), dim=1)
        heads.append(v @ weight.T)
    expected = x + block.proj_out(torch.cat(heads)[None]).reshape(x.shape)
    assert torch.allclose(block(x), expected, atol=1e-5)


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
