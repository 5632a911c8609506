"""A baseline through the commands: a network so small that a step takes milliseconds."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from sdseg_cli.cli.app import run_command
from sdseg_cli.cli.train import _run_folder, _settings
from sdseg_cli.core.config import BASELINES, Network, RunConfig, SampleConfig
from sdseg_cli.core.config_file import from_dict, load_toml, to_toml
from sdseg_cli.core.errors import ConfigError
from sdseg_cli.core.presets import PRESETS, for_network
from sdseg_cli.evaluation.evaluate import evaluate
from sdseg_cli.evaluation.evaluation_split import SplitOptions
from sdseg_cli.evaluation.stability import stability
from sdseg_cli.imaging.io.files import read_image
from sdseg_cli.inference.decoders import choose_decoder
from sdseg_cli.inference.predictor import Predictor
from sdseg_cli.model.distributed import Ranks
from sdseg_cli.runs.checkpoint import Checkpoint
from sdseg_cli.runs.package import networks_of, sdseg_of, write_package
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training.batches import PreparedSlices, StepSource, evenly_spaced, open_split
from sdseg_cli.training.latents import NoLatents
from sdseg_cli.training.step import validation
from sdseg_cli.training.train import train
from tests.conftest import Workspace, tiny_settings

NAME, CPU = "small", torch.device("cpu")
NETWORKS = list(BASELINES)
"""All that are registered."""
SMALL = Network(
    "monai.networks.nets:BasicUNet", tiny={"features": (4, 4, 8, 8, 8, 4), "norm": "batch"}, sd={}
)
"""With batch norms, whose statistics have to be kept and averaged as well."""


@pytest.fixture(scope="module", autouse=True)
def one_line() -> object:
    """To add a network is to add its line."""
    BASELINES[NAME] = SMALL
    yield
    del BASELINES[NAME]


def settings(**train_settings: object) -> RunConfig:
    """As `tiny_settings`, of the small network."""
    config = for_network(PRESETS["tiny"], NAME)
    of_tests = tiny_settings().train
    recipe = {
        "batch_size": of_tests.batch_size,
        "validate_every": of_tests.validate_every,
        "checkpoint_every": of_tests.checkpoint_every,
        "validation_slices": of_tests.validation_slices,
        "learning_rate": 0.01,
        "warmup_steps": 1,
        **train_settings,
    }
    return from_dict({"dataset": tiny_settings().dataset, "train": recipe}, config, source="test")


@pytest.fixture(scope="module")
def run(tiny_set: Workspace, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Of twelve steps. Read-only."""
    folder = RunDir(tmp_path_factory.mktemp("baseline") / "small")  # the set's own is read-only
    train(settings(steps=12), tiny_set.manifest, folder, device="cpu")
    return folder


@pytest.mark.slow
def test_the_log_names_both_terms_and_the_loss_falls(run: RunDir) -> None:
    rows = [json.loads(line) for line in run.log_file.read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    assert set(steps[0]) == {"step", "loss", "loss_dice", "loss_cross_entropy", "lr"}
    for row in steps:
        assert row["loss"] == pytest.approx(row["loss_dice"] + row["loss_cross_entropy"])
    first, last = steps[:3], steps[-3:]
    assert sum(row["loss"] for row in last) < 0.95 * sum(row["loss"] for row in first)


def test_the_checkpoint_says_that_nothing_was_pretrained(run: RunDir) -> None:
    best = Checkpoint.load(run.best)
    assert best.origin == {"network": "from scratch"}
    assert best.config["model"]["network"] == NAME


def test_training_leaves_no_latents(run: RunDir) -> None:
    assert not (run.path / "latents").exists()
    assert not (run.checkpoints / "mask_decoder.safetensors").exists()


def test_settings_only_sdseg_has_are_not_written(run: RunDir) -> None:
    text = run.config_file.read_text()
    assert f'network = "{NAME}"' in text and "learning_rate" in text
    for unused in ("fusion", "autoencoder", "latent_loss", "timesteps"):
        assert unused not in text
    assert run.config() == settings(steps=12)


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(
    run: RunDir, tiny_set: Workspace, tmp_path: Path
) -> None:
    again = RunDir(tmp_path / "run")
    train(
        settings(steps=12, patience=0), tiny_set.manifest, again, device="cpu", on_step=_stop_at(5)
    )
    assert again.status()["state"] == "stopped"
    train(settings(steps=12), tiny_set.manifest, again, device="cpu")
    assert again.log_file.read_text() == run.log_file.read_text()
    ours, theirs = Checkpoint.load(again.last), Checkpoint.load(run.last)
    for one, other in ((ours.weights, theirs.weights), (ours.ema, theirs.ema)):
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[key]) for key, value in one.items())


def _stop_at(step: int):
    import os
    import signal

    def on_step(now: object) -> None:
        if now.step == step:  # type: ignore[attr-defined]
            os.kill(os.getpid(), signal.SIGINT)

    return on_step


def test_a_package_predicts_the_planes_of_the_run_and_of_its_checkpoint(
    run: RunDir, tiny_set: Workspace, tmp_path: Path
) -> None:
    write_package(Checkpoint.load(run.best), tmp_path / "small.sdseg")
    scan = read_image(tiny_set.scan)
    maps = [
        Predictor(trained, device="cpu", skip_air=False).predict(scan).probability
        for trained in (run.path, tmp_path / "small.sdseg")
    ]
    assert np.array_equal(*maps)
    model = networks_of(Checkpoint.load(run.best), CPU, source="run")
    pixels = torch.from_numpy(Predictor(run.path, device="cpu").stack(scan).pixels(0, 2))
    with torch.no_grad():
        alone = torch.cat([model.probability(p.expand(1, 3, -1, -1))[:, 0] for p in pixels])
    assert np.allclose(maps[0][:2], alone, atol=1e-6)
    assert "started from" not in (tmp_path / "small.sdseg" / "LICENSE.md").read_text()


def test_the_best_weights_reach_the_dice_of_their_validation(
    run: RunDir, tiny_set: Workspace
) -> None:
    best = Checkpoint.load(run.best)
    fixed = open_split(tiny_set.manifest, "val")
    model = networks_of(best, CPU, source="run")
    positions = evenly_spaced(fixed, settings().train.validation_slices)
    found = validation(model, fixed, positions, (), Ranks(), batch_size=2)
    assert found.dice == pytest.approx(best.best["val_dice"], abs=0.01)  # kept as float16


@pytest.mark.slow
def test_evaluate_scores_it_as_any_run(run: RunDir, tiny_set: Workspace) -> None:
    report = evaluate(run.path, tiny_set.root, cases=SplitOptions(device="cpu"))
    assert 0 <= report.to_json()["metrics"]["dice"]["mean"] <= 1


def test_nothing_is_sampled(run: RunDir, tiny_set: Workspace) -> None:
    predictor = Predictor(run.path, device="cpu")
    scan = read_image(tiny_set.scan)
    assert predictor.config.sample.noise == "zero"
    for sample in (SampleConfig(steps=5), SampleConfig(samples=2), SampleConfig(steps=2, eta=1)):
        with pytest.raises(ConfigError, match="small is no diffusion model"):
            predictor.predict(scan, sample=sample)
    maps = [predictor.predict(scan, seed=seed).probability for seed in (0, 1)]
    assert np.array_equal(*maps)


def test_stability_says_that_there_is_no_noise(run: RunDir, tiny_set: Workspace) -> None:
    with pytest.raises(ConfigError, match="predicts without noise"):
        stability(run.path, tiny_set.root, cases=SplitOptions(device="cpu"))


def test_what_needs_latents_is_refused_by_the_networks_name(run: RunDir, tmp_path: Path) -> None:
    best = Checkpoint.load(run.best)
    with pytest.raises(ConfigError, match="is a small, which has no latents"):
        sdseg_of(best, CPU, source="run")
    with pytest.raises(ConfigError, match="--decoder fast: a small has no decoder"):
        choose_decoder("fast", run.path, best, networks_of(best, CPU, source="run"), None)


def test_flips_are_averaged_as_for_sdseg(run: RunDir, tiny_set: Workspace) -> None:
    predictor, scan = Predictor(run.path, device="cpu"), read_image(tiny_set.scan)
    plain = predictor.config.sample
    one, both = (
        predictor.predict(scan, sample=replace(plain, flips=flips)).probability
        for flips in ("", "h")
    )
    assert not np.array_equal(one, both)


def test_both_see_the_same_slices_and_flips(tiny_set: Workspace) -> None:
    slices: PreparedSlices = open_split(tiny_set.manifest, "train")
    ours = StepSource(settings(), slices, NoLatents(), (0, 0, 0)).inputs(3)
    same = from_dict({"train": {"flips": "h"}}, settings(), source="test")
    other = StepSource(same, slices, NoLatents(), (4, 32, 32)).inputs(3)
    assert ours.positions == other.positions
    assert torch.equal(ours.image, other.image)
    assert ours.known.all() and ours.moments.numel() == 0


@pytest.mark.parametrize("name", [NAME, *NETWORKS])
@pytest.mark.parametrize(
    "key", ["model.fusion=cross-attention", "train.latent_loss=l2", "sample.steps=5"]
)
def test_a_setting_of_sdseg_alone_is_refused(key: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} does not use {key.split('=')[0]}"):
        _settings(None, name, None, [key], "set", None, {})


@pytest.fixture(scope="module", params=NETWORKS)
def any_run(
    request: pytest.FixtureRequest, tiny_set: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> RunDir:
    """Of each network in its `tiny` size, after one step. Read-only."""
    name: str = request.param
    absent = [package for package in BASELINES[name].needs if find_spec(package) is None]
    if absent:
        pytest.skip(f"{name} needs {', '.join(absent)}")
    folder = RunDir(tmp_path_factory.mktemp("networks") / name)
    config = replace(settings(steps=1), model=for_network(PRESETS["tiny"], name).model)
    train(config, tiny_set.manifest, folder, device="cpu")
    return folder


@pytest.mark.slow
def test_an_exported_package_of_any_network_predicts_the_bytes_of_its_run_each_time(
    any_run: RunDir, tiny_set: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = tmp_path / "package"
    assert run_command(["weights", "export", str(any_run.path), "-o", str(package), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["package"] == str(package)
    scan = read_image(tiny_set.scan)
    maps = [
        Predictor(trained, device="cpu", skip_air=False).predict(scan).probability
        for trained in (any_run.path, any_run.path, package)
    ]
    assert maps[0].tobytes() == maps[1].tobytes() == maps[2].tobytes()
    assert Checkpoint.load(any_run.best).origin["network"] == BASELINES[any_run.path.name].start


@pytest.mark.slow
def test_no_network_samples_or_has_latents(any_run: RunDir, tiny_set: Workspace) -> None:
    name, best = any_run.path.name, Checkpoint.load(any_run.best)
    predictor = Predictor(any_run.path, device="cpu")
    with pytest.raises(ConfigError, match=f"{name} is no diffusion model"):
        predictor.predict(read_image(tiny_set.scan), sample=SampleConfig(steps=5))
    with pytest.raises(ConfigError, match=f"is a {name}, which has no latents"):
        sdseg_of(best, CPU, source="run")


def test_the_model_comes_from_the_option_then_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(to_toml(for_network(PRESETS["sd"], "dynunet")))
    assert _settings(None, None, file, [], "set", None, {}).model.network == "dynunet"
    chosen = _settings(None, "segresnet", file, [], "set", None, {})
    assert (chosen.preset, chosen.model.network) == ("sd", "segresnet")
    assert _settings(None, None, None, [], "set", None, {}).model.network == "sdseg"


def test_a_run_of_a_baseline_has_a_folder_of_its_own() -> None:
    config = replace(for_network(PRESETS["tiny"], "unet"), seed=1)
    assert _run_folder(None, "set", config).parts[-3:] == ("runs", "set", "unet-tiny-seed1")


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("scale", ["tiny", "sd"])
def test_data_budget_and_validation_are_those_of_sdseg(
    name: str, scale: str, tmp_path: Path
) -> None:
    config, sdseg = for_network(PRESETS[scale], name), PRESETS[scale]
    for key in (
        "steps",
        "batch_size",
        "flips",
        "foreground_fraction",
        "ema_decay",
        "validate_every",
        "validation_slices",
    ):
        assert getattr(config.train, key) == getattr(sdseg.train, key)
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert load_toml(tmp_path / "config.toml", for_network(sdseg, name)) == config


def test_an_ablation_of_sdseg_has_no_other_network() -> None:
    with pytest.raises(ConfigError, match="table6-full is an ablation of SDSeg"):
        for_network(PRESETS["table6-full"], "unet")


def test_settings_of_sdseg_do_not_become_another_networks_by_a_word() -> None:
    with pytest.raises(ConfigError, match=r"model\.network is unet") as caught:
        from_dict({"model": {"network": "unet"}}, PRESETS["tiny"], source="--set")
    assert "--model unet" in caught.value.hint


def test_pretrained_weights_are_not_pretended(tiny_set: Workspace, tmp_path: Path) -> None:
    config = settings(init="pretrained")
    with pytest.raises(ConfigError, match="no pretrained weights for small"):
        train(config, tiny_set.manifest, RunDir(tmp_path / "run"), device="cpu")


def test_a_run_starts_from_another_of_the_same_network(
    run: RunDir, tiny_set: Workspace, tmp_path: Path
) -> None:
    config = settings(init=str(run.path), steps=1)
    report = train(config, tiny_set.manifest, RunDir(tmp_path / "run"), device="cpu")
    assert report.origin["model"].startswith("small, step ")


def test_resnet_50_without_imagenet_is_labelled_so() -> None:
    assert BASELINES["unet-r50"].start == "from scratch, no ImageNet weights"
