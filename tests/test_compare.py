"""Two ways side by side; folders of blocks whose Dice are counted by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from sdseg_cli.compare import Rules, compare_folders, compare_runs
from sdseg_cli.errors import ConfigError, DataError
from sdseg_cli.training.run_folder import RunDir
from tests.fake_run import EMPTY, block, make_workspace, write_nifti

# 4 columns x 4 rows x 2 slices = 32 voxels each; moved by 1, 2 columns: 3/4, 1/2 overlap.
FOUR, BY_ONE, BY_TWO = block(slice(4, 8)), block(slice(5, 9)), block(slice(6, 10))


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
    found = compare_folders(a, b, ref, workers=1, rules=Rules(allow_missing=True))
    assert [case["id"] for case in found.to_json()["cases"]] == ["x"]
    assert any("only and are left out: y" in note for note in found.to_json()["notes"])


def test_a_metric_that_one_side_lacks_is_counted(tmp_path):
    a, b, ref = folders(
        tmp_path, a={"x": EMPTY, "y": FOUR}, b={"x": FOUR, "y": FOUR}, ref={"x": FOUR, "y": FOUR}
    )
    values = compare_folders(a, b, ref, workers=1).to_json()
    distances = values["metrics"]["hd95_mm"]
    assert (distances["n"], distances["only_a"], distances["only_b"]) == (1, 0, 1)
    assert any(note.startswith("hd95_mm: 1 cases") for note in values["notes"])
    assert values["metrics"]["dice"]["n"] == 2


def test_finding_nothing_where_nothing_is_is_said(tmp_path):
    a, b, ref = folders(
        tmp_path, a={"x": EMPTY, "y": FOUR}, b={"x": FOUR, "y": FOUR}, ref={"x": EMPTY, "y": FOUR}
    )
    values = compare_folders(a, b, ref, workers=1).to_json()
    assert values["metrics"]["dice"]["n"] == 1
    assert any("only one of the two found nothing" in note for note in values["notes"])


def test_a_folder_against_itself_is_refused(tmp_path):
    a, ref = folders(tmp_path, a={"x": FOUR}, ref={"x": FOUR})
    with pytest.raises(ConfigError, match="both A and B"):
        compare_folders(a, a, ref, workers=1)


def test_a_run_against_itself_is_refused(tmp_path):
    made = make_workspace(tmp_path, {"x": FOUR})
    with pytest.raises(ConfigError, match="both A and B"):
        compare_runs(RunDir(made.run), RunDir(made.run), made.root)


def two_runs(tmp_path, monkeypatch, answers_a, answers_b, references_b=None):
    """Two workspaces' runs, evaluated with predictors that answer what they are told."""
    from sdseg_cli import compare
    from sdseg_cli.evaluate import evaluate

    references = {"x": FOUR, "y": FOUR}
    made = [
        make_workspace(tmp_path / "one", references),
        make_workspace(tmp_path / "two", references_b or references),
    ]
    for workspace, answers in zip(made, (answers_a, answers_b), strict=True):
        workspace.answers(**answers)
    by_run = {workspace.run: workspace for workspace in made}

    def evaluated(run, _, **options):
        return evaluate(run, by_run[run].root, predictor=by_run[run].predictor, **options)

    monkeypatch.setattr(compare, "evaluate", evaluated)
    return [RunDir(workspace.run) for workspace in made]


def test_runs_are_compared_on_their_test_cases(tmp_path, monkeypatch):
    a, b = two_runs(tmp_path, monkeypatch, {"x": BY_TWO}, {"x": BY_ONE})
    found = compare_runs(a, b, tmp_path)
    assert found.metrics["dice"].difference == pytest.approx(0.125)
    assert found.files[0].parent == b.report / "compare" / "toy-tiny"
    assert found.names == ("toy/tiny", "toy/tiny")


def test_runs_judged_on_other_references_are_refused(tmp_path, monkeypatch):
    other = {"x": BY_ONE, "y": FOUR}  # as many voxels, elsewhere
    a, b = two_runs(tmp_path, monkeypatch, {}, {}, references_b=other)
    with pytest.raises(DataError, match="case x: the two were judged on different references"):
        compare_runs(a, b, tmp_path)
