"""Fixed validation slices over the run: which are kept, how they outlive a stop, what is drawn."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from sdseg_cli.data.spec import ClassRule
from sdseg_cli.report import drawing
from sdseg_cli.report.drawing import PREDICTION_COLOUR, REFERENCE_COLOUR, fitted
from sdseg_cli.report.validation_picture import (
    ShownSlice,
    ValidationHistory,
    shown_numbers,
    slice_dice,
    validation_picture,
)
from tests.report.test_pictures import pixels, shows


def box(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((16, 16), bool)
    mask[rows, columns] = True
    return mask


SQUARE = box(slice(4, 8), slice(4, 8))
HALF = box(slice(4, 8), slice(4, 6))


def history(folder: Path, *, name: str = "case_7, slice 3") -> ValidationHistory:
    image = np.where(SQUARE, 0.5, 0.0).astype(np.float32)
    return ValidationHistory(folder / "v.npz", (5,), (ShownSlice(name, image, SQUARE),))


def planes(mask: np.ndarray) -> np.ndarray:
    return mask[None].astype(np.float32)


@pytest.mark.parametrize(
    ("count", "numbers"),
    [
        (1, [0]),
        (6, [0, 1, 2, 3, 4, 5]),
        (7, [0, 2, 4, 6]),
        (10, [0, 2, 4, 6, 8, 9]),
        (12, [0, 4, 8, 11]),
        (40, [0, 8, 16, 24, 32, 39]),
    ],
)
def test_at_most_six_validations_are_shown_with_the_first_and_the_last(
    count: int, numbers: list[int]
) -> None:
    assert shown_numbers(count) == numbers


def test_no_choice_wants_back_what_an_earlier_one_dropped() -> None:
    held: set[int] = set()
    for count in range(1, 200):
        wanted = set(shown_numbers(count))
        assert wanted <= held | {count - 1}
        assert len(wanted) <= 6
        held = wanted


def test_the_dice_of_a_slice() -> None:
    assert slice_dice(SQUARE, SQUARE) == 1
    assert slice_dice(HALF, SQUARE) == pytest.approx(2 * 8 / (8 + 16))
    assert slice_dice(~SQUARE, SQUARE) == 0
    nothing = np.zeros((2, 2), bool)
    assert np.isnan(slice_dice(nothing, nothing))


def test_a_history_goes_on_from_its_file_without_what_lies_past_the_checkpoint(
    tmp_path: Path,
) -> None:
    before = history(tmp_path)
    for step, mask in ((10, ~SQUARE), (20, HALF), (30, SQUARE)):
        before.add(step, planes(mask))
    after = history(tmp_path)
    after.read(after=20)
    assert after.steps == [10, 20]
    assert [float(seen.dice[0]) for seen in after.seen.values()] == pytest.approx([0, 2 / 3])
    assert (after.seen[20].probability[0] == 255).tolist() == HALF.tolist()


def test_a_killed_run_ends_with_the_picture_of_one_that_was_not(tmp_path: Path) -> None:
    through = history(tmp_path / "a")
    for number in range(1, 20):
        through.add(number, planes(SQUARE))
    for killed_after in (1, 6, 11, 19):
        folder = tmp_path / str(killed_after)
        killed = history(folder)
        for number in range(1, killed_after + 1):
            killed.add(number, planes(SQUARE))
        resumed = history(folder)
        checkpoint = max(0, killed_after - 3)
        resumed.read(after=checkpoint)
        for number in range(checkpoint + 1, 20):
            resumed.add(number, planes(SQUARE))
        assert resumed.steps == through.steps
        assert list(resumed.seen) == list(through.seen)


@pytest.mark.parametrize("content", [None, b"", b"no archive", b"PK\x03\x04cut off"])
def test_without_a_readable_file_the_history_begins_anew(
    tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "v.npz").write_bytes(content)
    made = history(tmp_path)
    made.read(after=99)
    assert (made.steps, made.seen) == ([], {})


def test_a_file_damaged_anywhere_stops_nothing(tmp_path: Path) -> None:
    history(tmp_path).add(10, planes(SQUARE))
    content = (tmp_path / "v.npz").read_bytes()
    for place in range(0, len(content), 37):
        broken = content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]
        (tmp_path / "v.npz").write_bytes(broken)
        made = history(tmp_path)
        made.read(after=99)
        assert made.steps in ([], [10])


def test_a_file_of_other_slices_is_not_taken_over(tmp_path: Path) -> None:
    history(tmp_path).add(10, planes(SQUARE))
    other = history(tmp_path, name="case_8, slice 3")
    other.read(after=99)
    assert other.steps == []


@pytest.mark.parametrize("colours", [False, True])
def test_the_picture_has_a_tile_for_the_reference_and_for_each_validation(
    tmp_path: Path, colours: bool
) -> None:
    made = history(tmp_path)
    if colours:
        one = made.shown[0]
        picture = np.repeat(one.image[..., None], 3, axis=2)
        made.shown = (ShownSlice(one.name, picture, one.reference),)
    made.add(10, planes(np.zeros((16, 16), bool)))
    validation_picture(tmp_path / "new" / "v.png", made)
    first = pixels(tmp_path / "new" / "v.png")
    below = slice(first.shape[0] // 3, None)  # the words of the head have the colours too
    assert shows(first[below], REFERENCE_COLOUR)
    assert not shows(first[below], PREDICTION_COLOUR)
    made.add(20, planes(HALF))
    validation_picture(tmp_path / "new" / "v.png", made)
    second = pixels(tmp_path / "new" / "v.png")
    assert shows(second[below], PREDICTION_COLOUR)
    assert (first.shape[1], second.shape[1]) == (2 * 234 + 10, 3 * 234 + 10)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["v.png"]


def test_a_long_name_is_no_wider_than_its_tile_and_keeps_both_ends() -> None:
    # Every letter of this font is narrower than its size: 24 letters of 9 points fit into 3 inches.
    assert fitted("case_7, slice 3", 3.0, 9) == "case_7, slice 3"
    for long in (
        "a_very_long_patient_name_0007, slice 3",
        "W" * 60,
        "cju1871y11d6r0799k6cw4yze" * 2,
    ):
        short = fitted(long, 224 / 120, 9)
        start, end = short.split("…")
        assert long.startswith(start) and long.endswith(end) and abs(len(start) - len(end)) <= 1
        assert drawing._points(short, 9) <= 72 * 224 / 120 < drawing._points(long, 9)


def test_names_are_no_formulas_and_hold_no_control_characters() -> None:
    assert fitted("a$b$", 3.0, 9) == r"a\$b\$"
    assert fitted("a\x1bb", 3.0, 9) == r"a\x1bb"


def test_names_below_a_chart_never_run_into_each_other_and_stay_apart() -> None:
    figure = drawing.new_figure(6, 3)
    for count, upright in ((3, 0), (12, 90)):
        axes = figure.add_subplot()
        names = [f"a_patient_with_a_long_name_{n:02}_of_the_second_visit" for n in range(count)]
        drawing.name_places(axes, names, 5.0)
        labels = axes.get_xticklabels()
        figure.canvas.draw()
        boxes = [label.get_window_extent() for label in labels]
        assert all(one.x1 < after.x0 for one, after in pairwise(boxes))
        assert {label.get_rotation() for label in labels} == {upright}
        assert len({label.get_text() for label in labels}) == count
        axes.remove()


def test_classes_are_filled_in_their_colours_and_scored_by_their_mean(tmp_path: Path) -> None:
    rule = ClassRule(((4,), (7,), (9,)), ("liver", "spleen", "never there"))
    reference = np.stack([SQUARE, box(slice(10, 14), slice(2, 12)), np.zeros((16, 16), bool)])
    image = np.zeros((16, 16), np.float32)
    made = ValidationHistory(
        tmp_path / "v.npz", (5,), (ShownSlice("case", image, reference),), rule
    )
    found = np.stack([HALF, reference[1], reference[2]]).astype(np.float32)[None]
    made.add(10, found)
    # 2 * 8 / (8 + 16) of the first, 1 of the second; the third is nowhere.
    assert made.seen[10].dice[0] == pytest.approx((2 / 3 + 1) / 2)
    again = ValidationHistory(made.path, made.positions, made.shown, rule)
    again.read(after=10)
    assert np.array_equal(again.seen[10].probability, made.seen[10].probability)
    validation_picture(tmp_path / "x.png", again)
    picture = pixels(tmp_path / "x.png")
    assert all(shows(picture, drawing.class_colour(number), 8) for number in (1, 2, 3))
