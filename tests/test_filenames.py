"""Names of files and cases."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sdseg_cli.filenames import (
    as_path,
    as_text,
    natural_key,
    real_path,
    safe_id,
    stem_of,
    storable,
    suffix_of,
)


@pytest.mark.parametrize(
    ("name", "suffix", "stem"),
    [
        ("img0001.nii.gz", ".nii.gz", "img0001"),
        ("a.b.NII", ".nii", "a.b"),
        ("x.mha", ".mha", "x"),
        ("notes.txt", None, "notes.txt"),
        ("scan.gz", None, "scan.gz"),
    ],
)
def test_suffix_and_stem(name: str, suffix: str | None, stem: str) -> None:
    assert (suffix_of(Path(name)), stem_of(Path(name))) == (suffix, stem)


def test_numbers_sort_by_value_and_prefixes_first() -> None:
    names = ["pt_10", "pt_2", "PT_3", "pt", "2", "10", "pt_2b"]
    assert sorted(names, key=natural_key) == ["2", "10", "pt", "pt_2", "pt_2b", "PT_3", "pt_10"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("site/pt 1", "site_pt_1"), ("../../etc", "etc"), ("Größe-1.2", "Größe-1.2"), ("..", "")],
)
def test_an_id_is_one_plain_file_name(text: str, expected: str) -> None:
    assert safe_id(text) == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"a_\xff.nii", r"a_\xff.nii"),
        (rb"a_\xff.nii", r"a_\x5cxff.nii"),
        ("größe/\U0001f642".encode(), "größe/\U0001f642"),
        (rb"back\slash", r"back\slash"),
        (b"\\\xff", r"\\xff"),
        (rb"\x5cx5c", r"\x5cx5cx5c"),
        (b"\xed\xa0\x80", r"\xed\xa0\x80"),
    ],
)
def test_a_path_is_text_and_again_the_same_path(name: bytes, text: str) -> None:
    path = Path(os.fsdecode(name))
    assert as_text(path) == text
    assert text.encode("utf-8")
    assert as_path(text) == path


def test_what_no_text_can_hold_is_written_out() -> None:
    assert storable("half \ud83d, byte \udcff, \u00df") == r"half \ud83d, byte \xff, ß"


def test_a_link_that_leads_to_itself_is_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert real_path(tmp_path / "loop") == tmp_path / "loop"
    assert real_path(tmp_path / "a\0b") == tmp_path / "a\0b"


def test_a_number_of_thousands_of_digits_is_sorted() -> None:
    assert natural_key("9" * 5000) > natural_key("10")
