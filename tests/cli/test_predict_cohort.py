"""`sdseg predict` of many scans, from the command line."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from sdseg_cli.cli.app import run_command
from sdseg_cli.core.config import RunConfig, SampleConfig
from sdseg_cli.core.config_file import to_toml
from sdseg_cli.core.errors import ConfigError, WeightsError
from sdseg_cli.imaging.scans import find_scans
from sdseg_cli.inference.cohort import Shard, Task
from sdseg_cli.inference.cohort import predict_cohort as of_cohort
from tests.cohort_cases import StandIn, stand_in, table, task
from tests.raw_cases import contents

__all__ = ["stand_in", "task"]


@pytest.fixture
def home(task: Task, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: `in` with four scans, `run`."""
    (task.model / "config.toml").write_text(to_toml(RunConfig(dataset="toy")), encoding="utf-8")
    monkeypatch.chdir(task.outputs.mask.parent)
    monkeypatch.delenv("SDSEG_HOME", raising=False)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    return task.outputs.mask.parent


def test_a_failed_scan_is_named_and_the_exit_code_is_3(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "in" / "brain.mgz").write_text("x")
    (home / "in" / "pt_1" / "label.nii.gz").write_text("no scan")
    for done, skipped in ((3, 0), (0, 3)):
        assert run_command(["predict", "in", "-o", "out", "--run", "run"]) == 3
        out, err = capsys.readouterr()
        assert "failed pt_3/ct: in/pt_3/ct.nii.gz: not a gzip file" in err
        assert "Error: 1 of 4 scans failed: pt_3/ct." in err
        assert "passed over 1 of .mgz" in err
        assert "passed over 1 named as label maps" in err
        shown = {
            line.split("│")[1].strip(): line.split("│")[2].strip()
            for line in out.splitlines()
            if "│" in line
        }
        assert shown["done"] == str(done)
        assert shown["failed"] == "1"
        assert shown["skipped, done before"] == str(skipped)
    assert table(home / "out")["pt_3/ct"]["status"] == "failed"


def test_json_is_one_object_and_a_whole_cohort_ends_with_0(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "some.txt").write_text("in/pt_2/ct.nii.gz\nin/pt_1/ct.nii.gz\n")
    assert run_command(["predict", "some.txt", "-o", "out", "--run", "run", "--json"]) == 0
    out, err = capsys.readouterr()
    values = json.loads(out)
    assert err == ""
    assert values["ledger"] == "out/ledger.csv"
    assert [values[key] for key in ("done", "failed", "skipped", "left")] == [2, 0, 0, 0]
    assert (home / "out" / "in" / "pt_1" / "ct.nii.gz").exists()


def test_options_reach_every_scan_and_files_become_folders(home: Path) -> None:
    options = ["--seed", "4", "--samples", "2", "--prob", "prob", "--quiet"]
    assert run_command(["predict", "in", "-o", "out", "--run", "run", *options]) == 3
    assert (home / "prob" / "pt_10" / "ct.nii.gz").exists()
    assert run_command(["predict", "in", "-o", "out", "--run", "run", *options]) == 3


def test_another_seed_is_another_cohort(home: Path, stand_in: StandIn) -> None:
    for seed, predicted in (("1", 4), ("1", 1), ("2", 4)):  # the bad one is always tried
        stand_in.predicted.clear()
        run_command(["predict", "in", "-o", "out", "--run", "run", "--seed", seed, "--quiet"])
        assert len(stand_in.predicted) == predicted


def test_a_folder_with_a_dot_ends_in_a_slash_or_exists(home: Path) -> None:
    (home / "prob.d").mkdir()
    start = ["predict", "in", "-o", "v1.2/", "--prob", "prob.d", "--run", "run", "--quiet"]
    assert run_command(start) == 3
    assert (home / "v1.2" / "ledger.csv").is_file()
    assert (home / "prob.d" / "pt_1" / "ct.nii.gz").is_file()
    assert run_command(["predict", "in", "-o", "v1.2", "--run", "run", "--quiet"]) == 3


def add_run(home: Path, name: str, dice: float, written: int, state: str = "finished") -> Path:
    """A run of the workspace."""
    run = home / "runs" / name
    shutil.copytree(home / "run", run)
    (run / "checkpoints" / "best.pt").write_text(f"weights of {name}")
    status = {"state": state, "step": 9, "best": {"step": 9, "val_dice": dice}}
    (run / "status.json").write_text(json.dumps(status))
    os.utime(run / "checkpoints" / "best.pt", (written, written))
    return run


def test_a_cohort_keeps_its_model_though_a_newer_run_is_there(
    home: Path, stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    add_run(home, "btcv/old", 0.8, written=1000)
    start = ["predict", "in", "-o", "out"]
    assert run_command(start) == 3
    add_run(home, "sts/new", 0.9, written=2000)
    stand_in.predicted.clear()
    capsys.readouterr()
    assert run_command(start) == 3
    err = capsys.readouterr().err
    assert f"going on with {home / 'runs/btcv/old'}" in err
    assert "using run" not in err
    assert stand_in.predicted == ["pt_3"]
    assert run_command([*start, "--run", "sts/new"]) == 3, "asked for by name"
    assert len(stand_in.predicted) == 1 + 4
    stand_in.predicted.clear()
    assert run_command(start) == 3
    assert f"going on with {home / 'runs/sts/new'}" in capsys.readouterr().err
    assert stand_in.predicted == ["pt_3"]


@pytest.mark.parametrize(
    ("fault", "said"), [("gone", "not there any more"), ("other", "changed since"), ("", "say")]
)
def test_a_cohort_whose_model_is_gone_or_changed_stops(
    home: Path, capsys: pytest.CaptureFixture[str], fault: str, said: str
) -> None:
    old = add_run(home, "btcv/old", 0.8, written=1000)
    add_run(home, "btcv/older", 0.8, written=900)
    start = ["predict", "in", "-o", "out", "--quiet"]
    assert run_command(start) == 3
    if fault == "gone":
        shutil.rmtree(old)
    elif fault == "other":
        (old / "checkpoints" / "best.pt").write_text("trained on")
    else:
        (home / "out" / ".ledger" / "model").write_text("{")
    before = contents(home)
    capsys.readouterr()
    assert run_command(start) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert said in error and "--run" in hint
    assert contents(home) == before
    assert run_command([*start, "--run", "btcv/older"]) == 3


def test_a_model_that_cannot_be_loaded_is_not_kept(
    home: Path, monkeypatch: pytest.MonkeyPatch, stand_in: StandIn
) -> None:
    def damaged(*_: object, **__: object) -> None:
        raise WeightsError("best.pt: damaged.", "Train again.")

    add_run(home, "btcv/bad", 0.8, written=1000)
    monkeypatch.setattr("sdseg_cli.inference.cohort.load_predictor", damaged)
    assert run_command(["predict", "in", "-o", "out"]) == 2
    monkeypatch.setattr("sdseg_cli.inference.cohort.load_predictor", stand_in.load)
    add_run(home, "btcv/good", 0.8, written=2000)
    assert run_command(["predict", "in", "-o", "out"]) == 3
    assert "btcv/good" in (home / "out" / ".ledger" / "model").read_text()


def test_shards_that_begin_at_once_agree_on_a_model(task: Task, stand_in: StandIn) -> None:
    other = task.outputs.mask.parent / "other"
    shutil.copytree(task.model, other)
    scans = find_scans(task.outputs.mask.parent / "in", task.outputs.mask).scans
    of_cohort(scans, task, shard=Shard(0, 2), named=False)
    with pytest.raises(ConfigError, match=r"another process began it with .*run"):
        of_cohort(scans, replace(task, model=other), shard=Shard(1, 2), named=False)


def test_the_default_run_is_named_with_its_reason_and_a_weak_one_warned_about(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_run(home, "btcv/best", 0.9, written=1000)
    add_run(home, "sts/weak", 0.12, written=2000)
    add_run(home, "sts/stopped", 0.95, written=3000, state="stopped")
    assert run_command(["predict", "in", "-o", "out"]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == (
        "using run runs/sts/weak, the newest finished of 3 runs of 2 data sets (btcv, sts; --run)"
        ": validation Dice 0.120 at step 9"
    )
    assert lines[1].startswith("warning run-weak, sts/weak: validation Dice 0.120, below 0.3")
    assert run_command(["predict", "in", "-o", "more", "--json"]) == 3
    values = json.loads(capsys.readouterr().out)
    assert [one["code"] for one in values["warnings"]] == ["run-weak"]
    assert run_command(["predict", "in", "-o", "named", "--run", "sts/weak"]) == 3
    assert "run-weak" not in capsys.readouterr().err
    assert run_command(["runs"]) == 0
    assert "its Dice is below 0.3" in capsys.readouterr().err


def test_shards_and_ranks_divide_the_scans(
    home: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = ["predict", "in", "-o", "out", "--run", "run", "--quiet"]
    assert run_command([*start, "--shard", "0/2"]) == 3
    assert stand_in.predicted == ["pt_1", "pt_3"]
    stand_in.predicted.clear()
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert run_command(start) == 0
    assert stand_in.predicted == ["pt_2", "pt_10"]


WRONG_FOR_ALL = {
    "no such type": (["--prob", "prob", "--prob-dtype", "int8"], "--prob-dtype is 'int8'"),
    "a file in a folder's place": (["--prob", "taken"], "taken: cannot be a folder"),
    "a file above the folder": (["--uncertainty", "taken/u"], "taken/u: cannot be a folder"),
    "a file's name": (["--preview", "p.png"], "p.png: cannot be a folder"),
    "runs without noise": (["--uncertainty", "u", "--run", "still"], "Without noise all runs"),
}


@pytest.mark.parametrize("mistake", sorted(WRONG_FOR_ALL))
def test_an_option_that_is_wrong_for_all_scans_leaves_the_ledger_as_it_was(
    mistake: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "taken").write_text("a file")
    shutil.copytree(home / "run", home / "still")
    still = RunConfig(dataset="toy", sample=SampleConfig(noise="zero"))
    (home / "still" / "config.toml").write_text(to_toml(still), encoding="utf-8")
    start = ["predict", "in", "-o", "out", "--quiet"]
    assert run_command([*start, "--run", "run"]) == 3, "pt_3 is no scan"
    capsys.readouterr()
    before = contents(home)
    wrong, named = WRONG_FOR_ALL[mistake]
    wrong = wrong if "--run" in wrong else [*wrong, "--run", "run"]
    assert run_command([*start, *wrong]) == 2
    assert named in capsys.readouterr().err
    assert contents(home) == before


MISTAKES = {
    "a shard beyond the last": (["in", "-o", "out", "--shard", "4/4"], '--shard "4/4"'),
    "an unknown engine": (["in", "-o", "out", "--engine", "dask"], 'no engine "dask"'),
    "workers of nothing": (["in", "-o", "out", "--workers", "2"], "need --engine ray"),
    "a shard of one scan": (["in/pt_1/ct.nii.gz", "-o", "m.nii", "--shard", "0/2"], "many scans"),
    "a folder that is no series": (["in", "-o", "mask.nii.gz"], "without a DICOM file"),
    "a folder that is not there": (["gone", "-o", "out"], "gone does not exist"),
    "the scans' own folder": (["in", "-o", "in"], "is the scans' own folder"),
    "a mistyped suffix": (["in", "-o", "mask.nii.gzz"], ".gzz is no suffix of a mask"),
    "a mistyped suffix of a map": (["in", "-o", "out", "--prob", "p.nii.gzz"], "--prob p.nii.gzz"),
    "a mistyped suffix of a picture": (["in", "-o", "out", "--preview", "p.jpg"], "--preview"),
    "a version for a folder": (["in", "-o", "v1.2"], "there is no folder of this name"),
    "no scan": (["run", "-o", "out"], "holds no scan"),
}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_a_mistake_is_refused_before_anything_is_written(
    mistake: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, named = MISTAKES[mistake]
    assert run_command(["predict", *arguments, "--run", "run"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert named in lines[-2] and lines[-1].startswith("Hint: ")
    assert not (home / "out").exists()


def test_a_run_that_still_trains_is_taken_by_default_only_with_a_word(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between the first best weights and the first saved state its Dice is not known yet."""
    add_run(home, "sts/new", 0.5, written=1000, state="running")
    status = home / "runs/sts/new/status.json"
    status.write_text(json.dumps({"state": "running", "step": 3, "best": {}}))
    assert run_command(["predict", "in", "-o", "out"]) == 3
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first == "using run runs/sts/new, the newest, for none is finished: not validated yet"
    assert second.startswith("warning run-weak, sts/new: not validated yet")
