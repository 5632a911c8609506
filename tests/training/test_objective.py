from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sdseg_cli.model import diffusion
from sdseg_cli.model.sdseg import build_sdseg
from sdseg_cli.training.latents import encode_masks
from sdseg_cli.training.objective import Objective
from sdseg_cli.training.steps import StepInputs
from tests.training.small import small_config, small_inputs


def objective_and_inputs(folder: Path, **recipe: object) -> tuple[Objective, StepInputs]:
    """An objective that predicts zero everywhere, and a batch of step 0 with its moments known."""
    config = small_config(**recipe)
    torch.manual_seed(0)
    model = build_sdseg(config.model).eval()
    model.latent_scale = 0.5
    with torch.no_grad():  # tiny predicts z0: of zeros, so the latent's error is z0 itself
        model.unet.out[2].weight.zero_()
        model.unet.out[2].bias.zero_()
    inputs, _ = small_inputs(config, folder)
    inputs = replace(inputs, moments=encode_masks(model, inputs.foreground))
    return Objective(model, config.train), inputs


def z0_of(objective: Objective, inputs: StepInputs) -> Tensor:
    """Half (the latent scale) of mean + deviation x noise."""
    mean, log_variance = inputs.moments.chunk(2, dim=1)
    return 0.5 * (mean + (0.5 * log_variance).exp() * inputs.posterior_noise)


@torch.no_grad()
def test_the_loss_is_eq_3_of_z0_and_of_the_noise_that_follows_from_it(tmp_path: Path) -> None:
    recipe = {"noise_loss_weight": 0.5, "latent_loss_weight": 2.0, "latent_loss": "l1"}
    objective, inputs = objective_and_inputs(tmp_path, **recipe, foreground_weight=0.0)
    loss, loss_noise, loss_latent = objective(inputs, None, None).tolist()
    z0 = z0_of(objective, inputs)
    assert loss_latent == pytest.approx(z0.abs().mean().item(), rel=1e-5)
    a, s = diffusion.coefficients(inputs.t, z0)  # zero for z0 leaves a z0 too much in the noise
    assert loss_noise == pytest.approx((a / s * z0).abs().mean().item(), rel=1e-4)
    assert loss == pytest.approx(0.5 * loss_noise + 2 * loss_latent)


@torch.no_grad()
def test_l2_is_the_mean_square(tmp_path: Path) -> None:
    objective, inputs = objective_and_inputs(tmp_path, latent_loss="l2", foreground_weight=0.0)
    loss, _, loss_latent = objective(inputs, None, None).tolist()
    expected = z0_of(objective, inputs).square().mean().item()
    assert loss == loss_latent == pytest.approx(expected, rel=1e-5)  # tiny: the noise counts 0


def test_nothing_is_weighed_without_a_foreground_weight(tmp_path: Path) -> None:
    objective, inputs = objective_and_inputs(tmp_path, foreground_weight=0.0)
    assert objective.weight(inputs) is None


def test_latent_pixels_on_and_beside_the_foreground_weigh_more(tmp_path: Path) -> None:
    objective, inputs = objective_and_inputs(tmp_path, foreground_weight=20.0)
    square = torch.zeros_like(inputs.foreground)
    square[:, 9, 9] = True  # one pixel, of latent pixel (1,1)
    weight = objective.weight(replace(inputs, foreground=square))
    expected = torch.tensor([[21.0] * 3 + [1]] * 3 + [[1.0] * 4])
    assert weight is not None and torch.equal(weight, expected.expand(4, 1, 4, 4))


@torch.no_grad()
def test_a_part_is_normalised_by_the_mean_weight_of_the_whole(tmp_path: Path) -> None:
    objective, inputs = objective_and_inputs(tmp_path, latent_loss="l1", foreground_weight=20.0)
    first = inputs.chosen([0])
    weight = torch.full((1, 1, 4, 4), 3.0)
    plain = z0_of(objective, first).abs().mean().item()
    alone = objective(first, weight, None)[2].item()
    part = objective(first, weight, torch.tensor(1.5))[2].item()
    assert alone == pytest.approx(plain, rel=1e-5)  # 3 everywhere is 1 everywhere
    assert part == pytest.approx(2 * plain, rel=1e-5)  # twice the mean of the whole batch


@torch.no_grad()
@pytest.mark.parametrize(("timesteps", "factor"), [("latent-weighted", 4), ("uniform", 1)])
def test_what_a_sample_counts_is_asked_only_where_t_is_drawn_by_weight(
    tmp_path: Path, timesteps: str, factor: int
) -> None:
    objective, inputs = objective_and_inputs(tmp_path, timesteps=timesteps)
    ones = objective(replace(inputs, importance=torch.ones(4)), None, None)
    fours = objective(replace(inputs, importance=torch.full((4,), 4.0)), None, None)
    assert torch.allclose(fours, factor * ones, rtol=1e-5)
