"""Several classes in one batch: what is drawn, kept and weighed for each of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sdseg_cli.data.spec import ClassRule
from sdseg_cli.model.sdseg import SDSeg, build_sdseg
from sdseg_cli.training.batches import PreparedSlices, StepInputs, StepSource, draw_positions
from sdseg_cli.training.latents import MaskLatents, encode_masks
from sdseg_cli.training.objective import MaskLoss, Objective
from tests.training.small import ROW, SIZE, small_config

RULE = ClassRule(((1, 2), (3,)), ("large", "small"))


@pytest.fixture
def slices(tmp_path: Path) -> PreparedSlices:
    """Of six slices, 1 to 5 have the first class and only 5 has the second, too."""
    labels = np.zeros((6, SIZE, SIZE), np.uint16)
    labels[1:, 4:12, 6:20] = 1
    labels[2, 4:12, 6:20] = 2
    labels[5, 24:28, 24:28] = 3
    np.save(tmp_path / "labels.npy", labels)
    np.save(tmp_path / "pixels.npy", labels.astype(np.float16))
    return PreparedSlices([tmp_path], RULE, [[[1, 2, 3, 4, 5], [5]]])


def inputs_of(slices: PreparedSlices, folder: Path) -> tuple[StepInputs, MaskLatents]:
    latents = MaskLatents(folder / "latents.npy", slices, ROW)
    config = small_config(foreground_fraction=1.0)
    return StepSource(config, slices, latents, (8, *ROW[1:])).inputs(0), latents


def model() -> SDSeg:
    torch.manual_seed(0)
    return build_sdseg(small_config().model).eval()


def test_the_class_is_drawn_before_the_slice(slices: PreparedSlices) -> None:
    drawn = draw_positions(slices, seed=0, step=0, batch_size=2000, foreground_fraction=1.0)
    # Half of the places are for the class that only slice 5 has; it also is one of five others.
    assert drawn.count(5) / 2000 == pytest.approx(0.6, abs=0.05)
    assert 0 not in drawn


def test_each_mask_has_a_row_and_empty_ones_share_row_0(
    slices: PreparedSlices, tmp_path: Path
) -> None:
    latents = MaskLatents(tmp_path / "latents.npy", slices, ROW)
    assert slices.nonempty == [(1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (5, 1)]
    assert latents.rows([0, 1, 5], torch.tensor([0, 2, 3])) == [[0, 0], [3, 0], [20, 24]]


def test_latents_of_the_classes_lie_side_by_side(slices: PreparedSlices, tmp_path: Path) -> None:
    inputs, latents = inputs_of(slices, tmp_path)
    assert inputs.masks.shape == (4, 2, SIZE, SIZE)
    assert inputs.moments.shape == (4, 16, *ROW[1:])
    assert inputs.noise.shape == (4, 8, *ROW[1:])
    networks = model()
    networks.latent_scale = 0.5
    objective = Objective(networks, small_config().train)
    known = objective.with_latents(inputs, latents)
    each = [encode_masks(networks, inputs.masks[:, k]) for k in range(2)]
    assert torch.equal(known.moments, torch.cat(each, dim=1))
    assert latents.read(inputs.rows)[1].all()
    z0 = networks.sample_latent(known.moments, known.posterior_noise)
    parts = [
        networks.sample_latent(moments, noise)
        for moments, noise in zip(each, known.posterior_noise.split(4, dim=1), strict=True)
    ]
    assert torch.equal(z0, torch.cat(parts, dim=1))


def test_each_class_is_weighed_by_its_own_mask(slices: PreparedSlices, tmp_path: Path) -> None:
    inputs, _ = inputs_of(slices, tmp_path)
    masks = torch.zeros_like(inputs.masks)
    masks[:, 1, 9, 9] = True
    objective = Objective(model(), small_config(foreground_weight=20.0).train)
    weight = objective.weight(replace(inputs, masks=masks))
    assert weight is not None and weight.shape == (4, 8, *ROW[1:])
    assert (weight[:, :4] == 1).all()
    assert (weight[:, 4:, :3, :3] == 21).all() and (weight[:, 4:, 3] == 1).all()


def test_the_dice_of_a_class_that_the_batch_lacks_is_left_out() -> None:
    masks = torch.zeros(2, 2, 8, 8, dtype=torch.bool)
    masks[:, 0, 2:6, 2:6] = True
    logits = torch.where(masks, 50.0, -50.0)
    logits[:, 1] = 0.0  # half of everything, of which nothing is true
    dice = MaskLoss()(logits, masks)[0]
    alone = MaskLoss()(logits[:, :1], masks[:, :1])[0]
    assert dice.item() == pytest.approx(alone.item(), abs=1e-6)
    assert MaskLoss()(torch.zeros(2, 2, 8, 8), torch.zeros_like(masks))[0] == 0
