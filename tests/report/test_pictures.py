"""Pictures: which slice, which way up, and that something is really drawn."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdseg_cli.imaging.io.files import read_image, read_labels
from sdseg_cli.imaging.slices import SliceTransform
from sdseg_cli.metrics.statistics import paired
from sdseg_cli.report import drawing, pictures
from sdseg_cli.report.drawing import (
    CLASS_COLOURS,
    PREDICTION_COLOUR,
    REFERENCE_COLOUR,
    Frame,
    Line,
    rgb,
    view_mm,
)
from sdseg_cli.report.pictures import (
    CasePlane,
    ClassRuns,
    StabilityPlane,
    case_plane,
    comparison_picture,
    largest_area_slice,
    save_cases,
    stability_picture,
)
from tests.fake_run import volume

OPENKBP = Path(__file__).resolve().parents[2] / "../shared/data/openkbp-hn-ct"
RAS = np.diag([2.0, 3.0, 4.0, 1.0])


def made_plane(**changes) -> CasePlane:
    """A bright body of 30 x 30 pixels with a structure of 6 x 6 and its shifted prediction."""
    image = np.full((40, 40), -1000, np.float32)
    image[5:35, 5:35] = 50
    reference, prediction = np.zeros((2, 40, 40), bool)
    reference[10:16, 12:18] = True
    prediction[11:17, 13:19] = True
    plane = CasePlane(
        case_id="case_7",
        heading="best",
        dice=0.694,
        slice_index=3,
        slices=9,
        image=image,
        reference=reference,
        prediction=prediction,
        probability=prediction * np.float32(0.9),
        window=(-175.0, 250.0),
        pixel_mm=(2.0, 2.0),
    )
    return replace(plane, **changes)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def shows(picture: np.ndarray, colour: str, tolerance: int = 40) -> bool:
    return bool((np.abs(picture - rgb(colour)).max(axis=2) < tolerance).any())


def test_the_slice_with_the_largest_reference_is_shown():
    restore = SliceTransform.of(volume(np.zeros((8, 8, 5), np.uint8), RAS).geometry)
    reference, prediction = np.zeros((2, 8, 8, 5), bool)
    assert largest_area_slice(reference, prediction, restore) == 2
    prediction[0, 0, 4] = True
    assert largest_area_slice(reference, prediction, restore) == 4
    reference[0, 0, 0] = reference[0:2, 0, 1] = True
    assert largest_area_slice(reference, prediction, restore) == 1


def test_planes_are_shown_front_up_and_patient_right_on_the_left():
    # In RAS the indices grow towards the patient's right, front and head.
    scan = volume(np.zeros((8, 6, 4), np.int16), RAS)
    scan.array[7, 5, 2] = 90  # right, front
    restore = SliceTransform.of(scan.geometry, size=8)
    reference = scan.array > 0
    probability = np.zeros((4, 8, 8), np.float32)
    planes = probability.__getitem__
    window = (0.0, 1.0)
    plane = case_plane("x", scan, reference, reference, planes, restore, dice=1.0, window=window)
    assert plane.image.shape == (6, 8)
    assert np.argwhere(plane.image == 90).tolist() == [[0, 0]]
    assert plane.pixel_mm == (3.0, 2.0)
    assert plane.slice_index == 2


def test_a_small_structure_is_zoomed_to_and_seen_whole():
    plane = made_plane()
    left, right, top, bottom = view_mm(plane.reference, plane.image > 0, (2.0, 2.0))
    assert right - left == bottom - top == pytest.approx(0.4 * 80)  # the least: 40 % of the plane
    assert left <= 24 < 36 <= right
    assert top <= 20 < 32 <= bottom


def test_a_large_structure_is_shown_with_the_whole_body():
    body = made_plane().image > 0
    assert view_mm(body, body, (2.0, 2.0)) == pytest.approx((8.2, 71.8, 8.2, 71.8))


def test_an_empty_plane_is_shown_whole():
    empty = np.zeros((10, 20), bool)
    left, right, top, bottom = view_mm(empty, empty, (1.0, 1.0))
    assert left < 0 < 20 < right
    assert top < 0 < 10 < bottom


def test_a_case_shows_both_outlines(tmp_path):
    save_cases(tmp_path / "new" / "x.png", [made_plane()])
    picture = pixels(tmp_path / "new" / "x.png")
    assert picture.shape[1] > 3 * picture.shape[0]
    assert shows(picture, REFERENCE_COLOUR)
    assert shows(picture, PREDICTION_COLOUR)


def test_empty_masks_are_drawn_without_a_warning(tmp_path):
    nothing = np.zeros((40, 40), bool)
    save_cases(tmp_path / "x.png", [made_plane(reference=nothing, prediction=nothing, dice=None)])
    with pytest.raises(ValueError, match="no cases"):
        save_cases(tmp_path / "y.png", [])
    assert [file.name for file in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.slow
def test_stability_shows_every_outline_and_the_spread(tmp_path):
    y, x = np.mgrid[:64, :64]
    runs = [(np.hypot(y - 30, x - 30 - n) < 8).astype(np.float32) for n in range(3)]
    image = np.full((64, 64), 0.2, np.float32)
    view = StabilityPlane("case_7", 3, image, runs[0] > 0.5, np.stack(runs))
    stability_picture(tmp_path / "x.png", view, {"case_7": [0.9, 0.8, 0.85]})
    picture = pixels(tmp_path / "x.png")
    assert shows(picture, REFERENCE_COLOUR)
    assert shows(picture, PREDICTION_COLOUR, tolerance=90)  # thin and half transparent


@pytest.mark.data
@pytest.mark.skipif(not OPENKBP.is_dir(), reason="openkbp-hn-ct is not beside the checkout")
def test_the_mandible_lies_in_front_of_the_spinal_cord_in_a_real_picture():
    folder = OPENKBP / "pt_100"
    scan, labels = read_image(folder / "image.nii.gz"), read_labels(folder / "label.nii.gz")
    restore = SliceTransform.of(scan.geometry)
    mandible = labels.array == 7
    planes = np.zeros((restore.slices, 256, 256), np.float32).__getitem__
    window = (-175.0, 250.0)
    shown = case_plane("x", scan, mandible, mandible, planes, restore, dice=1.0, window=window)
    cord = restore.canonical_plane(labels.array == 2, shown.slice_index)
    assert np.argwhere(shown.reference)[:, 0].mean() < np.argwhere(cord)[:, 0].mean()
    assert np.median(shown.image[shown.reference]) > 300  # bone, in HU


# How the three kinds of colour-blind see linear red, green and blue (Vienot, Brettel, Mollon 1999),
# about: with red and green taken together.
SEEN = {"all": np.eye(3), "no red": [[0.11, 0.89, 0], [0.11, 0.89, 0], [0, 0, 1]]}
SEEN["no green"] = [[0.29, 0.71, 0], [0.29, 0.71, 0], [0, 0, 1]]
GROUNDS = {"mucosa": (190, 90, 70), "pale mucosa": (230, 150, 120), "fat": (220, 180, 90)}
GROUNDS |= {"air": (0, 0, 0), "muscle": (140, 140, 140), "bone": (255, 255, 255)}


@pytest.mark.parametrize("eye", SEEN)
def test_outlines_are_told_from_each_other_and_with_their_rim_from_every_ground(eye: str):
    seen = np.array(SEEN[eye])
    ours = [seen @ np.array(rgb(colour)) for colour in (REFERENCE_COLOUR, PREDICTION_COLOUR)]
    assert np.abs(ours[0] - ours[1]).max() > 120
    for ground in GROUNDS.values():
        for colour in (*ours,):
            line, rim = (np.abs(seen @ np.array(ground) - one).max() for one in (colour, 0))
            assert max(line, rim) > 120, (ground, line, rim)


@pytest.mark.parametrize("eye", SEEN)
def test_the_first_classes_are_told_apart_by_everyone_and_all_by_most(eye: str):
    seen = [np.array(SEEN[eye]) @ np.array(rgb(colour)) for colour in CLASS_COLOURS]
    count = 8 if eye == "all" else 5
    for one, other in combinations(seen[:count], 2):
        assert np.abs(one - other).max() > 90
    assert len(seen) == 20
    if eye == "all":
        assert min(np.abs(one - other).max() for one, other in combinations(seen, 2)) >= 30


@pytest.mark.slow
def test_a_case_of_several_classes_fills_them_and_shows_what_is_wrong(tmp_path):
    masks = np.zeros((3, 40, 40), bool)
    masks[0, 10:16, 12:18] = masks[2, 18:24, 12:18] = True
    wrong = masks.copy()
    wrong[0, 10:13], wrong[2, 24:27, 12:18], wrong[1, 18:20, 12:18] = False, True, True
    wrong[2, 18:20] = False
    names = ("liver", "spleen", "a $ tumour")
    plane = made_plane(reference=masks, prediction=wrong, classes=names)
    save_cases(tmp_path / "x.png", [plane, plane])
    picture = pixels(tmp_path / "x.png")
    for colour in (pictures.ERROR_COLOUR, drawing.class_colour(1), drawing.class_colour(3)):
        assert shows(picture, colour, 60)
    # No colour of a class, which any may be, says where reference and prediction differ.
    differing = picture[:, 3 * picture.shape[1] // 4 + 8 :]
    shown = differing[int(0.12 * len(picture)) : int(0.4 * len(picture))].reshape(-1, 3)
    assert (shown.max(axis=1) - shown.min(axis=1)).max() < 30  # grey
    assert shown.max() > 220
    nothing = np.zeros_like(masks)
    save_cases(tmp_path / "y.png", [replace(plane, reference=nothing, prediction=nothing)])


def test_the_number_of_a_pixel_is_that_of_its_last_class():
    masks = np.array([[[True, True, False]], [[False, True, False]]])
    assert drawing.numbered(masks).tolist() == [[1, 2, 0]]
    assert [drawing.class_colour(n) for n in (1, 20, 21)] == [
        CLASS_COLOURS[0], CLASS_COLOURS[19], CLASS_COLOURS[0],
    ]  # fmt: skip


@pytest.mark.slow
def test_the_scan_of_the_stability_picture_has_a_bar_where_there_are_millimetres(tmp_path):
    half = np.full((2, 64, 64), 0.4, np.float32)
    half[1, 20:40, 20:40] = 0.9
    view = StabilityPlane("a", 0, np.zeros((64, 64), np.float32), half[1] > 0.5, half)
    made = []
    for pixel_mm in (None, (2.0, 2.0)):
        stability_picture(tmp_path / "x.png", replace(view, pixel_mm=pixel_mm), {"a": [0.9, 0.8]})
        made.append((np.abs(pixels(tmp_path / "x.png") - rgb(drawing.INK)).max(axis=2) < 20).sum())
    assert made[1] > made[0] + 50


def small_figure() -> tuple[Any, Any]:
    """A figure of 240 x 240 pixels, all of it axes."""
    figure = drawing.new_figure(2, 2)
    figure.set_layout_engine("none")
    return figure, figure.add_axes((0, 0, 1, 1))


@pytest.mark.parametrize("ground", GROUNDS)
def test_every_outline_has_a_dark_rim(tmp_path: Path, ground: str):
    figure, axes = small_figure()
    plane = np.tile(np.array(GROUNDS[ground], np.float32), (8, 8, 1))
    mask = np.zeros((8, 8), bool)
    mask[2:6, 2:6] = True
    outlines = [(mask, Line(PREDICTION_COLOUR))]
    drawing.show_panel(axes, "", plane, Frame(), limits=(0, 255), outlines=outlines)
    drawing.save_figure(figure, tmp_path / "a.png")
    row = pixels(tmp_path / "a.png")[120]
    line = np.flatnonzero(np.abs(row - rgb(PREDICTION_COLOUR)).max(axis=1) < 40)
    assert line.size >= 2  # left and right side
    beside = row[line[0] - 4 : line[0]]
    assert beside.max(axis=1).min() < 80


def test_each_label_is_outlined_in_its_own_colour_which_does_not_depend_on_the_others(tmp_path):
    labels = np.zeros((8, 16), np.uint8)
    labels[2:6, 2:6], labels[2:6, 9:14] = 1, 3
    for present in ([1, 3], [3]):
        figure, axes = small_figure()
        shown = np.where(np.isin(labels, present), labels, 0)
        outlines = [(shown, Line(width=3))]
        drawing.show_panel(axes, "", labels * 0.0, Frame(), limits=(0, 1), outlines=outlines)
        drawing.save_figure(figure, tmp_path / "a.png")
        picture = pixels(tmp_path / "a.png")
        found = [n for n, colour in enumerate(CLASS_COLOURS, 1) if shows(picture, colour, 8)]
        assert found == present


def test_an_overlay_mixes_the_colour_of_each_label_into_the_image():
    labels = np.array([[0, 1, 2, len(CLASS_COLOURS) + 1]])
    image = np.full((1, 4, 3), 100, np.uint8)
    mixed = drawing.overlay(image, labels, 0.25)
    assert mixed[0, 0].tolist() == [100, 100, 100]
    for place, colour in ((1, CLASS_COLOURS[0]), (2, CLASS_COLOURS[1]), (3, CLASS_COLOURS[0])):
        assert mixed[0, place] == pytest.approx(75 + np.array(rgb(colour)) / 4)
    share = np.array([[0.0, 0.0, 1.0, 1.0]])
    assert drawing.overlay(image, labels > 0, share, ["#0a141e"])[0].tolist() == [
        [100, 100, 100],
        [100, 100, 100],
        [10, 20, 30],
        [10, 20, 30],
    ]


@pytest.mark.slow
def test_each_class_has_a_row_below_two_runs_compared(tmp_path):
    dice = {f"case_{n}": (0.5, 0.6 + 0.01 * n) for n in range(6)}
    found = paired(*([pair[side] for pair in dice.values()] for side in (0, 1)), "higher")
    differences = [b - a for a, b in dice.values()]
    names = "AB"
    comparison_picture(tmp_path / "one.png", dice, names, found)
    classes = {"liver": (differences, found), "a $ spleen": ([], paired([], [], "higher"))}
    classes["tumour"] = differences, found
    comparison_picture(tmp_path / "more.png", dice, names, found, classes)
    one, more = pixels(tmp_path / "one.png"), pixels(tmp_path / "more.png")
    assert len(more) > len(one) == 600
    assert shows(more[600:], drawing.class_colour(3)) and not shows(one, drawing.class_colour(3))


@pytest.mark.slow
def test_each_class_has_a_panel_below_its_runs(tmp_path):
    reference = np.zeros((64, 64), bool)
    reference[20:40, 20:40] = True
    runs = np.stack([reference, np.roll(reference, 3, axis=1)])
    half, nothing = runs * np.float32(0.9), np.zeros_like(runs)
    classes = (
        ClassRuns(1, "liver", reference, runs),
        ClassRuns(2, "nowhere", nothing[0], nothing),
        ClassRuns(4, "tumour", nothing[0], np.stack([nothing[0], reference])),
    )
    plane = StabilityPlane("x", 3, np.zeros((64, 64), np.float32), reference, half, (1.0, 1.0))
    stability_picture(tmp_path / "one.png", plane, {"x": [0.9, 0.8]})
    several = replace(plane, classes=classes)
    stability_picture(tmp_path / "more.png", several, {"x": [0.9, 0.8]})
    one, more = pixels(tmp_path / "one.png"), pixels(tmp_path / "more.png")
    assert len(more) > len(one)
    assert shows(more, drawing.class_colour(4)) and not shows(one, drawing.class_colour(4))
    assert pictures._worth_a_panel(classes) == [classes[0], classes[2]]
    many = [ClassRuns(n, "c", reference, runs if n > 4 else runs[:1]) for n in range(1, 21)]
    assert [one.number for one in pictures._worth_a_panel(many)] == list(range(5, 13))
