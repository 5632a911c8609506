"""What `evaluate` shows of two folders of masks."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from sdseg_cli.cli.app import run_command
from sdseg_cli.cli.evaluate import _by_protocol, _fitting, _length
from tests.fake_run import EMPTY, block, write_nifti

FOUR, MOVED = block(slice(4, 8)), block(slice(6, 10))


def rows_of(out: str) -> list[list[str]]:
    """The cells of a printed table, line by line; empty cells are not seen."""
    return [re.split(r"\s{2,}", line.strip()) for line in out.splitlines()]


@pytest.fixture
def masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The options that name two folders: one half right, one far off, one empty on both sides."""
    monkeypatch.chdir(tmp_path)
    pairs = {"a_rather_long_name": (MOVED, FOUR), "b": (EMPTY, FOUR), "c": (EMPTY, EMPTY)}
    for name, pair in pairs.items():
        for folder, mask in zip(("pred", "ref"), pair, strict=True):
            write_nifti(tmp_path / folder / f"{name}.nii.gz", mask)
    return ["evaluate", "--pred", "pred", "--ref", "ref", "--workers", "1"]


def test_the_table_fits_80_columns_and_says_how_it_was_judged(
    masks: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run_command([*masks, "--tolerance", "3"]) == 0
    out, err = capsys.readouterr()
    assert max(map(len, out.splitlines())) <= 80
    assert "standard protocol, native grid, surface Dice within 3 mm\n" in out
    cells = {row[0]: row[1:] for row in rows_of(out)}
    half = ["0.500", "0.333", "0.500", "0.500", "4.00", "1.50", "0.750", "0.00"]
    assert cells["a_rather_long_name"] == half
    assert cells["b"] == ["0.000", "0.000", "-", "0.000", "-", "-", "0.000", "-0.38"]
    assert cells["mean"][:2] == ["0.250", "0.167"]
    assert cells["sd"][0] == "0.354"  # 0.25 x sqrt(2)
    assert cells["cases"] == ["2", "2", "1", "2", "1", "1", "2", "2"]
    assert "excluded c: reference and prediction are both empty" in err
    assert "hd95_mm and assd_mm leave out 1 of 2 cases with one empty mask (b)" in err


def test_a_narrow_terminal_gets_two_tables_and_loses_nothing(
    masks: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    assert run_command([*masks, "--lesions"]) == 0
    out = capsys.readouterr().out
    assert max(len(line) for line in out.splitlines() if "protocol" not in line) <= 70
    rows = [row for row in rows_of(out) if row[0] == "a_rather_long_name"]
    cells = [cell for row in rows for cell in row[1:]]
    assert len(rows) == 2
    assert cells == ["0.500", "0.333", "0.500", "0.500", "4.00", "1.50", "0.750", "0.00", "1.000"]


def test_a_long_name_is_folded_before_a_table_is_split() -> None:
    row = ["x" * 80, "1", "2"]  # the name takes 14 at least, each number 3, the margin 1
    assert _fitting(["case", "a", "b"], [row], 1, 21) == [[0, 1, 2]]
    assert _fitting(["case", "a", "b"], [row], 1, 20) == [[0, 1], [0, 2]]


def test_lesions_are_counted_only_where_they_are_asked_for(
    masks: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run_command([*masks, "--report", "plain"]) == 0
    for path in Path("plain").iterdir():
        words = "lesion" in path.read_text().lower(), "detection_f1" in path.read_text()
        assert words == (False, False), path
    assert json.loads(Path("plain/evaluate.json").read_text()).get("detection_iou", 1) is None
    capsys.readouterr()
    assert run_command([*masks, "--lesions", "--report", "all"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "surface Dice within 2 mm, lesions from IoU 0.1\n" in out
    cells = {row[0]: row[1:] for row in rows_of(out)}
    assert [row[-1] for row in (cells["b"], cells["mean"])] == ["0.000", "0.500"]
    found = json.loads(Path("all/evaluate.json").read_text())
    assert (found["detection_iou"], found["metrics"]["detection_f1"]["n"]) == (0.1, 2)
    assert found["cases"][0]["matched_lesions"] == 1
    assert "lesion" in Path("all/report.html").read_text().lower()


def test_sides_are_compared_by_lesions_only_where_it_is_asked_for(
    masks: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("ref", "other")
    compare = ["compare", "pred", "other", "--ref", "ref", "--workers", "1", "--json"]
    assert run_command(compare) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["detection_iou"], "detection_f1" in found["metrics"]) == (None, False)
    assert run_command([*compare, "--lesions"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["detection_iou"], found["metrics"]["detection_f1"]["n"]) == (0.1, 2)


def test_json_holds_what_the_report_does(
    masks: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command([*masks, "--json", "--report", "out", "--detection-iou", "0.4"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert json.loads(Path("out/evaluate.json").read_text()) == found
    assert found["detection_iou"] == 0.4
    assert found["cases"][0]["detection_f1"] == 0.0  # the IoU is a third


def test_classes_have_a_column_and_a_mean_each(
    masks: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "110")
    assert run_command([*masks, "--classes", "1,2"]) == 0
    rows = [row[:3] for row in rows_of(capsys.readouterr().out)]
    assert ["a_rather_long_name", "1", "0.500"] in rows
    assert ["mean", "1", "0.250"] in rows and ["mean", "2", "-"] in rows
    assert ["mean", "0.250", "0.167"] in rows  # of no one class


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--tolerance", "-1"], "--tolerance is -1"),
        (["--detection-iou", "2"], "--detection-iou is 2"),
        (["--classes", "1", "--target", "1"], "--classes and --target"),
        (["--classes", "0"], "--classes: label 0 is the background"),
        (["--classes", "liver"], "'liver' is no label"),
        (["--protocol", "paper"], "--protocol is 'paper'"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    masks: list[str], capsys: pytest.CaptureFixture[str], options: list[str], named: str
) -> None:
    assert run_command([*masks, *options]) == 2
    err = capsys.readouterr().err
    assert named in err and "Hint: " in err


@pytest.mark.parametrize("option", ["--resample", "--allow-missing", "--workers 2", "--classes 1"])
def test_options_of_folders_do_not_go_with_a_run(
    capsys: pytest.CaptureFixture[str], option: str
) -> None:
    assert run_command(["evaluate", *option.split()]) == 2
    assert f"{option.split()[0]} does not go with a run" in capsys.readouterr().err


def test_lengths_lose_a_decimal_where_they_are_long() -> None:
    shown = [_length(value) for value in (None, 0.0, 12.344, -123.46)]
    assert shown == ["-", "0.00", "12.34", "-123.5"]


def test_every_protocol_of_the_same_predictions_is_said() -> None:
    rows = [
        {"protocol": "standard", "grid": "native", "dice": {"mean": 0.8125}},
        {"protocol": "official", "grid": "model", "dice": {"mean": None}},
    ]
    said = "standard on the native grid 0.812, official on the model grid -"
    assert _by_protocol(rows) == said
