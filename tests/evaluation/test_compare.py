"""Two ways side by side; folders of blocks whose Dice are counted by hand."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from sdseg_cli.core.errors import ConfigError, DataError, RunError
from sdseg_cli.evaluation import compare as module
from sdseg_cli.evaluation.compare import Comparison, compare_runs
from sdseg_cli.evaluation.folders import FolderOptions
from sdseg_cli.metrics import ScoringOptions
from sdseg_cli.runs.run_folder import RunDir
from tests.evaluation.options import gathered
from tests.fake_run import AFFINE, EMPTY, block, make_workspace, write_nifti

# 4 columns x 4 rows x 2 slices = 32 voxels each; moved by 1, 2 columns: 3/4, 1/2 overlap.
ABOVE = block(slice(4, 8), rows=slice(10, 14))
FOUR, BY_ONE, BY_TWO = block(slice(4, 8)), block(slice(5, 9)), block(slice(6, 10))


def compare_folders(a: Path, b: Path, ref: Path, **options) -> Comparison:
    kinds = {"reading": FolderOptions, "options": ScoringOptions}
    return module.compare_folders(a, b, ref, **gathered(options, **kinds))


def folders(root: Path, **sides: dict) -> list[Path]:
    for side, masks in sides.items():
        for name, mask in masks.items():
            write_nifti(root / side / f"{name}.nii.gz", mask)
    return [root / side for side in sides]


def test_differences_are_b_minus_a_case_by_case(tmp_path):
    a, b, ref = folders(
        tmp_path,
        a={"x": BY_TWO, "y": FOUR},
        b={"x": BY_ONE, "y": FOUR},
        ref={"x": FOUR, "y": FOUR},
    )
    found = compare_folders(a, b, ref, workers=1)
    values = found.to_json()
    assert [(case["id"], case["dice_a"], case["dice_b"]) for case in values["cases"]] == [
        ("x", 0.5, 0.75),
        ("y", 1.0, 1.0),
    ]
    dice = values["metrics"]["dice"]
    assert (dice["n"], dice["a"], dice["b"], dice["difference"]) == (2, 0.75, 0.875, 0.125)
    assert (dice["better_a"], dice["better_b"], dice["p"]) == (0, 1, None)
    assert "Too few to test" in values["verdict"]
    assert found.files == ()


def test_six_better_cases_are_tested(tmp_path):
    names = "abcdef"
    worse = {name: block(slice(4 + n, 8 + n)) for n, name in enumerate(names)}
    a, b, ref = folders(
        tmp_path,
        a=worse | {"a": BY_ONE},
        b=dict.fromkeys(names, FOUR),
        ref=dict.fromkeys(names, FOUR),
    )
    found = compare_folders(a, b, ref, workers=1)
    # Every case is better with B: two of 2^6 patterns of signs are that extreme.
    assert found.metrics["dice"].p == pytest.approx(2 / 64)
    assert "B is better" in found.verdict
    assert "A is better" in compare_folders(b, a, ref, workers=1).verdict


def test_files_hold_the_same_numbers(tmp_path):
    a, b, ref = folders(
        tmp_path, a={"x": BY_TWO, "y": FOUR}, b={"x": FOUR, "y": FOUR}, ref={"x": FOUR, "y": FOUR}
    )
    found = compare_folders(a, b, ref, workers=1, report=tmp_path / "out")
    assert [path.name for path in found.files] == [
        "compare.csv",
        "compare.json",
        "compare.tex",
        "compare.png",
    ]
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == found.to_json()
    with (tmp_path / "out" / "compare.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["id"], row["dice_a"], row["dice_b"]) for row in rows] == [
        ("x", "0.5", "1.0"),
        ("y", "1.0", "1.0"),
    ]
    assert (tmp_path / "out" / "compare.png").read_bytes()[:4] == b"\x89PNG"


def test_cases_of_one_side_are_refused_or_left_out_and_named(tmp_path):
    a, b, ref = folders(
        tmp_path, a={"x": FOUR}, b={"x": BY_ONE, "y": FOUR}, ref={"x": FOUR, "y": FOUR}
    )
    with pytest.raises(DataError, match="no mask for 1 of 2 cases: y"):
        compare_folders(a, b, ref, workers=1)
    found = compare_folders(a, b, ref, workers=1, allow_missing=True)
    assert [case["id"] for case in found.to_json()["cases"]] == ["x"]
    assert any("only and left out: y" in note for note in found.to_json()["notes"])


def test_a_metric_that_one_side_lacks_is_counted(tmp_path):
    a, b, ref = folders(
        tmp_path, a={"x": EMPTY, "y": FOUR}, b={"x": FOUR, "y": FOUR}, ref={"x": FOUR, "y": FOUR}
    )
    values = compare_folders(a, b, ref, workers=1).to_json()
    distances = values["metrics"]["hd95_mm"]
    assert (distances["n"], distances["only_a"], distances["only_b"]) == (1, 0, 1)
    assert any(note.startswith("hd95_mm: 1 case ") for note in values["notes"])
    assert values["metrics"]["dice"]["n"] == 2


def test_finding_nothing_where_nothing_is_is_said(tmp_path):
    a, b, ref = folders(
        tmp_path, a={"x": EMPTY, "y": FOUR}, b={"x": FOUR, "y": FOUR}, ref={"x": EMPTY, "y": FOUR}
    )
    values = compare_folders(a, b, ref, workers=1).to_json()
    assert values["metrics"]["dice"]["n"] == 1
    assert any("only one of the two found nothing" in note for note in values["notes"])


def test_what_both_lack_or_both_find_empty_is_said(tmp_path):
    masks = {"x": FOUR, "y": EMPTY}
    a, b, ref = folders(tmp_path, a=masks, b=masks, ref={**masks, "z": FOUR})
    found = compare_folders(a, b, ref, workers=1, allow_missing=True)
    notes = found.to_json()["notes"]
    assert notes.count("1 of 3 cases have no mask and are not scored: z") == 1
    assert "empty reference, and both found nothing, so not compared: y" in notes


def test_what_one_side_has_to_say_of_its_files_is_passed_on(tmp_path):
    a, b, ref = folders(tmp_path, a={"x": FOUR + 2 * ABOVE}, b={"x": FOUR}, ref={"x": FOUR})
    notes = compare_folders(a, b, ref, workers=1).to_json()["notes"]
    assert any(note.startswith("A: 1 of 1 masks hold several labels") for note in notes)


def test_a_class_counts_where_both_have_it(tmp_path):
    """A finds class 2 at the wrong place of x, B not at all: B's distance is of class 1 alone."""
    organs = FOUR + 2 * ABOVE
    a, b, ref = folders(
        tmp_path,
        a={"x": BY_ONE + 2 * block(slice(4, 8), rows=slice(12, 16))},
        b={"x": BY_ONE},
        ref={"x": organs},
    )
    values = compare_folders(a, b, ref, workers=1, classes={1: (1,), 2: (2,)}).to_json()
    distance = values["metrics"]["hd95_mm"]
    assert distance["difference"] == 0.0  # of class 1, where both are the same
    assert distance["a"] == distance["b"] > 0
    assert values["metrics"]["dice"]["difference"] == (0.75 + 0) / 2 - (0.75 + 0.5) / 2
    assert any(n.startswith("hd95_mm: 1 pair of case and class") for n in values["notes"])


def test_ranks_and_mean_that_point_two_ways_name_no_winner():
    """B is better by 0.01 to 0.027 in 18 cases, and far worse in two: 0.313 - 1.1 below zero."""

    def side(values):
        rows = [{"id": str(n), "dice": value} for n, value in enumerate(values)]
        return {
            "metrics": {"dice": {}},
            "better": {"dice": "higher"},
            "classes": None,
            "cases": rows,
        }

    gains = [0.01 + n / 1000 for n in range(18)]
    found = Comparison(side([0.9] * 20), side([0.9 + g for g in gains] + [0.4, 0.3]), ("a", "b"))
    dice = found.metrics["dice"]
    assert dice.difference == pytest.approx((sum(gains) - 1.1) / 20)
    assert dice.p is not None
    assert dice.p < 0.05
    assert "B is better in more cases, A by the mean" in found.verdict
    assert "better on such cases" not in found.verdict


def test_a_folder_against_itself_is_refused(tmp_path):
    a, ref = folders(tmp_path, a={"x": FOUR}, ref={"x": FOUR})
    with pytest.raises(ConfigError, match="both A and B"):
        compare_folders(a, a, ref, workers=1)


def test_a_report_that_cannot_be_written_is_named_before_anything_is_scored(tmp_path):
    a, b, ref = folders(tmp_path, a={"x": BY_TWO}, b={"x": BY_ONE}, ref={"y": FOUR})
    (tmp_path / "file").write_text("a file")
    with pytest.raises(RunError, match=r"file/new/compare\.json: cannot be written"):
        compare_folders(a, b, ref, report=tmp_path / "file/new", workers=1)


def test_a_run_against_itself_is_refused(tmp_path):
    made = make_workspace(tmp_path, {"x": FOUR})
    with pytest.raises(ConfigError, match="both A and B"):
        compare_runs(RunDir(made.run), RunDir(made.run), made.root)


def two_runs(tmp_path, monkeypatch, answers_a, answers_b, references_b=None):
    """Two workspaces' runs, evaluated with predictors that give set answers."""
    from sdseg_cli.evaluation import compare
    from sdseg_cli.evaluation.evaluate import evaluate

    references = {"x": FOUR, "y": FOUR}
    made = [
        make_workspace(tmp_path / "one", references),
        make_workspace(tmp_path / "two", references_b or references),
    ]
    for workspace, answers in zip(made, (answers_a, answers_b), strict=True):
        workspace.answers(**answers)
    by_run = {workspace.run: workspace for workspace in made}

    def evaluated(run, _, **options):
        cases = replace(options.pop("cases"), predictor=by_run[run].predictor)
        return evaluate(run, by_run[run].root, cases=cases, **options)

    monkeypatch.setattr(compare, "evaluate", evaluated)
    return [RunDir(workspace.run) for workspace in made]


@pytest.mark.slow
def test_runs_are_compared_on_their_test_cases(tmp_path, monkeypatch):
    a, b = two_runs(tmp_path, monkeypatch, {"x": BY_TWO}, {"x": BY_ONE})
    found = compare_runs(a, b, tmp_path)
    assert found.metrics["dice"].difference == pytest.approx(0.125)
    assert found.files[0].parent == b.report / "compare" / "toy-tiny"
    assert found.names == ("toy/tiny", "toy/tiny")


@pytest.mark.slow
def test_runs_judged_on_other_references_are_refused(tmp_path, monkeypatch):
    other = {"x": BY_ONE, "y": FOUR}  # as many voxels, elsewhere
    a, b = two_runs(tmp_path, monkeypatch, {}, {}, references_b=other)
    with pytest.raises(DataError, match="case x: the two were judged on different references"):
        compare_runs(a, b, tmp_path)


def test_other_cases_of_another_set_are_refused_before_a_model_predicts(tmp_path, monkeypatch):
    from sdseg_cli.evaluation import compare

    made = make_workspace(tmp_path, {"x": FOUR, "y": FOUR})
    other = make_workspace(tmp_path / "other", {"x": FOUR, "z": FOUR})
    monkeypatch.setattr(compare, "evaluate", lambda *_, **__: pytest.fail("it predicted"))
    prepared, run = tmp_path / "prepared" / "second", tmp_path / "runs" / "second" / "tiny"
    run.parent.mkdir()
    (other.root / "prepared" / "toy").rename(prepared)
    other.run.rename(run)
    for file in (prepared / "manifest.json", run / "config.toml"):
        file.write_text(file.read_text().replace('"toy"', '"second"'))
    with pytest.raises(DataError, match="1 case is in toy/tiny only: y"):
        compare_runs(RunDir(made.run), RunDir(run), tmp_path)


def test_both_sides_reach_differently_beyond_a_cut_reference(tmp_path):
    """The reference is one, though each side is scored on a grid as large as it needs."""
    a, b = folders(tmp_path, a={"x": BY_TWO}, b={"x": BY_ONE + ABOVE})
    affine = AFFINE.copy()
    affine[:3, 3] = (AFFINE @ [4, 4, 1, 1])[:3]
    write_nifti(tmp_path / "ref" / "x.nii.gz", FOUR[4:8, 4:8, 1:3], affine)
    found = compare_folders(a, b, tmp_path / "ref", workers=1, resample=True)
    values = found.to_json()
    # 16 of 32 right and 16 beyond; 24 right, 8 and 32 beyond: 2 * 24 / (64 + 32).
    assert [(row["dice_a"], row["dice_b"]) for row in values["cases"]] == [(0.5, 0.5)]
    said = "predicted voxels beyond the reference's grid, counted as false: x"
    assert {f"A: {said} (16)", f"B: {said} (40)"} <= {*values["notes"]}
