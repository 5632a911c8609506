"""Pictures and their masks, measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdseg_cli.core.errors import DataError
from sdseg_cli.imaging.io.picture import Picture, read_picture_labels
from sdseg_cli.imaging.measure import Pair
from sdseg_cli.imaging.picture_facts import measure_mask, measure_pictures


def greys(*rows: list[int], name: str = "m.png") -> Picture:
    return Picture.of(np.array(rows, np.uint8), Path(name))


def test_a_jpeg_mask_is_read_above_128_and_greys_between_are_counted() -> None:
    facts = measure_mask(greys([0, 1, 128, 129], [254, 255, 255, 0], name="m.jpg"))
    assert facts.counts == {0: 4, 1: 4}
    assert facts.between_share == 4 / 8
    assert not facts.graded


def test_the_greys_of_another_mask_are_its_labels() -> None:
    facts = measure_mask(greys([0, 1, 2, 255]))
    assert facts.counts == {0: 1, 1: 1, 2: 1, 255: 1}
    assert (facts.between_share, facts.graded) == (0, True)


def test_a_soft_edge_is_no_list_of_classes() -> None:
    facts = measure_mask(greys([0, *range(100, 118), 255]))  # 18 greys among 20 pixels
    assert (facts.between_share, facts.graded) == (18 / 20, True)


def test_levels_say_what_a_grey_means() -> None:
    mask = greys([0, 63, 64, 128, 192], [193, 200, 255, 255, 255])
    cup_and_rim = measure_mask(mask, ((0, 1), (64, 2), (193, 0)))
    assert cup_and_rim.counts == {1: 2, 2: 3, 0: 5}
    assert cup_and_rim.between_share == 5 / 10  # 63, 64, 192, 193 and 200
    assert measure_mask(mask, ((0, 0), (129, 1))).counts == {0: 4, 1: 6}


def test_an_empty_mask_has_no_label() -> None:
    assert measure_mask(greys([0, 0], [0, 0])).labels == ()


def test_a_turned_photograph_is_measured_as_it_is_shown(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (8, 6)).save(tmp_path / "a.jpg", exif=exif)
    Image.new("L", (6, 8)).save(tmp_path / "m.png")
    assert measure_pictures(Pair("a", tmp_path / "a.jpg", tmp_path / "m.png")).faults == ()


@pytest.mark.parametrize("kind", ["colours", "pages"])
def test_a_mask_that_prepare_refuses_is_a_fault(tmp_path: Path, kind: str) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    mask = Image.new("RGB", (8, 6), (255, 0, 0) if kind == "colours" else 0)
    pages = {"save_all": True, "append_images": [mask]} if kind == "pages" else {}
    mask.save(tmp_path / "m.tif", **pages)
    with pytest.raises(DataError) as refused:
        read_picture_labels(tmp_path / "m.tif")
    case = measure_pictures(Pair("a", tmp_path / "a.png", tmp_path / "m.tif"))
    assert [fault.message for fault in case.faults] == [refused.value.message]


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
        read_picture_labels(path)
    assert caught.value.code == {"cut": "damaged", "text": "kind", "none": "missing"}[kind]
