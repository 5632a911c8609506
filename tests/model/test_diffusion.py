"""The method's page against values worked out by hand."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from sdseg_cli.model import diffusion
from sdseg_cli.model.diffusion import Estimate, seeded_generator


def test_alpha_bar_has_the_values_of_the_paper() -> None:
    assert diffusion.ALPHA_BAR.shape == (1000,)
    # beta_0 = 0.0015 exactly, so alpha_bar_0 = 0.9985; alpha_bar_999 = 6.6867e-4 as published.
    assert diffusion.ALPHA_BAR[0].item() == pytest.approx(0.9985, abs=1e-12)
    assert diffusion.ALPHA_BAR[999].item() == pytest.approx(6.6867e-4, rel=1e-4)


def test_an_error_of_the_noise_reaches_z0_38_66_times_larger_at_the_last_step() -> None:
    zt = torch.zeros(1, 4, 2, 2)
    noise_pred = torch.full((1, 4, 2, 2), 1e-3)
    moved = diffusion.estimate_z0(zt, noise_pred, 999)
    assert moved.abs().max().item() / 1e-3 == pytest.approx(38.66, abs=0.01)


@pytest.mark.parametrize("t", [0, 500, 999])
def test_estimate_z0_inverts_add_noise(t: int) -> None:
    z0, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    zt = diffusion.add_noise(z0, noise, t)
    assert torch.allclose(diffusion.estimate_z0(zt, noise, t), z0, atol=2e-5)


def test_timesteps_may_differ_within_a_batch() -> None:
    z0, noise = torch.randn(2, 2, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    both = diffusion.add_noise(z0, noise, torch.tensor([0, 999]))
    assert torch.equal(both[:1], diffusion.add_noise(z0[:1], noise[:1], 0))
    assert torch.equal(both[1:], diffusion.add_noise(z0[1:], noise[1:], 999))


@pytest.mark.parametrize("parameterisation", ["eps", "v", "z0"])
def test_a_perfect_output_gives_back_noise_and_z0(parameterisation: str) -> None:
    z0, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    t = 700
    a, s = math.sqrt(diffusion.ALPHA_BAR[t]), math.sqrt(1 - diffusion.ALPHA_BAR[t])
    perfect = {"eps": noise, "z0": z0, "v": a * noise - s * z0}[parameterisation]
    estimate = diffusion.read_output(perfect, a * z0 + s * noise, t, parameterisation)
    assert torch.allclose(estimate.noise_pred, noise, atol=1e-4)
    assert torch.allclose(estimate.z0_pred, z0, atol=1e-4)


def test_with_eps_and_l1_the_latent_loss_is_the_noise_loss_re_weighted_sample_by_sample() -> None:
    generator = torch.Generator().manual_seed(4)
    t = torch.tensor([0, 100, 500, 900, 999])
    z0, noise, wrong = torch.randn(3, len(t), 4, 8, 8, generator=generator)
    estimate = diffusion.read_output(noise + wrong, diffusion.add_noise(z0, noise, t), t, "eps")
    for i, step in enumerate(t.tolist()):
        one = Estimate(estimate.noise_pred[i], estimate.z0_pred[i])
        loss_noise, loss_latent = diffusion.loss_terms(one, noise[i], z0[i])
        factor = math.sqrt(1 / diffusion.ALPHA_BAR[step].item() - 1)
        assert (loss_latent / loss_noise).item() == pytest.approx(factor, rel=1e-4)


def test_the_weight_of_the_latent_loss_grows_to_38_66_and_lies_on_the_last_steps() -> None:
    factor = (1 / diffusion.ALPHA_BAR - 1).sqrt()
    assert factor[0].item() == pytest.approx(0.039, abs=5e-4)  # sqrt(0.0015 / 0.9985)
    assert factor[500].item() == pytest.approx(2.38, abs=5e-3)
    assert factor[999].item() == pytest.approx(38.66, abs=5e-3)  # sqrt(1 / 6.6867e-4 - 1)
    assert bool((factor.diff() > 0).all())
    assert factor.mean().item() == pytest.approx(6.13, abs=5e-3)
    assert (factor[900:].sum() / factor.sum()).item() == pytest.approx(0.445, abs=5e-4)


def test_loss_terms_are_mean_absolute_errors() -> None:
    zeros = torch.zeros(1, 4, 2, 2)
    loss_noise, loss_latent = diffusion.loss_terms(Estimate(zeros + 3, zeros - 2), zeros, zeros)
    assert (loss_noise.item(), loss_latent.item()) == (3.0, 2.0)


def test_the_weighted_latent_loss_is_a_weighted_mean() -> None:
    # Errors 1 and 5 with weights 3 and 1: (3*1 + 1*5) / 4 = 2, in every channel.
    zeros = torch.zeros(1, 4, 1, 2)
    error = torch.tensor([1.0, 5.0]).expand(1, 4, 1, 2)
    weight = torch.tensor([3.0, 1.0]).expand(1, 1, 1, 2)
    _, loss = diffusion.loss_terms(Estimate(zeros, error), zeros, zeros, weight)
    assert loss.item() == pytest.approx(2.0)


def _knows(z0: torch.Tensor) -> diffusion.Denoiser:
    """A denoiser that always answers with one clean latent."""

    def denoise(zt: torch.Tensor, t: int | torch.Tensor, zc: torch.Tensor) -> Estimate:
        return diffusion.read_output(z0.expand_as(zt), zt, t, "z0")

    return denoise


@pytest.mark.parametrize("steps", [1, 2, 10, 1000])
def test_ddim_with_a_perfect_denoiser_ends_at_z0(steps: int) -> None:
    z0 = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(5))
    found = diffusion.ddim(_knows(z0), torch.randn(1, 4, 4, 4), z0, steps)
    assert torch.allclose(found, z0, atol=1e-5)


def test_one_ddim_step_is_the_single_step() -> None:
    z0 = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(6))
    noise = torch.randn(1, 4, 4, 4)
    one = diffusion.ddim(_knows(z0), noise, z0, 1)
    assert torch.equal(one, diffusion.single_step(_knows(z0), noise, z0))


def test_ddim_visits_evenly_spaced_timesteps_from_999_down() -> None:
    visited: list[int] = []

    def denoise(zt: torch.Tensor, t: int | torch.Tensor, zc: torch.Tensor) -> Estimate:
        visited.append(int(t))
        return Estimate(zt, zt)

    diffusion.ddim(denoise, torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2), 4)
    assert visited == [999, 749, 499, 249]


def test_eta_zero_draws_nothing_and_keeps_the_noise_that_was_found() -> None:
    # Answers 2 for z0 and 1 for the noise, so that at t = 499 zt is Eq. 1 of these two.
    seen: list[float] = []

    def denoise(zt: torch.Tensor, t: int | torch.Tensor, zc: torch.Tensor) -> Estimate:
        seen.append(zt.flatten()[0].item())
        return Estimate(torch.ones_like(zt), 2 * torch.ones_like(zt))

    zeros = torch.zeros(1, 4, 2, 2)
    diffusion.ddim(denoise, zeros, zeros, 2, eta=0.0, fresh=lambda i: pytest.fail("drawn"))
    # alpha_bar_499 = 0.1510774: sqrt is 0.3886868, sqrt of the rest 0.9213699.
    assert seen == pytest.approx([0.0, 2 * 0.3886868 + 0.9213699])


def test_eta_one_in_two_steps_adds_the_noise_of_equation_16() -> None:
    # alpha_bar is 6.686652e-4 at 999 and 0.1510774 at 499. By Eq. 16 sigma^2 is
    # (1 - 0.1510774) / (1 - 6.686652e-4) * (1 - 6.686652e-4 / 0.1510774) = 0.845731.
    assert diffusion.ddim_sigma(999, 499, 1.0) == pytest.approx(0.9196362, abs=1e-6)
    assert diffusion.ddim_sigma(999, 499, 0.5) == pytest.approx(0.4598181, abs=1e-6)
    seen: list[float] = []
    asked: list[int] = []

    def denoise(zt: torch.Tensor, t: int | torch.Tensor, zc: torch.Tensor) -> Estimate:
        seen.append(zt.flatten()[0].item())
        return Estimate(torch.ones_like(zt), 2 * torch.ones_like(zt))

    def fresh(i: int) -> torch.Tensor:
        asked.append(i)
        return torch.full((1, 4, 2, 2), 10.0)

    zeros = torch.zeros(1, 4, 2, 2)
    diffusion.ddim(denoise, zeros, zeros, 2, eta=1.0, fresh=fresh)
    # Eq. 12: 2 sqrt(0.1510774) + sqrt(1 - 0.1510774 - 0.845731) + 10 * 0.9196362
    assert seen[1] == pytest.approx(2 * 0.3886868 + 0.0564960 + 9.196362, rel=1e-5)
    assert asked == [1], "the last step adds nothing"


def test_eta_one_between_neighbouring_timesteps_has_the_variance_of_ddpm() -> None:
    # beta_500 (1 - alpha_bar_499) / (1 - alpha_bar_500), beta_500 as the schedule defines it.
    roots = math.sqrt(0.0015), math.sqrt(0.0155)
    beta = (roots[0] + (roots[1] - roots[0]) * 500 / 999) ** 2
    before, at = 0.1510774, 0.1500701
    expected = beta * (1 - before) / (1 - at)
    assert diffusion.ddim_sigma(500, 499, 1.0) ** 2 == pytest.approx(expected, rel=1e-5)


def test_ancestral_sampling_without_fresh_noise_is_a_bug() -> None:
    zeros = torch.zeros(1, 4, 2, 2)
    with pytest.raises(ValueError, match="fresh noise"):
        diffusion.ddim(_knows(zeros), zeros, zeros, 2, eta=1.0)


def test_a_slice_keeps_its_noise_whatever_batch_it_is_in() -> None:
    alone = diffusion.seeded_noise(7, range(5, 6), (4, 8, 8))
    among = diffusion.seeded_noise(7, range(0, 10), (4, 8, 8))
    assert torch.equal(alone[0], among[5])


def test_slices_and_seeds_have_different_noise() -> None:
    noise = torch.cat([diffusion.seeded_noise(seed, range(3), (4, 8, 8)) for seed in (0, 1, 2)])
    assert len({tuple(plane.flatten().tolist()) for plane in noise}) == 9


def test_samples_and_steps_have_noise_of_their_own() -> None:
    draws: list[tuple[int, ...]] = [(), (1,), (2,), (0, 1), (0, 2), (1, 1), (1, 2)]
    noise = torch.cat([diffusion.seeded_noise(0, [3], (4, 8, 8), *draw) for draw in draws])
    assert len({tuple(plane.flatten().tolist()) for plane in noise}) == len(draws)


def _stream(*key: int | str) -> tuple[float, ...]:
    return tuple(torch.rand(4, generator=seeded_generator(*key)).tolist())


def test_one_key_gives_one_stream() -> None:
    assert _stream("step", 0, 7) == _stream("step", 0, 7)


def test_keys_that_differ_anywhere_have_different_streams() -> None:
    # 2**32 and 2**40 vanish in the 32 bits that torch keeps of a plain seed.
    numbers = (0, 1, 2, 12, 2**32, 2**40, -1)
    keys = [
        (purpose, a, b)
        for purpose in ("noise", "step")
        for a, b in itertools.product(numbers, repeat=2)
    ]
    assert len({_stream(*key) for key in keys}) == len(keys)
