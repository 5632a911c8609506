"""Panels: the right part of a slice, true proportions, outlines where the masks are."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from sdseg_cli.core.errors import DataError
from sdseg_cli.report.panels import (
    FILE,
    LONGEST_SIDE,
    case_panel,
    load_panels,
    map_panel,
    save_panels,
)

EMPTY = np.zeros((20, 20), bool)


def _panel(reference=EMPTY, prediction=EMPTY, plane=None, pixel_mm=(1.0, 1.0), caption="slice 1"):
    plane = np.full((20, 20), 100.0) if plane is None else plane
    return case_panel("a", caption, plane, reference, prediction, (0.0, 200.0), pixel_mm)


def _pixels(panel) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(panel.image_png)))


def test_a_square_of_pixels_twice_as_high_as_wide_is_a_tall_picture():
    panel = _panel(pixel_mm=(2.0, 1.0))
    assert (panel.width, panel.height) == (LONGEST_SIDE // 2, LONGEST_SIDE)
    assert _pixels(panel).shape == (panel.height, panel.width)
    assert panel.width_mm == 20.0


def test_the_middle_of_the_window_is_grey_and_the_ends_are_black_and_white():
    plane = np.full((20, 20), 100.0)
    plane[:, :8], plane[:, 12:] = -500, 900
    levels = _pixels(_panel(plane=plane))[LONGEST_SIDE // 2]
    assert levels[20] <= 3
    assert levels[-20] >= 252
    assert levels[LONGEST_SIDE // 2] == pytest.approx(127.5, abs=3)


def test_what_is_no_number_is_black():
    plane = np.full((20, 20), 200.0)
    plane[:, :10] = np.nan
    assert _pixels(_panel(plane=plane))[200, 50] <= 3


def test_an_outline_runs_along_the_middle_of_the_edge_between_pixels():
    mask = EMPTY.copy()
    mask[4:14, 6:16] = True
    panel = _panel(reference=mask)
    scale = LONGEST_SIDE / 20  # the whole plane is shown: 21 pixels for one
    (line,) = panel.reference
    xs, ys = zip(*line, strict=True)
    assert (min(xs), max(xs)) == (6 * scale, 16 * scale)
    assert (min(ys), max(ys)) == (4 * scale, 14 * scale)
    assert line[0] == line[-1]
    assert len(line) == 9  # eight corners of a square whose corners are cut, and back


def test_a_mask_at_the_border_is_closed():
    mask = np.ones((20, 20), bool)
    (line,) = _panel(prediction=mask).prediction
    assert line[0] == line[-1]
    assert {x for x, _ in line} >= {0.0, float(LONGEST_SIDE)}


def test_a_hole_is_an_outline_of_its_own():
    mask = EMPTY.copy()
    mask[2:12, 2:12] = True
    mask[6, 6] = False
    assert len(_panel(reference=mask).reference) == 2


def test_an_empty_mask_is_named_in_the_caption():
    full = np.ones((20, 20), bool)
    assert _panel(full, full).caption == "slice 1"
    assert _panel(full, EMPTY).caption == "slice 1, no prediction in this slice"
    both = "no reference and no prediction in this slice"
    assert _panel(EMPTY, EMPTY).caption == f"slice 1, {both}"
    assert _panel(EMPTY, EMPTY, caption="").caption == both


def test_a_small_structure_in_a_large_plane_is_cut_out():
    plane = np.full((200, 200), 100.0)
    mask = np.zeros((200, 200), bool)
    mask[100:110, 100:110] = True
    panel = case_panel("a", "", plane, mask, mask, (0, 200), (1.0, 1.0))
    assert panel.width_mm == 80.0  # the least that is shown: 0.4 of the plane
    (line,) = panel.reference
    assert max(x for x, _ in line) - min(x for x, _ in line) == pytest.approx(
        10 / 80 * LONGEST_SIDE, abs=0.2
    )


def test_a_picture_in_colour_stays_in_colour_and_has_no_millimetres():
    plane = np.zeros((20, 20, 3))
    plane[..., 0] = 200
    panel = _panel(plane=plane)
    red, green, _ = _pixels(panel)[200, 200]
    assert red > 240
    assert green < 12
    assert panel.width_mm is None


def test_planes_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="planes of"):
        _panel(reference=np.zeros((20, 21), bool))


def test_panels_come_back_as_they_were_saved(tmp_path):
    mask = EMPTY.copy()
    mask[3:9, 4:11] = True
    panels = (_panel(mask, EMPTY), _panel(EMPTY, mask, plane=np.zeros((20, 20, 3))))
    assert save_panels(tmp_path, panels) == tmp_path / FILE
    assert load_panels(tmp_path) == panels


def test_a_folder_without_panels_has_none(tmp_path):
    assert load_panels(tmp_path) == ()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"format_version": 99}, "format version 99"),
        ({"panels": 3}, "not iterable"),
        ({"panels": [{"id": "a"}]}, "image"),
        ({"image": "no base64!"}, "picture is damaged"),
        ({"image": "PHN2Zz4="}, "neither PNG nor JPEG"),  # "<svg>"
    ],
)
def test_a_damaged_file_is_a_data_error(tmp_path, change, why):
    save_panels(tmp_path, [_panel()])
    stored = json.loads((tmp_path / FILE).read_text())
    if "image" in change:
        change = {"panels": [stored["panels"][0] | change]}
    (tmp_path / FILE).write_text(json.dumps(stored | change))
    with pytest.raises(DataError, match=why):
        load_panels(tmp_path)


MASK = np.zeros((20, 20), bool)
MASK[5:15, 5:15] = True


def pixels(plane, disagreement, window=(0.0, 200.0)) -> np.ndarray:
    made = map_panel("a", "", plane, MASK, MASK, disagreement, window, (1.0, 1.0))
    assert made.reference == made.prediction != ()
    return np.asarray(Image.open(io.BytesIO(made.image_png)))


def test_where_all_agree_a_slice_keeps_its_grey():
    shown = pixels(np.full((20, 20), 100.0), np.zeros((20, 20), np.uint8))
    assert np.allclose(shown, 127.5, atol=3)


def test_where_half_disagree_four_fifths_are_tint():
    flipped = np.full((20, 20), 255, np.uint8)
    red, green, blue = pixels(np.full((20, 20), 100.0), flipped)[200, 200]
    # 0.2 x grey 0.5 + 0.8 x (0.62, 0.2, 1) = 0.596, 0.26, 0.90
    assert red == pytest.approx(152.0, abs=5)
    assert green == pytest.approx(66.3, abs=5)
    assert blue == pytest.approx(229.5, abs=5)


def test_a_slice_of_a_patient_has_a_scale_and_a_picture_has_none():
    nothing = np.zeros((20, 20), np.uint8)
    sizes = (1.0, 1.0)
    slice_ = map_panel("a", "", np.zeros((20, 20)), MASK, MASK, nothing, (0.0, 1.0), sizes)
    picture = map_panel("a", "", np.ones((20, 20, 3)), MASK, MASK, nothing, (0.0, 1.0), sizes)
    assert (slice_.width_mm, picture.width_mm) == (20.0, None)


def test_each_class_has_its_outlines_which_are_kept_in_the_file(tmp_path):
    masks = np.zeros((3, 20, 20), bool)
    masks[0, 2:6, 2:6] = masks[2, 10:14, 10:14] = True
    panel = _panel(masks, np.zeros_like(masks))
    assert panel.reference == panel.prediction == ()
    assert [(len(one), len(other)) for one, other in panel.classes] == [(1, 0), (0, 0), (1, 0)]
    assert panel.caption == "slice 1, no prediction in this slice"
    save_panels(tmp_path, [panel])
    assert load_panels(tmp_path) == (panel,)
    with pytest.raises(ValueError, match="planes of"):
        _panel(masks, EMPTY)
