from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy import ndimage

from sdseg_cli.core.errors import ConfigError
from sdseg_cli.imaging.io.picture import Picture
from sdseg_cli.imaging.postprocess import (
    Cleaning,
    PostProcess,
    drop_small,
    fill_holes,
    find_parts,
    keep_largest,
    labelled_planes,
)
from sdseg_cli.imaging.volume import Geometry, Volume
from tests.fake_run import volume

SPACING_MM = (2.0, 2.0, 3.0)
"""12 mm3 a voxel."""


def box(mask: np.ndarray, first: tuple[int, int, int], size: int) -> None:
    k, row, column = first
    mask[k : k + size, row : row + size, column : column + size] = 1


def hollow() -> np.ndarray:
    """A cube of 3 voxels a side with a hole of one: 26 voxels."""
    mask = np.zeros((5, 8, 8), np.uint8)
    box(mask, (1, 1, 1), 3)
    mask[2, 2, 2] = 0
    return mask


def test_a_hole_is_filled_and_nothing_else_changes():
    mask = hollow()
    fill_holes(mask)
    expected = hollow()
    expected[2, 2, 2] = 1
    assert np.array_equal(mask, expected)


def test_a_tube_that_is_open_at_its_ends_has_no_hole():
    mask = hollow()
    mask[:, 2, 2] = 0
    open_tube = mask.copy()
    fill_holes(mask)
    assert np.array_equal(mask, open_tube)


def test_a_tube_that_ends_with_the_scan_has_no_hole():
    mask = hollow()[1:4].copy()  # the hole's lid is the last thing the scan shows
    mask[:, 2, 2] = 0
    open_tube = mask.copy()
    fill_holes(mask)
    assert np.array_equal(mask, open_tube)


def test_a_ring_on_one_slice_is_filled_in_a_picture_alone():
    ring = np.ones((1, 3, 3), np.uint8)
    ring[0, 1, 1] = 0
    among = np.zeros((3, 3, 3), np.uint8)
    among[1] = ring[0]
    fill_holes(among)
    assert among[1, 1, 1] == 0
    fill_holes(ring)
    assert ring[0, 1, 1] == 1


def test_a_hole_leaks_by_a_face_but_not_by_a_corner():
    mask = hollow()
    mask[1, 1, 1] = 0  # a corner of the cube: the hole touches it by a corner only
    fill_holes(mask)
    assert mask[2, 2, 2] == 1
    mask = hollow()
    mask[2, 2, 1] = 0  # the middle of a side
    fill_holes(mask)
    assert mask[2, 2, 2] == 0


def test_the_smallest_size_stays_and_what_is_smaller_goes():
    mask = np.zeros((5, 8, 8), np.uint8)
    box(mask, (0, 0, 0), 2)  # 8 voxels
    mask[4, 5, 1:8] = 1  # 7
    drop_small(mask, 8)
    assert mask.sum() == 8
    assert mask[0, 0, 0] == 1


def test_the_largest_parts_stay():
    mask = np.zeros((9, 9, 9), np.uint8)
    box(mask, (0, 0, 0), 2)
    box(mask, (4, 4, 4), 3)
    mask[8, 0, 0] = 1
    two = mask.copy()
    keep_largest(two, 2)
    assert (two.sum(), two[8, 0, 0]) == (8 + 27, 0)
    keep_largest(mask, 1)
    assert (mask.sum(), mask[4, 4, 4]) == (27, 1)


def test_of_equal_parts_the_first_stays():
    mask = np.zeros((3, 4, 9), np.uint8)
    mask[0, 0, 8] = mask[2, 0, 0] = mask[0, 3, 0] = 1
    keep_largest(mask, 1)
    assert np.argwhere(mask).tolist() == [[0, 0, 8]]


def test_voxels_that_touch_by_a_corner_are_one_part():
    mask = np.zeros((3, 3, 3), np.uint8)
    mask[0, 0, 0] = mask[1, 1, 1] = 1
    keep_largest(mask, 1)
    assert mask.sum() == 2


@pytest.mark.parametrize("value", [0, 1])
def test_an_empty_and_a_full_mask_stay_what_they_are(value):
    mask = np.full((3, 4, 5), value, np.uint8)
    PostProcess(fill_holes=True, min_size_ml=0.001, keep_largest=1).clean(mask, SPACING_MM)
    assert (mask == value).all()


def test_holes_are_filled_before_sizes_are_compared():
    # 26 voxels are 0.312 ml, 27 are 0.324 ml; the bar is 27 voxels long, 0.324 ml too.
    mask = np.zeros((5, 8, 30), np.uint8)
    mask[:, :, :8] = hollow()
    mask[0, 7, 1:28] = 1
    PostProcess(fill_holes=True, min_size_ml=0.32).clean(mask, SPACING_MM)
    assert mask.sum() == 27 + 27
    # Of the two equal ones the bar lies nearer to the feet.
    PostProcess(keep_largest=1).clean(mask, SPACING_MM)
    assert mask.sum() == mask[0, 7].sum() == 27
    without = np.zeros((5, 8, 30), np.uint8)
    without[:, :, :8] = hollow()
    PostProcess(min_size_ml=0.32).clean(without, SPACING_MM)
    assert without.sum() == 0


def test_rounded_spacings_drop_no_part_of_just_the_smallest_size():
    mask = np.ones((1, 1, 10), np.uint8)  # 10 voxels of 0.1 x 0.1 x 0.1 mm: 0.01 mm3
    spacing = tuple(float(np.nextafter(np.float32(0.1), np.float32(0))) for _ in range(3))
    PostProcess(min_size_ml=1e-5).clean(mask, spacing)
    assert mask.sum() == 10
    PostProcess(min_size_ml=1.01e-5).clean(mask, spacing)
    assert mask.sum() == 0


def test_reversed_and_turned_views_are_cleaned_in_place():
    mask = np.zeros((8, 8, 5), np.uint8)
    view = mask.transpose(2, 1, 0)[::-1, ::-1]
    view[:] = hollow()
    view[0, 7, 7] = 1
    PostProcess(fill_holes=True, keep_largest=1).clean(view, SPACING_MM)
    assert mask.sum() == 27


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"threshold": 0.0}, "--threshold is 0"),
        ({"threshold": 1.0}, "--threshold is 1"),
        ({"threshold": float("nan")}, "--threshold is nan"),
        ({"min_size_ml": 0.0}, "--min-size is 0"),
        ({"min_size_ml": -1.0}, "--min-size is -1"),
        ({"min_size_ml": float("nan")}, "--min-size is nan"),
        ({"min_size_ml": float("inf")}, "--min-size is inf"),
        ({"keep_largest": 0}, "--keep-largest is 0"),
    ],
)
def test_values_without_meaning_are_refused(values, says):
    with pytest.raises(ConfigError, match=says):
        PostProcess(**values)


def test_millilitres_of_a_picture_are_refused():
    picture = Picture.of(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(ConfigError, match="a picture knows none"):
        PostProcess(min_size_ml=1.0).require_size_known(picture)
    PostProcess(keep_largest=1, fill_holes=True).require_size_known(picture)
    PostProcess(min_size_ml=1.0).require_size_known(volume(np.zeros((4, 4, 2))))


@pytest.mark.slow
def test_cleaning_holds_nothing_as_large_as_the_mask():
    mask = np.zeros((200, 128, 128), np.uint8)
    mask[5:195, 4:124, 4:124] = 1
    mask[100, 30, 30] = 0
    mask[0, 0, 0] = 1
    PostProcess(fill_holes=True, keep_largest=1).clean(mask[:3].copy(), SPACING_MM)  # warm
    tracemalloc.start()
    PostProcess(fill_holes=True, min_size_ml=0.1, keep_largest=1).clean(mask, SPACING_MM)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert mask.sum() == 190 * 120 * 120
    # Some planes of 4 to 8 bytes a pixel, however many there are; the mask has 200.
    assert peak < 0.4 * mask.nbytes


def stack(*planes: list[str]) -> np.ndarray:
    """Planes of rows such as "#..#"."""
    return np.array([[[c == "#" for c in row] for row in plane] for plane in planes], np.uint8)


def test_ones_are_one_part_by_a_corner_from_plane_to_plane():
    found = find_parts(stack(["#..", "...", "..."], ["...", ".#.", "..."]), 1)
    assert found.sizes.tolist() == [0, 2]
    apart = find_parts(stack(["#..", "...", "..."], ["...", "...", "..#"]), 1)
    assert apart.sizes.tolist() == [0, 1, 1]


def test_zeros_are_one_part_by_faces_alone():
    found = find_parts(stack([".#", "#."]), 0)
    assert found.sizes.tolist() == [0, 1, 1]


def test_pieces_of_one_plane_become_one_part_through_another():
    found = find_parts(stack(["#.#"], ["###"]), 1)
    assert found.part_of.tolist() == [0, 1, 1, 1]
    assert found.sizes.tolist() == [0, 5]


def test_parts_count_from_the_first_plane_row_and_column():
    found = find_parts(
        stack(["..#", "...", "#.."], ["...", "...", "..."], ["##.", "...", "..."]), 1
    )
    assert found.sizes.tolist() == [0, 1, 1, 2]


def test_a_part_within_touches_no_face_of_the_stack():
    solid = ["###", "###", "###"]
    found = find_parts(stack(solid, ["###", "#.#", "###"], solid), 0)
    assert found.at_border.tolist() == [True, False]
    # The same hole in a single plane: there is nothing before or behind.
    assert find_parts(stack(["###", "#.#", "###"]), 0).at_border.tolist() == [True, False]


def test_labels_run_on_from_plane_to_plane():
    labels = [plane.tolist() for _, plane in labelled_planes(stack(["#.#"], ["..#"]), 1)]
    assert labels == [[[1, 0, 2]], [[0, 0, 3]]]


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.9])
def test_parts_of_noise_are_those_of_a_labelled_volume(share):
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = (rng.random(rng.integers(1, 8, 3)) < share).astype(np.uint8)
        for value, structure in ((1, np.ones((3, 3, 3))), (0, None)):
            labels, count = ndimage.label(mask == value, structure)
            found = find_parts(mask, value)
            sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
            assert found.sizes[1:].tolist() == sizes.tolist()


def label_and_scan(labels: np.ndarray, hu: np.ndarray | None = None) -> tuple[Volume, Volume]:
    geometry = Geometry(labels.shape, np.eye(4))
    scan = np.arange(labels.size, dtype=np.int32).reshape(labels.shape) if hu is None else hu
    return Volume(labels, geometry), Volume(scan, geometry, slope=0.5, intercept=-1000)


def test_components_below_the_size_go_and_those_of_it_stay():
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[0:4, 0:4, 0:4] = 1  # 64 voxels
    labels[6:10, 6:10, 6:10] = 2
    labels[6, 6, 6] = 0  # 63 voxels
    label, scan = label_and_scan(labels)
    cleaned = Cleaning(smallest_voxels=64).apply(label, scan).array
    assert (cleaned == 1).sum() == 64
    assert (cleaned == 2).sum() == 0
    assert (labels == 2).sum() == 63, "the label map that came in is left alone"


def test_corners_connect_and_labels_do_not_divide():
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[0:4, 0:4, 0:2] = 1  # 32 voxels, which touch ...
    labels[4:8, 4:8, 2:4] = 2  # ... 32 of another label by one corner
    label, scan = label_and_scan(labels)
    assert np.array_equal(Cleaning(smallest_voxels=64).apply(label, scan).array, labels)
    assert not Cleaning(smallest_voxels=65).apply(label, scan).array.any()


def test_labels_where_the_scan_is_at_its_minimum_go():
    labels = np.full((3, 3, 2), 5, np.uint8)
    hu = np.full((3, 3, 2), 40, np.int16)
    hu[0] = hu[1, 1, 1] = -1024
    label, scan = label_and_scan(labels, hu)
    cleaned = Cleaning(inside_field=True).apply(label, scan).array
    assert np.array_equal(cleaned == 0, hu == -1024)


def test_components_are_counted_before_the_field_cuts_them():
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[0:4, 0:4, 0:4] = 1
    hu = np.full(labels.shape, 40, np.int16)
    hu[0] = -1024
    label, scan = label_and_scan(labels, hu)
    cleaned = Cleaning(smallest_voxels=64, inside_field=True).apply(label, scan).array
    assert cleaned.sum() == 48


def test_nothing_to_remove_is_the_same_volume_and_an_empty_map_stays_empty():
    label, scan = label_and_scan(np.zeros((2, 2, 2), np.uint8))
    assert Cleaning().apply(label, scan) is label
    assert not Cleaning(64, True).apply(label, scan).array.any()
