"""BTCV's archive, by its layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdseg_cli.data.layouts.btcv import BTCV, BTCV8, find_cases, recognises


def make_archive(training: Path, numbers: tuple[int, ...], labels: tuple[int, ...]) -> None:
    for kind, present in (("img", numbers), ("label", labels)):
        (training / kind).mkdir(parents=True)
        for number in present:
            (training / kind / f"{kind}{number:04d}.nii.gz").touch()


@pytest.mark.parametrize("place", [".", "Training", "RawData/Training", "Abdomen/RawData/Training"])
def test_cases_are_found_from_any_folder_of_the_archive(tmp_path: Path, place: str) -> None:
    make_archive(tmp_path / place, (10, 2, 1), (1, 2, 10))
    cases = find_cases(tmp_path)
    assert recognises(tmp_path)
    assert [case.id for case in cases] == ["0001", "0002", "0010"]
    assert [case.label and case.label.name for case in cases] == [
        "label0001.nii.gz",
        "label0002.nii.gz",
        "label0010.nii.gz",
    ]


def test_a_scan_without_label_is_a_case_without_label(tmp_path: Path) -> None:
    make_archive(tmp_path, (1, 2), (2,))
    assert [case.label is None for case in find_cases(tmp_path)] == [True, False]


def test_another_layout_is_not_recognised(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    (tmp_path / "img/img0001.nii.gz").touch()
    assert not recognises(tmp_path)
    assert find_cases(tmp_path) == []


def test_the_spec_is_the_papers() -> None:
    assert BTCV.target == tuple(range(1, 14))
    assert BTCV8.target == (1, 2, 3, 4, 6, 7, 8, 11)
    assert BTCV.window_hu == (-175, 250)
    assert len(BTCV.test_ids) == 12
    assert {"0001", "0022", "0038"} <= BTCV.test_ids
    assert not BTCV8.recognises(Path("anywhere"))
