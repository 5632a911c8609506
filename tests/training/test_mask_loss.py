from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sdseg_cli.core.errors import ConfigError
from sdseg_cli.inference.decoders import choose_decoder, find_mask_decoder, stored_decoder
from sdseg_cli.model.mask_decoder import MaskDecoder, autoencoder_hash, build_mask_decoder
from sdseg_cli.model.sdseg import SDSeg, build_sdseg
from sdseg_cli.model.shipped import load_tiny_autoencoder
from sdseg_cli.model.store import WeightStore
from sdseg_cli.model.tensor_files import write_tensors
from sdseg_cli.runs.checkpoint import Checkpoint
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training.latents import encode_masks
from sdseg_cli.training.mask_loss import (
    DecodedMaskLoss,
    MaskLoss,
    decoder_to_train_through,
    keep_for_training,
)
from sdseg_cli.training.objective import Objective
from sdseg_cli.training.step import Trainer
from tests.training.small import small_config, small_inputs, small_slices

NO_STORE = WeightStore(Path("no-such-store"))
LEFT = torch.tensor([[True, False], [True, False]])[None]


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
    right = torch.where(LEFT, 50.0, -50.0)[:, None]
    assert MaskLoss()(right, LEFT).tolist() == pytest.approx([0, 0], abs=1e-4)
    assert MaskLoss()(-right, LEFT).tolist() == pytest.approx([1, 50], abs=1e-3)


def shipped(model: SDSeg) -> MaskDecoder:
    found = find_mask_decoder(model.autoencoder, model.config.autoencoder, NO_STORE)
    assert found is not None
    return found


def test_a_latent_is_scaled_back_before_it_is_decoded() -> None:
    model = tiny_model()
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[:, 16:48, 16:48] = True
    latent = model.encode_mask((mask.float() * 2 - 1)[:, None].expand(-1, 3, -1, -1))
    loss = DecodedMaskLoss(shipped(model), 0.5)
    assert loss(latent, mask) < 0.1 < 0.5 < loss(latent, ~mask)
    assert torch.equal(DecodedMaskLoss(shipped(model), 1.0)(2 * latent, mask), loss(latent, mask))


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
    inputs = replace(inputs, moments=encode_masks(model, inputs.foreground))
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
