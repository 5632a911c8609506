from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from sdseg_cli.core.config import RunConfig
from sdseg_cli.core.config_file import to_toml
from sdseg_cli.core.errors import ConfigError, RunError, WeightsError
from sdseg_cli.runs.checkpoint import Checkpoint, hash_file
from sdseg_cli.runs.resume import keep, newest_whole, refuse_foreign, set_aside
from sdseg_cli.runs.run_folder import RunDir


def at(step: int) -> Checkpoint:
    weights = {"w": torch.full((50,), float(step))}
    return Checkpoint(
        step=step, config={}, data={}, latent_scale=1.0, weights=weights, ema={}, optimizer={}
    )


def names(run: RunDir) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir())


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """With the checkpoints of steps 5 and 10."""
    run = RunDir(tmp_path / "run")
    for step in (5, 10):
        keep(run, at(step))
    return run


def test_the_last_two_are_kept_each_with_its_hash(run: RunDir) -> None:
    keep(run, at(100_000_000))  # by number, not by letters
    two = ["step-00000010.pt", "step-100000000.pt"]
    assert names(run) == sorted([*two, *(f"{name}.sha256" for name in two)])


def test_the_newest_is_where_a_run_goes_on(run: RunDir) -> None:
    found = newest_whole(run)
    assert found is not None
    assert (found.checkpoint.step, found.path, found.damaged) == (10, run.last, ())
    assert newest_whole(RunDir(run.path / "new")) is None


def test_a_failed_save_keeps_both(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    before = names(run)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        keep(run, at(15))
    assert names(run) == before


def test_a_damaged_newest_is_passed_over_and_set_aside(run: RunDir) -> None:
    damage(run.last)
    found = newest_whole(run)
    assert found is not None
    assert found.checkpoint.step == 5
    assert found.damaged == (run.step_file(10),)
    kept = set_aside(run, found.damaged)
    assert kept is not None
    assert names(run) == ["step-00000005.pt", "step-00000005.pt.sha256", "step-00000010.pt.damaged"]


def test_one_damaged_checkpoint_is_kept(run: RunDir) -> None:
    for step in (15, 20):
        keep(run, at(step))
        damage(run.last)
        found = newest_whole(run)
        assert found is not None
        set_aside(run, found.damaged)
    assert [name for name in names(run) if "damaged" in name] == ["step-00000020.pt.damaged"]


def test_where_none_is_whole_nothing_is_touched(run: RunDir) -> None:
    for path in run.step_files():
        damage(path)
    before = names(run)
    with pytest.raises(WeightsError, match=r"step-00000010\.pt, step-00000005\.pt") as caught:
        newest_whole(run)
    assert "delete the run folder" in caught.value.hint
    assert names(run) == before


def test_another_format_is_no_damage(run: RunDir) -> None:
    values = {name: getattr(at(10), name) for name in Checkpoint.__dataclass_fields__}
    torch.save({**values, "format_version": 99}, run.last)
    hash_file(run.last).unlink()
    with pytest.raises(WeightsError, match="format 99"):
        newest_whole(run)


def test_a_run_of_the_format_before_goes_on_from_last_pt(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    at(7).save(run.checkpoints / "last.pt")
    hash_file(run.checkpoints / "last.pt").unlink()
    found = newest_whole(run)
    assert found is not None
    assert (found.checkpoint.step, run.last.name) == (7, "last.pt")
    keep(run, at(10))
    assert "last.pt" in names(run)  # the one before the newest
    keep(run, at(15))
    assert "last.pt" not in names(run)


OURS = {"state": "running", "step": 0, "best": {}}


def written(folder: Path, **files: str) -> RunDir:
    """A folder of `NAME_SUFFIX=text` files."""
    folder.mkdir()
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return RunDir(folder)


def test_a_folder_with_other_files_and_no_run_is_refused(tmp_path: Path) -> None:
    status, settings = json.dumps(OURS), to_toml(RunConfig(dataset="x"))
    foreign = {
        "text": {"notes_txt": "mine"},
        "settings": {"config_toml": settings},
        "strange": {"config_toml": "[server]\nport = 1\n", "status_json": status},
        "state": {"config_toml": settings, "status_json": '{"state": "up"}'},
    }
    for name, files in foreign.items():
        run = written(tmp_path / name, **files)
        with pytest.raises(ConfigError, match=f"{name} is not empty and holds no run") as caught:
            refuse_foreign(run)
        assert caught.value.hint == "Give --run a new folder."


def test_a_new_folder_and_a_run_of_ours_are_gone_on_with(tmp_path: Path, run: RunDir) -> None:
    status, settings = json.dumps(OURS), to_toml(RunConfig(dataset="x"))
    refuse_foreign(RunDir(tmp_path / "new"))
    refuse_foreign(run)  # it has checkpoints, whatever else there is
    refuse_foreign(written(tmp_path / "begun", config_toml=settings, status_json=status))
    refuse_foreign(written(tmp_path / "killed_while_it_began", status_json=status))
    refuse_foreign(written(tmp_path / "empty"))
    locked = written(tmp_path / "locked")
    locked.lock_file.touch()
    (locked.path / ".12.part.status.json").touch()
    (locked.path / "latents").mkdir()
    refuse_foreign(locked)
