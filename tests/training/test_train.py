from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sdseg_cli.core.config import TrainConfig
from sdseg_cli.core.config_file import from_dict
from sdseg_cli.core.errors import ConfigError, DataError, RunError, WeightsError
from sdseg_cli.core.findings import Finding
from sdseg_cli.core.locks import locked
from sdseg_cli.core.progress import TrainProgress
from sdseg_cli.data.manifest import Manifest
from sdseg_cli.inference.predictor import Predictor
from sdseg_cli.model import diffusion
from sdseg_cli.model.weights import WeightStore
from sdseg_cli.runs.checkpoint import Checkpoint
from sdseg_cli.runs.package import networks_of
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training.step import Trainer, learning_rate
from sdseg_cli.training.train import TrainOptions, train
from tests.conftest import Workspace, tiny_settings
from tests.raw_cases import contents


def _log(run: RunDir) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.log_file.read_text().splitlines()]


def test_a_run_leaves_its_files_and_each_step_once_in_the_log(shared_run: Workspace) -> None:
    run = shared_run.run
    pictures = (run.curve, run.validation_picture)
    for path in (run.config_file, run.log_file, run.last, run.best, *pictures):
        assert path.is_file(), path
    assert run.status()["state"] == "finished"
    assert run.config() == tiny_settings(steps=4)
    assert not list(run.path.rglob(".*"))
    rows = _log(run)
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]
    assert set(steps[0]) == {"step", "loss", "loss_noise", "loss_latent", "lr"}
    assert [row["step"] for row in rows if "val_dice" in row] == [2, 4]


@pytest.mark.slow
def test_progress_is_reported_before_the_first_step_and_after_each(
    tiny_set: Workspace, tmp_path: Path
) -> None:
    run, told = RunDir(tmp_path / "run"), list[TrainProgress]()
    train(tiny_settings(steps=2), tiny_set.manifest, run, device="cpu", on_step=told.append)
    train(tiny_settings(steps=3), tiny_set.manifest, run, device="cpu", on_step=told.append)
    rows = _log(run)
    losses = {row["step"]: row for row in rows if "loss" in row}
    dice = {row["step"]: row for row in rows if "val_dice" in row}
    assert [now.step for now in told] == [0, 1, 2, 2, 3]
    assert [now.row for now in told] == [{}, losses[1], losses[2], {}, losses[3]]
    assert [now.validation for now in told] == [{}, {}, dice[2], {}, dice[3]]
    assert [now.validated for now in told] == [False, False, True, False, True]
    assert [now.checkpoint for now in told] == [0, 0, 2, 2, 3]
    assert [now.best.get("step") for now in told][:4] == [None, None, 2, 2]
    assert all(now.peak_gpu_bytes is None for now in told)
    assert 0 == told[0].seconds < told[1].seconds < told[2].seconds
    with np.load(run.history, allow_pickle=False) as kept:  # the pictures went on as well
        assert kept["steps"].tolist() == kept["shown_steps"].tolist() == [2, 3]
        case = tiny_set.manifest.cases("val")[0].id
        assert all(name.startswith(f"{case}, slice ") for name in kept["names"].tolist())


@pytest.mark.slow
def test_the_best_checkpoint_holds_what_prediction_needs(tiny_run: Workspace) -> None:
    best = Checkpoint.load(tiny_run.run.best)
    assert best.data == tiny_run.manifest.inference_settings()
    assert best.optimizer == {}
    assert best.latent_scale > 0
    assert best.ema == {}
    last = Checkpoint.load(tiny_run.run.last)
    averaged, raw = last.ema["out.2.weight"], last.weights["unet.out.2.weight"]
    assert not torch.equal(averaged, raw)
    trainer = Trainer(tiny_settings(steps=4), last, torch.device("cpu"))
    kept = trainer.checkpoint(last.data, resumable=False)
    assert torch.equal(kept.weights["unet.out.2.weight"], averaged.half())


@pytest.mark.slow
def test_the_best_weights_come_with_the_threshold_of_their_validation(
    tiny_run: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdseg_cli.training.step.THRESHOLDS", (0.25,))
    run = RunDir(tmp_path / "run")
    settings = tiny_settings(steps=4, threshold="validation")
    report = train(settings, tiny_run.manifest, run, device="cpu")
    best = Checkpoint.load(run.best)
    assert report.to_json()["best"]["threshold"] == best.best["threshold"] == 0.25
    found = networks_of(best, torch.device("cpu"), source="run")
    before = networks_of(Checkpoint.load(tiny_run.run.best), torch.device("cpu"), source="run")
    assert (found.threshold, before.threshold) == (0.25, 0.5)
    # It is no part of training: the weights are those of a run without.
    weights = before.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in found.state_dict().items())


@pytest.mark.slow
def test_a_stopped_and_resumed_run_ends_where_an_uninterrupted_one_does(
    tiny_set: Workspace, tiny_run: Workspace, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")

    def stop_at_three(now: TrainProgress) -> None:
        if now.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    config = tiny_settings(steps=4)
    stopped = train(config, tiny_set.manifest, run, device="cpu", on_step=stop_at_three)
    assert (stopped.state, stopped.step) == ("stopped", 3)
    assert train(config, tiny_set.manifest, run, device="cpu").state == "finished"
    assert run.log_file.read_bytes() == tiny_run.run.log_file.read_bytes()
    ours, theirs = Checkpoint.load(run.last), Checkpoint.load(tiny_run.run.last)
    assert all(torch.equal(ours.weights[name], theirs.weights[name]) for name in ours.weights)


class Killed(BaseException):
    """What no handler of ours expects."""


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 3])
def test_a_killed_run_goes_on_from_its_last_checkpoint_or_from_the_start(
    tiny_set: Workspace, tiny_run: Workspace, tmp_path: Path, step: int
) -> None:
    run, config = RunDir(tmp_path / "run"), tiny_settings(steps=4)

    def kill(now: TrainProgress) -> None:
        if now.step == step:  # the first checkpoint is of step 2
            raise Killed

    with pytest.raises(Killed):
        train(config, tiny_set.manifest, run, device="cpu", on_step=kill)
    report = train(config, tiny_set.manifest, run, device="cpu")
    assert report.begun == (0 if step == 1 else 2)
    assert run.log_file.read_bytes() == tiny_run.run.log_file.read_bytes()


@pytest.mark.slow
def test_a_run_that_ended_within_its_validation_goes_on(
    tiny_set: Workspace, tiny_run: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> float:
        raise Killed

    run, config = RunDir(tmp_path / "run"), tiny_settings(steps=4)
    monkeypatch.setattr(Trainer, "validate", killed)
    with pytest.raises(Killed):
        train(config, tiny_set.manifest, run, device="cpu")
    monkeypatch.undo()
    train(config, tiny_set.manifest, run, device="cpu")
    assert run.log_file.read_bytes() == tiny_run.run.log_file.read_bytes()


@pytest.fixture
def finished(tiny_run: Workspace, tmp_path: Path) -> RunDir:
    """A copy of the finished run, to be broken."""
    shutil.copytree(tiny_run.run.path, tmp_path / "copy")
    return RunDir(tmp_path / "copy")


def _damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_costs_steps_and_changes_nothing(
    tiny_run: Workspace, finished: RunDir
) -> None:
    _damage(finished.last)
    told: list[Finding] = []
    config = tiny_settings(steps=4)
    report = train(config, tiny_run.manifest, finished, device="cpu", on_warning=told.append)
    assert (report.begun, report.step, report.warnings) == (2, 4, tuple(told))
    assert [one.code for one in told] == ["checkpoint-damaged"]
    assert "step-00000004.pt damaged, kept as step-00000004.pt.damaged" in told[0].measured
    assert finished.log_file.read_bytes() == tiny_run.run.log_file.read_bytes()
    assert report.to_json()["warnings"] == [told[0].to_json()]


@pytest.mark.slow
def test_where_no_checkpoint_is_whole_nothing_is_trained_and_nothing_touched(
    tiny_run: Workspace, finished: RunDir
) -> None:
    for path in finished.step_files():
        _damage(path)
    before = contents(finished.path)
    with pytest.raises(WeightsError, match="no checkpoint to go on from is whole"):
        train(tiny_settings(steps=4), tiny_run.manifest, finished, device="cpu")
    assert contents(finished.path) == before


@pytest.mark.slow
def test_a_run_of_the_format_before_is_gone_on_with(tiny_run: Workspace, finished: RunDir) -> None:
    finished.last.rename(finished.checkpoints / "last.pt")
    for path in finished.checkpoints.glob("step-*"):
        path.unlink()
    report = train(tiny_settings(steps=4), tiny_run.manifest, finished, device="cpu")
    assert (report.begun, report.step, report.state) == (4, 4, "finished")
    assert Checkpoint.load(finished.best).step == tiny_run.run.status()["best"]["step"]


def test_what_others_keep_in_a_folder_is_never_replaced(
    tiny_run: Workspace, tmp_path: Path
) -> None:
    foreign = RunDir(tmp_path / "foreign")
    for path in (foreign.config_file, foreign.log_file, foreign.curve):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    before = contents(foreign.path)
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        train(tiny_settings(steps=1), tiny_run.manifest, foreign, device="cpu")
    assert contents(foreign.path) == before


def test_two_processes_never_train_in_one_folder(tiny_run: Workspace, finished: RunDir) -> None:
    before = contents(finished.path)
    with (
        locked(finished.lock_file),
        pytest.raises(RunError, match=f"process {os.getpid()}"),
    ):
        assert finished.is_locked()
        train(tiny_settings(steps=4), tiny_run.manifest, finished, device="cpu")
    assert not finished.is_locked()
    assert contents(finished.path) == before


@pytest.mark.slow
def test_a_full_disk_is_one_clear_error_and_the_checkpoint_before_stays_whole(
    tiny_set: Workspace, tiny_run: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, save = RunDir(tmp_path / "run"), Checkpoint.save

    def full(checkpoint: Checkpoint, path: Path) -> None:
        if path == run.step_file(4):
            monkeypatch.setattr(torch, "save", lambda *_: _raise(OSError(28, "No space left")))
        save(checkpoint, path)

    monkeypatch.setattr(Checkpoint, "save", full)
    config = tiny_settings(steps=4)
    with pytest.raises(RunError, match=r"step-00000004\.pt: cannot be written") as caught:
        train(config, tiny_set.manifest, run, device="cpu")
    assert "space left on the disk" in caught.value.hint
    assert (run.last, Checkpoint.load(run.last).step) == (run.step_file(2), 2)
    assert (run.status()["state"], run.status()["step"]) == ("failed", 2)
    monkeypatch.undo()
    train(config, tiny_set.manifest, run, device="cpu")
    assert run.log_file.read_bytes() == tiny_run.run.log_file.read_bytes()


def _raise(error: Exception) -> None:
    raise error


def test_a_changed_data_set_is_refused_by_the_keys_that_differ(tiny_run: Workspace) -> None:
    entries = tiny_run.manifest.entries
    moved = (replace(entries[0], sha256="0" * 64), *entries[1:])
    changed = replace(tiny_run.manifest, entries=moved, crop="body")
    with pytest.raises(
        ConfigError,
        match=r"other settings: train\.flips, crop of the prepared data, "
        r"data_sha256 of the prepared data\.",
    ):
        train(tiny_settings(steps=4, flips=""), changed, tiny_run.run, device="cpu")


@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        ({"steps": 3}, "is at step 4, past the 3 asked for"),
        ({"steps": 4, "learning_rate": 0.5}, r"other settings: train\.learning_rate\."),
    ],
)
def test_settings_that_an_old_run_cannot_take_are_refused(
    tiny_run: Workspace, settings: dict[str, float], refusal: str
) -> None:
    with pytest.raises(ConfigError, match=refusal):
        train(tiny_settings(**settings), tiny_run.manifest, tiny_run.run, device="cpu")


def test_the_papers_start_names_the_weights_that_are_missing(
    tiny_set: Workspace, tmp_path: Path
) -> None:
    paper = {"autoencoder": {"channels": 32, "channel_mult": [1, 2, 4, 4], "norm_groups": 32}}
    config = from_dict({"model": paper}, tiny_settings(), source="test")
    store, run = WeightStore(tmp_path / "empty"), RunDir(tmp_path / "run")
    with pytest.raises(WeightsError, match="kl-f8") as caught:
        train(config, tiny_set.manifest, run, device="cpu", options=TrainOptions(store=store))
    assert "sdseg weights fetch" in caught.value.hint
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_test_cases_are_never_read(
    tiny_set: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    load = np.load

    def recording(path: Path, **words: Any) -> Any:
        opened.append(Path(path).parent.name)
        return load(path, **words)

    monkeypatch.setattr(np, "load", recording)
    train(tiny_settings(steps=1), tiny_set.manifest, RunDir(tmp_path / "run"), device="cpu")
    ids = {
        split: {c.id for c in tiny_set.manifest.cases(split)} for split in ("train", "val", "test")
    }
    assert set(opened) - {"latents"} == ids["train"] | ids["val"]
    assert not set(opened) & ids["test"]


@pytest.mark.slow
def test_training_needs_no_file_of_a_test_case(tiny_run: Workspace, tmp_path: Path) -> None:
    shutil.copytree(tiny_run.manifest.root, tmp_path / "tiny")
    manifest = Manifest.load(tmp_path / "tiny")
    for case in manifest.cases("test"):
        shutil.rmtree(manifest.root / case.folder)
    missing = [replace(c, image=tmp_path / "no", label=tmp_path / "no") for c in manifest.entries]
    run = RunDir(tmp_path / "run")
    without = replace(manifest, entries=tuple(missing))  # nor any scan it was prepared from
    train(tiny_settings(steps=4), without, run, device="cpu")
    assert run.log_file.read_bytes() == tiny_run.run.log_file.read_bytes()


def test_a_loss_that_is_not_finite_stops_the_run(
    tiny_set: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan = torch.tensor(float("nan"), requires_grad=True)
    monkeypatch.setattr(diffusion, "loss_terms", lambda *_, **__: (nan, nan))
    run = RunDir(tmp_path / "run")
    with pytest.raises(
        RunError, match=r"the loss is nan at step 1, of case_\d slice \d, case_\d slice \d"
    ):
        train(tiny_settings(steps=2), tiny_set.manifest, run, device="cpu")
    assert run.status() == {"state": "failed", "step": 0, "best": {}}


def test_a_set_without_validation_cases_is_refused(tiny_set: Workspace, tmp_path: Path) -> None:
    only_train = replace(tiny_set.manifest, entries=tiny_set.manifest.cases("train"))
    with pytest.raises(DataError, match="no val case"):
        train(tiny_settings(steps=1), only_train, RunDir(tmp_path / "run"), device="cpu")


@pytest.mark.slow
def test_the_ablations_baseline_trains_its_unet_alone_and_predicts(
    tiny_set: Workspace, tmp_path: Path
) -> None:
    switches = {
        "model": {
            "vision": {"widths": [], "blocks": []},
            "condition_channels": 4,
            "fusion": "cross-attention",
            "train_encoder": False,
            "parameterisation": "eps",
        },
        "train": {"noise_loss_weight": 1.0, "latent_loss_weight": 0.0},
    }
    run = RunDir(tmp_path / "run")
    config = from_dict(switches, tiny_settings(steps=1, foreground_weight=0.0), source="test")
    train(config, tiny_set.manifest, run, device="cpu")
    row = _log(run)[0]
    assert row["loss"] == row["loss_noise"] != row["loss_latent"]
    weights = Checkpoint.load(run.last).weights
    start = "autoencoder.encoder."  # the vision encoder starts as the autoencoder's
    for name, value in weights.items():
        if name.startswith(start):
            assert torch.equal(weights[f"vision_encoder.encoder.{name.removeprefix(start)}"], value)
    assert weights["unet.out.2.weight"].any(), "starts at zero"
    assert not Predictor(run.path, device="cpu").model.unet.concat


def test_the_learning_rate_warms_up_linearly_and_falls_like_a_cosine() -> None:
    constant = TrainConfig(learning_rate=1.0, warmup_steps=4, steps=100)
    assert [learning_rate(constant, step) for step in (0, 1, 3, 99)] == [0.25, 0.5, 1.0, 1.0]
    cosine = TrainConfig(learning_rate=1.0, warmup_steps=0, steps=100, schedule="cosine")
    assert learning_rate(cosine, 0) == 1.0
    assert learning_rate(cosine, 50) == pytest.approx(0.505)  # 0.01 + 0.99 / 2
    assert learning_rate(cosine, 100) == pytest.approx(0.01)
