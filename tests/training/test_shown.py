"""Which validation slices the pictures show."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sdseg_cli.training.batches import PreparedSlices
from sdseg_cli.training.shown import shown_slices


def slices(folder: Path, *areas: list[int]) -> PreparedSlices:
    """Cases whose slices have so many foreground pixels."""
    folders, filled = [], []
    for number, case in enumerate(areas):
        place = folder / str(number)
        place.mkdir()
        labels = np.zeros((len(case), 8, 8), np.uint8)
        for k, area in enumerate(case):
            labels[k].flat[:area] = 1
        np.save(place / "labels.npy", labels)
        np.save(place / "pixels.npy", np.zeros(labels.shape, np.float16))
        folders.append(place)
        filled.append([k for k, area in enumerate(case) if area])
    return PreparedSlices(folders, lambda labels: labels > 0, filled)


def test_each_case_shows_its_fullest_slice(tmp_path: Path) -> None:
    made = slices(tmp_path, [0, 3, 9], [1, 2, 0], [7, 7, 7], [0, 0, 0])
    assert shown_slices(made, range(12), limit=3) == [2, 4, 6]  # of equals, the first


def test_of_many_cases_those_with_most_foreground_are_shown(tmp_path: Path) -> None:
    made = slices(tmp_path, [1], [5], [2], [9], [4], [8])
    assert shown_slices(made, range(6)) == [1, 3, 4, 5]


def test_few_cases_give_several_slices_that_are_no_neighbours(tmp_path: Path) -> None:
    made = slices(tmp_path, [1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 6])  # more than two apart
    assert shown_slices(made, range(12), limit=4) == [2, 5, 8, 11]


def test_only_validated_slices_are_chosen(tmp_path: Path) -> None:
    made = slices(tmp_path, [9, 1], [9, 1])
    assert shown_slices(made, [1, 3]) == [1, 3]
    assert shown_slices(made, []) == []


def test_without_foreground_nothing_is_shown(tmp_path: Path) -> None:
    assert shown_slices(slices(tmp_path, [0, 0]), range(2)) == []
