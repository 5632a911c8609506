"""To the model's squares and back."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from sdseg_cli.imaging.intensity import Normalisation
from sdseg_cli.imaging.io.files import read_image, read_labels
from sdseg_cli.imaging.slices import SliceTransform, body_boxes, shows_body, to_stack
from sdseg_cli.imaging.volume import Geometry, Volume

CT = Normalisation("window", -175, 250)
ORDERS = list(itertools.permutations(range(3)))
SIGNS = list(itertools.product((1, -1), repeat=3))


def restored(volume: Volume, order: tuple[int, ...], signs: tuple[int, ...]) -> Volume:
    """The same scan stored with other axes: every voxel stays where it is in the patient."""
    array, affine = volume.array, volume.geometry.affine
    for axis, sign in enumerate(signs):
        if sign < 0:
            array = np.flip(array, axis)
            flip = np.eye(4)
            flip[axis, axis], flip[axis, 3] = -1, array.shape[axis] - 1
            affine = affine @ flip
    permutation = np.eye(4)[:, [*order, 3]]
    array = np.asfortranarray(array.transpose(order))
    return Volume(array, Geometry(array.shape, affine @ permutation))


def plain(shape: tuple[int, int, int], dtype: type = np.float32) -> Volume:
    values = np.random.default_rng(0).uniform(-1000, 1000, shape).astype(dtype)
    return Volume(values, Geometry(shape, np.diag([-1.0, -1.0, 1.0, 1.0])))


def test_rows_run_to_the_back_and_columns_to_the_left():
    # Stored towards right, front and head (RAS): both plane axes must turn round.
    array = np.arange(2 * 3 * 2).reshape(2, 3, 2)
    restore = SliceTransform.of(Geometry((2, 3, 2), np.eye(4)))
    assert restore.plane_shape == (3, 2)
    front_right = array[1, 2, 0]
    assert restore.canonical_plane(array, 0)[0, 0] == front_right
    assert restore.canonical_plane(array, 0).tolist() == array[::-1, ::-1, 0].T.tolist()


def test_slices_count_from_the_feet():
    array = np.arange(4).reshape(1, 1, 4)
    down = SliceTransform.of(Geometry((1, 1, 4), np.diag([1.0, 1.0, -3.0, 1.0])))
    assert [int(down.canonical_plane(array, k)[0, 0]) for k in range(down.slices)] == [3, 2, 1, 0]
    with pytest.raises(IndexError):
        down.canonical_plane(array, 4)


@settings(max_examples=12, deadline=None)
@given(
    order=st.sampled_from(ORDERS),
    signs=st.sampled_from(SIGNS),
    crop=st.sampled_from(["none", "body"]),
)
def test_permuted_and_flipped_copies_give_the_same_squares(ct_phantom, order, signs, crop):
    copy = restored(ct_phantom.scan, order, signs)
    for normalise in (CT, Normalisation("percentile", 0.5, 99.5)):
        here = to_stack(ct_phantom.scan, normalise, size=64, crop=crop)
        there = to_stack(copy, normalise, size=64, crop=crop)
        assert np.array_equal(here.pixels(0, len(here)), there.pixels(0, len(there)))


@settings(max_examples=12, deadline=None)
@given(order=st.sampled_from(ORDERS), signs=st.sampled_from(SIGNS))
def test_placing_planes_back_rebuilds_the_stored_array(ct_phantom, order, signs):
    copy = restored(ct_phantom.scan, order, signs)
    restore = SliceTransform.of(copy.geometry)
    rebuilt = np.zeros_like(copy.array)
    for k in range(restore.slices):
        restore.place(rebuilt, restore.canonical_plane(copy.array, k).copy(), k)
    assert np.array_equal(rebuilt, copy.array)


def test_a_plane_of_the_models_size_passes_both_ways_unchanged():
    volume = plain((32, 32, 2))
    restore = SliceTransform.of(volume.geometry, size=32)
    plane = volume.values(restore.canonical_plane(volume.array, 1))
    assert np.array_equal(restore.to_model(plane, 1, -1000), plane)
    assert np.array_equal(restore.to_native(plane, 1), plane)
    assert np.array_equal(restore.labels_to_model((plane > 0).astype(np.uint8), 1), plane > 0)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), side=st.sampled_from([16, 32, 64]))
def test_labels_enlarged_by_a_whole_factor_come_back_unchanged(seed, side):
    label = np.random.default_rng(seed).integers(0, 2, (side, side), dtype=np.uint8)
    restore = SliceTransform.of(Geometry((side, side, 1), np.eye(4)), size=128)
    model = restore.labels_to_model(label, 0).astype(np.float32)
    assert np.array_equal(restore.to_native(model, 0) > 0.5, label)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), rows=st.integers(150, 400), columns=st.integers(150, 400))
def test_organs_survive_the_round_trip_on_any_grid(seed, rows, columns):
    noise = np.random.default_rng(seed).standard_normal((rows, columns))
    label = (ndimage.gaussian_filter(noise, 12) > 0.01).astype(np.uint8)
    restore = SliceTransform.of(Geometry((columns, rows, 1), np.diag([-1.0, -1, 1, 1])))
    back = restore.to_native(restore.labels_to_model(label, 0).astype(np.float32), 0) > 0.5
    dice = 2 * (back & (label > 0)).sum() / (back.sum() + label.sum())
    assert dice > 0.97


def test_a_narrow_plane_is_centred_on_background():
    restore = SliceTransform.of(Geometry((2, 4, 1), np.diag([-1.0, -1.0, 1.0, 1.0])), size=4)
    square = restore.to_model(np.ones((4, 2), np.float32), 0, background=-1)
    assert square.tolist() == [[-1, 1, 1, -1]] * 4
    labels = restore.labels_to_model(np.full((4, 2), 5, np.uint8), 0)
    assert labels.tolist() == [[0, 5, 5, 0]] * 4
    assert restore.to_native(square, 0).shape == (4, 2)


def test_shrinking_averages_a_checkerboard_away():
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 2 - 1).astype(np.float32)
    square = SliceTransform.of(Geometry((64, 64, 1), np.eye(4)), size=16).to_model(board, 0, 0)
    assert np.abs(square[1:-1, 1:-1]).max() < 0.01


def test_a_box_beyond_the_plane_is_background_there_and_zero_on_the_way_back():
    boxes = np.array([[-1, 1, 4]])
    restore = SliceTransform.of(Geometry((4, 4, 1), np.diag([-1.0, -1, 1, 1])), size=4, boxes=boxes)
    plane = np.arange(16, dtype=np.float32).reshape(4, 4)
    square = restore.to_model(plane, 0, background=-9)
    assert square.tolist() == [[-9] * 4, [1, 2, 3, -9], [5, 6, 7, -9], [9, 10, 11, -9]]
    back = restore.to_native(square, 0)
    assert back[:3, 1:].tolist() == plane[:3, 1:].tolist()
    assert not back[3].any()
    assert not back[:, 0].any()


@pytest.mark.parametrize("boxes", [np.ones((2, 3)), np.array([[0, 0, 0]])])
def test_boxes_that_do_not_fit_the_slices_are_refused(boxes):
    with pytest.raises(ValueError, match="boxes"):
        SliceTransform.of(Geometry((4, 4, 1), np.eye(4)), boxes=boxes)


def test_squares_lie_in_range_and_do_not_depend_on_the_batches(ct_phantom):
    stack = to_stack(ct_phantom.scan, CT)
    whole = stack.pixels(0, len(stack))
    assert whole.shape == (10, 256, 256)
    assert whole.dtype == np.float32
    assert whole.min() == -1
    assert 0.9 < whole.max() <= 1
    batches = [stack.pixels(k, min(k + 3, len(stack))) for k in range(0, len(stack), 3)]
    assert np.array_equal(np.concatenate(batches), whole)


def test_streaming_allocates_about_a_batch():
    volume = plain((256, 256, 60), np.int16)
    stack = to_stack(volume, CT, size=128, crop="body")
    stack.pixels(0, 1)
    tracemalloc.start()
    batch = stack.pixels(10, 14)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * batch.nbytes + 6 * 256 * 256 * 4 < volume.array.nbytes / 2


def test_making_squares_leaves_the_scan_alone():
    volume = plain((16, 16, 3))
    volume.array[3, 3, :] = np.nan
    before = volume.array.copy()
    for crop in ("none", "body"):
        for normalise in (CT, Normalisation("percentile", 0.5, 99.5)):
            to_stack(volume, normalise, size=16, crop=crop).pixels(0, 3)
    assert np.array_equal(volume.array, before, equal_nan=True)


MR = Normalisation("percentile", 0.5, 99.5)


def scan_with(body: np.ndarray, inside: float = 40, outside: float = -1000) -> Volume:
    """One slice; `body` is (rows, cols) in canonical order."""
    values = np.where(body, inside, outside).astype(np.int16).T[:, :, None]
    return Volume(values, Geometry(values.shape, np.diag([-2.0, -2.0, 5.0, 1.0])))


def inside_share(restore: SliceTransform, labels: np.ndarray) -> float:
    """Share of the labelled voxels that lie in the boxes."""
    total = held = 0
    for k in range(restore.slices):
        row, column, side = restore.boxes[k]
        plane = restore.canonical_plane(labels, k) > 0
        total += plane.sum()
        held += plane[max(row, 0) : row + side, max(column, 0) : column + side].sum()
    return float(held / total)


def rectangle(rows: slice, columns: slice) -> np.ndarray:
    body = np.zeros((100, 100), bool)
    body[rows, columns] = True
    return body


def test_the_square_holds_the_body_and_four_percent_around_it():
    # 50 columns x 1.08 = 54, centred on row 40 and column 55.
    boxes = body_boxes(scan_with(rectangle(slice(30, 50), slice(30, 80))), CT)
    assert boxes.tolist() == [[13, 28, 54]]


def test_a_thin_table_and_small_parts_are_left_out():
    body = rectangle(slice(30, 50), slice(30, 80))
    body[80:82, :] = True
    body[5:10, 5:10] = True
    assert body_boxes(scan_with(body), CT).tolist() == [[13, 28, 54]]


def test_two_legs_are_both_kept():
    body = rectangle(slice(30, 50), slice(10, 30)) | rectangle(slice(30, 50), slice(60, 90))
    ((_, column, side),) = body_boxes(scan_with(body), CT)
    assert column <= 10
    assert column + side >= 90


def test_an_empty_slice_takes_the_whole_plane():
    assert body_boxes(scan_with(rectangle(slice(0), slice(0))), CT).tolist() == [[0, 0, 100]]


def test_a_speck_still_gets_a_quarter_of_the_plane():
    ((row, column, side),) = body_boxes(scan_with(rectangle(slice(48, 52), slice(48, 52))), CT)
    assert side == 25
    assert row < 48 < 52 <= row + side
    assert column < 48 < 52 <= column + side


def test_a_body_at_the_edge_gets_a_square_that_reaches_beyond():
    ((row, column, side),) = body_boxes(scan_with(rectangle(slice(0, 40), slice(0, 20))), CT)
    assert (row, column, side) == (-2, -12, 44)


def test_other_modalities_separate_body_from_background_by_otsu():
    body = rectangle(slice(30, 50), slice(30, 80))
    assert body_boxes(scan_with(body, inside=600, outside=20), MR).tolist() == [[13, 28, 54]]


def test_the_phantoms_organs_lie_in_its_squares(ct_phantom):
    boxes = body_boxes(ct_phantom.scan, CT)
    restore = SliceTransform.of(ct_phantom.scan.geometry, boxes=boxes)
    assert inside_share(restore, ct_phantom.labels.array) == 1
    assert boxes[:, 2].max() <= 44


@pytest.mark.data
@pytest.mark.parametrize("case", ["pt_22", "pt_66", "pt_100"])
def test_real_structures_lie_in_the_squares(real_data, case):
    folder = real_data / "openkbp-hn-ct" / case
    scan, labels = read_image(folder / "image.nii.gz"), read_labels(folder / "label.nii.gz")
    boxes = body_boxes(scan, CT)
    # pt_22's scan is blank around three slices of its jaw: nothing there shows a body.
    assert inside_share(SliceTransform.of(scan.geometry, boxes=boxes), labels.array) > 0.99
    assert boxes[:, 2].min() < 48


def test_a_slice_shows_a_body_where_a_block_of_three_pixels_is_above_air():
    squares = np.full((4, 8, 8), -1, np.float32)
    squares[1, 2:5, 3:6] = -0.9
    squares[2, 2:4, :] = 1  # a table, two pixels thin
    squares[3, ::2, ::2] = 1  # noise
    assert shows_body(squares).tolist() == [False, True, False, False]
