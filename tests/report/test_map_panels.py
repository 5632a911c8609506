"""Map panels: tinted where runs disagree, grey elsewhere."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from sdseg_cli.report.map_panels import map_panel

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
