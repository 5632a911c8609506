from __future__ import annotations

import os
from pathlib import Path

import pytest

from sdseg_cli.core.errors import DataError
from sdseg_cli.core.json_files import parse_json, read_json, read_object, read_text, too_deep
from tests.json_cases import CODINGS, DAMAGED, OF_ANOTHER_KIND


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


@pytest.mark.parametrize("coding", CODINGS)
def test_text_is_read_by_the_mark_it_begins_with(tmp_path: Path, coding: str) -> None:
    text = '{"größe": [1, -2.5, true, null, "\\ud83d\\ude00"]}'
    (tmp_path / "a.json").write_text(text, encoding=coding)
    assert read_object(tmp_path / "a.json") == {"größe": [1, -2.5, True, None, "😀"]}
    (tmp_path / "a.txt").write_text("größe\r\n", encoding=coding)
    assert read_text(tmp_path / "a.txt", "").split() == ["größe"]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ('{"a": 1}'.encode("utf-16-le"), "UTF-16 without its mark"),
        ('{"ä": 1}'.encode("latin-1"), "not UTF-8 text"),
        (b"\xff\xfe{", "not UTF-8 text"),
        (b"", "damaged"),
        (b"[1]", "not a JSON object"),
        (b'{"a": ' * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number of 5000 digits"),
        (b'{"a": NaN}', "NaN is no number of JSON"),
        (b'{"a": -Infinity}', "-Infinity is no number"),
        (b'{"a": 1e999}', "1e999 is beyond any number"),
    ],
)
def test_what_is_no_json_is_named_with_its_cause(tmp_path: Path, data: bytes, why: str) -> None:
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(DataError, match=why) as caught:
        read_object(tmp_path / "a.json", "Write it again.")
    assert caught.value.hint.endswith("Write it again.")


def test_sizes_and_times_in_nanoseconds_are_whole_numbers() -> None:
    assert parse_json(f"[{2**64 - 1}, {-(2**64) + 1}]", source="x") == [2**64 - 1, 1 - 2**64]
    assert parse_json(str(2**70), source="x", largest=2**71) == 2**70
    with pytest.raises(DataError, match="is beyond any whole number"):
        parse_json(str(2**71), source="x", largest=2**71)


def test_64_levels_are_allowed_and_no_more() -> None:
    value: list[object] = []
    for _ in range(64):
        value = [value]
    assert not too_deep(value)
    assert too_deep([value])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this platform")
def test_a_pipe_a_folder_and_nothing_are_distinguished_and_none_is_waited_for(
    tmp_path: Path,
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, said in (("pipe", "is no file"), (".", "is no file"), ("gone", "cannot be read")):
        with pytest.raises(DataError, match=said):
            read_json(tmp_path / name)
        with pytest.raises(DataError, match=said):
            read_text(tmp_path / name, "Do this.")


def test_text_that_is_none_is_named_with_its_cause(tmp_path: Path) -> None:
    for content, why in ((b"\xe4", "not UTF-8 text"), (b"a\0", "holds zero bytes")):
        (tmp_path / "a.txt").write_bytes(content)
        with pytest.raises(DataError, match=why) as caught:
            read_text(tmp_path / "a.txt", "Write it again.")
        assert caught.value.hint == "Save it as UTF-8. Write it again."
