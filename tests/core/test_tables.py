"""Reports must be readable by any program: strict JSON, plain CSV."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from sdseg_cli.core.tables import original, strict, write_csv, write_json


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


HOSTILE = [
    "=1+1", "+cmd", "-x", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "'=1", "''=1", "\x1b]0;t\x07",
    "\x7f", "\x9b31m", "\uff1d1", "a\rb", "a\nb", 'a"b', "a;=1", " a ", "'a", "--", "-1.5.2",
]  # fmt: skip


def test_no_cell_is_a_formula_and_each_comes_back(tmp_path):
    write_csv(tmp_path / "x.csv", ["id", "error"], [{"id": one, "error": "e"} for one in HOSTILE])
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as stream:
        cells = [row["id"] for row in csv.DictReader(stream)]
    assert len(cells) == len(HOSTILE)
    assert not any(cell.lstrip(" ")[0] in "=+-@\uff1d\t\r\n\x1b\x7f\x9b" for cell in cells)
    assert [original(cell) for cell in cells] == HOSTILE


def test_numbers_stay_numbers_and_plain_texts_as_they_are(tmp_path):
    plain = ["-1.5", "+2e-3", "-7", "a=1", "1-2", "it's", "'tis"]
    rows = [{"id": one, "value": -1.5} for one in plain]
    write_csv(tmp_path / "x.csv", ["id", "value"], rows)
    lines = (tmp_path / "x.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert lines == [f"{one},-1.5" for one in plain]
    assert [original(one) for one in plain] == plain


def test_a_line_of_one_empty_cell_is_no_empty_line(tmp_path):
    write_csv(tmp_path / "x.csv", ["id"], [{"id": None}])
    assert (tmp_path / "x.csv").read_bytes() == b'id\n""\n'


def test_names_that_are_no_utf_8_are_written(tmp_path):
    write_json(tmp_path / "x.json", {"name": "sc\udce9n"})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"name": "sc\\xe9n"}
    write_csv(tmp_path / "x.csv", ["id"], [{"id": "sc\udce9n"}])
    assert (tmp_path / "x.csv").read_bytes() == b"id\nsc\\xe9n\n"
