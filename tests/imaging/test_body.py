"""The square around the body."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sdseg_cli.demo.phantom import Phantom
from sdseg_cli.imaging.intensity import Normalisation
from sdseg_cli.imaging.io.files import read_image, read_labels
from sdseg_cli.imaging.slices import SliceTransform, body_boxes, shows_body
from sdseg_cli.imaging.volume import Geometry, Volume

CT = Normalisation("window", -175, 250)
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


def test_the_square_holds_the_body_and_four_percent_around_it() -> None:
    # 50 columns x 1.08 = 54, centred on row 40 and column 55.
    boxes = body_boxes(scan_with(rectangle(slice(30, 50), slice(30, 80))), CT)
    assert boxes.tolist() == [[13, 28, 54]]


def test_a_thin_table_and_small_parts_are_left_out() -> None:
    body = rectangle(slice(30, 50), slice(30, 80))
    body[80:82, :] = True
    body[5:10, 5:10] = True
    assert body_boxes(scan_with(body), CT).tolist() == [[13, 28, 54]]


def test_two_legs_are_both_kept() -> None:
    body = rectangle(slice(30, 50), slice(10, 30)) | rectangle(slice(30, 50), slice(60, 90))
    ((_, column, side),) = body_boxes(scan_with(body), CT)
    assert column <= 10
    assert column + side >= 90


def test_an_empty_slice_takes_the_whole_plane() -> None:
    assert body_boxes(scan_with(rectangle(slice(0), slice(0))), CT).tolist() == [[0, 0, 100]]


def test_a_speck_still_gets_a_quarter_of_the_plane() -> None:
    ((row, column, side),) = body_boxes(scan_with(rectangle(slice(48, 52), slice(48, 52))), CT)
    assert side == 25
    assert row < 48 < 52 <= row + side
    assert column < 48 < 52 <= column + side


def test_a_body_at_the_edge_gets_a_square_that_reaches_beyond() -> None:
    ((row, column, side),) = body_boxes(scan_with(rectangle(slice(0, 40), slice(0, 20))), CT)
    assert (row, column, side) == (-2, -12, 44)


def test_other_modalities_separate_body_from_background_by_otsu() -> None:
    body = rectangle(slice(30, 50), slice(30, 80))
    assert body_boxes(scan_with(body, inside=600, outside=20), MR).tolist() == [[13, 28, 54]]


def test_the_phantoms_organs_lie_in_its_squares(ct_phantom: Phantom) -> None:
    boxes = body_boxes(ct_phantom.scan, CT)
    restore = SliceTransform.of(ct_phantom.scan.geometry, boxes=boxes)
    assert inside_share(restore, ct_phantom.labels.array) == 1
    assert boxes[:, 2].max() <= 44


@pytest.mark.data
@pytest.mark.parametrize("case", ["pt_22", "pt_66", "pt_100"])
def test_real_structures_lie_in_the_squares(real_data: Path, case: str) -> None:
    folder = real_data / "openkbp-hn-ct" / case
    scan, labels = read_image(folder / "image.nii.gz"), read_labels(folder / "label.nii.gz")
    boxes = body_boxes(scan, CT)
    # pt_22's scan is blank around three slices of its jaw: nothing there shows a body.
    assert inside_share(SliceTransform.of(scan.geometry, boxes=boxes), labels.array) > 0.99
    assert boxes[:, 2].min() < 48


def test_a_slice_shows_a_body_where_a_block_of_three_pixels_is_above_air() -> None:
    squares = np.full((4, 8, 8), -1, np.float32)
    squares[1, 2:5, 3:6] = -0.9
    squares[2, 2:4, :] = 1  # a table, two pixels thin
    squares[3, ::2, ::2] = 1  # noise
    assert shows_body(squares).tolist() == [False, True, False, False]
