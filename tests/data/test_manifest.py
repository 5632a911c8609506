"""The manifest file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdseg_cli.core.errors import ConfigError, DataError
from sdseg_cli.data.manifest import (
    Manifest,
    PreparedCase,
    checked_name,
    checked_target,
    open_array,
    prepared_names,
)


def case(id: str, split: str) -> PreparedCase:
    image, label = Path(f"/raw/{id}.nii"), Path(f"/raw/{id}_l.nii")
    return PreparedCase(id, split, image, label, 4, f"cases/{id}", 2, (1, 1, 5), "0" * 64)


def manifest_in(root: Path) -> Manifest:
    return Manifest(
        root=root,
        name="set",
        adapter="folder",
        modality="CT",
        source=Path("/raw"),
        target=(1, 3),
        labels=(1, 2, 3),
        normalisation={"kind": "window", "low": -175.0, "high": 250.0},
        crop="none",
        size=256,
        split={"seed": 0, "rule": "80/10/10 by case", "sha256": "0"},
        entries=(case("pt_2", "train"), case("pt_10", "test")),
    )


def write(manifest: Manifest) -> Manifest:
    manifest.root.mkdir(parents=True, exist_ok=True)
    manifest.path.write_text(manifest.to_text(), encoding="utf-8")
    return manifest


def test_a_manifest_reads_back_as_it_was(tmp_path: Path) -> None:
    manifest = write(manifest_in(tmp_path))
    assert Manifest.load(tmp_path) == manifest
    assert Manifest.load(manifest.path) == manifest
    everything = write(replace(manifest, target=None))
    assert Manifest.load(tmp_path) == everything


def test_cases_are_listed_by_split_in_natural_order(tmp_path: Path) -> None:
    manifest = write(manifest_in(tmp_path))
    content = json.loads(manifest.path.read_text())
    content["cases"].reverse()
    manifest.path.write_text(json.dumps(content))
    loaded = Manifest.load(tmp_path)
    assert [entry.id for entry in loaded.cases()] == ["pt_2", "pt_10"]
    assert [entry.id for entry in loaded.cases("test")] == ["pt_10"]
    assert loaded.cases("val") == ()


def test_slices_with_foreground_come_from_the_cases_record(tmp_path: Path) -> None:
    manifest = write(manifest_in(tmp_path))
    (tmp_path / "cases/pt_2").mkdir(parents=True)
    record = {"label_slices": {"1": [4, 5], "2": [9], "3": [5, 0]}}
    (tmp_path / "cases/pt_2/case.json").write_text(json.dumps(record))
    assert manifest.foreground_slices(manifest.entries[0]) == [0, 4, 5]
    assert manifest.is_foreground(np.array([0, 1, 2, 3])).tolist() == [False, True, False, True]


def test_a_prepared_set_is_found_by_name_or_path(tmp_path: Path) -> None:
    manifest = write(manifest_in(tmp_path / "prepared/set"))
    for name in ("set", str(manifest.root), str(manifest.path)):
        assert Manifest.find(tmp_path, name) == manifest
    assert prepared_names(tmp_path) == ["set"]


def test_an_unknown_set_is_refused_with_the_ones_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'sts'") as caught:
        Manifest.find(tmp_path, "sts")
    assert "sdseg prepare" in caught.value.hint
    write(manifest_in(tmp_path / "prepared/set"))
    with pytest.raises(ConfigError) as caught:
        Manifest.find(tmp_path, "sts")
    assert caught.value.hint == "Prepared here: set."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{", "damaged"),
        ("[]", "not a JSON object"),
        ('{"format_version": 7}', "format version 7"),
        ('{"format_version": 1}', "incomplete"),
    ],
)
def test_a_damaged_manifest_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "manifest.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        Manifest.load(path)
    assert "sdseg prepare" in caught.value.hint


def test_a_set_is_named_by_one_plain_file_name() -> None:
    assert checked_name("hn-ct_2.1") == "hn-ct_2.1"
    for name in ("a/b", "..", "a b", ""):
        with pytest.raises(ConfigError):
            checked_name(name)


def test_targets_are_labels_ascending() -> None:
    assert checked_target((5, 1, 5)) == (1, 5)
    for target in ((), (0,), (-1, 2)):
        with pytest.raises(ConfigError):
            checked_target(target)


def test_a_manifest_from_before_there_was_cleaning_cleans_nothing(tmp_path: Path) -> None:
    content = json.loads(manifest_in(tmp_path).to_text())
    del content["cleaning"]
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    assert Manifest.load(tmp_path).cleaning == {}


def test_a_folder_of_scans_is_no_prepared_set_and_the_hint_says_how_it_becomes_one(
    tmp_path: Path,
) -> None:
    (tmp_path / "my scans").mkdir()
    with pytest.raises(ConfigError, match="No data set named") as caught:
        Manifest.find(tmp_path, str(tmp_path / "my scans"))
    assert caught.value.hint == (
        f"That is a folder of scans: prepare it first: sdseg prepare '{tmp_path}/my scans'"
    )


CLIMBING = [
    "../../x", "..", ".", "", "/etc/x", "a/b", "a\\b", "C:x", "a\0b", "a\nb", "\ud800", "x" * 300,
    "-", " a", "a ",
]  # fmt: skip


@pytest.mark.parametrize("id", CLIMBING)
def test_an_id_that_is_no_plain_file_name_is_refused(tmp_path: Path, id: str) -> None:
    content = json.loads(manifest_in(tmp_path).to_text())
    content["cases"][0]["id"] = id
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"manifest\.json: incomplete or damaged") as caught:
        Manifest.load(tmp_path)
    assert "sdseg prepare" in caught.value.hint


@pytest.mark.parametrize("folder", ["../x", "cases/../../x", "/x", "cases//x", "cases\\x", "", "."])
def test_arrays_stay_below_the_set(tmp_path: Path, folder: str) -> None:
    content = json.loads(manifest_in(tmp_path).to_text())
    content["cases"][1]["folder"] = folder
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="does not stay below the set"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("other", ["pt_2", "PT_2"])
def test_two_cases_of_one_folder_are_refused(tmp_path: Path, other: str) -> None:
    write(replace(manifest_in(tmp_path), entries=(case("pt_2", "train"), case(other, "test"))))
    with pytest.raises(DataError, match="is there twice"):
        Manifest.load(tmp_path)


WRONG: list[tuple[tuple[str | int, ...], object]] = [
    (("name",), "../x"),
    (("size",), "256"),
    (("size",), 0),
    (("size",), True),
    (("crop",), "head"),
    (("target",), [0]),
    (("target",), []),
    (("target",), [10**400]),
    (("labels",), None),
    (("labels",), ["1"]),
    (("source",), 7),
    (("split",), []),
    (("split", "sha256"), None),
    (("normalisation", "low"), "x"),
    (("normalisation", "kind"), "auto"),
    (("normalisation", "high"), -999),
    (("cleaning",), {"rm": 1}),
    (("cleaning",), {"smallest_voxels": True}),
    (("mask_levels",), [[1]]),
    (("cases",), []),
    (("cases",), {}),
    (("cases", 0), "pt_2"),
    (("cases", 0, "slices"), 1.5),
    (("cases", 0, "slices"), -1),
    (("cases", 0, "foreground_slices"), 99),
    (("cases", 0, "split"), "dev"),
    (("cases", 0, "spacing_mm"), [1, 1]),
    (("cases", 0, "spacing_mm"), [1, 0, 1]),
    (("cases", 0, "image"), None),
    (("cases", 0, "label"), "a\x00b"),
    (("cases", 0, "sha256"), 0),
]


@pytest.mark.parametrize(("place", "value"), WRONG)
def test_a_value_of_another_kind_is_one_error(
    tmp_path: Path, place: tuple[str | int, ...], value: object
) -> None:
    content = json.loads(manifest_in(tmp_path).to_text())
    inner: Any = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"manifest\.json: ") as caught:
        Manifest.load(tmp_path)
    assert len(caught.value.message) < 500 + len(str(tmp_path))


@pytest.mark.parametrize(
    "record",
    [
        "{}",
        "[]",
        '{"label_slices": 1}',
        '{"label_slices": {"x": [0]}}',
        '{"label_slices": {"1": [-1]}}',
    ],
)
def test_a_damaged_record_of_a_case_is_one_error(tmp_path: Path, record: str) -> None:
    manifest = write(manifest_in(tmp_path))
    file = tmp_path / "cases/pt_2/case.json"
    file.parent.mkdir(parents=True)
    file.write_text(record)
    with pytest.raises(DataError, match=r"case\.json: "):
        manifest.foreground_slices(manifest.cases()[0])


def test_an_array_is_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(6, dtype=np.uint8).reshape(2, 3))
    assert open_array(tmp_path / "a.npy").tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"(2, 3), }", b"(2, 3(, }"),  # parsed as Python: a token error
        (b"(2, 3), }", b"(2, 3), \n"),
        (b"(2, 3), }", b"(9, 9), }"),
        (b"(2, 3), }", b"(-2,3), }"),
        (b"'|u1'", b"'|O' "),
        (b"'|u1'", b"'|S1'"),
        (b"'|u1'", b"',,,,"),
        (b"NUMPY", b"numpy"),
    ],
)
def test_a_damaged_header_is_one_error(tmp_path: Path, old: bytes, new: bytes) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3), np.uint8))
    data = (tmp_path / "a.npy").read_bytes()
    assert old in data
    (tmp_path / "a.npy").write_bytes(data.replace(old, new))
    with pytest.raises(DataError, match=r"a\.npy: (missing or )?damaged") as caught:
        open_array(tmp_path / "a.npy")
    assert "sdseg prepare" in caught.value.hint


def test_an_archive_called_npy_is_no_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.zeros(3))
    (tmp_path / "a.npz").rename(tmp_path / "a.npy")
    with pytest.raises(DataError, match="no array of numbers"):
        open_array(tmp_path / "a.npy")


def folded(root: Path) -> Manifest:
    one = manifest_in(root)
    cases = [
        case("pt_1", "val"),
        case("pt_2", "train"),
        case("pt_3", "train"),
        case("pt_10", "test"),
    ]
    folds = [0, 1, 1, None]
    entries = tuple(replace(each, fold=fold) for each, fold in zip(cases, folds, strict=True))
    return replace(one, entries=entries)


def test_folds_read_back_and_stand_only_where_they_are(tmp_path: Path) -> None:
    manifest = write(folded(tmp_path))
    assert Manifest.load(tmp_path) == manifest
    assert manifest.folds == 2
    assert '"fold"' not in manifest_in(tmp_path).to_text()
    # A run on the set's own split does not depend on folds.
    plain = replace(manifest, entries=tuple(replace(one, fold=None) for one in manifest.entries))
    assert plain.inference_settings() == manifest.inference_settings()


def test_of_a_fold_its_cases_validate_and_the_others_train(tmp_path: Path) -> None:
    one = folded(tmp_path).of_fold(1)
    assert {case.id: case.split for case in one.entries} == {
        "pt_1": "train",
        "pt_2": "val",
        "pt_3": "val",
        "pt_10": "test",
    }
    assert one.fold == 1
    assert one.inference_settings() != folded(tmp_path).of_fold(0).inference_settings()
    assert folded(tmp_path).of_fold(-1) == folded(tmp_path)


def test_a_fold_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="folds 0 to 1"):
        folded(tmp_path).of_fold(2)
    with pytest.raises(ConfigError, match="has no folds") as caught:
        manifest_in(tmp_path).of_fold(0)
    assert "--folds 5" in caught.value.hint


@pytest.mark.parametrize(
    "folds", [[0, 1, None, None], [0, 2, 2, None], [0, 1, 1, 0], [0, -1, 1, None]]
)
def test_folds_that_cannot_be_are_damage(tmp_path: Path, folds: list[int | None]) -> None:
    manifest = folded(tmp_path)
    write(
        replace(
            manifest,
            entries=tuple(
                replace(one, fold=fold) for one, fold in zip(manifest.entries, folds, strict=True)
            ),
        )
    )
    with pytest.raises(DataError, match="damaged"):
        Manifest.load(tmp_path)
