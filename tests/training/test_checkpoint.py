from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from sdseg_cli.config import RunConfig
from sdseg_cli.errors import ConfigError, RunError, WeightsError
from sdseg_cli.training.checkpoint import (
    Checkpoint,
    RunDir,
    config_values,
    find_run,
    truncate_log,
)


def _checkpoint(step: int = 3) -> Checkpoint:
    return Checkpoint(
        step=step,
        config=config_values(RunConfig()),
        data={"crop": "none"},
        latent_scale=0.5,
        weights={"w": torch.arange(3.0)},
        ema={"w": torch.ones(2)},
        optimizer={"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]},
    )


def test_a_checkpoint_survives_the_disk(tmp_path: Path) -> None:
    _checkpoint().save(tmp_path / "c" / "last.pt")
    loaded = Checkpoint.load(tmp_path / "c" / "last.pt")
    assert (loaded.step, loaded.latent_scale, loaded.data) == (3, 0.5, {"crop": "none"})
    assert loaded.weights["w"].tolist() == [0, 1, 2]
    assert loaded.optimizer["param_groups"] == [{"lr": 1e-3}]
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["last.pt"]


def test_a_failed_save_keeps_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    _checkpoint(1).save(path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match="No space left"):
        _checkpoint(2).save(path)
    assert Checkpoint.load(path).step == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_damaged_checkpoint_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    _checkpoint().save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(WeightsError, match="damaged"):
        Checkpoint.load(path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoint = _checkpoint()
    values = {n: getattr(checkpoint, n) for n in checkpoint.__dataclass_fields__}
    torch.save({**values, "format_version": 99}, path)
    with pytest.raises(WeightsError, match="format 99"):
        Checkpoint.load(path)


def _run(workspace: Path, name: str, state: str, age: int) -> Path:
    run = RunDir(workspace / "runs" / "set" / name)
    run.best.parent.mkdir(parents=True)
    run.best.touch()
    run.config_file.touch()
    run.status_file.write_text(json.dumps({"state": state}))
    os.utime(run.best, (1000 - age, 1000 - age))
    return run.path


def test_the_newest_finished_run_wins_over_a_newer_stopped_one(tmp_path: Path) -> None:
    _run(tmp_path, "old", "finished", age=9)
    newest = _run(tmp_path, "new", "finished", age=5)
    _run(tmp_path, "stopped", "stopped", age=1)
    assert find_run(tmp_path, None).path == newest


def test_without_a_finished_run_the_newest_stopped_one_is_found(tmp_path: Path) -> None:
    _run(tmp_path, "older", "stopped", age=9)
    newest = _run(tmp_path, "newer", "stopped", age=1)
    assert find_run(tmp_path, None).path == newest


def test_a_run_is_found_by_path_by_dataset_and_name_and_by_name(tmp_path: Path) -> None:
    path = _run(tmp_path, "mine", "finished", age=0)
    for asked in (path, Path("set/mine"), Path("mine")):
        assert find_run(tmp_path, asked).path == path


def test_no_run_yet_says_how_to_train_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run yet") as caught:
        find_run(tmp_path, None)
    assert "sdseg train" in caught.value.hint
    with pytest.raises(ConfigError, match="no run there"):
        find_run(tmp_path, Path("nowhere"))


def test_a_run_before_its_first_validation_cannot_predict(tmp_path: Path) -> None:
    path = _run(tmp_path, "young", "running", age=0)
    RunDir(path).best.unlink()
    with pytest.raises(ConfigError, match="no checkpoint to predict with yet"):
        find_run(tmp_path, path)


def test_log_lines_past_the_checkpoint_and_a_torn_last_line_are_dropped(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\n{"step": 2}\n{"step": 2, "val_dice": 0.5}\n{"step": 3}\n{"st')
    truncate_log(log, 2)
    assert log.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 2, "val_dice": 0.5}\n'


def test_a_log_damaged_in_the_middle_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\nxx\n{"step": 3}\n')
    with pytest.raises(RunError, match="line 2"):
        truncate_log(log, 2)
