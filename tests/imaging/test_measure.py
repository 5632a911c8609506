"""What is measured of a case, on arrays small enough to count by hand."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from sdseg_cli.core.errors import DataError
from sdseg_cli.imaging.io.picture import Picture, read_picture_labels
from sdseg_cli.imaging.measure import (
    Pair,
    facts_record,
    measure_case,
    measure_grid,
    measure_labels,
    measure_mask,
    measure_pictures,
    measure_scan,
    statistics_in,
)
from sdseg_cli.imaging.volume import Geometry, Volume

LPS = np.diag([-1.0, -2.0, 3.0, 1.0])


def volume(array: np.ndarray, affine: np.ndarray = LPS) -> Volume:
    return Volume(array, Geometry(array.shape, affine))


def test_shares_are_counted():
    values = [-32769, -201, -200, 0, 0, 300, 301, 850, 1150, 1151, 20000, 20001]
    wrapped = [64511, 64512, 65535, 65536]
    scan = measure_scan(volume(np.array([*values, *wrapped], np.float64).reshape(4, 2, 2)))
    assert (scan.minimum, scan.maximum, scan.not_finite) == (-32769, 65536, 0)
    assert scan.zero_share == 2 / 16
    assert scan.air_share == 2 / 16  # -32769 and -201
    assert scan.shifted_share == 2 / 10  # 850 and 1150, of ten above 300
    assert scan.wrapped_share == 2 / 16
    assert scan.beyond_share == 4 / 16  # -32769, 20001, 64511 and 65536
    assert scan.distinct is None


def test_values_that_are_not_finite_are_counted_and_left_out():
    array = np.zeros((2, 2, 2), np.float32)
    array[0, 0, 0], array[1, 1, 0], array[0, 0, 1] = np.nan, np.inf, 7
    scan = measure_scan(volume(array))
    assert (scan.not_finite, scan.minimum, scan.maximum, scan.distinct) == (2, 0, 7, 2)
    nothing = measure_scan(volume(np.full((2, 2, 2), np.nan, np.float32)))
    assert (nothing.not_finite, nothing.minimum, nothing.maximum) == (8, 0, 0)


@pytest.mark.parametrize(
    ("values", "distinct"), [([0, 1, 1, 255], 3), ([0, 1, 1, 256], None), ([0, 0.5, 1, 1], None)]
)
def test_distinct_values_are_counted_among_whole_bytes_alone(values, distinct):
    assert measure_scan(volume(np.array(values).reshape(1, 2, 2))).distinct == distinct


def test_the_content_is_known_again_in_any_orientation_type_and_slope():
    array = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    flipped = Volume(
        (array[::-1] * 2.0).transpose(2, 0, 1) + 3,
        Geometry((4, 2, 3), np.diag([1.0, -2, 3, 1])[:, [2, 0, 1, 3]]),
        slope=0.5,
        intercept=-1.5,
    )
    moved = array.copy()
    moved[0, 0, 0] += 1
    hashes = []
    for one in (volume(array), flipped, volume(moved)):
        digest = hashlib.sha256()
        measure_scan(one, digest)
        hashes.append(digest.hexdigest())
    assert hashes[0] == hashes[1] != hashes[2]


def test_label_centres_run_front_to_back_right_to_left_and_feet_to_head():
    array = np.zeros((5, 3, 11), np.uint8)  # stored right to left, front to back, feet to head
    array[4, 0, 10] = 7
    array[1, 1, 2:5] = 2
    labels = measure_labels(volume(array))
    assert labels.counts == {0: 161, 2: 3, 7: 1}
    assert labels.labels == (2, 7)
    assert labels.centres == {7: (0, 1, 1), 2: (0.5, 0.25, 0.3)}
    reversed_array = np.ascontiguousarray(array[::-1])
    mirrored = measure_labels(volume(reversed_array, np.diag([1.0, -2, 3, 1])))
    assert mirrored == labels


def test_a_grid_is_described():
    grid = measure_grid(Geometry((4, 5, 6), LPS))
    assert (grid.shape, grid.plane, grid.axis_codes) == ((4, 5, 6), (5, 4), "LPS")
    assert (grid.spacing_mm, grid.shear_degrees) == ((1, 2, 3), 0)


def test_a_record_gives_the_facts_back():
    array = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    scan, labels = measure_scan(volume(array)), measure_labels(volume(array))
    grid = measure_grid(volume(array).geometry)
    record = json.loads(json.dumps(facts_record(scan, labels, grid) | {"pixels_sha256": "ab"}))
    pair = Pair("x", Path("i.nii"), Path("l.nii"))
    facts = statistics_in(pair, record)
    assert (facts.grid, facts.scan, facts.sha256) == (grid, scan, "ab")
    assert facts.labels is not None
    assert (facts.labels.voxels, facts.labels.counts) == (8, labels.counts)
    assert statistics_in(pair, {}).scan is None  # prepared by an older version


def test_faults_of_both_files_are_kept(tmp_path):
    (tmp_path / "ct.nii.gz").write_bytes(b"no scan")
    labels = np.full((2, 2, 2), 0.5, np.float32)
    nib.save(nib.Nifti1Image(labels, LPS), tmp_path / "mask.nii.gz")
    case = measure_case(Pair("x", tmp_path / "ct.nii.gz", tmp_path / "mask.nii.gz"))
    assert [fault.code for fault in case.faults] == ["image-damaged", "label-values"]
    assert "probability map" in case.faults[1].hint
    assert (case.grid, case.scan, case.labels, case.sha256) == (None, None, None, "")


def greys(*rows: list[int], name: str = "m.png") -> Picture:
    return Picture.of(np.array(rows, np.uint8), Path(name))


def test_a_jpeg_mask_is_read_above_128_and_greys_between_are_counted():
    facts = measure_mask(greys([0, 1, 128, 129], [254, 255, 255, 0], name="m.jpg"))
    assert facts.counts == {0: 4, 1: 4}
    assert facts.between_share == 4 / 8
    assert not facts.graded


def test_the_greys_of_another_mask_are_its_labels():
    facts = measure_mask(greys([0, 1, 2, 255]))
    assert facts.counts == {0: 1, 1: 1, 2: 1, 255: 1}
    assert (facts.between_share, facts.graded) == (0, True)


def test_a_soft_edge_is_no_list_of_classes():
    facts = measure_mask(greys([0, *range(100, 118), 255]))  # 18 greys among 20 pixels
    assert (facts.between_share, facts.graded) == (18 / 20, True)


def test_levels_say_what_a_grey_means():
    mask = greys([0, 63, 64, 128, 192], [193, 200, 255, 255, 255])
    cup_and_rim = measure_mask(mask, ((0, 1), (64, 2), (193, 0)))
    assert cup_and_rim.counts == {1: 2, 2: 3, 0: 5}
    assert cup_and_rim.between_share == 5 / 10  # 63, 64, 192, 193 and 200
    assert measure_mask(mask, ((0, 0), (129, 1))).counts == {0: 4, 1: 6}


def test_an_empty_mask_has_no_label():
    assert measure_mask(greys([0, 0], [0, 0])).labels == ()


def test_a_turned_photograph_is_measured_as_it_is_shown(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", exif=exif)
    Image.new("L", (6, 8)).save(tmp_path / "m.png")
    assert measure_pictures(Pair("a", tmp_path / "a.jpg", tmp_path / "m.png")).faults == ()


@pytest.mark.parametrize("kind", ["colours", "pages"])
def test_a_mask_that_prepare_refuses_is_a_fault(tmp_path, kind):
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    mask = Image.new("RGB", (8, 6), (255, 0, 0) if kind == "colours" else 0)
    pages = {"save_all": True, "append_images": [mask]} if kind == "pages" else {}
    mask.save(tmp_path / "m.tif", **pages)
    with pytest.raises(DataError) as refused:
        read_picture_labels(tmp_path / "m.tif")
    case = measure_pictures(Pair("a", tmp_path / "a.png", tmp_path / "m.tif"))
    assert [fault.message for fault in case.faults] == [refused.value.message]


def test_a_picture_or_mask_too_large_for_memory_is_a_fault(tmp_path, monkeypatch):
    Image.new("L", (60_000, 1)).save(tmp_path / "wide.png")
    Image.new("L", (8, 6)).save(tmp_path / "a.png")
    monkeypatch.setattr("sdseg_cli.imaging.io.picture.available_bytes", lambda: 40_000_000_000)
    for names, code in ((("wide", "a"), "image-memory"), (("a", "wide"), "label-memory")):
        image, label = (tmp_path / f"{name}.png" for name in names)
        faults = measure_pictures(Pair("x", image, label)).faults
        assert [fault.code for fault in faults][:1] == [code]
        assert "60000 x 1 pixels take 43.20 GB of memory" in faults[0].message


def test_the_same_picture_in_another_format_is_known_again(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    for name in ("a.png", "b.bmp"):
        Image.fromarray(pixels).save(tmp_path / name)
    first, second = (
        measure_pictures(Pair(name, tmp_path / name, None)) for name in ("a.png", "b.bmp")
    )
    assert first.sha256 == second.sha256 != ""
    assert first.grid is not None
    assert first.grid.plane == (8, 9)


def test_sizes_that_differ_are_a_fault(tmp_path):
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    Image.new("L", (8, 5)).save(tmp_path / "m.png")
    case = measure_pictures(Pair("a", tmp_path / "a.png", tmp_path / "m.png"))
    assert [fault.code for fault in case.faults] == ["grid-shape"]
    assert "8x6 pixels, mask m.png has 8x5" in case.faults[0].message
