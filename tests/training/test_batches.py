from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sdseg_cli.core.errors import DataError
from sdseg_cli.data.spec import ClassRule
from sdseg_cli.model import diffusion
from sdseg_cli.model.diffusion import seeded_generator
from sdseg_cli.model.distributed import Ranks
from sdseg_cli.training.batches import (
    Batch,
    PreparedSlices,
    StepInputs,
    StepSource,
    draw_positions,
    draw_timesteps,
    evenly_spaced,
    flip_codes,
    flipped,
)
from tests.training.small import small_config, small_inputs, small_latents, small_slices

TENSORS = ("image", "masks", "posterior_noise", "noise", "t", "importance")


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
    return PreparedSlices([tmp_path / "a", tmp_path / "b"], ClassRule(((2,),)), [[[]], [[1]]])


def test_slices_are_numbered_through_all_cases(slices: PreparedSlices) -> None:
    assert slices.places == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
    assert slices.with_foreground == [4]


def test_a_batch_holds_the_asked_slices_and_the_foreground_rule(slices: PreparedSlices) -> None:
    batch = slices.batch([4, 0])
    assert batch.image.dtype == torch.float32
    assert batch.image[:, 0, 0].tolist() == [0.5, -1.0]
    assert slices.masks(batch.labels).sum(dim=(2, 3)).tolist() == [
        [1],
        [0],
    ]  # label 1 is no foreground here


def test_a_missing_array_says_to_prepare_again(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pixels\.npy") as caught:
        PreparedSlices([tmp_path], ClassRule(), [[[]]])
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
    batch = flipped(Batch(image, image.to(torch.uint8)), flip_codes(64, "hv", seeded_generator(0)))
    seen = {tuple(plane.flatten().tolist()) for plane in batch.image}
    assert seen == {(0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 0, 1), (3, 2, 1, 0)}
    assert torch.equal(batch.labels, batch.image.to(torch.uint8))


def test_no_flip_letters_mean_no_flip() -> None:
    image = torch.arange(4.0).reshape(1, 2, 2)
    assert flip_codes(1, "", seeded_generator(0)).tolist() == [0]
    assert torch.equal(flipped(Batch(image, image.to(torch.uint8)), torch.tensor([0])).image, image)


def test_validation_slices_are_spread_evenly(slices: PreparedSlices) -> None:
    assert evenly_spaced(slices, 10) == [0, 1, 2, 3, 4]
    assert evenly_spaced(slices, 2) == [1, 3]


def test_colours_are_flipped_with_their_foreground(tmp_path: Path) -> None:
    pixels = np.zeros((1, 3, 4, 4), np.float16)
    pixels[0, :, 0, 1] = (0.25, 0.5, 1)
    np.save(tmp_path / "pixels.npy", pixels)
    np.save(tmp_path / "labels.npy", (pixels[:, 0] > 0).astype(np.uint8))
    slices = PreparedSlices([tmp_path], ClassRule(), [[[0]]])
    batch = slices.batch([0] * 64)
    assert batch.image.shape == (64, 3, 4, 4)
    turned = flipped(batch, flip_codes(64, "hv", seeded_generator("test")))
    for image, foreground in zip(turned.image, turned.labels, strict=True):
        (row, column) = foreground.nonzero()[0].tolist()
        assert image[:, row, column].tolist() == [0.25, 0.5, 1]
    # All four of left, right, top and bottom occur among 64 draws.
    places = {tuple(found.nonzero()[0].tolist()) for found in turned.labels}
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
        PreparedSlices([tmp_path], ClassRule(), [[[]]])


def source(folder: Path, seed: int = 0) -> StepSource:
    config = small_config(timesteps="uniform")
    config = type(config)(**{**vars(config), "seed": seed})
    return StepSource(config, small_slices(folder), small_latents(folder), (4, 4, 4))


def same(a: StepInputs, b: StepInputs) -> bool:
    return a.positions == b.positions and all(
        torch.equal(getattr(a, name), getattr(b, name)) for name in TENSORS
    )


def test_the_inputs_of_a_step_are_the_same_whenever_they_are_asked_for(tmp_path: Path) -> None:
    assert same(source(tmp_path).inputs(7), source(tmp_path).inputs(7))
    assert not same(source(tmp_path).inputs(7), source(tmp_path).inputs(8))
    assert not same(source(tmp_path).inputs(7), source(tmp_path, seed=1).inputs(7))


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_hand_over_the_steps_in_order(tmp_path: Path, workers: int) -> None:
    made = list(source(tmp_path).prefetch(3, 12, workers=workers))
    assert [inputs.step for inputs in made] == list(range(3, 12))
    assert same(made[4], source(tmp_path).inputs(7))


def test_an_error_in_a_thread_reaches_the_training(tmp_path: Path) -> None:
    broken = source(tmp_path)
    broken._slices.with_class.clear()
    broken._slices.places.clear()
    with pytest.raises(ZeroDivisionError):
        next(broken.prefetch(0, 5))


def test_processes_share_a_batch_without_overlap(tmp_path: Path) -> None:
    config = small_config(timesteps="uniform")
    whole, _ = small_inputs(config, tmp_path, 5)
    shares = [small_inputs(config, tmp_path, 5, Ranks(rank, 2))[0] for rank in range(2)]
    assert [share.positions for share in shares] == [whole.positions[0::2], whole.positions[1::2]]
    for rank, share in enumerate(shares):
        assert all(
            torch.equal(getattr(share, name), getattr(whole, name)[rank::2]) for name in TENSORS
        )


def test_parts_put_together_are_the_whole(tmp_path: Path) -> None:
    whole, _ = small_inputs(small_config(), tmp_path)
    parts = whole.parts(2)
    assert [len(part.positions) for part in parts] == [2, 2]
    for name in TENSORS:
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


def test_the_drawn_flip_names_the_row_of_the_mask(tmp_path: Path) -> None:
    config, latents = small_config(flips="hv", foreground_fraction=1.0), small_latents(tmp_path)
    stored = small_slices(tmp_path).batch([1, 3]).labels
    seen = set()
    for step in range(20):
        inputs, _ = small_inputs(config, tmp_path, step)
        for position, (row,), (mask,) in zip(
            inputs.positions, inputs.rows, inputs.masks, strict=True
        ):
            code = row - latents.rows([position], torch.tensor([0]))[0][0]
            axes = [axis for bit, axis in ((1, -1), (2, -2)) if code & bit]
            assert torch.equal(mask, stored[0 if position == 1 else 1].flip(axes) > 0)
            seen.add(code)
    assert seen == {0, 1, 2, 3}


def test_the_papers_weight_of_t_is_1_plus_the_amplification_of_eq_2() -> None:
    weights = diffusion.timestep_weights("eps", 1.0, 1.0)
    assert weights[0].item() == pytest.approx(1.0387, abs=1e-4)
    assert weights[999].item() == pytest.approx(1 + 38.66, abs=0.01)
    # METHOD: 44.5 % of the latent loss falls on t >= 900.
    latent = diffusion.timestep_weights("eps", 0.0, 1.0)
    assert (latent[900:].sum() / latent.sum()).item() == pytest.approx(0.445, abs=5e-4)


def test_each_parameterisation_weighs_the_same_error_in_its_own_output() -> None:
    a2 = diffusion.ALPHA_BAR[500].item()
    a, s = math.sqrt(a2), math.sqrt(1 - a2)
    for name, expected in {"eps": 2 + 3 * s / a, "z0": 2 * a / s + 3, "v": 2 * a + 3 * s}.items():
        assert diffusion.timestep_weights(name, 2.0, 3.0)[500].item() == pytest.approx(expected)


def test_latent_weighted_timesteps_keep_the_mean_loss() -> None:
    weights = diffusion.timestep_weights("eps", 1.0, 1.0)
    t, importance = draw_timesteps("latent-weighted", weights, 40_000, seeded_generator("test"))
    # Drawn as often as it weighs: 0.445 x 6.13/7.13 + 0.1 / 7.13 of the draws are at t >= 900.
    assert (t >= 900).double().mean().item() == pytest.approx(0.397, abs=0.01)
    # ... and that divided out: the weighted mean of any f(t) is its mean over uniform t, 499.5.
    assert (importance * t).mean().item() == pytest.approx(499.5, rel=0.03)
    # Weight times importance is the same for every sample: no sample dominates a batch.
    assert torch.allclose(weights[t].float() * importance, weights.mean().float())


def test_last_is_always_999_and_counts_once() -> None:
    weights = diffusion.timestep_weights("eps", 1.0, 1.0)
    t, importance = draw_timesteps("last", weights, 3, seeded_generator("test"))
    assert t.tolist() == [999, 999, 999]
    assert importance.tolist() == [1, 1, 1]
