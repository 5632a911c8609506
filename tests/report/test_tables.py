"""Reports must be readable by any program: strict JSON, plain CSV."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from sdseg_cli.report.tables import strict, write_csv, write_json


def test_what_json_cannot_say_becomes_null():
    assert strict({"a": math.nan, "b": [math.inf, 1.5], "c": (True, None)}) == {
        "a": None,
        "b": [None, 1.5],
        "c": [True, None],
    }


def test_paths_become_text_and_arrays_are_refused():
    assert strict([Path("a") / "b"]) == [str(Path("a") / "b")]
    with pytest.raises(TypeError, match="ndarray"):
        strict({"a": np.zeros(2)})


def test_numpy_numbers_are_numbers_in_json(tmp_path):
    write_json(tmp_path / "deep" / "x.json", {"value": np.float64(0.25), "name": "å"})
    text = (tmp_path / "deep" / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"value": 0.25, "name": "å"}
    assert "å" in text


def test_csv_leaves_absent_values_empty_and_keeps_every_digit(tmp_path):
    rows = [
        {"id": "a,b", "dice": 0.1 + 0.2, "voxels": 3},
        {"id": "c", "dice": math.inf, "voxels": None},
        {"id": "d"},
    ]
    write_csv(tmp_path / "x.csv", ["id", "dice", "voxels"], rows)
    expected = '"a,b",0.30000000000000004,3\nc,,\nd,,\n'
    assert (tmp_path / "x.csv").read_bytes().decode() == "id,dice,voxels\n" + expected


def test_an_unknown_column_is_refused_and_nothing_is_left(tmp_path):
    with pytest.raises(ValueError, match="fields not in"):
        write_csv(tmp_path / "x.csv", ["id"], [{"id": "a"}, {"id": "b", "extra": 1}])
    assert list(tmp_path.iterdir()) == []


def test_numpy_floats_are_written_as_plain_numbers(tmp_path):
    write_csv(tmp_path / "x.csv", ["dice"], [{"dice": np.float64(0.5)}])
    assert (tmp_path / "x.csv").read_text() == "dice\n0.5\n"
