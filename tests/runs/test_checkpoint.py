from __future__ import annotations

import hashlib
import json
import os
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import sdseg_cli.runs.checkpoint as checkpoint_module
from sdseg_cli.core.config import RunConfig
from sdseg_cli.core.config_file import to_toml
from sdseg_cli.core.errors import ConfigError, RunError, WeightsError
from sdseg_cli.runs.checkpoint import (
    Checkpoint,
    DamagedError,
    config_values,
    hash_file,
    keep,
    newest_whole,
    refuse_foreign,
    restore_optimizer,
    set_aside,
)
from sdseg_cli.runs.run_folder import RunDir


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fields_of(checkpoint: Checkpoint, **changes: object) -> dict[str, object]:
    return {name: getattr(checkpoint, name) for name in Checkpoint.__dataclass_fields__} | changes


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
    assert names(tmp_path / "c") == ["last.pt", "last.pt.sha256"]


def test_sha256sum_accepts_the_hash_beside_a_checkpoint(tmp_path: Path) -> None:
    for step in (1, 2):  # written, and written over
        _checkpoint(step).save(tmp_path / "best.pt")
        digest = hashlib.sha256((tmp_path / "best.pt").read_bytes()).hexdigest()
        assert (tmp_path / "best.pt.sha256").read_text() == f"{digest}  best.pt\n"


class FullDisk:
    """A file on a disk that is full after 100 bytes, or that Ctrl-C ends."""

    def __init__(self, failure: BaseException) -> None:
        self.failure, self.written = failure, 0

    def write(self, content: bytes) -> int:
        self.written += len(content)
        if self.written > 100:
            raise self.failure
        return len(content)

    def flush(self) -> None:
        """Nothing is kept back."""


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_stops_a_write_comes_out_of_torch_as_it_went_in(failure: BaseException) -> None:
    with pytest.raises(type(failure)) as caught:
        checkpoint_module._write({"w": torch.arange(1000)}, FullDisk(failure))
    assert caught.value is failure


def test_a_failed_save_keeps_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    _checkpoint(1).save(path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match="No space left") as caught:
        _checkpoint(2).save(path)
    assert "space left on the disk" in caught.value.hint
    assert Checkpoint.load(path).step == 1
    assert names(tmp_path) == ["last.pt", "last.pt.sha256"]


@pytest.mark.parametrize("moment", range(1, 4))
def test_a_save_that_ends_at_any_rename_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    path, renames = tmp_path / "best.pt", 0
    _checkpoint(1).save(path)
    rename = Path.replace

    def killed(old: Path, new: Path) -> Path:
        nonlocal renames
        renames += 1
        if renames == moment:
            raise KeyboardInterrupt
        return rename(old, new)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt) if moment < 3 else nullcontext():
        _checkpoint(2).save(path)
    assert Checkpoint.load(path).step == (1 if moment == 1 else 2)


def test_one_bit_that_turned_is_found_by_the_hash(tmp_path: Path) -> None:
    path = tmp_path / "step-00000003.pt"
    _checkpoint().save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"sha256 is not the one in step-00000003\.pt\.sha256"):
        Checkpoint.load(path)


def test_a_checkpoint_of_the_format_before_is_read(tmp_path: Path) -> None:
    values = fields_of(_checkpoint(), format_version=1)
    del values["scaler"]
    torch.save(values, tmp_path / "last.pt")
    assert (Checkpoint.load(tmp_path / "last.pt").step, names(tmp_path)) == (3, ["last.pt"])


def test_a_whole_file_that_cannot_be_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _checkpoint().save(tmp_path / "last.pt")

    def short(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(torch, "load", short)
    with pytest.raises(WeightsError, match="as it was written, and still") as caught:
        Checkpoint.load(tmp_path / "last.pt")
    assert not isinstance(caught.value, DamagedError)


def test_a_damaged_checkpoint_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    _checkpoint().save(path)
    path.write_bytes(path.read_bytes()[:-200])
    for _ in ("with a hash", "without"):
        with pytest.raises(DamagedError, match="damaged"):
            Checkpoint.load(path)
        hash_file(path).unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"step": "3"}, "no checkpoint of sdseg"),
        ({"step": True}, "no checkpoint of sdseg"),
        ({"config": [1]}, "no checkpoint of sdseg"),
        ({"best": {"val_dice": "0.9"}}, "no checkpoint of sdseg"),
        ({"best": {"val_dice": float("nan")}}, "no checkpoint of sdseg"),
        ({"origin": {"unet": 3}}, "no checkpoint of sdseg"),
        ({"weights": {"w": [1.0]}}, "no checkpoint of sdseg"),
        ({"weights": {3: torch.ones(1)}}, "no checkpoint of sdseg"),
        ({"ema": {"w": torch.ones(2).to_sparse()}}, "w is sparse_coo"),
        ({"weights": {"w": torch.ones(2).to("meta")}}, "w is a shape without values"),
        ({"latent_scale": float("nan")}, "latent scale is nan"),
        ({"latent_scale": None}, "no checkpoint of sdseg"),
        ({"format_version": torch.ones(3)}, "no checkpoint of sdseg"),
    ],
)
def test_a_checkpoint_of_other_types_is_one_clear_error(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    torch.save(fields_of(_checkpoint(), **change), tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=said):
        Checkpoint.load(tmp_path / "x.pt")


def _stepped() -> tuple[torch.nn.Linear, torch.optim.AdamW]:
    layer = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.5)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return layer, optimizer


def test_moments_go_on_and_the_options_stay_the_optimisers_own() -> None:
    state = _stepped()[1].state_dict()
    state["param_groups"][0]["lr"] = "fast"
    layer, optimizer = _stepped()
    optimizer.state.clear()
    restore_optimizer(optimizer, state, source="x")
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert optimizer.state[layer.bias]["exp_avg"].tolist() == pytest.approx([0.1])


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.clear(),
        lambda state: state["param_groups"].clear(),
        lambda state: state["param_groups"][0]["params"].append(7),
        lambda state: state["state"][0].pop("exp_avg"),
        lambda state: state["state"][0].update(exp_avg=torch.ones(3)),
        lambda state: state["state"][0].update(exp_avg="none"),
        lambda state: state["state"][0].update(step=torch.ones(2)),
        lambda state: state.update(state=3),
    ],
)
def test_the_moments_of_another_model_are_one_clear_error(change) -> None:
    state, optimizer = _stepped()[1].state_dict(), _stepped()[1]
    change(state)
    with pytest.raises(WeightsError, match="optimiser is not that of this model"):
        restore_optimizer(optimizer, state, source="x")
    assert not optimizer.state


def at(step: int) -> Checkpoint:
    weights = {"w": torch.full((50,), float(step))}
    return Checkpoint(
        step=step, config={}, data={}, latent_scale=1.0, weights=weights, ema={}, optimizer={}
    )


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
    assert names(run.checkpoints) == sorted([*two, *(f"{name}.sha256" for name in two)])


def test_the_newest_is_where_a_run_goes_on(run: RunDir) -> None:
    found = newest_whole(run)
    assert found is not None
    assert (found.checkpoint.step, found.path, found.damaged) == (10, run.last, ())
    assert newest_whole(RunDir(run.path / "new")) is None


def test_a_failed_save_keeps_both(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    before = names(run.checkpoints)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        keep(run, at(15))
    assert names(run.checkpoints) == before


def test_a_damaged_newest_is_passed_over_and_set_aside(run: RunDir) -> None:
    damage(run.last)
    found = newest_whole(run)
    assert found is not None
    assert found.checkpoint.step == 5
    assert found.damaged == (run.step_file(10),)
    kept = set_aside(run, found.damaged)
    assert kept is not None
    assert names(run.checkpoints) == [
        "step-00000005.pt",
        "step-00000005.pt.sha256",
        "step-00000010.pt.damaged",
    ]


def test_one_damaged_checkpoint_is_kept(run: RunDir) -> None:
    for step in (15, 20):
        keep(run, at(step))
        damage(run.last)
        found = newest_whole(run)
        assert found is not None
        set_aside(run, found.damaged)
    assert [name for name in names(run.checkpoints) if "damaged" in name] == [
        "step-00000020.pt.damaged"
    ]


def test_where_none_is_whole_nothing_is_touched(run: RunDir) -> None:
    for path in run.step_files():
        damage(path)
    before = names(run.checkpoints)
    with pytest.raises(WeightsError, match=r"step-00000010\.pt, step-00000005\.pt") as caught:
        newest_whole(run)
    assert "delete the run folder" in caught.value.hint
    assert names(run.checkpoints) == before


def test_another_format_is_no_damage(run: RunDir) -> None:
    torch.save(fields_of(at(10), format_version=99), run.last)
    hash_file(run.last).unlink()
    with pytest.raises(WeightsError, match="format 99") as caught:
        newest_whole(run)
    assert not isinstance(caught.value, DamagedError)


def test_a_run_of_the_format_before_goes_on_from_last_pt(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    at(7).save(run.checkpoints / "last.pt")
    hash_file(run.checkpoints / "last.pt").unlink()
    found = newest_whole(run)
    assert found is not None
    assert (found.checkpoint.step, run.last.name) == (7, "last.pt")
    keep(run, at(10))
    assert "last.pt" in names(run.checkpoints)  # the one before the newest
    keep(run, at(15))
    assert "last.pt" not in names(run.checkpoints)


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
