from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sdseg_cli.errors import ConfigError
from sdseg_cli.model.pretrained import load_tiny_autoencoder
from sdseg_cli.model.sdseg import SDSeg, build_sdseg
from sdseg_cli.training.checkpoint import Checkpoint
from sdseg_cli.training.latents import encode_masks
from sdseg_cli.training.mask_loss import MaskLoss, decoded_mask_loss
from sdseg_cli.training.objective import Objective
from sdseg_cli.training.trainer import Trainer
from tests.training.small import small_config, small_inputs, small_slices

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


def test_a_latent_is_scaled_back_before_it_is_decoded() -> None:
    model = tiny_model()
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[:, 16:48, 16:48] = True
    latent = model.encode_mask((mask.float() * 2 - 1)[:, None].expand(-1, 3, -1, -1))
    loss = decoded_mask_loss(model)
    assert loss(latent, mask) < 0.1 < 0.5 < loss(2 * latent, ~mask)
    unscaled = decoded_mask_loss(model)
    unscaled.latent_scale = 1.0
    assert torch.equal(unscaled(latent / 0.5, mask), loss(latent, mask))


def test_an_autoencoder_without_a_fast_decoder_is_refused() -> None:
    with pytest.raises(ConfigError, match="no fast decoder to train through"):
        decoded_mask_loss(build_sdseg(small_config().model))


def test_the_mask_adds_its_weight_and_teaches_both_networks_but_not_the_decoder(
    tmp_path: Path,
) -> None:
    config, model = small_config(mask_loss_weight=3.0), tiny_model()
    torch.nn.init.normal_(model.unet.out[2].weight)  # it begins at zero, and teaches nobody
    inputs, _ = small_inputs(config, tmp_path)
    inputs = replace(inputs, moments=encode_masks(model, inputs.foreground))
    objective = Objective(model, config.train)
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


def test_without_a_weight_there_is_no_such_term() -> None:
    assert Objective(tiny_model(), small_config().train).terms == ("loss_noise", "loss_latent")


def test_validations_decode_as_the_training_does_and_the_checkpoint_holds_no_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoders: list[object] = []

    def found(model: SDSeg, *_: object, **__: object) -> str:
        decoders.append(model.mask_decoder)
        return "validated"

    monkeypatch.setattr("sdseg_cli.training.trainer.validation", found)
    config = small_config(mask_loss_weight=1.0)
    trainer = Trainer(config, Checkpoint.begin(config, tiny_model()), torch.device("cpu"))
    trainer.validate(small_slices(tmp_path))
    assert decoders == [trainer.objective.decoder] and decoders[0] is not None
    assert trainer.model.mask_decoder is None
    assert not any("mask_decoder" in key for key in trainer.model.state_dict())
