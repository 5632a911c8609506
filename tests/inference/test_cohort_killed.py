"""Whole cohorts, really run: killed, in shards, under torchrun, and on a local Ray cluster."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cohort_kills import (
    PART_FAILED,
    Setting,
    check_end,
    kill_and_go_on,
    prepare,
    ray_with_a_dead_actor,
    two_shards,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """Five good scans and three bad ones."""
    return prepare(tmp_path_factory.mktemp("home"), scans=8, seed=0)


def test_a_killed_cohort_goes_on_to_the_same_bytes(setting: Setting) -> None:
    assert kill_and_go_on(setting, kills=2, seed=1)["killed"] == 2


def test_two_shards_at_once_share_one_ledger_and_outlive_a_kill(setting: Setting) -> None:
    codes = two_shards(setting)["exit_codes"]
    assert codes == [PART_FAILED, PART_FAILED], "scans 3 and 5, and scan 4, are bad"


def test_torchruns_processes_are_shards_and_wait_for_each_other(setting: Setting) -> None:
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "--", "sdseg_cli"]
    out = setting.home / "torchrun"
    options = ["-o", str(out), "--run", "btcv/loud", "--device", "cpu", "--quiet"]
    environment = os.environ | {"SDSEG_HOME": str(setting.home), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, *launcher, "predict", str(setting.home / "scans"), *options],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        check=False,
    )
    assert ended.returncode != 0, "scans failed"
    check_end(setting, "torchrun")


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_ray_replaces_an_actor_that_dies(setting: Setting) -> None:
    assert ray_with_a_dead_actor(setting)["actors"] == 2
