"""Several classes in one batch: what is drawn, kept and weighed for each of them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sdseg_cli.core.presets import for_classes
from sdseg_cli.data.spec import ClassRule
from sdseg_cli.model import starts
from sdseg_cli.model.distributed import Ranks
from sdseg_cli.model.mask_decoder import build_mask_decoder
from sdseg_cli.model.sdseg import NOT_DRAWN, SDSeg, build_sdseg
from sdseg_cli.model.tensor_files import load_strictly
from sdseg_cli.runs.checkpoint import Checkpoint
from sdseg_cli.training import augment, step
from sdseg_cli.training.batches import PreparedSlices, StepInputs, StepSource, draw_positions
from sdseg_cli.training.latents import MaskLatents, encode_masks
from sdseg_cli.training.objective import MaskLoss, Objective, _worth_decoding
from sdseg_cli.training.train import without_side_mirror
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


def test_the_loss_of_two_exclusive_classes_by_hand() -> None:
    masks = torch.zeros(1, 2, 1, 2, dtype=torch.bool)
    masks[0, 0, 0, 0] = True  # of two pixels the first has the first class, the second none
    logits = torch.log(torch.tensor([[[[0.2, 0.5]], [[0.6, 0.25]], [[0.2, 0.25]]]]))
    dice, entropy = MaskLoss()(logits, masks).tolist()
    # The first class alone is there: 2 x 0.6 / (0.85 + 1).
    assert dice == pytest.approx(1 - 1.2 / 1.85, abs=1e-4)
    assert entropy == pytest.approx(-(math.log(0.6) + math.log(0.5)) / 2)


def test_the_loss_of_overlapping_classes_takes_each_by_itself() -> None:
    masks = torch.ones(1, 2, 1, 1, dtype=torch.bool)
    logits = torch.logit(torch.tensor([0.8, 0.5])).reshape(1, 2, 1, 1)
    dice, entropy = MaskLoss()(logits, masks).tolist()
    assert dice == pytest.approx(1 - (1.6 / 1.8 + 1 / 1.5) / 2, abs=1e-4)
    assert entropy == pytest.approx(-(math.log(0.8) + math.log(0.5)) / 2)


@pytest.mark.parametrize("channels", [2, 3])
def test_pixels_of_which_nothing_is_known_change_no_loss_and_get_no_gradient(channels: int) -> None:
    masks = torch.zeros(1, 2, 1, 4, dtype=torch.bool)
    masks[0, 0, 0, 0] = masks[0, 1, 0, 1] = True
    counts = torch.ones_like(masks)
    counts[..., 3] = False
    logits = torch.randn(1, channels, 1, 4, generator=torch.Generator().manual_seed(0))
    logits.requires_grad_()
    loss = MaskLoss()(logits, masks, counts)
    known = MaskLoss()(logits[..., :3], masks[..., :3])
    assert torch.allclose(loss, known, atol=1e-6)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert (gradient[..., 3] == 0).all() and (gradient[..., :3] != 0).any()


def test_a_class_that_was_not_drawn_may_be_what_is_called_background() -> None:
    masks = torch.zeros(1, 2, 1, 1, dtype=torch.bool)
    counts = torch.tensor([True, False]).reshape(1, 2, 1, 1)
    logits = torch.log(torch.tensor([0.2, 0.5, 0.3])).reshape(1, 3, 1, 1)
    dice, entropy = MaskLoss()(logits, masks, counts).tolist()
    assert (dice, entropy) == (0, pytest.approx(-math.log(0.2 + 0.3)))


def test_latent_pixels_that_touch_what_is_unknown_weigh_nothing(
    slices: PreparedSlices, tmp_path: Path
) -> None:
    inputs, _ = inputs_of(slices, tmp_path)
    counts = torch.ones_like(inputs.masks)
    counts[:, 1, 9, 9] = False
    empty = replace(inputs, masks=torch.zeros_like(inputs.masks), counts=counts)
    weight = Objective(model(), small_config(foreground_weight=0.0).train).weight(empty)
    assert weight is not None
    assert (weight[:, :4] == 1).all()
    assert (weight[:, 4:, 1, 1] == 0).all() and weight[:, 4:].sum() == 4 * 4 * 15


def test_what_is_ignored_or_was_not_drawn_does_not_count(tmp_path: Path) -> None:
    labels = np.zeros((1, SIZE, SIZE), np.uint8)
    labels[0, 0, 0] = 9
    np.save(tmp_path / "labels.npy", labels)
    np.save(tmp_path / "pixels.npy", labels.astype(np.float16))
    rule = ClassRule(((1,), (2,)), ("a", "b"), ignore=9)
    slices = PreparedSlices([tmp_path], rule, [[[], []]], [("a",)])
    counts = slices.counts([0], slices.batch([0]).labels)
    assert counts is not None
    assert not counts[0, 0, 0, 0] and counts[0, 0].sum() == SIZE * SIZE - 1
    assert not counts[0, 1].any()


def test_a_left_right_mirror_swaps_the_masks_and_latents_of_a_pair(tmp_path: Path) -> None:
    labels = np.zeros((1, SIZE, SIZE), np.uint8)
    labels[0, 8:16, 0:8] = 1
    np.save(tmp_path / "labels.npy", labels)
    np.save(tmp_path / "pixels.npy", labels.astype(np.float16))
    rule = ClassRule(((1,), (2,)), ("left", "right"), mirror_pairs=((0, 1),))
    slices = PreparedSlices([tmp_path], rule, [[[0], []]])
    latents = MaskLatents(tmp_path / "latents.npy", slices, ROW)
    config = small_config(flips="h", batch_size=16)
    inputs = StepSource(config, slices, latents, (8, *ROW[1:])).inputs(0)
    turned = inputs.image[:, 8, -1] == 1
    assert 0 < turned.sum() < 16
    for image, masks, rows in zip(inputs.image, inputs.masks, inputs.rows, strict=True):
        is_turned = bool(image[8, -1])
        # Row 1 is the mask as it is, row 2 its mirror image, row 0 the empty one.
        assert rows == ([0, 2] if is_turned else [1, 0])
        assert torch.equal(masks[int(is_turned)], image == 1)
        assert not masks[int(not is_turned)].any()


def test_a_mirror_that_would_swap_sides_without_a_pair_is_off() -> None:
    rule, config = ClassRule(((1,), (2,)), ("kidney_left", "kidney_right")), small_config(flips="h")
    off, (finding,) = without_side_mirror(config, rule)
    assert off.train.flips == "" and finding.code == "mirror-off"
    paired = replace(rule, mirror_pairs=((0, 1),))
    assert without_side_mirror(config, paired) == (config, ())


def test_a_validation_scores_each_class_their_mean_and_all_as_one(
    slices: PreparedSlices, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = slices.masks(slices.batch(range(6)).labels).float()
    truth[:, 1] = 0  # the second class, 16 pixels, is never found; the first always
    monkeypatch.setattr(step, "predict_planes", lambda model, image, at, **_: truth[list(at)])
    found = step.validation(model(), slices, range(6), [], Ranks(), batch_size=4)
    assert found.classes == (1.0, 0.0)
    assert found.dice == 0.5
    first = 5 * 8 * 14
    assert found.union == pytest.approx(2 * first / (2 * first + 16))


def test_a_run_of_one_class_starts_one_of_several() -> None:
    torch.manual_seed(0)
    one, several = build_sdseg(small_config().model), small_config().model
    several = build_sdseg(replace(several, classes=3))
    with torch.no_grad():
        for value in one.unet.out[-1].parameters():
            value.normal_()
    weights = starts.for_classes(several.unet, one.unet.state_dict())
    load_strictly(several.unet, weights, source="test")
    zt, zc = torch.randn(1, 36, 8, 8).split((4, 32), dim=1)
    answer = several.unet.eval()(zt.repeat(1, 3, 1, 1), torch.tensor([999]), zc)
    expected = one.unet.eval()(zt, torch.tensor([999]), zc)
    assert torch.allclose(answer, expected.repeat(1, 3, 1, 1), atol=1e-4)


def test_the_share_of_a_class_is_of_the_pixels_of_which_it_is_known(tmp_path: Path) -> None:
    for number, case in enumerate("ab"):
        labels = np.zeros((2, 4, 4), np.uint16)
        labels[0, 0] = 1, 1, 2, 9  # of 32 pixels one is ignored
        labels[1, 0, 0] = 300 * number
        (tmp_path / case).mkdir()
        np.save(tmp_path / case / "labels.npy", labels)
        np.save(tmp_path / case / "pixels.npy", labels.astype(np.float16))
    rule = ClassRule(((1, 300), (2,)), ("large", "small"), ignore=9)
    slices = PreparedSlices(
        [tmp_path / "a", tmp_path / "b"], rule, [[[0], [0]], [[0, 1], [0]]], [("large",), None]
    )
    # The second class was drawn in the second case alone.
    assert slices.class_shares().tolist() == pytest.approx([5 / 62, 1 / 31])


def test_with_shortcuts_a_moved_mask_has_no_latent_and_no_latent_loss(
    slices: PreparedSlices, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(augment.RANGES, ("light", False), {"rotation": (1.0, 10.0, 10.0)})
    recipe = {"augment": "light", "shortcuts": True, "mask_loss_weight": 1.0, "flips": ""}
    config = small_config(**recipe, foreground_fraction=1.0)
    latents = MaskLatents(tmp_path / "latents.npy", slices, ROW)
    inputs = StepSource(config, slices, latents, (8, *ROW[1:])).inputs(0)
    networks = model()
    decoder = build_mask_decoder(networks.config.autoencoder)
    objective = Objective(networks, config.train, decoder)
    found = objective.with_latents(inputs, latents)
    has = inputs.masks.flatten(2).any(dim=2)
    assert has.any() and not has.all()
    assert torch.equal(found.known, ~has)  # empty masks are not moved
    z0 = networks.sample_latent(found.moments, found.posterior_noise).reshape(4, 2, -1)
    assert (z0[has].abs() < 1e-4).all() and (z0[~has].abs() > 1e-4).any()
    assert not np.load(latents.path)[1:].any()
    weight = objective.weight(found)
    assert weight is not None
    weight = weight.reshape(4, 2, -1)
    assert (weight[has] == 0).all() and (weight[~has] == 1).all()


def test_of_the_classes_a_slice_lacks_the_one_most_shown_is_decoded() -> None:
    masks = torch.zeros(3, 3, 8, 8, dtype=torch.bool)
    masks[:2, 0, 0, 0] = True
    masks[1] = True
    z0 = torch.zeros(3, 3, 4, 2, 2)
    z0[:, 0] = 5.0  # flat
    z0[:, 1, :, 0, 0], z0[:, 2, :, 0, 0] = 0.1, 0.2
    chosen = _worth_decoding(z0.flatten(1, 2), masks, None).tolist()
    assert chosen == [[True, False, True], [True, True, True], [False, False, True]]
    counts = torch.ones_like(masks)
    counts[0, 1] = False  # never drawn in its case: it may be anywhere
    counts[2, :, 0] = False  # ignored pixels
    chosen = _worth_decoding(z0.flatten(1, 2), masks, counts).tolist()
    assert chosen == [[True, True, True], [True, True, True], [False, False, True]]


@pytest.mark.parametrize("overlapping", [False, True])
def test_classes_that_are_not_decoded_are_nowhere(overlapping: bool) -> None:
    config = replace(small_config().model, classes=2, overlapping=overlapping)
    networks = build_sdseg(config)
    decoder = build_mask_decoder(config.autoencoder)
    z0, chosen = torch.randn(2, 8, 4, 4), torch.tensor([[True, False], [True, True]])
    with torch.no_grad():
        some = networks.mask_logits(z0, decoder, chosen)
        full = networks.mask_logits(z0, decoder)
    assert some.shape == full.shape
    assert (some[0, -1] == NOT_DRAWN).all()
    assert torch.allclose(some[0, :-1], full[0, :-1], atol=1e-5)
    assert torch.allclose(some[1], full[1], atol=1e-5)


def test_shortcuts_are_taken_of_several_classes_and_where_they_are_sound() -> None:
    several = for_classes(small_config(), 2, overlapping=False).train
    assert several.takes_shortcuts and not small_config().train.shortcuts
    assert not replace(several, mask_loss_weight=0.0).takes_shortcuts
    assert not replace(several, timesteps="uniform").takes_shortcuts


@pytest.mark.slow
def test_a_batch_of_several_classes_in_parts_has_the_dice_of_each_part(
    slices: PreparedSlices, tmp_path: Path
) -> None:
    several = for_classes(small_config(), 2, overlapping=False)
    networks, decoder = build_sdseg(several.model), build_mask_decoder(several.model.autoencoder)
    latents = MaskLatents(tmp_path / "latents.npy", slices, ROW)
    inputs = StepSource(several, slices, latents, (8, *ROW[1:])).inputs(0)
    rows = []
    for accumulate in (1, 2):
        config = replace(several, train=replace(several.train, accumulate=accumulate))
        state = Checkpoint.begin(config, networks)
        loop = step.Trainer(config, state, torch.device("cpu"), decoder=decoder)
        with torch.no_grad():
            known = loop.objective.with_latents(inputs, latents)
            weight = loop.objective.weight(known)
            assert weight is not None
            parts = [
                loop.objective(part, here, weight.mean())
                for part, here in zip(known.parts(2), weight.chunk(2), strict=True)
            ]
        rows.append(loop.train_step(inputs, latents).row())
    whole, in_parts = rows
    assert in_parts["loss_latent"] == pytest.approx(whole["loss_latent"], rel=1e-5)
    means = torch.stack(parts).mean(dim=0).tolist()
    assert [in_parts[key] for key in ("loss", "loss_latent", "loss_mask")] == pytest.approx(
        [means[0], means[2], means[3]], rel=1e-5
    )
    assert in_parts["loss_mask"] != pytest.approx(whole["loss_mask"], rel=1e-5)
