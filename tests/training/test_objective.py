from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sdseg_cli.core.errors import ConfigError
from sdseg_cli.inference.decoders import choose_decoder, find_mask_decoder, stored_decoder
from sdseg_cli.model import diffusion
from sdseg_cli.model.mask_decoder import MaskDecoder, autoencoder_hash, build_mask_decoder
from sdseg_cli.model.sdseg import SDSeg, build_sdseg
from sdseg_cli.model.starts import load_tiny_autoencoder
from sdseg_cli.model.tensor_files import write_tensors
from sdseg_cli.model.weights import WeightStore
from sdseg_cli.runs.checkpoint import Checkpoint
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training.batches import StepInputs
from sdseg_cli.training.latents import encode_masks
from sdseg_cli.training.objective import (
    DecodedMaskLoss,
    MaskLoss,
    Objective,
    decoder_to_train_through,
    keep_for_training,
)
from sdseg_cli.training.step import Trainer
from tests.training.small import small_config, small_inputs, small_slices

NO_STORE = WeightStore(Path("no-such-store"))
LEFT = torch.tensor([[True, False], [True, False]])[None, None]


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
    inputs = replace(inputs, moments=encode_masks(model, inputs.masks[:, 0]))
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
    square = torch.zeros_like(inputs.masks)
    square[..., 9, 9] = True  # one pixel, of latent pixel (1,1)
    weight = objective.weight(replace(inputs, masks=square))
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


def tiny_model() -> SDSeg:
    torch.manual_seed(0)
    model = build_sdseg(small_config().model)
    load_tiny_autoencoder(model.autoencoder)
    model.latent_scale = 0.5
    return model.eval()


def test_an_undecided_mask_has_half_a_dice_and_the_logarithm_of_two() -> None:
    # p = 1/2 on 4 pixels of which 2 are foreground: Dice 2 x 1 / (2 + 2).
    dice, cross_entropy = MaskLoss()(torch.zeros(1, 1, 2, 2), LEFT).tolist()
    assert dice == pytest.approx(0.5, abs=1e-4)
    assert cross_entropy == pytest.approx(math.log(2))


def test_a_sure_and_right_mask_costs_nothing_and_a_wrong_one_has_no_dice() -> None:
    right = torch.where(LEFT, 50.0, -50.0)
    assert MaskLoss()(right, LEFT).tolist() == pytest.approx([0, 0], abs=1e-4)
    assert MaskLoss()(-right, LEFT).tolist() == pytest.approx([1, 50], abs=1e-3)


def shipped(model: SDSeg) -> MaskDecoder:
    found = find_mask_decoder(model.autoencoder, model.config.autoencoder, NO_STORE)
    assert found is not None
    return found


def test_a_latent_is_scaled_back_before_it_is_decoded() -> None:
    model = tiny_model()
    mask = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    mask[..., 16:48, 16:48] = True
    latent = model.encode_mask((mask.float() * 2 - 1).expand(-1, 3, -1, -1))
    model.latent_scale = 0.5
    loss = DecodedMaskLoss(shipped(model), model)
    half = loss(latent, mask)
    assert half < 0.1 < 0.5 < loss(latent, ~mask)
    model.latent_scale = 1.0
    assert torch.equal(loss(2 * latent, mask), half)


def test_an_autoencoder_without_a_fast_decoder_is_refused(tmp_path: Path) -> None:
    config = small_config(mask_loss_weight=1.0)
    weights = build_sdseg(config.model).state_dict()
    with pytest.raises(ConfigError, match="no fast decoder to train through"):
        decoder_to_train_through(config, weights, RunDir(tmp_path), NO_STORE)


def test_a_run_keeps_the_decoder_it_began_with_whatever_is_distilled_meanwhile(
    tmp_path: Path,
) -> None:
    config, weights, run = (
        small_config(mask_loss_weight=1.0),
        tiny_model().state_dict(),
        RunDir(tmp_path / "run"),
    )
    begun = decoder_to_train_through(config, weights, run, NO_STORE)
    assert begun is not None
    run.checkpoints.mkdir(parents=True)
    keep_for_training(run, begun)
    store = WeightStore(tmp_path / "store")
    other = build_mask_decoder(config.model.autoencoder)
    file = stored_decoder(store, autoencoder_hash(tiny_model().autoencoder))
    file.parent.mkdir(parents=True)
    write_tensors(other.state_dict(), file)
    resumed = decoder_to_train_through(config, weights, run, store)
    assert resumed is not None
    assert torch.equal(resumed.leave.weight, begun.leave.weight)
    fresh = decoder_to_train_through(config, weights, RunDir(tmp_path / "other"), store)
    assert fresh is not None and torch.equal(fresh.leave.weight, other.leave.weight)


def test_a_run_that_was_stopped_predicts_with_the_decoder_it_is_trained_through(
    tmp_path: Path,
) -> None:
    config, model, run = small_config(mask_loss_weight=1.0), tiny_model(), RunDir(tmp_path)
    run.checkpoints.mkdir()
    state = replace(Checkpoint.begin(config, model), step=7)
    assert choose_decoder("auto", run.path, state, model, NO_STORE) is None
    keep_for_training(run, shipped(model))
    assert choose_decoder("auto", run.path, state, model, NO_STORE) is not None
    assert choose_decoder("exact", run.path, state, model, NO_STORE) is None


def test_other_trainings_have_no_decoder(tmp_path: Path) -> None:
    assert decoder_to_train_through(small_config(), {}, RunDir(tmp_path), NO_STORE) is None


def test_the_mask_adds_its_weight_and_teaches_both_networks_but_not_the_decoder(
    tmp_path: Path,
) -> None:
    config, model = small_config(mask_loss_weight=3.0), tiny_model()
    torch.nn.init.normal_(model.unet.out[2].weight)  # it begins at zero, and teaches nobody
    inputs, _ = small_inputs(config, tmp_path)
    inputs = replace(inputs, moments=encode_masks(model, inputs.masks[:, 0]))
    objective = Objective(model, config.train, shipped(model))
    assert objective.terms == ("loss_noise", "loss_latent", "loss_mask")
    values = objective(inputs, None, None)
    loss, _, loss_latent, loss_mask = values.tolist()
    assert loss == pytest.approx(loss_latent + 3 * loss_mask)  # tiny: the noise counts 0
    gradient = torch.autograd.grad(
        values[3], [model.unet.out[2].weight, model.vision_encoder.out.weight]
    )
    assert all(part.abs().sum() > 0 for part in gradient)
    assert objective.mask_loss is not None
    assert not any(p.requires_grad for p in objective.mask_loss.parameters())


def trainer(**recipe: object) -> Trainer:
    config, model = small_config(mask_loss_weight=1.0, **recipe), tiny_model()
    state = Checkpoint.begin(config, model)
    return Trainer(config, state, torch.device("cpu"), decoder=shipped(model))


@pytest.mark.slow
def test_a_step_logs_the_mask_and_in_parts_it_is_the_same_step(tmp_path: Path) -> None:
    rows = []
    for number, parts in enumerate((1, 2)):
        one = trainer(accumulate=parts)
        inputs, latents = small_inputs(one.config, tmp_path / str(number))
        rows.append(one.train_step(inputs, latents).row())
    assert list(rows[0]) == ["step", "loss", "loss_noise", "loss_latent", "loss_mask", "lr"]
    assert rows[0]["loss"] == pytest.approx(rows[0]["loss_latent"] + rows[0]["loss_mask"])
    assert rows[1] == pytest.approx(rows[0], rel=1e-5)


def test_without_a_weight_there_is_no_such_term() -> None:
    assert Objective(tiny_model(), small_config().train).terms == ("loss_noise", "loss_latent")


def test_validations_decode_as_the_training_does_and_the_checkpoint_holds_no_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoders: list[object] = []

    def found(model: SDSeg, *_: object, **__: object) -> str:
        decoders.append(model.mask_decoder)
        return "validated"

    monkeypatch.setattr("sdseg_cli.training.step.validation", found)
    loop = trainer()
    loop.validate(small_slices(tmp_path))
    assert decoders == [loop.objective.decoder] and decoders[0] is not None
    assert loop.model.mask_decoder is None
    assert not any("mask_decoder" in key for key in loop.model.state_dict())


def test_a_balance_weighs_each_class_by_one_over_its_share_to_that_power() -> None:
    """Of 16 pixels 1 is of the class and 15 are background: weights 4 and 4 / sqrt(15) for 1/2."""
    masks = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    masks[0, 0, 1, 2] = True
    logits = torch.zeros(1, 3, 4, 4)
    logits[0, 1, 1, 2] = 3.0  # the one pixel is nearly right; everywhere else all three are alike
    right, even = math.log(2 + math.exp(3)) - 3, math.log(3)
    loss, rare, common = MaskLoss(), 4.0, 4 / math.sqrt(15)
    expected = (rare * right + 15 * common * even) / (rare + 15 * common)
    assert loss(logits, masks, balance=0.5)[1] == pytest.approx(expected, abs=1e-6)
    assert loss(logits, masks, balance=1.0)[1] == pytest.approx((right + even) / 2, abs=1e-6)
    assert loss(logits, masks)[1] == pytest.approx((right + 15 * even) / 16, abs=1e-6)


def test_a_balance_of_regions_weighs_foreground_and_rest_of_each() -> None:
    """Classes that overlap: 1 pixel of 16 has weight 4, the others 4 / sqrt(15), in each class."""
    masks = torch.zeros(1, 1, 4, 4, dtype=torch.bool).repeat(1, 2, 1, 1)
    masks[0, :, 0, 0] = True
    logits = torch.zeros(1, 2, 4, 4)
    logits[0, :, 0, 0] = 2.0
    rare, common = 4.0, 4 / math.sqrt(15)
    right = math.log(1 + math.exp(-2))
    expected = (rare * right + 15 * common * math.log(2)) / (rare + 15 * common)
    assert MaskLoss()(logits, masks, balance=0.5)[1] == pytest.approx(expected, abs=1e-6)


def test_a_balance_leaves_out_what_is_not_known() -> None:
    masks = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    masks[0, 0, 0, 0] = True
    counts = torch.ones_like(masks)
    counts[0, :, 2:] = False  # 8 pixels stay: 1 of the class, 7 of the background
    logits = torch.zeros(1, 3, 4, 4)
    logits[0, 1, 0, 0], logits[0, 2, 3, 3] = 3.0, 50.0
    right, even = math.log(2 + math.exp(3)) - 3, math.log(3)
    assert MaskLoss()(logits, masks, counts, balance=1.0)[1] == pytest.approx(
        (right + even) / 2, abs=1e-6
    )
