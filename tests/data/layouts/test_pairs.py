"""Pairs of pictures by their names."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdseg_cli.core.errors import DataError
from sdseg_cli.data.layouts.folder import FOLDER
from sdseg_cli.data.layouts.pairs import paired, pictures_in
from sdseg_cli.data.recognise import find_cases
from tests.raw_pictures import kvasir_id, touch


def test_equal_stems_are_pairs_whatever_the_suffixes(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.jpg", "images/b.png", "images/.c.jpg", "images/notes.txt")
    touch(tmp_path, "masks/a.png", "masks/z.png")
    cases = {case.id: case for case in paired(tmp_path / "images", tmp_path / "masks")}
    assert set(cases) == {"a", "b"}
    assert cases["a"].label == tmp_path / "masks/a.png"
    assert cases["b"].label is None
    assert pictures_in(tmp_path / "nothing") == {}


def test_two_pictures_of_one_name_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.jpg", "images/a.png", "masks/a.png")
    with pytest.raises(DataError, match=r"a\.jpg and .*a\.png are both case a"):
        FOLDER.find_cases(tmp_path)


def test_a_folder_of_pictures_is_ones_own_data(tmp_path: Path) -> None:
    touch(tmp_path, "images/10.png", "images/9.png", "labels/10.png", "labels/9.png")
    spec, cases = find_cases(tmp_path)
    assert spec is FOLDER
    assert [case.id for case in cases] == ["9", "10"]


def test_previews_beside_volumes_are_no_cases(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.nii.gz", "images/a.png", "masks/a.nii.gz", "masks/a.png")
    (case,) = find_cases(tmp_path)[1]
    assert (case.image.name, case.label and case.label.name) == ("a.nii.gz", "a.nii.gz")


def test_each_picture_layout_is_recognised_as_one(tmp_path: Path) -> None:
    id = kvasir_id(1)
    touch(tmp_path / "kseg", f"images/{id}.jpg", f"masks/{id}.jpg")
    touch(tmp_path / "cvc", "Original/1.png", "Ground Truth/1.png")
    touch(tmp_path / "video", "images/1.jpg", "masks/1.png")
    (tmp_path / "video/split.csv").write_text("frame,sequence,split\n1,1,dev\n")
    touch(tmp_path / "refuge2", "train/images/g0001.jpg", "train/mask/g0001.bmp")
    found = {root.name: find_cases(root)[0].name for root in tmp_path.iterdir()}
    assert found == {"kseg": "kseg", "cvc": "cvc", "video": "cvc", "refuge2": "refuge2"}


def test_a_folder_two_picture_layouts_fit_is_refused(tmp_path: Path) -> None:
    id = kvasir_id(1)
    touch(tmp_path, f"images/{id}.jpg", f"masks/{id}.jpg", "Original/1.png", "Ground Truth/1.png")
    with pytest.raises(DataError, match="looks like cvc, kseg") as caught:
        find_cases(tmp_path)
    assert "--dataset" in caught.value.hint
