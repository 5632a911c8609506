"""Runs that differ by a known number of pixels."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sdseg_cli.config import SampleConfig
from sdseg_cli.errors import ConfigError, DataError
from sdseg_cli.model.store import WeightStore
from sdseg_cli.stability import stability
from tests.fake_run import EMPTY, Workspace, block, make_workspace

FOUR, MOVED = block(slice(4, 8)), block(slice(6, 10))
# Moved by half, 2 x 2 columns of 4 rows differ on each of 2 slices: 16 of a slice's 256 voxels.
DIFFERENT = 16 / 256
PSNR = -10 * math.log10(DIFFERENT)


@pytest.fixture(autouse=True)
def drawn(monkeypatch) -> dict:
    """What would be drawn, path -> the slice: drawing is tested with `report`."""
    pictures: dict = {}
    monkeypatch.setattr(
        "sdseg_cli.stability.stability_picture",
        lambda path, view, dice: pictures.__setitem__(path, (view, dice)),
    )
    return pictures


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch) -> WeightStore:
    """An empty weight store."""
    monkeypatch.setenv("SDSEG_WEIGHTS", str(tmp_path / "store"))
    return WeightStore.default()


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return make_workspace(tmp_path, {"a": FOUR, "b": FOUR})


def run(workspace: Workspace, **options):
    return stability(None, workspace.root, predictor=workspace.predictor, **options)


def test_one_run_is_refused(workspace):
    with pytest.raises(ConfigError, match="nothing to compare") as failure:
        run(workspace, runs=1)
    assert "at least 2" in failure.value.hint
    assert workspace.predictor.calls == []


def test_runs_that_agree_are_wholly_similar_and_their_psnr_is_absent(workspace):
    found = run(workspace, runs=3).to_json()
    for name in ("seg", "score"):
        assert found[name] == {"psnr": None, "ssim": 1.0, "ms_ssim": 1.0, "lpips": None}
    assert found["dice"] == {"mean": 1.0, "sd": 0.0, "by_run": [1.0, 1.0, 1.0]}
    # 2 cases x 2 slices with a reference x 2 other runs
    assert any("seg psnr: 8 of 8 pairs" in note and "absent" in note for note in found["notes"])
    assert any(note.startswith("lpips is absent") for note in found["notes"])


def test_psnr_is_that_of_the_pixels_that_differ(workspace):
    workspace.answers(a={0: FOUR, 1: MOVED}, b={0: FOUR, 1: MOVED})
    found = run(workspace, runs=2).to_json()
    assert found["seg"]["psnr"] == pytest.approx(PSNR)
    assert found["score"]["psnr"] == pytest.approx(PSNR)
    assert 0 < found["seg"]["ssim"] < 1
    assert 0 < found["seg"]["ms_ssim"] < 1
    assert not any("identical" in note for note in found["notes"])


def test_score_keeps_what_the_threshold_hides(workspace):
    workspace.predictor.certainty = 0.4
    workspace.answers(a={0: FOUR, 1: MOVED}, b=FOUR)
    found = run(workspace, runs=2).to_json()
    # No pixel exceeds 0.5, so the masks are empty and alike; the scores differ by 0.4 of the range.
    assert (found["seg"]["psnr"], found["seg"]["ssim"]) == (None, 1.0)
    assert found["score"]["psnr"] == pytest.approx(PSNR - 20 * math.log10(0.4), abs=1e-4)


def test_identical_pairs_are_counted_and_the_others_averaged(workspace):
    workspace.answers(a={0: FOUR, 1: MOVED})
    found = run(workspace, runs=2).to_json()
    assert found["seg"]["psnr"] == pytest.approx(PSNR)
    assert any("seg psnr: 2 of 4 pairs" in note for note in found["notes"])


def test_only_slices_with_a_reference_are_compared(workspace):
    beside = FOUR + block(slice(0, 4), slices=slice(0, 1))  # on a slice without reference
    workspace.answers(a={0: FOUR, 1: beside}, b=FOUR)
    assert run(workspace, runs=2).to_json()["seg"]["ssim"] == 1.0


def test_dice_spreads_over_runs_not_over_cases(workspace):
    workspace.answers(a={0: FOUR, 1: MOVED}, b={0: FOUR, 1: MOVED})
    found = run(workspace, runs=2).to_json()
    # Run 1 has Dice 1 on both cases, run 2 has 0.5: deviation 0.5 / sqrt(2).
    assert found["dice"]["by_run"] == [1.0, 0.5]
    assert found["dice"]["mean"] == 0.75
    assert found["dice"]["sd"] == pytest.approx(0.5 / math.sqrt(2))


def test_each_run_has_its_own_seed(workspace):
    ten = SampleConfig(steps=10)
    found = run(workspace, runs=3, seed=5, sample=ten).to_json()
    assert workspace.predictor.calls[:3] == [("a", 5, ten), ("a", 6, ten), ("a", 7, ten)]
    assert found["seeds"] == [5, 6, 7]
    assert found["sample"] == {"steps": 10, "eta": 0.0, "samples": 1, "noise": "slice", "flips": ""}


def test_a_case_without_reference_is_left_out_and_named(tmp_path):
    made = make_workspace(tmp_path, {"a": FOUR, "nothing": EMPTY})
    made.answers(nothing={0: EMPTY, 1: FOUR})
    found = run(made, runs=2).to_json()
    assert found["dice"]["by_run"] == [1.0, 1.0]
    assert found["seg"]["ssim"] == 1.0
    assert any("empty reference: nothing" in note for note in found["notes"])


def test_nothing_to_compare_leaves_nulls_and_a_reason(tmp_path, drawn):
    made = make_workspace(tmp_path, {"nothing": EMPTY})
    found = run(made, runs=2).to_json()
    assert found["seg"] == dict.fromkeys(("psnr", "ssim", "ms_ssim", "lpips"))
    assert found["dice"] == {"mean": None, "sd": None, "by_run": []}
    assert any("nothing was compared" in note for note in found["notes"])
    assert not drawn


def test_the_least_stable_case_is_drawn_at_its_largest_slice(workspace, drawn):
    workspace.answers(b={0: FOUR, 1: MOVED, 2: FOUR})
    report = run(workspace, runs=3)
    ((path, (view, dice)),) = drawn.items()
    assert path == report.files[-1] == workspace.run / "report" / "test" / "stability.png"
    assert (view.case_id, view.slice_index, view.probability.shape) == ("b", 1, (3, 256, 256))
    assert dice == {"a": (1.0, 1.0, 1.0), "b": (1.0, 0.5, 1.0)}


def test_files_hold_a_row_per_case_and_run_and_strict_json(workspace):
    def refuse(constant: str):
        raise AssertionError(constant)

    workspace.answers(b={0: FOUR, 1: MOVED})
    report = run(workspace, runs=2)
    folder = workspace.run / "report" / "test"
    text = (folder / "stability.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=refuse) == report.to_json()
    with (folder / "stability.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["id"], row["run"], row["seed"], row["dice"]) for row in rows] == [
        ("a", "1", "0", "1.0"),
        ("a", "2", "1", "1.0"),
        ("b", "1", "0", "1.0"),
        ("b", "2", "1", "0.5"),
    ]
    assert [row["seg_psnr"] for row in rows[:3]] == ["", "", ""]
    assert float(rows[3]["seg_psnr"]) == pytest.approx(PSNR)


def test_lpips_is_measured_over_all_slices_when_weights_are_given(workspace, tmp_path):
    generator = torch.Generator().manual_seed(0)
    for file, shapes in (("backbone", backbone_shapes()), ("linear", linear_shapes())):
        weights = {n: torch.rand(s, generator=generator) * 0.05 for n, s in shapes.items()}
        save_file(weights, tmp_path / f"{file}.safetensors")
    options = {
        "runs": 2,
        "lpips_backbone": tmp_path / "backbone.safetensors",
        "lpips_linear": tmp_path / "linear.safetensors",
    }
    workspace.answers(a={0: FOUR, 1: MOVED})
    report = run(workspace, **options)
    measured = report.comparisons[0].values["seg", "lpips"]
    assert len(measured) == 4  # all slices, of which the two without reference are alike
    assert measured[0] == measured[3] == 0
    # Two cases of four slices, one of them the same in both runs.
    assert report.to_json()["seg"]["lpips"] == pytest.approx(measured.sum() / 8)
    assert not any("lpips" in note for note in report.notes)
    del options["lpips_linear"]
    with pytest.raises(ConfigError, match="LPIPS needs two files"):
        run(workspace, **options)


def test_a_scan_that_no_longer_fits_its_planes_is_refused(workspace):
    planes = workspace.manifest.labels_file(workspace.manifest.cases("test")[0])
    np.save(planes, np.zeros((3, 256, 256), np.uint8))
    with pytest.raises(DataError, match="case a: prepared as"):
        run(workspace, runs=2)
