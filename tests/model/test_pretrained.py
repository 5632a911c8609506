from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sdseg_cli.core.config import AutoencoderConfig, UNetConfig
from sdseg_cli.core.errors import WeightsError
from sdseg_cli.core.presets import PRESETS
from sdseg_cli.imaging.io.files import read_labels
from sdseg_cli.imaging.slices import SliceTransform
from sdseg_cli.metrics.lpips import backbone_shapes, linear_shapes
from sdseg_cli.model.autoencoder import Autoencoder
from sdseg_cli.model.pretrained import (
    autoencoder_sizes,
    below,
    from_diffusers,
    load_official,
    official_ema_name,
    official_name,
    our_name,
    recognise,
    unet_sizes,
)
from sdseg_cli.model.starts import load_tiny_autoencoder
from sdseg_cli.model.tensor_files import read_tensors
from tests.parity.fill import (
    alexnet,
    lpips_heads,
    manifest,
    tiny_autoencoder,
    tiny_checkpoint,
    tiny_ldm,
)

TINY = PRESETS["tiny"].model


@pytest.mark.slow
def test_an_official_checkpoint_loads_from_a_dictionary_a_ckpt_and_safetensors(
    tmp_path: Path,
) -> None:
    tensors = tiny_checkpoint()
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "model.ckpt")
    save_file(tensors, tmp_path / "model.safetensors")
    models = [
        load_official(given)
        for given in (tensors, tmp_path / "model.ckpt", str(tmp_path / "model.safetensors"))
    ]
    for model in models:
        assert model.latent_scale == 0.125
        assert not model.training
        assert (model.config.unet.model_channels, model.config.autoencoder.channels) == (32, 32)
        assert all(
            torch.equal(a, b)
            for a, b in zip(model.parameters(), models[0].parameters(), strict=True)
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ema", "key"),
    [(True, "model_ema.diffusion_modelout2bias"), (False, "model.diffusion_model.out.2.bias")],
)
def test_the_unet_is_a_copy_of_the_average_or_of_the_raw_one(ema: bool, key: str) -> None:
    tensors = tiny_checkpoint()
    before = tensors[key].clone()
    ours = load_official(tensors, ema=ema).unet.out[2].bias.data
    assert torch.equal(ours, before)
    ours.zero_()
    assert torch.equal(tensors[key], before)


@pytest.mark.slow
def test_a_checkpoint_without_average_loads_only_as_raw() -> None:
    tensors = {k: v for k, v in tiny_checkpoint().items() if not k.startswith("model_ema.")}
    load_official(tensors, ema=False)
    with pytest.raises(WeightsError, match="missing model_ema"):
        load_official(tensors)


BROKEN = [
    "model.diffusion_model.input_blocks.0.0.weight",
    "model.diffusion_model.input_blocks.0.0.bias",
    "model.diffusion_model.time_embed.0.weight",
    "model.diffusion_model.output_blocks.14.1.proj_out.bias",
    "model_ema.diffusion_modelout2bias",
    "first_stage_model.encoder.conv_in.bias",
    "first_stage_model.post_quant_conv.bias",
    "first_stage_model.encoder.down.0.block.0.conv1.bias",
    "cond_stage_model.out.weight",
    "scale_factor",
    "alphas_cumprod",
]
"""Of every part, and those from which sizes are read."""


@pytest.mark.slow
@pytest.mark.parametrize("key", BROKEN)
def test_a_missing_key_is_named(key: str) -> None:
    tensors = tiny_checkpoint()
    del tensors[key]
    with pytest.raises(WeightsError, match=f"missing {key.replace('.', '[.]')}"):
        load_official(tensors)


@pytest.mark.parametrize("key", [key for key in BROKEN if key != "scale_factor"])
def test_a_misshapen_key_is_named(key: str) -> None:
    tensors = tiny_checkpoint()
    tensors[key] = torch.cat([tensors[key], tensors[key]])
    with pytest.raises(WeightsError, match=rf"{key.replace('.', '[.]')} is \("):
        load_official(tensors)


def test_an_unexpected_key_is_named() -> None:
    with pytest.raises(WeightsError, match=r"unexpected model\.diffusion_model\.more\.weight"):
        load_official({**tiny_checkpoint(), "model.diffusion_model.more.weight": torch.ones(1)})


def test_values_that_are_not_finite_are_named() -> None:
    tensors = tiny_checkpoint()
    key = "cond_stage_model.out.bias"
    tensors[key] = tensors[key] * float("nan")
    with pytest.raises(WeightsError, match=f"{key} holds NaN"):
        load_official(tensors)


def test_another_noise_schedule_is_refused() -> None:
    tensors = tiny_checkpoint()
    tensors["alphas_cumprod"] = tensors["alphas_cumprod"] ** 2
    with pytest.raises(WeightsError, match="another noise schedule"):
        load_official(tensors)


@pytest.mark.slow
def test_what_a_gan_loss_left_behind_is_ignored() -> None:
    more = {"first_stage_model.loss.logvar": torch.zeros(1)}
    assert load_official({**tiny_checkpoint(), **more}).latent_scale == 0.125


def test_weights_of_something_else_are_one_clear_error() -> None:
    with pytest.raises(WeightsError, match="not the weights of an autoencoder"):
        load_official({"fc.weight": torch.ones(2, 2)})


def _disks(radius: float) -> torch.Tensor:
    """(4,256,256) bool: one disk each, at centres off the latent's grid."""
    axis = torch.arange(256.0)
    centres = [(60.3 + 16.8 * i, 180.1 - 15.4 * i) for i in range(0, 8, 2)]
    return torch.stack(
        [(axis[:, None] - y) ** 2 + (axis[None] - x) ** 2 < radius**2 for y, x in centres]
    )


@pytest.mark.slow
@pytest.mark.parametrize(("radius_px", "least"), [(16.0, 0.99), (5.0, 0.95)])
def test_the_shipped_autoencoder_returns_disks(radius_px: float, least: float) -> None:
    model = Autoencoder(TINY.autoencoder).eval()
    load_tiny_autoencoder(model)
    disks = _disks(radius_px)
    with torch.inference_mode():
        mask = (disks.float() * 2 - 1)[:, None].expand(-1, 3, -1, -1)
        decoded = model.decode(model.moments(mask)[:, :4])
    found = ((decoded + 1) / 2).clamp(0, 1).mean(dim=1) > 0.5
    dice = 2 * (found & disks).sum() / (found.sum() + disks.sum())
    assert dice.item() >= least


@pytest.mark.data
def test_the_shipped_autoencoder_returns_real_masks(real_data: Path) -> None:
    """Every 32nd slice with a structure of all 30 scans: total Dice on the scans' own grids."""
    model = Autoencoder(TINY.autoencoder).eval()
    load_tiny_autoencoder(model)
    overlap = size = 0
    for path in sorted((real_data / "openkbp-hn-ct").glob("pt_*/label.nii.gz")):
        labels = read_labels(path)
        restore = SliceTransform.of(labels.geometry)
        planes = [restore.canonical_plane(labels.array, k) > 0 for k in range(restore.slices)]
        for k in [k for k, plane in enumerate(planes) if plane.any()][::32]:
            square = torch.from_numpy(restore.labels_to_model(planes[k].astype(np.uint8), k))
            mask = (square.float() * 2 - 1).expand(1, 3, -1, -1)
            with torch.inference_mode():
                decoded = model.decode(model.moments(mask)[:, :4])
            probability = ((decoded + 1) / 2).clamp(0, 1).mean(dim=1)[0].numpy()
            found = restore.to_native(probability, k) > 0.5
            overlap += 2 * int((found & planes[k]).sum())
            size += int(found.sum() + planes[k].sum())
    assert overlap / size >= 0.95


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
