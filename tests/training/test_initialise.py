from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sdseg_cli.core.config import RunConfig
from sdseg_cli.core.config_file import from_dict
from sdseg_cli.core.errors import ConfigError
from sdseg_cli.model.pretrained import recognise
from sdseg_cli.model.weights import WeightStore
from sdseg_cli.runs.checkpoint import Checkpoint
from sdseg_cli.runs.package import write_package
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training.batches import PreparedSlices, draw_positions, open_split
from sdseg_cli.training.initialise import initial_model, resolved_start
from sdseg_cli.training.train import train
from tests.conftest import Workspace, tiny_settings
from tests.parity.fill import tiny_autoencoder, tiny_checkpoint

SMALL_PAPER = {
    "model": {
        "vision": {"widths": [], "blocks": []},
        "condition_channels": 4,
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
        "parameterisation": "eps",
    }
}


@pytest.fixture
def slices(tiny_set: Workspace) -> PreparedSlices:
    return open_split(tiny_set.manifest, "train")


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
    first = draw_positions(slices, seed=0, step=0, batch_size=2, foreground_fraction=0.75)
    mask = (slices.batch(first).labels > 0).float() * 2 - 1
    latent = model.autoencoder.moments(mask[:, None].expand(-1, 3, -1, -1)).chunk(2, dim=1)[0]
    # The posterior is narrow: its draw, which counts, has nearly the deviation of its mean.
    assert model.latent_scale == pytest.approx(1 / float(latent.std()), rel=0.02)
    assert model.latent_scale != 1.0


def test_scratch_leaves_the_vision_encoder_random(
    slices: PreparedSlices, store: WeightStore
) -> None:
    papers = {"model": {"vision": {"widths": [], "blocks": []}, "condition_channels": 4}}
    (trunk, _), (scratch, origin) = (
        initial_model(from_dict(papers, _settings(init), source="test"), store, slices)
        for init in ("autoencoder", "scratch")
    )
    ours, theirs = (m.vision_encoder.encoder.conv_in.weight for m in (scratch, trunk))
    assert not torch.equal(ours, theirs)
    assert torch.equal(theirs, trunk.autoencoder.encoder.conv_in.weight)
    assert torch.equal(
        scratch.autoencoder.encoder.conv_in.weight, trunk.autoencoder.encoder.conv_in.weight
    )
    assert set(origin) == {"autoencoder"}
    assert scratch.latent_scale == trunk.latent_scale


def test_warm_networks_take_the_scale_of_the_first_batch(
    slices: PreparedSlices, store: WeightStore
) -> None:
    trunk, _ = initial_model(_settings("autoencoder"), store, slices)
    warm, origin = initial_model(_settings("pretrained"), store, slices)
    assert warm.latent_scale == trunk.latent_scale
    assert set(origin) == {"autoencoder", "vision_encoder", "unet"}
    assert not trunk.unet.out[-1].weight.any(), "a fresh one answers zero"
    assert warm.unet.out[-1].weight.abs().max() > 0


@pytest.mark.slow
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
        assert origin["model"] == f"{start.name}, step {best.step}, trained on tiny"
        assert origin["autoencoder"] == "shipped with sdseg"


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert origin == {"model": "m.ckpt, sha256 ab"}
    wrong = from_dict({"model": {"parameterisation": "z0"}}, config, source="test")
    with pytest.raises(ConfigError, match=r"other settings: model\.parameterisation\."):
        initial_model(wrong, store, slices)


def test_a_start_that_is_not_there_is_named(slices: PreparedSlices, store: WeightStore) -> None:
    with pytest.raises(ConfigError, match="--init nowhere: no run, no package"):
        initial_model(_settings("nowhere"), store, slices)


def test_a_part_in_the_store_is_no_start_of_its_own(
    slices: PreparedSlices, store: WeightStore
) -> None:
    source = recognise(tiny_autoencoder(), source="x")
    store.add("kl-f8", source, original="m.ckpt", original_sha256="ab")
    with pytest.raises(ConfigError, match="of kind autoencoder, no whole model"):
        initial_model(_settings("kl-f8"), store, slices)


def test_the_story_of_a_start_is_told_on(
    slices: PreparedSlices, store: WeightStore, tiny_run: Workspace, tmp_path: Path
) -> None:
    best = replace(Checkpoint.load(tiny_run.run.best), origin={"model": "m.ckpt, sha256 ab"})
    write_package(best, tmp_path / "p")
    _, origin = initial_model(_settings(str(tmp_path / "p")), store, slices)
    assert origin == {
        "model": f"p, step {best.step}, trained on tiny; before that m.ckpt, sha256 ab"
    }


def test_a_start_means_the_same_from_any_folder(
    tiny_run: Workspace, store: WeightStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scratch").mkdir()
    source = recognise(tiny_autoencoder(), source="x")
    store.add("mine", source, original="m.ckpt", original_sha256="ab")
    for same in ("pretrained", "scratch", "mine"):
        assert resolved_start(same, tiny_run.root, store) == same
    run = str(tiny_run.run.path)
    for typed in ("run", "tiny/run", run, f"{run}/../run"):
        assert resolved_start(typed, tiny_run.root, store) == run
    assert resolved_start("gone/p", tiny_run.root, store) == str(tmp_path / "gone" / "p")
    with pytest.raises(ConfigError, match="--init is empty"):
        resolved_start(" ", tiny_run.root, store)
