from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sdseg_cli.core.errors import DataError
from sdseg_cli.data.extend import extended
from sdseg_cli.data.manifest import Manifest
from sdseg_cli.data.spec import Case
from tests.raw_cases import (
    AFFINE,
    IDS,
    SHAPE,
    contents,
    prepared,
    split_file,
    write_case,
    write_cases,
)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Three cases train, one validates, one tests."""
    raw, workspace = write_cases(tmp_path), tmp_path / "work"
    split = split_file(workspace, train=IDS[:3], val=IDS[3:4], test=IDS[4:])
    prepared(raw, workspace, name="set", split_file=split)
    return Manifest.load(workspace / "prepared" / "set")


def case_in(folder: Path, id: str) -> Case:
    return Case(id, folder / id / "image.nii.gz", folder / id / "label.nii.gz")


def new_case(folder: Path, id: str, seed: int = 77) -> Case:
    write_case(folder / id, seed)
    return case_in(folder, id)


def copied(manifest: Manifest, id: str, folder: Path) -> Case:
    """A case of the set, with its scan elsewhere and another mask."""
    (entry,) = (case for case in manifest.entries if case.id == id)
    (folder / "new_name").mkdir(parents=True)
    shutil.copy(entry.image, folder / "new_name" / "image.nii.gz")
    labels = np.zeros(SHAPE, np.uint16)
    labels[2:4, 2:4, 0] = 1
    nib.save(nib.Nifti1Image(labels, AFFINE), folder / "new_name" / "label.nii.gz")
    return case_in(folder, "new_name")


def test_an_added_case_trains_and_the_old_set_stays_as_it_is(
    manifest: Manifest, tmp_path: Path
) -> None:
    before = contents(manifest.root)
    found = extended(manifest, [new_case(tmp_path / "more", "pt_9")])
    assert (found.added, found.corrected) == (("pt_9",), ())
    assert contents(manifest.root) == before
    whole = Manifest.load(manifest.root.with_name("set-added-1"))
    assert [(case.id, case.split) for case in whole.entries] == [
        ("pt_1", "train"), ("pt_2", "train"), ("pt_3", "train"), ("pt_4", "val"),
        ("pt_9", "train"), ("pt_10", "test"),
    ]  # fmt: skip
    assert whole.split["rule"].endswith("; added to train: pt_9")
    assert whole.split["sha256"] != manifest.split["sha256"]
    settings = "normalisation", "crop", "size", "target"
    assert all(getattr(whole, name) == getattr(manifest, name) for name in settings)
    old, new = (one.pixels_file(one.entries[0]) for one in (manifest, whole))
    assert old.samefile(new)  # a link, not a copy
    assert whole.class_slices(whole.entries[4]) == [[1, 2], [4]]


def test_the_same_cases_give_the_same_set_and_others_the_next(
    manifest: Manifest, tmp_path: Path
) -> None:
    one, two = new_case(tmp_path / "more", "a", 77), new_case(tmp_path / "more", "b", 78)
    first = extended(manifest, [one])
    again = extended(manifest, [one])
    assert (first.found, again.found) == (False, True)
    assert again.manifest.root == first.manifest.root
    third = extended(manifest, [one, two])
    assert third.manifest.name == "set-added-2"
    later = extended(first.manifest, [two])
    assert later.manifest.name == "set-added-3"
    assert {case.id for case in later.manifest.cases("train")} == {*IDS[:3], "a", "b"}
    names = sorted(path.name for path in manifest.root.parent.iterdir())
    assert names == ["set", "set-added-1", "set-added-2", "set-added-3"]


def test_a_training_case_is_recognised_by_its_image_and_has_the_new_mask(
    manifest: Manifest, tmp_path: Path
) -> None:
    found = extended(manifest, [copied(manifest, "pt_2", tmp_path / "more")])
    assert (found.added, found.corrected) == ((), ("pt_2",))
    assert len(found.manifest.entries) == 5
    (case,) = (case for case in found.manifest.entries if case.id == "pt_2")
    assert case.label == tmp_path / "more" / "new_name" / "label.nii.gz"
    assert found.manifest.class_slices(case) == [[0], []]


@pytest.mark.parametrize(("id", "does"), [("pt_4", "validates"), ("pt_10", "tests")])
def test_what_judges_a_run_is_not_trained_on(
    manifest: Manifest, tmp_path: Path, id: str, does: str
) -> None:
    case = copied(manifest, id, tmp_path / "more")
    with pytest.raises(DataError, match=f"case new_name: its image is that of {id}, which {does}"):
        extended(manifest, [case])
    assert [path.name for path in manifest.root.parent.iterdir()] == ["set"]


def test_a_name_that_is_taken_gets_a_number_and_an_image_twice_is_refused(
    manifest: Manifest, tmp_path: Path
) -> None:
    case = new_case(tmp_path / "more", "PT_1")
    assert extended(manifest, [case]).added == ("PT_1-2",)
    twice = Case("x", case.image, case.label)
    shutil.copytree(tmp_path / "more" / "PT_1", tmp_path / "more" / "y")
    with pytest.raises(DataError, match=r"case y: its image is that of x, too\."):
        extended(manifest, [twice, case_in(tmp_path / "more", "y")])


def test_a_case_without_a_mask_or_of_another_grid_leaves_nothing(
    manifest: Manifest, tmp_path: Path
) -> None:
    case = new_case(tmp_path / "more", "a")
    other = tmp_path / "other.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((20, 24, 6), np.uint8), AFFINE), other)
    for label, said in ((None, "no label map"), (other, "case a: ")):
        with pytest.raises(DataError, match=said):
            extended(manifest, [Case("a", case.image, label)])
    assert [path.name for path in manifest.root.parent.iterdir()] == ["set"]


def test_a_set_with_folds_is_refused(tmp_path: Path) -> None:
    raw, workspace = write_cases(tmp_path), tmp_path / "work"
    prepared(raw, workspace, name="set", folds=2)
    folded = Manifest.load(workspace / "prepared" / "set")
    with pytest.raises(DataError, match="set has folds"):
        extended(folded, [new_case(tmp_path / "more", "a")])
