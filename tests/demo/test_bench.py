from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sdseg_cli.core.errors import ConfigError
from sdseg_cli.demo import bench as bench_module
from sdseg_cli.demo.bench import PLAIN, bench
from sdseg_cli.model import runtime
from sdseg_cli.runs.checkpoint import Checkpoint
from sdseg_cli.runs.run_folder import RunDir
from tests.conftest import Workspace


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "BUDGET_S", 0.0)
    monkeypatch.setattr(runtime, "MATRIX", 64)
    monkeypatch.setattr(bench_module, "ROUNDS", 1)


@pytest.mark.slow
def test_every_way_of_a_cpu_is_compared_with_the_plain_one(tiny_run: Workspace) -> None:
    progress: list[tuple[int, int]] = []
    report = bench(
        tiny_run.run.path,
        workspace=tiny_run.root,
        slices=2,
        device="cpu",
        progress=lambda done, total, _: progress.append((done, total)),
    )
    assert [tier.name for tier in report.tiers] == [PLAIN, "exact", "fast"]
    plain, exact, fast = report.tiers
    assert plain.dice == 1.0
    assert exact.dice == pytest.approx(1.0, abs=1e-3)
    assert fast.dice is not None
    # The vision encoder's patches, 2 and 4 blocks, halving and last layer; U-Net; decoders.
    encoder = 2e-6 * (37.749 + 2 * 66.257 + 18.874 + 4 * 61.440 + 3.146) * 1e3
    assert plain.gflop == pytest.approx(exact.gflop) == pytest.approx(encoder + 5.443, rel=1e-3)
    assert fast.gflop == pytest.approx(encoder + 5.443 - 4.423 + 0.132, rel=1e-3)
    assert progress == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.slow
def test_every_way_draws_by_the_threshold_of_the_run(tiny_run: Workspace, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    shutil.copytree(tiny_run.run.path, run.path)
    best = Checkpoint.load(run.best)
    replace(best, best={**best.best, "threshold": 0.25}).save(run.best)
    report = bench(run.path, workspace=tiny_run.root, slices=2, device="cpu")
    assert report.tiers[1].dice == pytest.approx(1.0, abs=1e-3)


@pytest.mark.slow
def test_the_json_has_the_floor_of_each_stage_and_tier_and_threads_come_back() -> None:
    before = torch.get_num_threads()
    report = bench(slices=1, device="cpu", threads=2)
    assert report.threads == 2
    assert torch.get_num_threads() == before
    values = report.to_json()
    by_name = {row["name"]: row for row in values["stages"]}
    assert list(by_name) == [
        "slice from the scan",
        "vision encoder",
        "U-Net, one step",
        "exact decoder",
        "fast decoder",
        "back to its grid",
    ]
    encoder = by_name["vision encoder"]
    assert encoder["floor_s"] == pytest.approx(encoder["gflop"] / values["gflop_per_s"])
    assert by_name["back to its grid"]["floor_s"] is None
    tier = values["tiers"][1]
    assert tier["floor_slices_per_s"] == pytest.approx(values["gflop_per_s"] / tier["gflop"])
    assert tier["dice"] is None


@pytest.mark.slow
def test_slices_come_from_a_phantom_where_the_prepared_set_is_not(
    tiny_run: Workspace, tmp_path: Path
) -> None:
    assert bench(tiny_run.run.path, workspace=tmp_path, slices=1, device="cpu").slices == 1


def test_dice_counts_slices_with_foreground_in_either() -> None:
    one = np.zeros((3, 2, 2), bool)
    other = one.copy()
    one[0, 0] = True  # 2 against 1, 1 in both: 2/3
    other[0, 0, 0] = True
    other[1] = True  # 0 against 4: 0
    assert bench_module._mean_dice(one, other) == pytest.approx((2 / 3 + 0) / 2)
    assert bench_module._mean_dice(one[2:], other[2:]) == 1.0


@pytest.mark.parametrize(("option", "value"), [("slices", 0), ("threads", 0)])
def test_fewer_than_one_is_refused(option: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"--{option} is 0"):
        bench(device="cpu", **{option: value})
