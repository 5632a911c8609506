from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from sdseg_cli.core.errors import WeightsError
from sdseg_cli.metrics.lpips import backbone_shapes, linear_shapes
from sdseg_cli.model.pretrained import below
from sdseg_cli.model.sources import recognise
from sdseg_cli.model.tensor_files import read_tensors
from tests.parity.fill import alexnet, lpips_heads, tiny_autoencoder, tiny_checkpoint, tiny_ldm


def to_diffusers(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """CompVis names -> today's diffusers names, written down independently of `from_diffusers`."""
    renamed = {}
    for key, value in tensors.items():
        key = re.sub(r"\.mid\.block_(\d)", lambda m: f".mid_block.resnets.{int(m[1]) - 1}", key)
        key = key.replace(".mid.attn_1.proj_out", ".mid_block.attentions.0.to_out.0")
        key = key.replace(".mid.attn_1.norm", ".mid_block.attentions.0.group_norm")
        key = re.sub(r"\.mid\.attn_1\.([qkv])", r".mid_block.attentions.0.to_\1", key)
        key = re.sub(r"\.down\.(\d)\.block", r".down_blocks.\1.resnets", key)
        key = re.sub(r"\.down\.(\d)\.downsample", r".down_blocks.\1.downsamplers.0", key)
        key = re.sub(r"\.up\.(\d)\.block", lambda m: f".up_blocks.{3 - int(m[1])}.resnets", key)
        key = re.sub(
            r"\.up\.(\d)\.upsample", lambda m: f".up_blocks.{3 - int(m[1])}.upsamplers.0", key
        )
        key = key.replace("nin_shortcut", "conv_shortcut").replace("norm_out", "conv_norm_out")
        is_matrix = "attentions" in key and value.ndim == 4
        renamed[key] = value[:, :, 0, 0] if is_matrix else value
    return renamed


def test_kl_f8_in_compvis_and_diffusers_names_is_one_autoencoder() -> None:
    compvis = tiny_autoencoder()
    diffusers = to_diffusers(compvis)
    assert not set(compvis) & set(diffusers) - {
        k
        for k in compvis
        if k.startswith(("quant", "post_quant")) or "conv_in" in k or "conv_out" in k
    }
    ours, theirs = (recognise(t, source="x") for t in (compvis, diffusers))
    assert ours.kind == theirs.kind == "autoencoder"
    assert ours.widths == {"autoencoder": 32}
    assert set(ours.tensors) == set(theirs.tensors)
    assert all(torch.equal(ours.tensors[key], theirs.tensors[key]) for key in ours.tensors)


def test_a_gan_loss_and_an_average_beside_the_autoencoder_are_left_out() -> None:
    more = {"loss.logvar": torch.zeros(1), "model_ema.decay": torch.zeros(1)}
    assert len(recognise({**tiny_autoencoder(), **more}, source="x").tensors) == 248


def test_a_checkpoint_of_stable_diffusion_gives_its_autoencoder() -> None:
    key = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    whole = {f"first_stage_model.{k}": v for k, v in tiny_autoencoder().items()}
    found = recognise({**whole, key: torch.ones(1, 1)}, source="x")
    assert (found.kind, len(found.tensors)) == ("autoencoder", 248)


def test_ldm_8_gives_its_unet_and_its_own_autoencoder() -> None:
    found = recognise(tiny_ldm(), source="x")
    assert found.kind == "ldm"
    assert found.widths == {"autoencoder": 32, "unet": 32}
    assert found.tensors["unet.input_blocks.0.0.weight"].shape == (32, 4, 3, 3)
    assert len(below(found.tensors, "unet.")) == 520


def test_an_official_sdseg_model_gives_its_averaged_unet_and_its_scale() -> None:
    tensors = tiny_checkpoint()
    found = recognise(tensors, source="x")
    assert (found.kind, found.latent_scale) == ("sdseg", 0.125)
    averaged = tensors["model_ema.diffusion_modelout2bias"]
    assert torch.equal(found.tensors["unet.out.2.bias"], averaged)


def test_the_concatenating_unet_without_a_vision_encoder_is_no_ldm() -> None:
    tensors = {k: v for k, v in tiny_checkpoint().items() if not k.startswith("cond_stage")}
    with pytest.raises(WeightsError, match=r"input_blocks.0.0.weight is \(32, 8, 3, 3\)"):
        recognise(tensors, source="x")


def test_an_autoencoder_of_another_factor_is_refused() -> None:
    def wrong(key: str) -> bool:
        return key.startswith(("encoder.down.3", "decoder.up.3"))

    shallow = {key: value for key, value in tiny_autoencoder().items() if not wrong(key)}
    with pytest.raises(WeightsError, match="of factor 4"):
        recognise(shallow, source="x")


def test_other_weights_are_of_no_known_kind() -> None:
    with pytest.raises(WeightsError, match="of no kind that is known"):
        recognise({"layer1.0.conv1.weight": torch.ones(1)}, source="resnet.pth")


def test_alexnet_gives_its_convolutions_and_not_its_classifier() -> None:
    tensors = alexnet()
    assert "classifier.6.weight" in tensors
    found = recognise(tensors, source="x")
    assert (found.kind, found.widths) == ("lpips-alexnet", {})
    assert {key: tuple(value.shape) for key, value in found.tensors.items()} == backbone_shapes()
    assert torch.equal(found.tensors["features.10.bias"], tensors["features.10.bias"])


def test_another_networks_features_are_no_alexnet() -> None:
    vgg = {"features.0.weight": torch.zeros(64, 3, 3, 3), "features.0.bias": torch.zeros(64)}
    with pytest.raises(WeightsError, match=r"than AlexNet, its first layer is \(64, 3, 3, 3\)"):
        recognise(vgg, source="x")
    torn = alexnet()
    del torn["features.8.bias"]
    with pytest.raises(WeightsError, match=r"missing features\.8\.bias"):
        recognise(torn, source="x")


def test_the_heads_of_lpips_are_known_by_alexnets_channels() -> None:
    found = recognise(lpips_heads(), source="x")
    assert (found.kind, found.widths) == ("lpips-linear", {})
    assert {key: tuple(value.shape) for key, value in found.tensors.items()} == linear_shapes()


@pytest.mark.parametrize(
    ("channels", "network"),
    [((64, 128, 256, 512, 512), "VGG"), ((64, 128, 256, 384, 384, 512, 512), "SqueezeNet")],
)
def test_heads_for_another_network_are_refused_by_its_name(
    channels: tuple[int, ...], network: str
) -> None:
    heads = {f"lin{i}.model.1.weight": torch.zeros(1, c, 1, 1) for i, c in enumerate(channels)}
    with pytest.raises(WeightsError, match=f"LPIPS heads for {network}, with 64, 128") as caught:
        recognise(heads, source="x")
    assert "alex.pth" in caught.value.hint


def test_heads_that_lack_one_are_damaged() -> None:
    heads = lpips_heads()
    del heads["lin3.model.1.weight"]
    with pytest.raises(WeightsError, match=r"missing lin3\.model\.1\.weight"):
        recognise(heads, source="x")


@pytest.mark.data
def test_the_published_heads_are_recognised_and_not_negative(real_data: Path) -> None:
    folder = real_data / "lpips-linear"
    found = recognise(read_tensors(folder / "alex.pth"), source="x")
    assert found.kind == "lpips-linear"
    assert all((value >= 0).all() for value in found.tensors.values())
    for name, network in (("vgg", "VGG"), ("squeeze", "SqueezeNet")):
        with pytest.raises(WeightsError, match=f"heads for {network}"):
            recognise(read_tensors(folder / f"{name}.pth"), source="x")
