from __future__ import annotations

import pytest
import torch

from sdseg_cli.model.naming import below, from_diffusers, official_ema_name, official_name, our_name


def test_official_names_differ_by_their_prefix_and_averaged_ones_lose_their_dots() -> None:
    assert official_name("unet.out.2.bias") == "model.diffusion_model.out.2.bias"
    assert official_name("autoencoder.quant_conv.bias") == "first_stage_model.quant_conv.bias"
    assert official_name("vision_encoder.out.bias") == "cond_stage_model.out.bias"
    for key in ("unet.out.2.bias", "autoencoder.quant_conv.bias", "vision_encoder.out.bias"):
        assert our_name(official_name(key)) == key
    assert official_ema_name("unet.out.2.bias") == "model_ema.diffusion_modelout2bias"


def test_below_takes_a_part_without_its_prefix() -> None:
    one, two = torch.ones(1), torch.zeros(1)
    assert below({"a.x": one, "b.x": two}, "a.") == {"x": one}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("encoder.down_blocks.1.resnets.0.norm1.weight", "encoder.down.1.block.0.norm1.weight"),
        ("encoder.down_blocks.0.downsamplers.0.conv.bias", "encoder.down.0.downsample.conv.bias"),
        (
            "encoder.down_blocks.1.resnets.0.conv_shortcut.bias",
            "encoder.down.1.block.0.nin_shortcut.bias",
        ),
        ("encoder.mid_block.resnets.0.conv1.bias", "encoder.mid.block_1.conv1.bias"),
        ("decoder.mid_block.resnets.1.conv1.bias", "decoder.mid.block_2.conv1.bias"),
        ("decoder.up_blocks.0.resnets.2.conv2.bias", "decoder.up.3.block.2.conv2.bias"),
        ("decoder.up_blocks.3.resnets.0.norm2.bias", "decoder.up.0.block.0.norm2.bias"),
        ("decoder.up_blocks.1.upsamplers.0.conv.weight", "decoder.up.2.upsample.conv.weight"),
        ("decoder.mid_block.attentions.0.group_norm.bias", "decoder.mid.attn_1.norm.bias"),
        ("encoder.mid_block.attentions.0.to_q.bias", "encoder.mid.attn_1.q.bias"),
        ("encoder.mid_block.attentions.0.to_out.0.bias", "encoder.mid.attn_1.proj_out.bias"),
        ("encoder.mid_block.attentions.0.query.bias", "encoder.mid.attn_1.q.bias"),
        ("encoder.mid_block.attentions.0.key.bias", "encoder.mid.attn_1.k.bias"),
        ("encoder.mid_block.attentions.0.value.bias", "encoder.mid.attn_1.v.bias"),
        ("encoder.mid_block.attentions.0.proj_attn.bias", "encoder.mid.attn_1.proj_out.bias"),
        ("decoder.conv_norm_out.weight", "decoder.norm_out.weight"),
        ("post_quant_conv.weight", "post_quant_conv.weight"),
    ],
)
def test_diffusers_names_become_ours(theirs: str, ours: str) -> None:
    levels = {f"decoder.up_blocks.{i}.resnets.0.norm1.weight": torch.ones(1) for i in range(4)}
    marked = torch.full((1,), 7.0)
    assert from_diffusers({**levels, theirs: marked})[ours] is marked


def test_the_matrices_of_diffusers_attention_become_1x1_convolutions() -> None:
    matrix = torch.arange(4.0).reshape(2, 2)
    renamed = from_diffusers({"encoder.mid_block.attentions.0.to_v.weight": matrix})
    assert torch.equal(renamed["encoder.mid.attn_1.v.weight"], matrix[:, :, None, None])
