"""Names of files and cases."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdseg_cli.filenames import natural_key, safe_id, stem_of, suffix_of


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
