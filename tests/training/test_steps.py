from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from sdseg_cli.model import diffusion
from sdseg_cli.model.distributed import Ranks
from sdseg_cli.model.seeds import seeded_generator
from sdseg_cli.training.steps import StepInputs, StepSource, draw_timesteps
from tests.training.small import small_config, small_inputs, small_latents, small_slices

TENSORS = ("image", "foreground", "posterior_noise", "noise", "t", "importance")


def source(folder: Path, seed: int = 0) -> StepSource:
    config = small_config(timesteps="uniform")
    config = type(config)(**{**vars(config), "seed": seed})
    return StepSource(config, small_slices(folder), small_latents(folder), (4, 4, 4))


def same(a: StepInputs, b: StepInputs) -> bool:
    return a.positions == b.positions and all(
        torch.equal(getattr(a, name), getattr(b, name)) for name in TENSORS
    )


def test_a_step_draws_the_same_whenever_it_is_asked(tmp_path: Path) -> None:
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
    broken._slices.with_foreground.clear()
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
    stored = small_slices(tmp_path).batch([1, 3]).foreground
    seen = set()
    for step in range(20):
        inputs, _ = small_inputs(config, tmp_path, step)
        for position, row, foreground in zip(
            inputs.positions, inputs.rows, inputs.foreground, strict=True
        ):
            code = row - latents.rows([position], torch.tensor([0]))[0]
            axes = [axis for bit, axis in ((1, -1), (2, -2)) if code & bit]
            assert torch.equal(foreground, stored[0 if position == 1 else 1].flip(axes))
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
