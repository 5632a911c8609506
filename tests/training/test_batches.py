from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sdseg_cli.core.errors import DataError
from sdseg_cli.model.seeds import seeded_generator
from sdseg_cli.training.batches import (
    Batch,
    PreparedSlices,
    draw_positions,
    evenly_spaced,
    flip_codes,
    flipped,
)


@pytest.fixture
def slices(tmp_path: Path) -> PreparedSlices:
    """Two cases of 3 and 2 slices, 4x4; only slice 1 of the second has foreground (label 2)."""
    for name, count in (("a", 3), ("b", 2)):
        (tmp_path / name).mkdir()
        pixels = np.zeros((count, 4, 4), np.float16) + (0.5 if name == "b" else -1)
        labels = np.zeros((count, 4, 4), np.uint8)
        if name == "a":
            labels[0, 0, 0] = 1
        else:
            labels[1, 2, 3] = 2
        np.save(tmp_path / name / "pixels.npy", pixels)
        np.save(tmp_path / name / "labels.npy", labels)
    return PreparedSlices([tmp_path / "a", tmp_path / "b"], lambda labels: labels == 2, [[], [1]])


def test_slices_are_numbered_through_all_cases(slices: PreparedSlices) -> None:
    assert slices.places == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert slices.with_foreground == [4]


def test_a_batch_holds_the_asked_slices_and_the_foreground_rule(slices: PreparedSlices) -> None:
    batch = slices.batch([4, 0])
    assert batch.image.dtype == torch.float32
    assert batch.image[:, 0, 0].tolist() == [0.5, -1.0]
    assert batch.foreground.sum(dim=(1, 2)).tolist() == [1, 0]  # label 1 is no foreground here


def test_a_missing_array_says_to_prepare_again(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pixels\.npy") as caught:
        PreparedSlices([tmp_path], lambda labels: labels > 0, [[]])
    assert "prepare" in caught.value.hint


def test_an_epoch_draws_every_slice_once_and_the_next_in_another_order(
    slices: PreparedSlices,
) -> None:
    draws = [
        draw_positions(slices, seed=3, step=step, batch_size=2, foreground_fraction=0)
        for step in range(20)
    ]
    flat = [position for draw in draws for position in draw]
    epochs = [flat[i : i + 5] for i in range(0, 40, 5)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_the_foreground_fraction_steers_the_draw(slices: PreparedSlices) -> None:
    always = draw_positions(slices, seed=0, step=0, batch_size=50, foreground_fraction=1.0)
    assert set(always) == {4}
    half = draw_positions(slices, seed=0, step=0, batch_size=2000, foreground_fraction=0.5)
    # One half for certain, and a fifth of the other half by chance: 0.6.
    assert half.count(4) / 2000 == pytest.approx(0.6, abs=0.05)


def test_a_step_draws_the_same_whenever_it_is_asked(slices: PreparedSlices) -> None:
    def draw(step: int) -> list[int]:
        return draw_positions(slices, seed=1, step=step, batch_size=8, foreground_fraction=0.5)

    assert draw(5) == draw(5)
    assert draw(5) != draw(6)


def test_flips_move_image_and_foreground_together() -> None:
    image = torch.arange(4.0).reshape(1, 2, 2).expand(64, 2, 2)
    batch = flipped(Batch(image, image > 2), flip_codes(64, "hv", seeded_generator(0)))
    seen = {tuple(plane.flatten().tolist()) for plane in batch.image}
    assert seen == {(0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 0, 1), (3, 2, 1, 0)}
    assert torch.equal(batch.foreground, batch.image > 2)


def test_no_flip_letters_mean_no_flip() -> None:
    image = torch.arange(4.0).reshape(1, 2, 2)
    assert flip_codes(1, "", seeded_generator(0)).tolist() == [0]
    assert torch.equal(flipped(Batch(image, image > 2), torch.tensor([0])).image, image)


def test_validation_slices_are_spread_evenly(slices: PreparedSlices) -> None:
    assert evenly_spaced(slices, 10) == [0, 1, 2, 3, 4]
    assert evenly_spaced(slices, 2) == [1, 3]


def test_colours_are_flipped_with_their_foreground(tmp_path: Path) -> None:
    pixels = np.zeros((1, 3, 4, 4), np.float16)
    pixels[0, :, 0, 1] = (0.25, 0.5, 1)
    np.save(tmp_path / "pixels.npy", pixels)
    np.save(tmp_path / "labels.npy", (pixels[:, 0] > 0).astype(np.uint8))
    slices = PreparedSlices([tmp_path], lambda labels: labels != 0, [[0]])
    batch = slices.batch([0] * 64)
    assert batch.image.shape == (64, 3, 4, 4)
    turned = flipped(batch, flip_codes(64, "hv", seeded_generator("test")))
    for image, foreground in zip(turned.image, turned.foreground, strict=True):
        (row, column) = foreground.nonzero()[0].tolist()
        assert image[:, row, column].tolist() == [0.25, 0.5, 1]
    # All four of left, right, top and bottom occur among 64 draws.
    places = {tuple(found.nonzero()[0].tolist()) for found in turned.foreground}
    assert places == {(0, 1), (0, 2), (3, 1), (3, 2)}


@pytest.mark.parametrize(
    ("pixels", "labels"),
    [
        (np.zeros((3, 4, 4), np.float16), np.zeros((2, 4, 4), np.uint8)),
        (np.zeros((3, 4, 4), np.float16), np.zeros((3, 4, 8), np.uint8)),
        (np.zeros((3, 4, 4), np.uint8), np.zeros((3, 4, 4), np.uint8)),
        (np.zeros((3, 4, 4), np.float16), np.zeros((3, 4, 4), np.float16)),
        (np.zeros((4, 4), np.float16), np.zeros((4, 4), np.uint8)),
    ],
)
def test_arrays_that_do_not_go_together_are_refused(
    tmp_path: Path, pixels: np.ndarray, labels: np.ndarray
) -> None:
    np.save(tmp_path / "pixels.npy", pixels)
    np.save(tmp_path / "labels.npy", labels)
    with pytest.raises(DataError, match="do not go together"):
        PreparedSlices([tmp_path], lambda labels: labels > 0, [[]])
