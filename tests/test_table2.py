"""What benchmarks/table2.py computes, on rows made by hand and on one run of seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.table2 import (
    Task,
    by_case,
    fitting_steps,
    measured,
    paired_difference,
    step_seconds,
    table,
)
from tests.conftest import Workspace

CPU = torch.device("cpu")


def row(model: str, seed: int, dice: dict[str, float | None]) -> dict[str, object]:
    return {
        "dataset": "set",
        "model": model,
        "seed": seed,
        "steps": 10,
        "training_s": 5.0,
        "parameters": 2_500_000,
        "gflop_per_slice": 7.25,
        "slices_per_s": 4.0,
        "cases": [{"id": case, "dice": value} for case, value in dice.items()],
    }


@pytest.mark.parametrize(("per_step", "steps"), [(0.5, 20), (3.0, 3), (40.0, 1)])
def test_so_many_steps_as_fit_the_budget(per_step: float, steps: int) -> None:
    assert fitting_steps(10.0, per_step) == steps


def test_seeds_are_averaged_case_by_case_and_cases_without_a_value_are_left_out() -> None:
    rows = [row("unet", 0, {"a": 0.5, "b": 0.2}), row("unet", 1, {"a": 0.7, "b": None})]
    assert by_case(rows, "dice") == {"a": pytest.approx(0.6)}


def test_differences_are_taken_within_cases() -> None:
    ours = {"a": 0.5, "b": 0.7, "c": 1.0}
    assert paired_difference(ours, {"a": 0.4, "b": 0.6}) == "-0.100 (-0.100 to -0.100)"
    assert paired_difference({"a": 0.5}, {"b": 0.5}) == "-"
    six = {name: 0.1 * n for n, name in enumerate("abcdef", start=1)}
    # All six are better with theirs: two of 2^6 patterns of signs are that extreme.
    assert paired_difference(dict.fromkeys(six, 0.0), six).endswith(", p 0.031")


def test_the_table_has_a_line_per_model_with_its_difference_to_sdseg() -> None:
    rows = [row("sdseg", 0, {"a": 0.5, "b": 0.7}), row("unet", 0, {"a": 0.4, "b": 0.6})]
    head, _, ours, theirs = table(rows).splitlines()
    assert head.startswith("| set | Dice | Dice less sdseg's | weights (M) | GFLOP/slice")
    assert ours == "| sdseg | 0.600 (0.500 to 0.700) | - | 2.50 | 7.25 | 4.00 | 10 | 5 | 1 |"
    assert "| -0.100 (-0.100 to -0.100) |" in theirs


@pytest.mark.slow
def test_a_row_is_trained_scored_and_timed(
    tiny_set: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.table2.MEASURED", 2)
    (tmp_path / "prepared").symlink_to(tiny_set.root / "prepared")
    task = Task(tmp_path, "tiny", "unet", 0, "tiny", 2.0, CPU)
    per_step = step_seconds(task)["seconds_per_step"]
    assert per_step > 0
    found = measured(task, 1.0)
    assert (found["steps"], found["model"], found["parameters"]) == (2, "unet", 3_532_753)
    assert [case["id"] for case in found["cases"]] == [
        case.id for case in tiny_set.manifest.cases("test")
    ]
    assert found["training_s"] > 0 and found["slices_per_s"] > 0
    assert table([found]).splitlines()[2].startswith("| unet | ")
