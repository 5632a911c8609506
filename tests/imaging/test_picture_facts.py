"""Pictures and their masks, measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdseg_cli.errors import DataError
from sdseg_cli.imaging.measure import Pair
from sdseg_cli.imaging.picture_facts import measure_mask, measure_pictures, read_pixels


def test_grey_pixels_of_a_mask_are_counted_beside_the_threshold() -> None:
    facts = measure_mask(np.array([[0, 1, 128, 129], [254, 255, 255, 0]], np.uint8))
    assert facts.counts == {0: 4, 255: 4}
    assert facts.between_share == 4 / 8


def test_a_mask_of_small_labels_is_taken_as_it_is() -> None:
    facts = measure_mask(np.array([[0, 1, 2, 2]], np.uint8))
    assert (facts.counts, facts.between_share) == ({0: 1, 1: 1, 2: 2}, 0)


def test_levels_say_what_a_grey_means() -> None:
    mask = np.array([[0, 63, 64, 128, 192], [193, 200, 255, 255, 255]], np.uint8)
    cup_and_rim = measure_mask(mask, ((0, 1), (64, 2), (193, 0)))
    assert cup_and_rim.counts == {1: 2, 2: 3, 0: 5}
    assert cup_and_rim.between_share == 5 / 10  # 63, 64, 192, 193 and 200
    assert measure_mask(mask, ((0, 0), (129, 1))).counts == {0: 4, 1: 6}


def test_an_empty_mask_has_no_label() -> None:
    assert measure_mask(np.zeros((2, 2), np.uint8)).labels == ()


def test_a_jpeg_mask_is_not_binary_and_a_png_mask_is(tmp_path: Path) -> None:
    mask = np.zeros((32, 32), np.uint8)
    mask[9:21, 5:27] = 255
    shares = []
    for name in ("mask.png", "mask.jpg"):
        Image.fromarray(mask).save(tmp_path / name)
        shares.append(measure_mask(read_pixels(tmp_path / name, "L")).between_share)
    assert shares[0] == 0 < shares[1]


def test_the_same_picture_in_another_format_is_known_again(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    for name in ("a.png", "b.bmp"):
        Image.fromarray(pixels).save(tmp_path / name)
    first, second = (
        measure_pictures(Pair(name, tmp_path / name, None)) for name in ("a.png", "b.bmp")
    )
    assert first.sha256 == second.sha256 != ""
    assert first.grid is not None
    assert first.grid.plane == (8, 9)


def test_sizes_that_differ_are_a_fault(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    Image.new("L", (8, 5)).save(tmp_path / "m.png")
    case = measure_pictures(Pair("a", tmp_path / "a.png", tmp_path / "m.png"))
    assert [fault.code for fault in case.faults] == ["grid-shape"]
    assert "8x6 pixels, mask m.png has 8x5" in case.faults[0].message


@pytest.mark.parametrize("kind", ["cut", "text", "none"])
def test_what_is_no_whole_picture_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.png"
    if kind == "text":
        path.write_text("no picture")
    elif kind == "cut":
        noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError) as caught:
        read_pixels(path, "L")
    assert caught.value.code == {"cut": "damaged", "text": "kind", "none": "missing"}[kind]
