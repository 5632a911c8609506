from __future__ import annotations

import os
from pathlib import Path

import pytest

from sdseg_cli.core.errors import DataError
from sdseg_cli.core.json_files import parse_json, read_json, read_object, too_deep
from tests.json_cases import DAMAGED, OF_ANOTHER_KIND


@pytest.mark.parametrize("what", DAMAGED)
def test_damage_is_one_clear_error_that_names_the_file(tmp_path: Path, what: str) -> None:
    (tmp_path / "x.json").write_bytes(DAMAGED[what])
    with pytest.raises(DataError, match=r"x\.json: damaged \(") as caught:
        read_json(tmp_path / "x.json", "Do this.")
    assert (caught.value.hint, caught.value.code) == ("Do this.", "damaged")
    assert len(caught.value.message) < 300 + len(str(tmp_path))


@pytest.mark.parametrize("what", OF_ANOTHER_KIND)
def test_what_is_no_object_is_refused_where_one_is_wanted(tmp_path: Path, what: str) -> None:
    (tmp_path / "x.json").write_bytes(OF_ANOTHER_KIND[what])
    with pytest.raises(DataError, match="not a JSON object"):
        read_object(tmp_path / "x.json")


def test_what_other_programs_put_before_the_text_is_passed_over(tmp_path: Path) -> None:
    text = '{"größe": [1, -2.5, true, null, "\\ud83d\\ude00"]}'
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "x.json").write_text(text, encoding=encoding)
        assert read_object(tmp_path / "x.json") == {"größe": [1, -2.5, True, None, "😀"]}


def test_sizes_and_times_in_nanoseconds_are_whole_numbers() -> None:
    assert parse_json(f"[{2**64 - 1}, {-(2**64) + 1}]", source="x") == [2**64 - 1, 1 - 2**64]


def test_64_levels_are_allowed_and_no_more() -> None:
    value: list[object] = []
    for _ in range(64):
        value = [value]
    assert not too_deep(value)
    assert too_deep([value])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this platform")
def test_a_pipe_a_folder_and_nothing_are_told_apart_and_none_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, said in (("pipe", "is no file"), (".", "is no file"), ("gone", "cannot be read")):
        with pytest.raises(DataError, match=said):
            read_json(tmp_path / name)
