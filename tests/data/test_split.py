"""Splits by case."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdseg_cli.core.errors import ConfigError, DataError
from sdseg_cli.data.split import Split, draw_split, read_split, with_folds

TEN = [f"pt_{number}" for number in range(1, 11)]


def sizes(split: Split) -> tuple[int, int, int]:
    return len(split.ids("train")), len(split.ids("val")), len(split.ids("test"))


@pytest.mark.parametrize(
    ("count", "expected"),
    [(3, (1, 1, 1)), (8, (6, 1, 1)), (10, (8, 1, 1)), (16, (12, 2, 2)), (30, (24, 3, 3))],
)
def test_a_tenth_each_validates_and_tests(count: int, expected: tuple[int, int, int]) -> None:
    assert sizes(draw_split([str(number) for number in range(count)], seed=0)) == expected


def test_fewer_than_three_cases_are_refused() -> None:
    with pytest.raises(DataError, match=r"2 case\(s\)"):
        draw_split(["a", "b"], seed=0)


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(TEN))
def test_the_order_of_the_listing_does_not_matter(order: list[str]) -> None:
    assert draw_split(order, seed=0).of == draw_split(TEN, seed=0).of


def test_the_draw_of_seed_0_is_frozen() -> None:
    split = draw_split(TEN, seed=0)
    assert (split.ids("test"), split.ids("val")) == (["pt_8"], ["pt_9"])
    listing = json.dumps({"train": split.ids("train"), "val": ["pt_9"], "test": ["pt_8"]})
    assert split.to_dict() == {
        "seed": 0,
        "rule": "80/10/10 by case",
        "sha256": hashlib.sha256(listing.encode()).hexdigest(),
    }
    assert draw_split(TEN, seed=1).of != split.of


def test_published_test_cases_test_and_a_tenth_of_the_rest_validates() -> None:
    ids = [f"{number:04d}" for number in range(1, 31)]
    split = draw_split(ids, 0, frozenset(ids[:12]))
    assert split.ids("test") == ids[:12]
    assert sizes(split) == (16, 2, 12)


def test_without_any_published_test_case_the_default_is_drawn() -> None:
    assert draw_split(TEN, 0, frozenset({"0001"})).of == draw_split(TEN, 0).of


def test_published_test_cases_must_leave_two_others() -> None:
    with pytest.raises(DataError, match="too few are left"):
        draw_split(["1", "2", "3"], 0, frozenset({"1", "2"}))


def test_a_split_file_may_be_json_or_three_lists(tmp_path: Path) -> None:
    wanted = {"train": ["pt_1", "pt_2"], "val": ["pt_3"], "test": ["pt_10"]}
    (tmp_path / "split.json").write_text(json.dumps(wanted))
    for name, ids in wanted.items():
        (tmp_path / f"{name}.txt").write_text("# ids\n" + ".nii.gz\n\n".join(ids) + "\n")
    for path in (tmp_path / "split.json", tmp_path, tmp_path / "train.txt"):
        split = read_split(path, TEN, seed=0)
        assert {name: split.ids(name) for name in wanted} == wanted


def test_a_split_file_without_validation_keeps_a_tenth_of_train_for_it(tmp_path: Path) -> None:
    (tmp_path / "split.json").write_text(json.dumps({"train": TEN[:9], "test": TEN[9:]}))
    assert sizes(read_split(tmp_path / "split.json", TEN, seed=0)) == (8, 1, 1)


def test_a_split_without_some_cases_is_the_same_for_the_others() -> None:
    assert draw_split(TEN, 0).among(["pt_8", "pt_9"]).of == {"pt_8": "test", "pt_9": "val"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"train": ["pt_1", "pt_2"], "val": ["pt_2"]}', "case pt_2 is in train and in val"),
        ('{"train": ["pt_1"], "valid": []}', "unknown split 'valid'"),
        ('{"train": "pt_1"}', "not a list"),
        ('{"train": [], "test": ["pt_1"]}', "too few training cases"),
        ('["pt_1"]', "not a JSON object"),
        ("{", "damaged"),
    ],
)
def test_a_malformed_split_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "split.json").write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_split(tmp_path / "split.json", TEN, seed=0)
    assert caught.value.hint


def test_a_case_the_data_set_does_not_have_is_refused(tmp_path: Path) -> None:
    (tmp_path / "split.json").write_text('{"train": ["pt_1", "pt_99"], "val": ["pt_2"]}')
    with pytest.raises(DataError, match="such as pt_99") as caught:
        read_split(tmp_path / "split.json", TEN, seed=0)
    assert "pt_1, pt_2, pt_3" in caught.value.hint


def test_a_missing_split_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing.json", tmp_path):
        with pytest.raises(ConfigError):
            read_split(path, TEN, seed=0)


def test_folds_have_whole_groups_and_no_test_case() -> None:
    groups = {"pt_1": "x", "pt_2": "x", "pt_3": "x", "pt_4": "y", "pt_5": "y"}
    split = with_folds(draw_split(TEN, 0, {"pt_10"}), 3, groups)
    assert "pt_10" not in split.folds
    assert set(split.folds) == set(TEN) - {"pt_10"}
    # The group of three, that of two and a single, and the three singles that are left.
    members = [{id for id, fold in split.folds.items() if fold == n} for n in range(3)]
    assert members[0] == {"pt_1", "pt_2", "pt_3"}
    assert members[1] >= {"pt_4", "pt_5"}
    assert [len(one) for one in members] == [3, 3, 3]
    assert split.of == draw_split(TEN, 0, {"pt_10"}).of


def test_folds_are_a_function_of_seed_and_ids() -> None:
    one, again = (with_folds(draw_split(ids, 0), 4, {}) for ids in (TEN, TEN[::-1]))
    assert one.folds == again.folds
    assert sorted(one.folds.values()).count(0) == 3
    assert with_folds(draw_split(TEN, 1), 4, {}).folds != one.folds


def test_folds_need_two_and_as_many_cases() -> None:
    with pytest.raises(ConfigError, match="--folds is 1"):
        with_folds(draw_split(TEN, 0), 1, {})
    with pytest.raises(DataError, match="9 cases besides the test cases do not make 10 folds"):
        with_folds(draw_split(TEN, 0), 10, {})
    same = dict.fromkeys(TEN[:8], "x")
    with pytest.raises(DataError, match="groups of cases"):
        with_folds(draw_split(TEN, 0, {"pt_10"}), 3, same)
