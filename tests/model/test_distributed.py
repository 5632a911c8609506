from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from sdseg_cli.core.config_file import to_toml
from sdseg_cli.core.errors import ConfigError, RunError
from sdseg_cli.model import distributed
from sdseg_cli.model.distributed import Ranks, _meeting_place, ranks_of, training_together
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training.train import train
from tests.conftest import Workspace, tiny_settings
from tests.raw_cases import IDS
from tests.training.test_train_classes import prepared, settings, write_case

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
SAME = 1e-5
"""Relative difference allowed between losses of one process and of two: sums in another order."""

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
SRUN = {"SLURM_PROCID": "2", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "0"}
BATCH_SCRIPT = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Ranks(0, 1, 0)),
        (TORCHRUN, Ranks(5, 8, 1)),
        (SRUN, Ranks(2, 4, 0)),
        (SRUN | TORCHRUN, Ranks(5, 8, 1)),  # torchrun, started by srun once per machine
        (BATCH_SCRIPT, Ranks(0, 1, 0)),  # srun did not start it
        ({"RANK": "5"}, Ranks(0, 1, 0)),  # some other program's
    ],
)
def test_torchrun_and_srun_say_who_a_process_is(
    environment: Mapping[str, str], expected: Ranks
) -> None:
    assert ranks_of(environment) == expected


@pytest.mark.parametrize(
    "wrong",
    [
        TORCHRUN | {"RANK": "eight"},
        TORCHRUN | {"RANK": "8"},
        TORCHRUN | {"RANK": "-1"},
        TORCHRUN | {"LOCAL_RANK": "-1"},
        TORCHRUN | {"WORLD_SIZE": ""},
        SRUN | {"SLURM_STEP_NUM_TASKS": "0"},
    ],
)
def test_numbers_that_are_no_rank_are_refused_by_name(wrong: Mapping[str, str]) -> None:
    with pytest.raises(ConfigError, match="no rank") as caught:
        ranks_of(wrong)
    assert all(f"{name}={value}" in caught.value.message for name, value in wrong.items())
    assert next(iter(wrong)) in caught.value.hint


def test_only_the_first_process_writes() -> None:
    assert [Ranks(rank, 3).writes for rank in range(3)] == [True, False, False]


def test_one_process_has_nobody_to_sum_or_wait_for() -> None:
    value = torch.tensor([1.0, 2.0])
    assert Ranks().sum(value).tolist() == Ranks().mean(value).tolist() == [1, 2]
    Ranks().wait()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"MASTER_ADDR": "a", "MASTER_PORT": "1"}, {}),
        (
            {"SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_NODELIST": "gpu7", "SLURM_JOB_ID": "123456"},
            {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "23456"},
        ),
        (
            {"SLURM_STEP_NUM_NODES": "2", "MASTER_ADDR": "gpu1", "SLURM_JOB_ID": "20001"},
            {"MASTER_PORT": "20001"},
        ),
    ],
)
def test_srun_says_where_to_meet_and_the_job_on_which_port(
    environment: Mapping[str, str], expected: Mapping[str, str]
) -> None:
    assert _meeting_place(environment) == expected


@pytest.mark.parametrize("environment", [{}, {"SLURM_STEP_NODELIST": ""}])
def test_where_nothing_says_where_to_meet_a_command_does(environment: Mapping[str, str]) -> None:
    with pytest.raises(ConfigError, match="MASTER_ADDR is not set") as caught:
        _meeting_place(environment)
    assert "export MASTER_ADDR=$(scontrol" in caught.value.hint


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu7", "gpu7"), ("gpu[01-04,07],cpu2", "gpu01"), ("a,b", "a"), ("n[3]-ib", "n3-ib")],
)
def test_the_first_host_of_a_slurm_list_is_where_processes_meet(nodes: str, first: str) -> None:
    told = {"SLURM_STEP_NODELIST": nodes, "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1"}  # salloc's
    assert _meeting_place(told)["MASTER_ADDR"] == first


def test_processes_that_begin_at_different_steps_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda value: value.mul_(2).add_(1))
    with pytest.raises(RunError, match="goes on from step 100, another from elsewhere"):
        Ranks(0, 2).require_same(100, 0.125, CPU)
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda value: value.mul_(2))
    Ranks(0, 2).require_same(100, 0.125, CPU)


def test_one_process_computes_where_it_is_told() -> None:
    with training_together(Ranks(), CPU) as device:
        assert device == CPU


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    together = training_together(Ranks(2, 3, 2), torch.device("cuda"))
    with (
        pytest.raises(ConfigError, match="process 2 of this machine has no GPU: 2 there"),
        together,
    ):
        pass


def test_others_that_are_not_found_are_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: object, **__: object) -> None:
        raise RuntimeError("timed out")

    monkeypatch.setattr(torch.distributed, "init_process_group", nobody)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    together = training_together(Ranks(1, 2, 1), CPU)
    with pytest.raises(ConfigError, match="process 1 of 2 did not find the others"), together:
        pass


def two_processes(workspace: Workspace, run: Path, config: Path) -> subprocess.Popen[str]:
    """`sdseg train` on two CPU processes, as it is documented."""
    environment = os.environ | {
        "SDSEG_HOME": str(workspace.root),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = ["train", "--dataset", "tiny", "--config", config, "--run", run, "--device", "cpu"]
    return subprocess.Popen(
        [*torchrun, "--nproc-per-node", "2", "-m", "--", "sdseg_cli", *map(str, command)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What it printed; it ended well."""
    out, err = process.communicate(timeout=1200)
    assert process.returncode == 0, err
    return out, err


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The settings of `tiny_run`."""
    path = tmp_path / "config.toml"
    path.write_text(to_toml(tiny_settings(steps=4)))
    return path


def assert_same_log(run: RunDir, other: RunDir) -> None:
    ours, theirs = (
        [json.loads(line) for line in one.log_file.read_text().splitlines()] for one in (run, other)
    )
    assert [list(row) for row in ours] == [list(row) for row in theirs]
    for row, same in zip(ours, theirs, strict=True):
        assert row == pytest.approx(same, rel=SAME)
    # Weights that do not train would give the same losses too, one day.
    assert len({row["loss"] for row in ours if "loss" in row}) == 4


def files(run: RunDir) -> set[str]:
    return {str(path.relative_to(run.path)) for path in run.path.rglob("*")}


def before_the_end(run: RunDir, copy: Path) -> RunDir:
    """A copy of a finished run without its last checkpoint: it goes on from the one before."""
    shutil.copytree(run.path, copy)
    for path in (copy / "checkpoints").glob("step-00000004*"):
        path.unlink()
    return RunDir(copy)


def status_soon(run: RunDir, process: subprocess.Popen[str]) -> dict[str, Any]:
    """How the run stands, as soon as it stands at all."""
    deadline = time.monotonic() + 600
    while not run.status_file.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    return run.status()


@pytest.mark.slow
def test_two_processes_stopped_and_resumed_train_as_one_does(
    tiny_run: Workspace, tmp_path: Path, config: Path
) -> None:
    run = RunDir(tmp_path / "two")
    process = two_processes(tiny_run, run.path, config)
    assert status_soon(run, process)["state"] == "running"
    process.send_signal(signal.SIGTERM)  # torchrun hands it on, and ends as it sees fit
    out, err = process.communicate(timeout=600)
    stopped = run.status()
    assert stopped["state"] == "stopped", err
    assert 1 <= stopped["step"] < 4
    assert out.count("best validation Dice") == 1, "one of the two talks"
    assert run.last.name == f"step-{stopped['step']:08}.pt"
    assert not run.lock_file.exists()

    out, err = ended(two_processes(tiny_run, run.path, config))
    assert f"going on from step {stopped['step']}" in err
    assert out.count("best validation Dice") == err.count("going on") == 1
    assert_same_log(run, tiny_run.run)

    alone = before_the_end(run, tmp_path / "alone")
    report = train(tiny_settings(steps=4), tiny_run.manifest, alone, device="cpu")
    assert report.begun in (2, 3)
    assert_same_log(alone, tiny_run.run)


@pytest.mark.slow
def test_two_processes_go_on_where_one_was(
    tiny_run: Workspace, tmp_path: Path, config: Path
) -> None:
    run = before_the_end(tiny_run.run, tmp_path / "two")
    before = run.log_file.read_bytes().splitlines()
    ended(two_processes(tiny_run, run.path, config))
    assert_same_log(run, tiny_run.run)
    assert run.log_file.read_bytes().splitlines()[:3] == before[:3]  # two steps and a validation
    calibrated = {"checkpoints/mask_decoder.safetensors"}  # by the command, after the training
    assert files(run) == files(tiny_run.run) | calibrated, "only the first process writes"


@pytest.mark.slow
def test_two_processes_train_several_classes_as_one_does(tmp_path: Path) -> None:
    for seed, name in enumerate(IDS):
        write_case(tmp_path / "raw" / name, seed)
    manifest = prepared(tmp_path / "raw", "a=1,b=2")
    workspace, config = Workspace(manifest.root.parents[1]), tmp_path / "config.toml"
    # The latent loss alone: the Dice of the mask is that of each process's share (docs/METHOD.md).
    recipe = settings(manifest, mask_loss_weight=0.0)
    config.write_text(to_toml(recipe))
    two, one = RunDir(tmp_path / "two"), RunDir(tmp_path / "one")
    ended(two_processes(workspace, two.path, config))
    train(recipe, manifest, one, device="cpu")
    ours, theirs = (
        [json.loads(line) for line in run.log_file.read_text().splitlines()] for run in (two, one)
    )
    losses = [[row["loss_latent"] for row in rows if "loss" in row] for rows in (ours, theirs)]
    assert len(losses[0]) == 4 and losses[0] == pytest.approx(losses[1], rel=1e-4)
    dice = [
        [row["val_dice_classes"] for row in rows if "val_dice" in row] for rows in (ours, theirs)
    ]
    for mine, same in zip(*dice, strict=True):
        assert mine == pytest.approx(same, abs=1e-3)
