from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sdseg_cli.core.config import AutoencoderConfig, ModelConfig, UNetConfig, VisionConfig
from sdseg_cli.core.errors import WeightsError
from sdseg_cli.core.presets import PRESETS
from sdseg_cli.model.pretrained import Source, below, recognise
from sdseg_cli.model.sdseg import SDSeg, build_sdseg, unfilled_sdseg
from sdseg_cli.model.starts import (
    TINY,
    WARM_ORIGIN,
    Origin,
    _read,
    fill_warm,
    require_pretrained,
    start_autoencoder,
    start_networks,
    start_unet,
    start_vision_encoder,
)
from sdseg_cli.model.weights import WeightStore
from tests.parity.fill import tiny_autoencoder, tiny_ldm

SIZES = ModelConfig(autoencoder=AutoencoderConfig(channels=32), unet=UNetConfig(model_channels=32))
"""Of the small official checkpoints."""


@pytest.fixture
def model() -> SDSeg:
    torch.manual_seed(0)
    return build_sdseg(SIZES)


def _add(store: WeightStore, name: str, source: Source) -> None:
    store.add(name, source, original=f"{name}.ckpt", original_sha256=name.ljust(64, "0"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> WeightStore:
    """With a small kl-f8 and a small LDM-8. Read-only."""
    store = WeightStore(tmp_path_factory.mktemp("store"))
    _add(store, "kl-f8", recognise(tiny_autoencoder(), source="x"))
    _add(store, "ldm-8", recognise(tiny_ldm(), source="x"))
    return store


def _with(store: WeightStore, folder: Path, *names: str) -> WeightStore:
    """A store of its own that holds these again: NAME, or NEW=NAME under another name."""
    folder.mkdir()
    for name in names:
        new, _, old = name.rpartition("=")
        entry = store.find(old)
        assert entry is not None
        named = replace(entry, name=new or old, source=f"{new or old}.ckpt")
        (folder / f"{named.name}.json").write_text(json.dumps(named.to_json()))
        os.link(store.file(entry), folder / f"{named.name}.safetensors")
    return WeightStore(folder)


def start_pretrained(model: SDSeg, store: WeightStore) -> Origin:
    """As `--init pretrained` does it, with a latent scale of 1."""
    require_pretrained(model, store)
    return start_networks(model, store, start_autoencoder(model, store))


@pytest.mark.slow
def test_the_papers_start_takes_kl_f8_twice_and_ldm_8_padded(
    model: SDSeg, store: WeightStore
) -> None:
    out = model.vision_encoder.out.weight.clone()
    origin = start_pretrained(model, store)
    kl_f8, ldm = tiny_autoencoder(), tiny_ldm()
    assert torch.equal(model.autoencoder.quant_conv.bias, kl_f8["quant_conv.bias"])
    conv_in = kl_f8["encoder.conv_in.weight"]
    assert torch.equal(model.autoencoder.encoder.conv_in.weight, conv_in)
    assert torch.equal(model.vision_encoder.encoder.conv_in.weight, conv_in)
    assert torch.equal(model.vision_encoder.out.weight, out)  # random, as in the paper
    first = model.unet.input_blocks[0][0].weight
    assert torch.equal(first[:, :4], ldm["model.diffusion_model.input_blocks.0.0.weight"])
    assert not first[:, 4:].any()
    assert origin["unet"] == f"ldm-8, ldm-8.ckpt, sha256 {'ldm-8'.ljust(64, '0')}"
    assert origin["autoencoder"].startswith("kl-f8, ")


def test_scratch_loads_only_the_frozen_autoencoder(model: SDSeg, store: WeightStore) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert set(start_autoencoder(model, store)) == {"autoencoder"}
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) == (not key.startswith("autoencoder.")), key


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (("churches=ldm-8",), "churches"),  # LDM-8 brings an autoencoder, too
        (("ldm-8", "model=kl-f8"), "model"),
        (("ldm-8", "a-vae=kl-f8", "kl-f8"), "kl-f8"),
    ],
)
def test_the_autoencoder_is_kl_f8_else_the_only_one(
    model: SDSeg, store: WeightStore, tmp_path: Path, names: tuple[str, ...], taken: str
) -> None:
    origin = start_autoencoder(model, _with(store, tmp_path / "other", *names))
    assert origin["autoencoder"].startswith(f"{taken}, ")


def test_among_several_autoencoders_nobody_guesses(
    model: SDSeg, store: WeightStore, tmp_path: Path
) -> None:
    several = _with(store, tmp_path / "other", "ldm-8", "model=kl-f8", "sd-vae-ft-mse=kl-f8")
    with pytest.raises(WeightsError, match="several to start from") as caught:
        start_pretrained(model, several)
    assert "--name kl-f8" in caught.value.hint


def test_a_whole_official_model_is_no_part_to_start_from(model: SDSeg, tmp_path: Path) -> None:
    store = WeightStore(tmp_path / "other")
    whole = {"autoencoder": 32, "unet": 32}
    _add(store, "official", Source("sdseg", {"w": torch.ones(1)}, whole, 0.125))
    with pytest.raises(WeightsError, match=r"kl-f8 .* and ldm-8"):
        start_pretrained(model, store)


def test_all_that_is_missing_is_named(model: SDSeg, tmp_path: Path) -> None:
    store = WeightStore(tmp_path / "empty")
    with pytest.raises(WeightsError, match=r"kl-f8 \(.*\) and ldm-8 \(U-Net\)") as caught:
        start_pretrained(model, store)
    assert "sdseg weights fetch" in caught.value.hint
    with pytest.raises(WeightsError, match="kl-f8") as caught:
        start_autoencoder(model, store)
    assert "ldm-8" not in caught.value.message


def test_weights_of_other_widths_do_not_count(store: WeightStore) -> None:
    sizes = ModelConfig(autoencoder=AutoencoderConfig(channels=64), unet=SIZES.unet)
    larger = unfilled_sdseg(sizes)
    with pytest.raises(WeightsError, match=r"starts from kl-f8 .* of widths 64 and 32"):
        start_pretrained(larger, store)


def test_the_vision_encoder_starts_as_the_autoencoders(tmp_path: Path) -> None:
    """The paper's kind; one of its own stays random."""
    papers = replace(PRESETS["tiny"].model, vision=VisionConfig(), condition_channels=4)
    model, store = build_sdseg(papers), WeightStore(tmp_path / "none")
    unet = {key: value.clone() for key, value in model.unet.state_dict().items()}
    origin = start_vision_encoder(model, start_autoencoder(model, store))
    assert origin == dict.fromkeys(("autoencoder", "vision_encoder"), "shipped with sdseg")
    for name, value in model.autoencoder.encoder.state_dict().items():
        assert torch.equal(model.vision_encoder.encoder.state_dict()[name], value)
    assert all(torch.equal(unet[key], value) for key, value in model.unet.state_dict().items())
    own = build_sdseg(PRESETS["tiny"].model)
    origin = start_vision_encoder(own, start_autoencoder(own, store))
    assert origin == {"autoencoder": "shipped with sdseg"}


def test_the_tiny_preset_has_networks_that_drew_masks_before(tmp_path: Path) -> None:
    """With no store at all, and the same masks at any latent scale."""
    models, store = [], WeightStore(tmp_path / "none")
    for scale in (1.0, 0.5):
        model = build_sdseg(PRESETS["tiny"].model).eval()
        origin = start_autoencoder(model, store)
        model.latent_scale = scale
        origin = start_networks(model, store, origin)
        assert (origin["vision_encoder"], origin["unet"]) == (WARM_ORIGIN, WARM_ORIGIN)
        models.append(model)
    zt, zc = torch.randn(1, 36, 8, 8, generator=torch.Generator().manual_seed(0)).split((4, 32), 1)
    with torch.no_grad():
        ones, halves = (model.unet(zt, 999, zc) for model in models)
    assert ones.abs().max() > 0.1
    assert torch.equal(halves, ones / 2)


@pytest.mark.parametrize("change", [{"parameterisation": "v"}, {"fusion": "cross-attention"}])
def test_networks_that_mean_other_things_start_without_them(
    change: dict[str, str], tmp_path: Path
) -> None:
    model = build_sdseg(replace(PRESETS["tiny"].model, **change))
    origin = start_pretrained(model, WeightStore(tmp_path / "none"))
    assert origin == {"autoencoder": "shipped with sdseg"}


def test_dropout_and_precision_do_not_matter_to_them(tmp_path: Path) -> None:
    sizes = replace(PRESETS["tiny"].model, encoder_dropout=0.2, precision="float32")
    origin = start_pretrained(build_sdseg(sizes), WeightStore(tmp_path / "none"))
    assert origin["unet"] == WARM_ORIGIN


@pytest.mark.slow
def test_a_unet_that_attends_takes_all_of_ldm_8_but_its_attention(store: WeightStore) -> None:
    torch.manual_seed(0)
    model = build_sdseg(replace(SIZES, fusion="cross-attention"))
    before = {key: value.clone() for key, value in model.unet.state_dict().items()}
    start_pretrained(model, store)
    ldm = below(tiny_ldm(), "model.diffusion_model.")
    attention = tuple(f"{k.rsplit('.qkv.', 1)[0]}." for k in ldm if ".qkv.weight" in k)
    assert len(attention) == 21  # 8 on the way down, 1 in the middle, 12 on the way up
    for key, value in model.unet.state_dict().items():
        assert torch.equal(value, (before if key.startswith(attention) else ldm)[key]), key


def test_a_unet_of_other_sizes_is_refused(model: SDSeg) -> None:
    with pytest.raises(WeightsError, match=r"ldm: .*missing"):
        start_unet(model.unet, {}, source="ldm")


@pytest.mark.parametrize("classes", [2, 9, 20, 40])
def test_warm_networks_start_any_number_of_classes(classes: int) -> None:
    """At 20 a block of the widened level keeps its width and has no convolution beside it."""
    model = build_sdseg(replace(TINY, classes=classes))
    fill_warm(model, _read("tiny_warm"), source="test")
    answer = model.unet(
        torch.zeros(1, 4 * classes, 8, 8), torch.tensor([999]), torch.zeros(1, 32, 8, 8)
    )
    assert answer.shape == (1, 4 * classes, 8, 8)


@pytest.mark.parametrize("classes", [3, 20])
def test_ldm_8_is_repeated_for_each_class(store: WeightStore, classes: int) -> None:
    model = build_sdseg(replace(SIZES, classes=classes))
    fresh = model.unet.out[-1].weight.clone()
    start_pretrained(model, store)
    ldm = below(tiny_ldm(), "model.diffusion_model.")
    first, last = model.unet.input_blocks[0][0].weight, model.unet.out[-1].weight
    for k in range(classes):
        expected = ldm["input_blocks.0.0.weight"] / classes
        assert torch.equal(first[:, 4 * k : 4 * k + 4], expected)
    assert first.shape[1] == 4 * classes + 4 and not first[:, 4 * classes :].any()
    # 80 channels take a last level wider than LDM-8's 32, which starts anew.
    expected = fresh if classes == 20 else ldm["out.2.weight"].repeat(classes, 1, 1, 1)
    assert torch.equal(last, expected)
