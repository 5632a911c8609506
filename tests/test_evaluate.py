"""Scores of masks made of blocks, so that every Dice is counted by hand."""

from __future__ import annotations

import csv
import json
import os

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from sdseg_cli.config import SampleConfig
from sdseg_cli.datasets.manifest import Manifest
from sdseg_cli.errors import ConfigError, DataError, GeometryError
from sdseg_cli.evaluate import evaluate
from sdseg_cli.evaluate_folders import evaluate_folders
from tests.fake_run import AFFINE, EMPTY, SHAPE, Workspace, block, make_workspace, write_nifti

# Each block has 4 columns x 4 rows x 2 slices = 32 voxels; moved by 2 columns half of it overlaps.
FOUR, MOVED = block(slice(4, 8)), block(slice(6, 10))


@pytest.fixture(autouse=True)
def drawn(monkeypatch) -> dict:
    """What would be drawn, path -> rows: drawing takes a second and is tested with `report`."""
    pictures: dict = {}
    monkeypatch.setattr("sdseg_cli.evaluate.save_cases", pictures.__setitem__)
    return pictures


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    made = make_workspace(tmp_path, {"a": FOUR, "b": FOUR, "c": FOUR, "nothing": EMPTY})
    made.answers(b=MOVED, c=EMPTY)
    return made


def run(workspace: Workspace, **options):
    return evaluate(None, workspace.root, predictor=workspace.predictor, **options)


def test_scores_are_those_counted_by_hand(workspace):
    found = run(workspace).to_json()
    assert found["cases"] == [
        {"id": "a", "dice": 1.0, "iou": 1.0},
        {"id": "b", "dice": 0.5, "iou": pytest.approx(1 / 3)},
        {"id": "c", "dice": 0.0, "iou": 0.0},
    ]
    assert found["metrics"]["dice"] | {"ci95": None} == {
        "mean": 0.5,
        "median": 0.5,
        "ci95": None,
        "n": 3,
    }
    low, high = found["metrics"]["dice"]["ci95"]
    assert 0 <= low < 0.5 < high <= 1
    assert found["metrics"]["iou"]["mean"] == pytest.approx(4 / 9)
    assert (found["grid"], found["protocol"], found["split"]) == ("native", "standard", "test")
    assert found["run"] == str(workspace.run)
    assert found["sample"] == {"steps": 1, "eta": 0.0, "samples": 1, "noise": "slice", "flips": ""}
    assert found["decoder"] == "exact"


def test_a_case_empty_on_both_sides_is_excluded_and_listed(workspace):
    report = run(workspace)
    assert report.to_json()["excluded"] == ["nothing"]
    with (workspace.run / "report" / "test" / "evaluate.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == [
        "id",
        "dice",
        "iou",
        "reference_voxels",
        "predicted_voxels",
        "grid",
        "protocol",
    ]
    assert list(rows[3].values()) == ["nothing", "", "", "0", "0", "native", "standard"]
    assert list(rows[2].values()) == ["c", "0.0", "0.0", "32", "0", "native", "standard"]


def test_the_report_is_written_as_strict_json(workspace):
    def refuse(constant: str):
        raise AssertionError(constant)

    report = run(workspace)
    text = (workspace.run / "report" / "test" / "evaluate.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=refuse) == report.to_json()


def test_best_median_and_worst_are_drawn(workspace, drawn):
    report = run(workspace)
    names = [file.name for file in report.files]
    assert names == [
        "evaluate.csv",
        "evaluate.json",
        "best.png",
        "median.png",
        "worst.png",
        "cases.png",
    ]
    headings = [[(row.heading, row.case_id, row.dice) for row in rows] for rows in drawn.values()]
    each = [("best", "a", 1.0), ("median", "b", 0.5), ("worst", "c", 0.0)]
    assert headings == [each[:1], each[1:2], each[2:], each]
    assert [file.name for file in drawn] == names[2:]


def test_masks_lie_on_the_scans_grid(workspace):
    run(workspace)
    written = nib.load(workspace.run / "predictions" / "test" / "b.nii.gz")
    assert np.array_equal(written.affine, AFFINE)
    assert np.array_equal(np.asarray(written.dataobj), MOVED)


@pytest.mark.parametrize("grid", ["native", "model"])
def test_of_what_it_draws_it_predicts_one_slice_once_more(workspace, drawn, grid):
    workspace.predictor.certainty = 0.75
    run(workspace, grid=grid, seed=3)
    assert [case for case, *_ in workspace.predictor.calls] == ["a", "b", "c", "nothing"]
    # The blocks lie in slices 1 and 2, and the first of the fullest is drawn.
    asked = sorted(workspace.predictor.slices, key=lambda one: one[0])
    assert asked == [(case, 1, 3, SampleConfig()) for case in "abc"]
    (row,) = next(rows for path, rows in drawn.items() if path.name == "median.png")
    assert (row.case_id, row.slice_index, row.probability.max()) == ("b", 1, 0.75)


def test_a_second_call_predicts_only_what_it_draws(workspace):
    run(workspace)
    for calls in (workspace.predictor.calls, workspace.predictor.slices):
        calls.clear()
    second = run(workspace)
    assert workspace.predictor.calls == []
    assert sorted(case for case, *_ in workspace.predictor.slices) == ["a", "b", "c"]
    assert second.to_json()["metrics"]["dice"]["mean"] == 0.5


def test_a_mask_that_was_taken_away_before_it_is_drawn_is_predicted_anew(workspace, monkeypatch):
    monkeypatch.setattr("sdseg_cli.report.kept_masks.KeptMasks.find", lambda *_: None)
    assert [file.name for file in run(workspace).files][-1] == "cases.png"
    assert sorted(case for case, *_ in workspace.predictor.calls[4:]) == ["a", "b", "c"]


@pytest.mark.parametrize("change", ["seed", "sample", "checkpoint", "scan", "mask", "index"])
def test_a_mask_that_might_come_out_otherwise_is_predicted_anew(workspace, change):
    run(workspace)
    workspace.predictor.calls.clear()
    folder, options = workspace.run / "predictions" / "test", {}
    if change == "seed":
        options["seed"] = 7
    elif change == "sample":
        options["sample"] = SampleConfig(samples=2)
    elif change == "checkpoint":
        (workspace.run / "checkpoints" / "best.pt").write_bytes(b"another checkpoint")
    elif change == "scan":
        os.utime(workspace.scan("nothing"), ns=(1, 1))
    elif change == "mask":
        write_nifti(folder / "nothing.nii.gz", FOUR)
    else:
        (folder / "predictions.json").write_text("{damaged", encoding="utf-8")
    report = run(workspace, **options)
    expected = "nothing", options.get("seed", 0), options.get("sample", SampleConfig())
    assert expected in workspace.predictor.calls
    assert report.excluded == ("nothing",)


def test_the_model_grid_is_scored_on_the_prepared_planes(workspace):
    report = run(workspace, grid="model")
    assert report.grid == "model"
    values = {result.case_id: result for result in report.cases}
    assert values["b"].values["dice"] == 0.5
    assert values["b"].reference_voxels == 32 * 16 * 16  # 16 voxels a side become 256 pixels
    assert report.excluded == ("nothing",)


def test_the_official_protocol_scores_empty_masks_its_own_way(workspace):
    workspace.answers(nothing=FOUR)
    report = run(workspace, protocol="official")
    assert (report.grid, report.excluded) == ("model", ())
    assert [result.values["dice"] for result in report.cases] == [1.0, 0.5, 0.0, 1.0]
    workspace.answers(nothing=EMPTY)
    report = run(workspace, protocol="official")
    assert [result.values["dice"] for result in report.cases] == [1.0, 0.5, 0.0, 0.0]
    assert "empty reference" in report.notes[0]


def test_a_single_case_has_no_interval_but_pictures(tmp_path):
    made = make_workspace(tmp_path, {"only": FOUR})
    report = run(made)
    assert report.metrics["dice"].to_json() == {
        "mean": 1.0,
        "median": 1.0,
        "ci95": [None, None],
        "n": 1,
    }
    assert (len(made.predictor.calls), len(made.predictor.slices)) == (1, 1)  # scored, drawn


def test_progress_counts_slices_up_to_the_total(workspace):
    told: list[tuple[int, int, str]] = []
    run(workspace, progress=lambda *values: told.append(values))
    assert told[3] == (16, 16, "case nothing")
    assert told[-1][:2] == (12, 12)  # three pictures of four slices each


def test_unknown_options_are_refused(workspace):
    for options in ({"split": "all"}, {"grid": "voxel"}, {"protocol": "paper"}):
        with pytest.raises(ConfigError, match="is '"):
            run(workspace, **options)
    with pytest.raises(ConfigError, match="no val case"):
        run(workspace, split="val")
    assert not (workspace.run / "report").exists()


def test_a_set_prepared_anew_is_refused(workspace):
    text = workspace.manifest.path.read_text(encoding="utf-8")
    workspace.manifest.path.write_text(text.replace("0" * 64, "1" * 64), encoding="utf-8")
    assert Manifest.load(workspace.manifest.path).split["sha256"] == "1" * 64
    with pytest.raises(ConfigError, match="prepared anew"):
        run(workspace)


def test_a_label_on_another_grid_is_refused(workspace):
    shifted = AFFINE.copy()
    shifted[0, 3] += 40
    write_nifti(workspace.root / "raw" / "b_label.nii.gz", FOUR, shifted)
    apart = r"case b: scan .* and label .* lie up to 20 voxels apart"
    with pytest.raises(GeometryError, match=apart):
        run(workspace)


def test_folders_are_scored_by_name(tmp_path):
    write_nifti(tmp_path / "pred" / "x.nii", MOVED)
    write_nifti(tmp_path / "pred" / "deep" / "y.nii.gz", FOUR)
    write_nifti(tmp_path / "pred" / "extra.nii.gz", FOUR)
    write_nifti(tmp_path / "ref" / "x.nii.gz", FOUR * 3)
    write_nifti(tmp_path / "ref" / "deep" / "y.nii.gz", FOUR * 5)
    found = evaluate_folders(tmp_path / "pred", tmp_path / "ref").to_json()
    assert [(case["id"], case["dice"]) for case in found["cases"]] == [("deep/y", 1.0), ("x", 0.5)]
    assert (found["run"], found["notes"]) == (None, ["not scored, no reference: extra"])
    only = evaluate_folders(
        tmp_path / "pred", tmp_path / "ref", target=(5,), report=tmp_path / "out"
    )
    assert [case.values["dice"] for case in only.cases] == [1.0, 0.0]  # x has no label 5
    assert [file.name for file in only.files] == ["evaluate.csv", "evaluate.json"]


def test_a_mask_stored_in_another_order_of_axes_scores_the_same(tmp_path):
    """A reference in LAS against a mask in LPS: one grid, the y axis the other way round."""
    turned = AFFINE.copy()
    turned[:, 1] *= -1
    turned[:, 3] = AFFINE @ [0, SHAPE[1] - 1, 0, 1]
    write_nifti(tmp_path / "pred" / "x.nii", MOVED)
    write_nifti(tmp_path / "ref" / "x.nii", FOUR[:, ::-1], turned)
    write_nifti(tmp_path / "same" / "x.nii", FOUR)
    one, other = (evaluate_folders(tmp_path / "pred", tmp_path / ref) for ref in ("ref", "same"))
    assert one.to_json()["metrics"] == other.to_json()["metrics"]
    assert 0 < one.to_json()["metrics"]["dice"]["mean"] < 1
    write_nifti(tmp_path / "wrong" / "x.nii", FOUR, turned @ np.diag([1, -1, -1, 1]))
    with pytest.raises(GeometryError, match="voxels apart"):
        evaluate_folders(tmp_path / "pred", tmp_path / "wrong")


def test_folders_that_do_not_match_are_refused(tmp_path):
    pred, ref = tmp_path / "pred", tmp_path / "ref"
    with pytest.raises(DataError, match="no such folder"):
        evaluate_folders(pred, ref)
    write_nifti(pred / "x.nii.gz", FOUR)
    ref.mkdir()
    with pytest.raises(DataError, match="no masks"):
        evaluate_folders(pred, ref)
    for name in "xyz":
        write_nifti(ref / f"{name}.nii.gz", FOUR)
    with pytest.raises(DataError, match="no mask for 2 of 3 cases: y, z"):
        evaluate_folders(pred, ref)
    write_nifti(pred / "y.nii.gz", FOUR)
    write_nifti(pred / "z.nii.gz", np.zeros((16, 16, 5), np.uint8))
    sizes = r"case z: prediction .* has shape \(16, 16, 5\), reference .* \(16, 16, 4\)"
    with pytest.raises(GeometryError, match=sizes):
        evaluate_folders(pred, ref)
    write_nifti(pred / "z.nii", FOUR)
    with pytest.raises(DataError, match="both case z"):
        evaluate_folders(pred, ref)
    with pytest.raises(ConfigError, match="own grid"):
        evaluate_folders(pred, ref, protocol="official")


def test_the_toy_scan_has_the_shape_the_blocks_assume():
    assert FOUR.shape == SHAPE
    assert (int(FOUR.sum()), int((FOUR & MOVED).sum())) == (32, 16)


def test_a_case_that_is_best_median_and_worst_is_one_row(tmp_path, drawn):
    made = make_workspace(tmp_path, {"only": FOUR})
    run(made)
    (rows,) = [rows for path, rows in drawn.items() if path.name == "cases.png"]
    assert [row.heading for row in rows] == ["best, median, worst"]


def test_references_of_pictures_are_read_by_the_rule_of_their_set(tmp_path):
    mask = np.zeros((20, 20), np.uint8)
    mask[5:10, 5:10] = 255
    soft = np.where(mask > 0, mask, 11).astype(np.uint8)  # nearly black, as some cvc masks are
    for folder, pixels in (("pred", mask), ("ref", soft)):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels).save(tmp_path / folder / "1.png")
    plain = evaluate_folders(tmp_path / "pred", tmp_path / "ref")
    by_rule = evaluate_folders(tmp_path / "pred", tmp_path / "ref", dataset="cvc")
    assert by_rule.to_json()["metrics"]["dice"]["mean"] == 1.0
    assert plain.to_json()["metrics"]["dice"]["mean"] == pytest.approx(2 * 25 / (25 + 400))
    with pytest.raises(ConfigError, match="Unknown data set adapter 'cvcc'"):
        evaluate_folders(tmp_path / "pred", tmp_path / "ref", dataset="cvcc")
