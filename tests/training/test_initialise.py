from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sdseg_cli.config import RunConfig
from sdseg_cli.config_file import from_dict
from sdseg_cli.errors import ConfigError
from sdseg_cli.model.sources import recognise
from sdseg_cli.model.store import WeightStore
from sdseg_cli.train import train
from sdseg_cli.training.batches import PreparedSlices
from sdseg_cli.training.checkpoint import Checkpoint, RunDir
from sdseg_cli.training.initialise import initial_model
from sdseg_cli.training.package import write_package
from tests.conftest import Workspace, tiny_settings
from tests.parity.fill import tiny_checkpoint

SMALL_PAPER = {
    "model": {
        "autoencoder": {
            "channels": 32,
            "channel_mult": [1, 2, 4, 4],
            "blocks_per_level": 2,
            "norm_groups": 32,
        },
        "unet": {
            "model_channels": 32,
            "channel_mult": [1, 2, 2, 4, 4],
            "blocks_per_level": 2,
            "attention_levels": [0, 1, 2, 3],
            "heads": 8,
        },
    }
}


@pytest.fixture
def slices(tiny_set: Workspace) -> PreparedSlices:
    manifest = tiny_set.manifest
    cases = manifest.cases("train")
    return PreparedSlices(
        [manifest.root / case.folder for case in cases],
        manifest.is_foreground,
        [manifest.foreground_slices(case) for case in cases],
    )


@pytest.fixture
def store(tmp_path: Path) -> WeightStore:
    return WeightStore(tmp_path / "store")


def _settings(init: str) -> RunConfig:
    return tiny_settings(steps=1, init=init)


def test_the_latent_scale_makes_the_first_batchs_latents_unit_size(
    slices: PreparedSlices, store: WeightStore
) -> None:
    model, _ = initial_model(_settings("pretrained"), store, slices)
    again, _ = initial_model(_settings("pretrained"), store, slices)
    assert model.latent_scale == again.latent_scale
    whole = slices.batch(slices.with_foreground).foreground.float() * 2 - 1
    spread = float(model.encode_mask(whole[:, None].expand(-1, 3, -1, -1)).std())
    assert 0.5 < spread < 2


def test_scratch_leaves_the_vision_encoder_random(
    slices: PreparedSlices, store: WeightStore
) -> None:
    pretrained, _ = initial_model(_settings("pretrained"), store, slices)
    scratch, origin = initial_model(_settings("scratch"), store, slices)
    ours, theirs = (m.vision_encoder.encoder.conv_in.weight for m in (scratch, pretrained))
    assert not torch.equal(ours, theirs)
    assert torch.equal(theirs, pretrained.autoencoder.encoder.conv_in.weight)
    assert torch.equal(
        scratch.autoencoder.encoder.conv_in.weight, pretrained.autoencoder.encoder.conv_in.weight
    )
    assert set(origin) == {"autoencoder"}


def test_a_run_or_its_package_gives_all_weights_and_the_scale(
    slices: PreparedSlices, store: WeightStore, tiny_run: Workspace, tmp_path: Path
) -> None:
    best = Checkpoint.load(tiny_run.run.best)
    write_package(best, tmp_path / "package")
    for start in (tiny_run.run.path, tmp_path / "package"):
        model, origin = initial_model(_settings(str(start)), store, slices)
        assert model.latent_scale == best.latent_scale
        state = model.state_dict()
        assert all(torch.equal(state[key], value.float()) for key, value in best.weights.items())
        assert origin["model"] == f"{start}, step {best.step}"
        assert origin["autoencoder"] == "shipped with sdseg"


def test_training_goes_on_from_a_run_on_other_settings_of_training(
    tiny_run: Workspace, tmp_path: Path
) -> None:
    config = replace(_settings(str(tiny_run.run.path)), seed=7)
    train(config, tiny_run.manifest, RunDir(tmp_path / "run"), device="cpu")
    assert "model" in Checkpoint.load(tmp_path / "run" / "checkpoints" / "best.pt").origin


def test_a_model_of_other_settings_is_refused_by_name(
    slices: PreparedSlices, store: WeightStore, tiny_run: Workspace
) -> None:
    other = {"model": {"parameterisation": "v", "train_encoder": False}}
    config = from_dict(other, _settings(str(tiny_run.run.path)), source="test")
    with pytest.raises(ConfigError, match=r"other settings: model\.parameterisation\."):
        initial_model(config, store, slices)


def test_an_official_model_of_the_store_is_a_start_with_its_own_scale(
    slices: PreparedSlices, store: WeightStore
) -> None:
    source = recognise(tiny_checkpoint(), source="x")
    store.add("sdseg-btcv", source, original="m.ckpt", original_sha256="ab")
    config = from_dict(SMALL_PAPER, _settings("sdseg-btcv"), source="test")
    model, origin = initial_model(config, store, slices)
    assert model.latent_scale == 0.125
    averaged = tiny_checkpoint()["model_ema.diffusion_modelout2bias"]
    assert torch.equal(model.unet.out[2].bias, averaged)
    assert origin == {"model": "sdseg-btcv, m.ckpt, sha256 ab"}


def test_a_start_that_is_not_there_is_named(slices: PreparedSlices, store: WeightStore) -> None:
    with pytest.raises(ConfigError, match="--init nowhere: no run, no package"):
        initial_model(_settings("nowhere"), store, slices)
