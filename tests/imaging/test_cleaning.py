"""What a label map loses."""

from __future__ import annotations

import numpy as np

from sdseg_cli.imaging.postprocess import Cleaning
from sdseg_cli.imaging.volume import Geometry, Volume


def pair(labels: np.ndarray, hu: np.ndarray | None = None) -> tuple[Volume, Volume]:
    geometry = Geometry(labels.shape, np.eye(4))
    scan = np.arange(labels.size, dtype=np.int32).reshape(labels.shape) if hu is None else hu
    return Volume(labels, geometry), Volume(scan, geometry, slope=0.5, intercept=-1000)


def test_components_below_the_size_go_and_those_of_it_stay() -> None:
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[0:4, 0:4, 0:4] = 1  # 64 voxels
    labels[6:10, 6:10, 6:10] = 2
    labels[6, 6, 6] = 0  # 63 voxels
    label, scan = pair(labels)
    cleaned = Cleaning(smallest_voxels=64).apply(label, scan).array
    assert (cleaned == 1).sum() == 64
    assert (cleaned == 2).sum() == 0
    assert (labels == 2).sum() == 63, "the label map that came in is left alone"


def test_corners_connect_and_labels_do_not_divide() -> None:
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[0:4, 0:4, 0:2] = 1  # 32 voxels, which touch ...
    labels[4:8, 4:8, 2:4] = 2  # ... 32 of another label by one corner
    label, scan = pair(labels)
    assert np.array_equal(Cleaning(smallest_voxels=64).apply(label, scan).array, labels)
    assert not Cleaning(smallest_voxels=65).apply(label, scan).array.any()


def test_labels_where_the_scan_is_at_its_minimum_go() -> None:
    labels = np.full((3, 3, 2), 5, np.uint8)
    hu = np.full((3, 3, 2), 40, np.int16)
    hu[0] = hu[1, 1, 1] = -1024
    label, scan = pair(labels, hu)
    cleaned = Cleaning(inside_field=True).apply(label, scan).array
    assert np.array_equal(cleaned == 0, hu == -1024)


def test_components_are_counted_before_the_field_cuts_them() -> None:
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[0:4, 0:4, 0:4] = 1
    hu = np.full(labels.shape, 40, np.int16)
    hu[0] = -1024
    label, scan = pair(labels, hu)
    cleaned = Cleaning(smallest_voxels=64, inside_field=True).apply(label, scan).array
    assert cleaned.sum() == 48


def test_nothing_to_remove_is_the_same_volume_and_an_empty_map_stays_empty() -> None:
    label, scan = pair(np.zeros((2, 2, 2), np.uint8))
    assert Cleaning().apply(label, scan) is label
    assert not Cleaning(64, True).apply(label, scan).array.any()
