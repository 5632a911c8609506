from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdseg_cli.imaging.intensity import Limits
from sdseg_cli.imaging.io.picture import Picture
from sdseg_cli.report import preview as preview_module
from sdseg_cli.report.drawing import PREDICTION_COLOUR, class_colour, rgb
from sdseg_cli.report.preview import preview_slices, save_preview
from tests.fake_run import volume


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[int, ...]]]:
    """Caption and shape of each plane that is drawn."""
    seen: list[tuple[str, tuple[int, ...]]] = []
    show = preview_module.show_panel

    def record(axes: Any, caption: str, plane: np.ndarray, *rest: Any, **style: Any) -> Any:
        seen.append((caption, plane.shape))
        return show(axes, caption, plane, *rest, **style)

    monkeypatch.setattr(preview_module, "show_panel", record)
    return seen


def outlined(path: Path) -> np.ndarray:
    """(rows,columns) bool: where the outline's colour is."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return np.abs(pixels - rgb(PREDICTION_COLOUR)).max(axis=-1) < 40


@pytest.mark.parametrize(
    ("filled", "slices", "shown"),
    [
        (range(3, 6), 20, [3, 4, 5]),
        (range(10, 33), 50, list(range(10, 33, 2))),  # 23 slices from 10: every second one
        (range(0), 23, list(range(0, 23, 2))),
        (range(0), 2, [0, 1]),
    ],
)
def test_at_most_twelve_slices_are_spread_over_the_foreground_or_over_all(
    filled: range, slices: int, shown: list[int]
) -> None:
    mask = np.zeros((slices, 4, 4), np.uint8)
    mask[filled.start : filled.stop, 1, 1] = 1
    assert preview_slices(mask) == shown


def scan_of(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]):
    affine = np.diag([-spacing_mm[0], -spacing_mm[1], spacing_mm[2], 1.0])
    return volume(np.full(shape, 40, np.int16), affine)


def test_the_outline_has_the_true_proportions(tmp_path: Path) -> None:
    # 20 x 20 voxels of 1 mm across and 3 mm down: as drawn, three times as high as wide.
    scan = scan_of((40, 40, 1), (1.0, 3.0, 2.0))
    mask = np.zeros((40, 40, 1), np.uint8)
    mask[10:30, 10:30] = 1
    save_preview(tmp_path / "look.png", scan, mask, Limits(-175, 250))
    found = np.argwhere(outlined(tmp_path / "look.png"))
    height, width = np.ptp(found, axis=0)
    assert height / width == pytest.approx(3, rel=0.06)


def test_an_empty_mask_has_no_outline_and_says_so(tmp_path: Path, drawn: list) -> None:
    scan = scan_of((8, 8, 2), (1.0, 1.0, 1.0))
    save_preview(tmp_path / "look.png", scan, np.zeros((8, 8, 2), np.uint8), Limits(-175, 250))
    captions = [caption for caption, _ in drawn]
    assert captions == ["slice 1 of 2: nothing found", "slice 2 of 2: nothing found"]
    assert not outlined(tmp_path / "look.png").any()


def test_the_same_mask_gives_the_same_bytes(tmp_path: Path) -> None:
    scan = scan_of((12, 12, 3), (1.0, 1.0, 1.0))
    mask = np.zeros((12, 12, 3), np.uint8)
    mask[4:8, 4:8, 1] = 1
    made = []
    for name in ("a.png", "new/b.png"):
        save_preview(tmp_path / name, scan, mask, Limits(-175, 250))
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1]


def test_a_picture_is_drawn_whole_in_its_colours(tmp_path: Path) -> None:
    pixels = np.zeros((30, 60, 3), np.uint8)
    pixels[..., 2] = 200
    mask = np.zeros((30, 60, 1), np.uint8)
    mask[10:20, 10:50] = 1
    save_preview(tmp_path / "look.png", Picture.of(pixels), mask, Limits(0, 255))
    drawn = np.asarray(Image.open(tmp_path / "look.png").convert("RGB"))
    blue = (drawn == (0, 0, 200)).all(axis=-1)
    rows, columns = np.flatnonzero(blue.any(axis=1)), np.flatnonzero(blue.any(axis=0))
    assert np.ptp(columns) / np.ptp(rows) == pytest.approx(2, rel=0.03)
    found = np.argwhere(outlined(tmp_path / "look.png"))
    assert np.ptp(found[:, 1]) / np.ptp(found[:, 0]) == pytest.approx(4, rel=0.1)


def test_a_large_picture_is_drawn_from_fewer_pixels(tmp_path: Path, drawn: list) -> None:
    picture, mask = Picture.of(np.zeros((20, 4000, 3), np.uint8)), np.zeros((20, 4000, 1), np.uint8)
    save_preview(tmp_path / "look.png", picture, mask, Limits(0, 255))
    assert drawn == [("nothing found", (7, 1334, 3))]


@pytest.mark.slow
def test_each_class_of_a_label_map_has_its_colour_and_a_small_one_is_shown(
    tmp_path: Path, drawn: list
) -> None:
    scan = scan_of((16, 16, 40), (1.0, 1.0, 1.0))
    labels = np.zeros((16, 16, 40), np.uint8)
    labels[2:7, 2:7, :] = 6
    labels[9:13, 9:13, 5] = 4  # in one slice only
    names = {6: "liver", 4: "spleen, <left>"}
    save_preview(tmp_path / "look.png", scan, labels, Limits(-175, 250), names=names)
    assert any(caption.startswith(f"slice {5 + 1} ") for caption, _ in drawn)
    picture = np.asarray(Image.open(tmp_path / "look.png").convert("RGB")).astype(int)
    for number in (1, 2):
        assert (np.abs(picture - rgb(class_colour(number))).max(axis=-1) < 40).any()
    save_preview(tmp_path / "bare.png", scan, labels, Limits(-175, 250))
    picture = np.asarray(Image.open(tmp_path / "bare.png").convert("RGB")).astype(int)
    for number in (4, 6):
        assert (np.abs(picture - rgb(class_colour(number))).max(axis=-1) < 40).any()


def test_the_legend_leaves_out_classes_that_were_not_found(tmp_path: Path, monkeypatch) -> None:
    named: list[dict[int, str]] = []
    monkeypatch.setattr(
        preview_module, "class_legend", lambda figure, names, inches: named.append(names)
    )
    scan, labels = scan_of((16, 16, 2), (1.0, 1.0, 1.0)), np.zeros((16, 16, 2), np.uint8)
    labels[2:7, 2:7] = 9
    names = {6: "liver", 9: "spleen"}
    save_preview(tmp_path / "look.png", scan, labels, Limits(-175, 250), names=names)
    assert named == [{2: "spleen"}]
    save_preview(tmp_path / "none.png", scan, 0 * labels, Limits(-175, 250), names=names)
    assert len(named) == 1  # no legend at all
