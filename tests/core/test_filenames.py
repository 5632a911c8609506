"""Names of files and cases."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sdseg_cli.core.errors import DataError
from sdseg_cli.core.filenames import (
    as_path,
    as_text,
    matching,
    may_be_called_slice,
    natural_key,
    printable,
    real_path,
    require_there,
    safe_id,
    stem_of,
    storable,
    suffix_of,
    walked,
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


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def found_below(root: Path) -> list[str]:
    return [file.relative_to(root).as_posix() for _, files in walked(root) for file in files]


def test_files_come_folder_by_folder_in_natural_order_without_hidden_ones(tmp_path: Path) -> None:
    write(
        tmp_path, "pt_10/a", "pt_2/b10", "pt_2/b9", "z", ".hidden/x", "pt_2/.x", "__MACOSX/pt_2/y"
    )
    assert found_below(tmp_path) == ["z", "pt_2/b9", "pt_2/b10", "pt_10/a"]


def test_a_hidden_root_is_searched(tmp_path: Path) -> None:
    assert found_below(write(tmp_path / ".cache", "a")) == ["a"]


def test_links_to_folders_and_files_are_followed(tmp_path: Path) -> None:
    store = write(tmp_path / "store", "pt_2/m", "n")
    root = write(tmp_path / "root", "pt_1/m")
    (root / "pt_2").symlink_to("../store/pt_2")
    (root / "n").symlink_to(store / "n")
    (tmp_path / "entry").symlink_to("root")
    assert found_below(root) == found_below(tmp_path / "entry") == ["n", "pt_1/m", "pt_2/m"]


@pytest.mark.parametrize("target", [".", "..", "../..", "a", "a/b", "../root", "a/loop"])
def test_a_loop_gives_every_file_once(tmp_path: Path, target: str) -> None:
    root = write(tmp_path / "root", "a/b/x", "y")
    (root / "a/loop").symlink_to(root)
    (root / "again").symlink_to(target)
    (tmp_path / "entry").symlink_to("root")
    for place in (root, tmp_path / "entry"):
        assert found_below(place) == ["y", "a/b/x"]


def test_folders_that_lead_to_each_other_are_searched_once(tmp_path: Path) -> None:
    names = [f"pt_{n}" for n in range(6)]
    root = write(tmp_path, *(f"{name}/x" for name in names))
    for name in names:
        for other in names:
            (root / name / f"to_{other}").symlink_to(root / other)
    assert found_below(root) == [f"{name}/x" for name in names]


def test_a_folder_has_its_own_name_else_that_of_its_first_link(tmp_path: Path) -> None:
    write(tmp_path / "store", "x")
    root = write(tmp_path / "root", "real/y")
    for link, target in (("a", "real"), ("c_10", "../store"), ("c_9", "../store")):
        (root / link).symlink_to(target)
    assert found_below(root) == ["real/y", "c_9/x"]


def test_links_that_lead_nowhere_are_files(tmp_path: Path) -> None:
    for name, target in (("gone.nii", "/not/there"), ("me", "me")):
        (tmp_path / name).symlink_to(target)
    assert found_below(tmp_path) == ["gone.nii", "me"]
    with pytest.raises(DataError, match=r"gone\.nii: a link to /not/there, which is not there"):
        require_there(tmp_path / "gone.nii", "")
    with pytest.raises(DataError, match="me: a link to me"):
        require_there(tmp_path / "me", "")
    with pytest.raises(DataError, match=r"no.nii does not exist\."):
        require_there(tmp_path / "no.nii", "")


def test_a_folder_that_cannot_be_searched_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "open/x", "shut/y")
    real = os.scandir

    def scandir(path: Path) -> object:
        if path.name == "shut":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"shut: cannot be searched \(Permission denied\)"):
        found_below(tmp_path)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*/image.nii", ["pt_2/image.nii", "pt_3/image.nii", "pt_10/image.nii"]),
        ("**/image.nii", ["image.nii", "pt_2/image.nii", "pt_3/image.nii", "pt_10/image.nii"]),
        ("pt_?/image.nii", ["pt_2/image.nii", "pt_3/image.nii"]),
        ("./pt_[!3]/*.nii", ["pt_2/image.nii"]),
        ("pt_3/im*", ["pt_3/image.nii"]),
        ("pt_3/**/*.nii", ["pt_3/image.nii"]),
        ("image.nii", ["image.nii"]),
        (".old/*.nii", [".old/image.nii"]),
        ("none/*.nii", []),
    ],
)
def test_patterns_find_what_lies_in_linked_folders_and_nothing_hidden(
    tmp_path: Path, pattern: str, expected: list[str]
) -> None:
    write(tmp_path / "store", "image.nii")
    root = write(
        tmp_path / "root", "image.nii", "pt_2/image.nii", "pt_10/image.nii", ".old/image.nii"
    )
    write(root, "pt_2/._image.nii")
    (root / "pt_3").symlink_to("../store")
    assert [path.as_posix() for path in matching(root, pattern)] == expected


@pytest.mark.parametrize(
    ("name", "may"),
    [
        ("IM5", True),
        ("1.2.840.113619.2", True),
        ("scan.0007", True),
        ("A.IMA", True),
        ("x.dcm", True),
        ("README", False),
        ("DICOMDIR", False),
        ("Icon\r", False),
        ("Thumbs.db", False),
        ("plan.xml", False),
        ("notes.txt", False),
        ("IM0001.dcm:Zone.Identifier", False),
    ],
)
def test_which_names_may_be_slices(name: str, may: bool) -> None:
    assert may_be_called_slice(Path(name)) == may


def test_what_steers_a_terminal_is_made_visible() -> None:
    assert printable("a\x1b[31m\x07\x9d\x7f\u202e\u2028\ufeff\udcff\t\n") == (
        r"a\x1b[31m\x07\x9d\x7f\u202e\u2028\ufeff\xff\t\n"
    )
    assert printable("two\nlines", keep="\n") == "two\nlines"


@pytest.mark.parametrize(
    "name", ["scan 1.nii.gz", "Übung_é", "扫描", "\u0646\u200c\u0645", "👩\u200d⚕️", "a\u00a0b"]
)
def test_names_of_all_scripts_stay_as_they_are(name: str) -> None:
    assert printable(name) == name
