"""Kvasir-SEG's archive, by its layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sdseg_cli.data.layouts.kseg import KSEG, find_cases, recognises
from sdseg_cli.data.prepare import own_name
from sdseg_cli.data.spec import Case
from sdseg_cli.data.split import read_split, split_of
from tests.raw_pictures import kvasir_id, touch


def make_archive(root: Path, count: int) -> None:
    for number in range(count):
        touch(root, *(f"{kind}/{kvasir_id(number)}.jpg" for kind in ("images", "masks")))


@pytest.mark.parametrize("place", ["", "Kvasir-SEG"])
def test_pairs_are_found_and_recognised_by_their_ids(tmp_path: Path, place: str) -> None:
    make_archive(tmp_path / place, 3)
    assert recognises(tmp_path)
    cases = find_cases(tmp_path)
    assert [case.id for case in cases] == [kvasir_id(number) for number in range(3)]
    assert cases[0].label == tmp_path / place / "masks" / f"{kvasir_id(0)}.jpg"
    touch(tmp_path / place, "images/mine.jpg")
    assert not recognises(tmp_path)


def test_the_whole_set_is_split_800_100_100() -> None:
    cases = [Case(kvasir_id(number), Path("x"), None) for number in range(1000)]
    split = split_of(cases, KSEG, seed=0)
    assert [len(split.ids(name)) for name in ("train", "val", "test")] == [800, 100, 100]
    assert split.rule == "800/100/100 by case"


def test_a_part_of_the_set_is_split_by_the_general_rule_and_says_so(tmp_path: Path) -> None:
    make_archive(tmp_path, 20)
    split = split_of(find_cases(tmp_path), KSEG, seed=0)
    assert [len(split.ids(name)) for name in ("train", "val", "test")] == [16, 2, 2]
    assert split.rule == "80/10/10 by case (20 of 1000 cases are here)"


def test_the_official_list_goes_in_as_a_split_file(tmp_path: Path) -> None:
    ids = [kvasir_id(number) for number in range(20)]
    lists = {"train": ids[:15], "test": [f"{id}.jpg" for id in ids[15:]]}
    (tmp_path / "official.json").write_text(json.dumps(lists))
    split = read_split(tmp_path / "official.json", ids, seed=0)
    assert split.ids("test") == ids[15:]
    assert len(split.ids("val")) == 2  # a tenth of 15


@pytest.mark.parametrize(
    ("cases", "dataset", "name"),
    [
        (20, None, "my_polyps"),
        (879, None, "my_polyps"),
        (880, None, "kseg"),  # the official training list
        (1000, None, "kseg"),
        (20, "kseg", "kseg"),
    ],
)
def test_a_part_of_the_set_is_called_as_its_folder(
    tmp_path: Path, cases: int, dataset: str | None, name: str
) -> None:
    assert own_name(tmp_path / "my polyps", KSEG, cases, named=dataset is not None) == name
