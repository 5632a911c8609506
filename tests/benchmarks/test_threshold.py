"""What benchmarks/threshold.py prints, of rows made by hand."""

from __future__ import annotations

from benchmarks.results import Row
from benchmarks.threshold import table


def scored(threshold: float, dice: float, predicted: int) -> Row:
    voxels = {"predicted_voxels": predicted, "reference_voxels": 100}
    return {
        "threshold": threshold,
        "cases": [{"id": "a", "dice": dice, "precision": 0.5, "recall": None, **voxels}],
    }


def test_a_run_has_a_line_at_a_half_and_one_with_its_own_threshold() -> None:
    row = {"half": scored(0.5, 0.4, 150), "own": scored(0.65, 0.6, 90)}
    _, _, half, own = table({"set/run": row}).splitlines()
    assert half == "| set/run | 0.50 | 0.400 | - | 0.50 | nan | 1.50 |"
    assert own == "| set/run | 0.65 | 0.600 | +0.200 | 0.50 | nan | 0.90 |"
