"""REFUGE2's archive, by its layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sdseg_cli.data.layouts.refuge2 import REFUGE2, find_cases, recognises
from sdseg_cli.data.manifest import Manifest
from sdseg_cli.data.prepare import PrepareOptions, prepare
from sdseg_cli.data.split import split_of
from tests.raw_pictures import save, touch


def make_archive(root: Path, per_split: int, masks: str = "mask", suffix: str = "bmp") -> None:
    for name, letter in (("train", "g"), ("val", "V"), ("test", "T")):
        for number in range(1, per_split + 1):
            stem = f"{letter}{number:04d}"
            touch(root / name, f"images/{stem}.jpg", f"{masks}/{stem}.{suffix}")


@pytest.mark.parametrize(("masks", "suffix"), [("mask", "bmp"), ("masks", "png")])
@pytest.mark.parametrize("place", ["", "REFUGE2"])
def test_pairs_of_all_three_folders_are_found(tmp_path, place, masks, suffix) -> None:
    make_archive(tmp_path / place, 2, masks, suffix)
    assert recognises(tmp_path)
    cases = find_cases(tmp_path)
    assert [case.id for case in cases][:2] == ["test_T0001", "test_T0002"]
    assert cases[2].id == "train_g0001"
    assert cases[2].label == tmp_path / place / f"train/{masks}/g0001.{suffix}"


def test_train_and_val_train_but_for_a_tenth_and_test_tests(tmp_path: Path) -> None:
    make_archive(tmp_path, 10)
    split = split_of(find_cases(tmp_path), REFUGE2, seed=0)
    assert split.ids("test") == [f"test_T{number:04d}" for number in range(1, 11)]
    assert [len(split.ids(name)) for name in ("train", "val", "test")] == [18, 2, 10]


def test_other_pictures_in_such_folders_are_not_taken_for_it(tmp_path: Path) -> None:
    make_archive(tmp_path, 1)
    touch(tmp_path, "train/images/street.jpg", "train/mask/street.png")
    assert not recognises(tmp_path)
    assert len(find_cases(tmp_path)) == 4  # on request it is read all the same


def test_the_cup_is_0_the_rim_128_the_background_255(tmp_path: Path, workspace: Path) -> None:
    grey = np.full((256, 256), 255, np.uint8)
    grey[64:192, 64:192] = 128
    grey[96:160, 96:160] = 0
    names = ("train/{}/g0001", "train/{}/n0001", "val/{}/V0001", "test/{}/T0001")
    for number, name in enumerate(names):
        image = np.full((256, 256, 3), number, np.uint8)  # one image in two splits is refused
        save(tmp_path / "raw" / f"{name.format('images')}.png", image)
        save(tmp_path / "raw" / f"{name.format('mask')}.bmp", grey)
    manifest = Manifest.load(
        prepare(tmp_path / "raw", workspace, PrepareOptions(workers=1)).manifest
    )
    assert (manifest.adapter, manifest.labels, manifest.target) == ("refuge2", (1, 2), (1,))
    labels = np.load(manifest.labels_file(manifest.cases("test")[0]))
    assert (labels == 1).sum() == 64 * 64
    assert (labels == 2).sum() == 128 * 128 - 64 * 64
    assert manifest.is_foreground(labels).sum() == 64 * 64
