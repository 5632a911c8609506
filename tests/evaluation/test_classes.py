"""Two classes of hand-counted voxels: each, their mean, their union, and what does not count."""

from __future__ import annotations

import csv
import json

import nibabel as nib
import numpy as np
import pytest

from sdseg_cli.core.errors import DataError
from sdseg_cli.data.spec import ClassRule
from sdseg_cli.evaluation.compare import _compare, _require_same_classes
from sdseg_cli.evaluation.evaluate import evaluate
from sdseg_cli.evaluation.evaluation_split import SplitOptions
from sdseg_cli.evaluation.stability import StabilityOptions, stability
from sdseg_cli.metrics import ScoringOptions
from tests.fake_run import block, make_workspace

RULE = ClassRule(((2,), (5, 6)), ("left", "both, right"))
REFERENCE = 2 * block(slice(4, 8)) + 5 * block(slice(8, 12))
"""32 voxels of each."""
ANSWER = 2 * block(slice(4, 6)) + 5 * block(slice(6, 12))
"""Left: 16 voxels, all right. Right: 48, of which 32 are right."""


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """No pictures of cases, which take nine tenths of the time; slow tests draw them."""
    if not request.node.get_closest_marker("slow"):
        monkeypatch.setattr("sdseg_cli.evaluation.evaluate.save_cases", lambda *of: None)


def scored(workspace, **options):
    cases = SplitOptions(device="cpu", predictor=workspace.predictor)
    return evaluate(None, workspace.root, cases=cases, options=ScoringOptions(**options))


@pytest.fixture
def workspace(tmp_path):
    workspace = make_workspace(tmp_path, {"a": REFERENCE, "b": REFERENCE}, RULE)
    workspace.answers(a=ANSWER)
    return workspace


def test_each_class_their_mean_and_the_union_are_scored(workspace):
    found = scored(workspace).to_json()
    one, two = found["classes"]
    assert (one["name"], one["labels"], two["labels"]) == ("left", [2], [5, 6])
    # a: 2 * 16 / (16 + 32) and 2 * 32 / (48 + 32); b: all right
    assert [row["dice"] for row in one["cases"]] == [pytest.approx(2 / 3), 1.0]
    assert [row["dice"] for row in two["cases"]] == [pytest.approx(0.8), 1.0]
    assert one["metrics"]["dice"]["mean"] == pytest.approx(5 / 6)
    assert [row["dice"] for row in found["cases"]] == [pytest.approx(11 / 15), 1.0]
    assert found["metrics"]["dice"]["mean"] == pytest.approx(13 / 15)
    assert [row["dice"] for row in found["union"]["cases"]] == [1.0, 1.0]
    assert found["union"]["cases"][0]["predicted_voxels"] == 64


def test_the_models_planes_and_the_official_protocol_are_scored_by_class(workspace):
    found = scored(workspace, protocol="official").to_json()
    assert found["classes"][0]["cases"][0]["dice"] == pytest.approx(2 / 3)
    assert [one["dice"]["mean"] for one in found["protocols"]] == [pytest.approx(13 / 15)] * 3


def test_files_have_a_row_for_each_case_and_class(workspace):
    report = scored(workspace)
    table, summary, latex = report.files[:3]
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["id"], row["class"]) for row in rows] == [
        ("a", "left"), ("a", "both, right"), ("b", "left"), ("b", "both, right"),
    ]  # fmt: skip
    assert list(rows[0])[:2] == ["id", "class"]
    assert json.loads(summary.read_text()) == report.to_json()
    heads = [line.split(" & ")[0] for line in latex.read_text().splitlines() if " & " in line]
    assert heads == ["class", "left", "both, right", "mean", "union"]


@pytest.mark.slow
def test_pictures_are_drawn_of_predicted_and_of_kept_label_maps(workspace):
    names = {"best.png", "median.png", "worst.png", "cases.png"}
    for _ in range(2):
        files = {path.name: path for path in scored(workspace).files if path.name in names}
        assert set(files) == names
        for path in files.values():
            assert path.stat().st_size > 0
            path.unlink()


@pytest.mark.slow
def test_pictures_are_drawn_of_classes_that_overlap(tmp_path):
    rule = ClassRule(((2, 5), (5,)), ("whole", "core"))
    workspace = make_workspace(tmp_path, {"a": REFERENCE}, rule)
    workspace.answers(a=ANSWER)
    for _ in range(2):
        assert "best.png" in {path.name for path in scored(workspace).files if path.exists()}


def test_a_kept_label_map_is_used_again(workspace):
    first = scored(workspace).to_json()
    again = scored(workspace).to_json()
    assert len(workspace.predictor.calls) == 2
    assert again["classes"] == first["classes"]


def test_classes_that_overlap_are_kept_apart_and_used_again(tmp_path):
    rule = ClassRule(((2, 5), (5,)), ("whole", "core"))
    workspace = make_workspace(tmp_path, {"a": REFERENCE}, rule)
    workspace.answers(a=ANSWER)
    for _ in range(2):
        found = scored(workspace).to_json()
        dice = [one["cases"][0]["dice"] for one in found["classes"]]
        assert dice == [1.0, pytest.approx(0.8)]
    assert len(workspace.predictor.calls) == 1


@pytest.mark.parametrize("groups", [((2,), (5,)), ((5,),)])
def test_ignored_voxels_count_in_no_mask(tmp_path, groups):
    reference = np.where(block(slice(6, 8)), 9, REFERENCE)  # where the answer is wrong
    rule = ClassRule(groups, ("left", "right")[-len(groups) :], ignore=9)
    workspace = make_workspace(tmp_path, {"a": reference.astype(np.uint8)}, rule)
    workspace.answers(a=ANSWER)
    assert scored(workspace).to_json()["metrics"]["dice"]["mean"] == 1.0


def test_a_class_that_was_never_drawn_in_a_case_is_left_out_and_named(workspace, monkeypatch):
    monkeypatch.setattr(
        "sdseg_cli.evaluation.evaluation_split.drawn_classes",
        lambda case: ("left",) if case.id == "a" else None,
    )
    monkeypatch.setattr(
        "sdseg_cli.evaluation.evaluate.drawn_classes",
        lambda case: ("left",) if case.id == "a" else None,
    )
    found = scored(workspace).to_json()
    assert [row["id"] for row in found["classes"][1]["cases"]] == ["b"]
    assert found["undrawn"] == {"a": ["both, right"]}
    assert found["union"]["cases"][0]["dice"] == pytest.approx(2 / 3)
    assert any("never drawn" in note and "a (both, right)" in note for note in found["notes"])


def test_runs_are_compared_by_class_and_the_mean_decides(workspace):
    first = scored(workspace)
    workspace.answers(a=REFERENCE)
    (workspace.run / "checkpoints" / "best.pt").write_bytes(b"another")
    found = _compare(first, scored(workspace), ("A", "B"), ScoringOptions())
    values = found.to_json()
    assert values["metrics"]["dice"]["difference"] == pytest.approx(2 / 15)
    differences = [one["metrics"]["dice"]["difference"] for one in values["classes"]]
    assert differences == [pytest.approx(1 / 6), pytest.approx(0.1)]
    assert [row[0] for row in found.rows()][-2:] == ["dice left", "dice both, right"]


def test_runs_of_other_classes_are_refused():
    with pytest.raises(DataError, match="A has the classes left, both, right, B foreground"):
        _require_same_classes(RULE, ClassRule())


def test_the_dice_of_each_class_spreads_over_the_runs(workspace, monkeypatch):
    monkeypatch.setattr("sdseg_cli.evaluation.stability.stability_picture", lambda *of: None)
    workspace.answers(a={0: REFERENCE, 1: ANSWER})
    cases = SplitOptions(device="cpu", predictor=workspace.predictor)
    report = stability(None, workspace.root, options=StabilityOptions(2), cases=cases)
    # One class in place of the other is a disagreement, though all agree on the foreground.
    drawn = np.asarray(nib.load(report.maps[0]).dataobj.get_unscaled())
    assert np.array_equal(drawn, np.where(ANSWER != REFERENCE, 255, 0))
    found = report.to_json()
    left, right = found["classes"]
    assert left["dice"]["by_run"] == [1.0, pytest.approx(5 / 6)]
    assert right["dice"]["by_run"] == [1.0, pytest.approx(0.9)]
    # left: 16 of the 64 voxels it ever has, in both cases; right: 16 of 80
    assert left["flipped"]["of_foreground"] == 16 / 64
    assert right["flipped"]["of_foreground"] == 16 / 80
    assert found["flipped"]["of_foreground"] == 0.0
    assert found["dice"]["by_run"] == [1.0, 1.0]


def test_the_threshold_of_a_run_is_said_where_validation_chose_one(workspace, monkeypatch):
    assert "run_threshold" not in scored(workspace).to_json()
    workspace.predictor.run_threshold = 0.3
    assert scored(workspace).to_json()["run_threshold"] == 0.3
    monkeypatch.setattr("sdseg_cli.evaluation.stability.stability_picture", lambda *of: None)
    cases = SplitOptions(device="cpu", predictor=workspace.predictor)
    found = stability(None, workspace.root, options=StabilityOptions(2), cases=cases).to_json()
    assert found["run_threshold"] == 0.3
