from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from sdseg_cli.imaging.parts import bounding_box, find_parts, labelled_planes


def stack(*planes: list[str]) -> np.ndarray:
    """Planes of rows such as "#..#"."""
    return np.array([[[c == "#" for c in row] for row in plane] for plane in planes], np.uint8)


def test_ones_are_one_part_by_a_corner_from_plane_to_plane() -> None:
    found = find_parts(stack(["#..", "...", "..."], ["...", ".#.", "..."]), 1)
    assert found.sizes.tolist() == [0, 2]
    apart = find_parts(stack(["#..", "...", "..."], ["...", "...", "..#"]), 1)
    assert apart.sizes.tolist() == [0, 1, 1]


def test_zeros_are_one_part_by_faces_alone() -> None:
    found = find_parts(stack([".#", "#."]), 0)
    assert found.sizes.tolist() == [0, 1, 1]


def test_pieces_of_one_plane_become_one_part_through_another() -> None:
    found = find_parts(stack(["#.#"], ["###"]), 1)
    assert found.part_of.tolist() == [0, 1, 1, 1]
    assert found.sizes.tolist() == [0, 5]


def test_parts_count_from_the_first_plane_row_and_column() -> None:
    found = find_parts(
        stack(["..#", "...", "#.."], ["...", "...", "..."], ["##.", "...", "..."]), 1
    )
    assert found.sizes.tolist() == [0, 1, 1, 2]


def test_a_part_within_touches_no_face_of_the_stack() -> None:
    solid = ["###", "###", "###"]
    found = find_parts(stack(solid, ["###", "#.#", "###"], solid), 0)
    assert found.at_border.tolist() == [True, False]
    # The same hole in a single plane: there is nothing before or behind.
    assert find_parts(stack(["###", "#.#", "###"]), 0).at_border.tolist() == [True, False]


def test_labels_run_on_from_plane_to_plane() -> None:
    labels = [plane.tolist() for _, plane in labelled_planes(stack(["#.#"], ["..#"]), 1)]
    assert labels == [[[1, 0, 2]], [[0, 0, 3]]]


def test_the_box_is_where_the_ones_are() -> None:
    mask = np.zeros((5, 6, 7), np.uint8)
    assert bounding_box(mask) is None
    mask[1, 2, 3] = mask[3, 2, 6] = 1
    assert bounding_box(mask) == (slice(1, 4), slice(2, 3), slice(3, 7))


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.9])
def test_parts_of_noise_are_those_of_a_labelled_volume(share: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = (rng.random(rng.integers(1, 8, 3)) < share).astype(np.uint8)
        for value, structure in ((1, np.ones((3, 3, 3))), (0, None)):
            labels, count = ndimage.label(mask == value, structure)
            found = find_parts(mask, value)
            sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
            assert found.sizes[1:].tolist() == sizes.tolist()
