"""Augmentation: exact values of single changes, and what no draw may do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sdseg_cli.core.config import TrainConfig
from sdseg_cli.core.config_file import from_dict, to_toml
from sdseg_cli.core.errors import ConfigError
from sdseg_cli.core.presets import PRESETS
from sdseg_cli.data.spec import ClassRule
from sdseg_cli.model.diffusion import seeded_generator
from sdseg_cli.model.distributed import Ranks
from sdseg_cli.runs.checkpoint import config_values
from sdseg_cli.training import augment
from sdseg_cli.training.augment import Change, Paste, changed, draw_changes, pasted_region
from sdseg_cli.training.augmentation_sheet import augmentation_sheet
from sdseg_cli.training.batches import NOT_KEPT, PreparedSlices, StepSource
from sdseg_cli.training.latents import MaskLatents, encode_masks
from sdseg_cli.training.step import Trainer
from tests.training.small import (
    ROW,
    SIZE,
    small_config,
    small_inputs,
    small_slices,
    small_trainer,
)

IMAGE = torch.tensor([[-1.0, -0.5, 0.0, 0.5], [1, 1, 1, 1], [0, 0, 0, 0], [-1, -1, 0.25, 0.75]])
LABELS = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]])
PHOTOGRAPH = torch.stack([IMAGE, IMAGE / 2, -IMAGE])


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32])
def test_a_quarter_turn_is_anticlockwise_and_exact(kind: torch.dtype) -> None:
    image, labels = changed(IMAGE, LABELS.to(kind), {"rotation": 90})
    assert labels.dtype == kind
    assert labels.tolist() == [[3, 7, 11, 15], [2, 6, 10, 14], [1, 5, 9, 13], [0, 4, 8, 12]]
    assert torch.allclose(image, IMAGE.rot90(), atol=1e-5)


def test_a_shift_by_whole_pixels_brings_black_and_background() -> None:
    # A quarter of four columns to the right, half of four rows up.
    image, labels = changed(IMAGE, LABELS.to(torch.uint8), {"shift_x": 0.25, "shift_y": -0.5})
    assert labels.tolist() == [[0, 8, 9, 10], [0, 12, 13, 14], [0, 0, 0, 0], [0, 0, 0, 0]]
    wanted = torch.tensor([[-1, 0, 0, 0], [-1, -1, -1, 0.25], [-1, -1, -1, -1], [-1, -1, -1, -1]])
    assert torch.allclose(image, wanted, atol=1e-6)


def test_twice_the_scale_shows_the_middle_in_double_size() -> None:
    _, labels = changed(IMAGE, LABELS.to(torch.uint8), {"scale": 2})
    assert labels.tolist() == [[5, 5, 6, 6], [5, 5, 6, 6], [9, 9, 10, 10], [9, 9, 10, 10]]


def test_shear_moves_rows_apart() -> None:
    # tan(45 degrees) = 1: each row goes as far to the right as it lies below the middle.
    labels = torch.tensor([[0, 0, 1, 0, 0]] * 5, dtype=torch.uint8)
    _, sheared = changed(torch.zeros(5, 5), labels, {"shear": 45})
    assert sheared.tolist() == torch.eye(5, dtype=torch.uint8).tolist()


def test_a_photograph_moves_in_all_its_colours() -> None:
    image, labels = changed(PHOTOGRAPH, LABELS.to(torch.uint8), {"rotation": 180})
    assert torch.allclose(image, PHOTOGRAPH.flip(1, 2), atol=1e-5)
    assert labels.tolist() == LABELS.flip(0, 1).tolist()


def test_labels_above_a_million_stay_what_they_are() -> None:
    labels = torch.full((4, 4), 2**31 - 1, dtype=torch.int32)
    assert set(changed(IMAGE, labels, {"rotation": 90})[1].flatten().tolist()) == {2**31 - 1}


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        # In [0,1] the plane is 0, 0.25, 0.5, 1.
        ({"brightness": 1.5}, [-1, -0.25, 0.5, 1]),
        ({"gamma": 2}, [-1, -0.875, -0.5, 1]),
        ({"inverted_gamma": 2}, [-1, -0.125, 0.5, 1]),
        # About the mean 0.4375: black as it is, 0.34375, 0.46875, 0.71875.
        ({"contrast": 0.5}, [-1, -0.3125, -0.0625, 0.4375]),
        # Within the values that are there.
        ({"contrast": 100}, [-1, -1, 1, 1]),
        # Two pixels become one and are spread again, half way towards its neighbour.
        ({"low_resolution": 0.5}, [-0.75, -0.4375, 0.1875, 0.5]),
    ],
)
def test_intensities_by_hand(change: Change, wanted: list[float]) -> None:
    image = torch.tensor([[-1.0, -0.5, 0.0, 1.0]] * 4)
    labels = torch.ones(4, 4, dtype=torch.uint8)
    seen, same = changed(image, labels, change)
    assert same is labels
    assert torch.allclose(seen, torch.tensor([wanted] * 4).float(), atol=1e-6)


def test_a_blur_keeps_the_mean_of_a_plane_and_spreads_a_point() -> None:
    image = torch.full((256, 256), -1.0)
    image[128, 128] = 1
    seen, _ = changed(image, torch.zeros(256, 256, dtype=torch.uint8), {"blur": 1.0})
    assert float(seen.mean()) == pytest.approx(float(image.mean()), abs=1e-6)
    # The square of 1 / (1 + 2 (e^-0.5 + e^-2 + e^-4.5)) = 0.39905^2, and black is -1.
    assert float(seen[128, 128]) == pytest.approx(2 * 0.39905**2 - 1, abs=1e-4)
    assert torch.allclose(seen, seen.T, atol=1e-6)


def test_noise_has_its_deviation_and_leaves_black_alone() -> None:
    image = torch.zeros(256, 256)
    image[:, :64] = -1
    labels = torch.zeros(256, 256, dtype=torch.uint8)
    seen, _ = changed(image, labels, {"noise": 0.1, "noise_seed": 7})
    assert set(seen[:, :64].flatten().tolist()) == {-1}
    assert float(seen[:, 64:].std()) == pytest.approx(0.1, rel=0.02)
    assert torch.equal(seen, changed(image, labels, {"noise": 0.1, "noise_seed": 7})[0])
    assert not torch.equal(seen, changed(image, labels, {"noise": 0.1, "noise_seed": 8})[0])


def test_grey_has_no_colour_to_change_and_no_saturation_is_grey() -> None:
    labels = torch.zeros(4, 4, dtype=torch.uint8)
    grey = IMAGE.expand(3, 4, 4)
    assert torch.allclose(
        changed(grey, labels, {"saturation": 1.6, "hue": 0.3})[0], grey, atol=2e-3
    )
    red, green, blue = changed(PHOTOGRAPH, labels, {"saturation": 0})[0]
    assert torch.allclose(red, green, atol=2e-3)
    assert torch.allclose(red, blue, atol=2e-3)


def every_draw(colour: bool) -> list[Change]:
    names = augment.RANGES["strong", colour]
    certain = {name: (1.0, low, high) for name, (_, low, high) in names.items()}
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(augment.RANGES, ("strong", colour), certain)
        return draw_changes("strong", 40, seeded_generator("test"), colour=colour)


@pytest.mark.parametrize("colour", [False, True])
def test_all_changes_at_once_keep_range_shape_and_labels(colour: bool) -> None:
    noise = torch.rand((3, 32, 32), generator=seeded_generator("noise")) * 2 - 1
    image = noise if colour else noise[0]
    labels = torch.zeros(32, 32, dtype=torch.int32)
    labels[4:20, 8:14], labels[20:30, 3:30] = 7, 70000
    for change in every_draw(colour):
        assert set(change) == {*augment.RANGES["strong", colour], "noise_seed"}
        seen, numbers = changed(image, labels, change)
        assert seen.shape == image.shape
        assert seen.dtype == torch.float32
        assert float(seen.min()) >= -1
        assert float(seen.max()) <= 1
        assert set(numbers.flatten().tolist()) <= {0, 7, 70000}


def test_no_rotation_takes_left_to_right() -> None:
    labels = torch.zeros(64, 64, dtype=torch.uint8)
    labels[28:36, 6:14], labels[28:36, 50:58] = 1, 2
    generator = seeded_generator("sides")
    drawn = draw_changes("strong", 400, generator, colour=False)
    drawn += draw_changes("strong", 400, generator, colour=True, sided=True)
    turns = [change["rotation"] for change in drawn if "rotation" in change]
    assert max(map(abs, turns)) <= 30 < len(turns)
    for change in drawn:
        turn = {name: value for name, value in change.items() if name in ("rotation", "shear")}
        _, moved = changed(torch.zeros(64, 64), labels, turn)
        left, right = ((moved == label).nonzero()[:, 1].double().mean() for label in (1, 2))
        assert left < 32 < right
    free = draw_changes("strong", 400, generator, colour=True)
    assert max(abs(change.get("rotation", 0)) for change in free) > 150


def test_changes_come_as_often_as_listed() -> None:
    drawn = draw_changes("light", 4000, seeded_generator("often"), colour=False)
    for name, (probability, low, high) in augment.SCAN_LIGHT.items():
        values = [change[name] for change in drawn if name in change]
        assert len(values) / 4000 == pytest.approx(probability, abs=0.03)
        assert all(low <= value <= high for value in values)


def test_nothing_is_drawn_without_augmentation() -> None:
    assert draw_changes("none", 3, seeded_generator(0), colour=False) == [{}, {}, {}]
    assert augment.draw_pastes(0.0, 3, seeded_generator(0)) == [None] * 3
    # A batch of one has no other slice.
    assert augment.draw_pastes(1.0, 1, seeded_generator(0)) == [None]


def test_pastes_come_from_another_place_of_the_batch() -> None:
    pastes = augment.draw_pastes(1.0, 200, seeded_generator("paste"))
    assert all(paste and paste.source != place for place, paste in enumerate(pastes))


@pytest.mark.parametrize("boxed", [False, True])
def test_the_region_of_a_paste_is_the_class_and_a_margin(boxed: bool) -> None:
    masks = torch.zeros(3, 100, 100, dtype=torch.bool)
    masks[1, 10, 10] = masks[1, 20, 20] = masks[2, 50:60, 50:60] = True
    # The first of the two classes that are there; 3 pixels around it.
    region = pasted_region(masks, Paste(0, 0.4, 0.03, boxed))
    wanted = torch.zeros(100, 100, dtype=torch.bool)
    wanted[7:14, 7:14] = wanted[17:24, 17:24] = True
    if boxed:
        wanted[7:24, 7:24] = True
    assert region.tolist() == wanted.tolist()
    assert not pasted_region(masks[:1], Paste(0, 0.4, 0.03, boxed)).any()


def test_a_step_draws_the_same_whenever_it_is_made(tmp_path: Path) -> None:
    config = small_config(augment="strong", cutmix=0.5, foreground_fraction=1.0)
    one, other = (small_inputs(config, tmp_path, step)[0] for step in (3, 3))
    assert torch.equal(one.image, other.image)
    assert torch.equal(one.masks, other.masks)
    assert not torch.equal(one.image, small_inputs(config, tmp_path, 4)[0].image)


def test_processes_draw_parts_of_the_same_batch(tmp_path: Path) -> None:
    config = small_config(
        augment="strong", cutmix=0.5, foreground_fraction=0.5, batch_size=8, flips="hv"
    )
    for step in range(4):
        whole, _ = small_inputs(config, tmp_path, step)
        for rank in range(4):
            part, _ = small_inputs(config, tmp_path, step, Ranks(rank=rank, world=4))
            assert torch.equal(part.image, whole.image[rank::4])
            assert torch.equal(part.masks, whole.masks[rank::4])
            assert part.rows == whole.rows[rank::4]


@pytest.mark.slow
def test_moved_masks_are_encoded_anew_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves = {"rotation": (1.0, 10.0, 10.0)}
    monkeypatch.setitem(augment.RANGES, ("light", False), moves)
    config = small_config(augment="light", foreground_fraction=0.0, batch_size=4, flips="")
    inputs, latents = small_inputs(config, tmp_path)
    # Slices 1 and 3 have foreground.
    assert [row[0] for row in inputs.rows] == [
        NOT_KEPT if position in (1, 3) else 0 for position in inputs.positions
    ]
    trainer = small_trainer(config)
    found = trainer.objective.with_latents(inputs, latents)
    for number in range(4):
        alone = encode_masks(trainer.objective.model, inputs.masks[number])  # type: ignore[arg-type]
        assert torch.equal(found.moments[number], alone[0])
    kept = np.load(latents.path)
    assert kept[0].any()  # the empty mask
    assert not kept[1:].any()
    again, _ = small_inputs(config, tmp_path)
    assert [bool(one) for one in again.known[:, 0]] == [row == [0] for row in inputs.rows]


def test_other_intensities_keep_the_latents_of_the_mask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(augment.RANGES, ("light", False), {"gamma": (1.0, 1.4, 1.5)})
    plain = small_config(foreground_fraction=1.0)
    bare, _ = small_inputs(plain, tmp_path)
    seen, _ = small_inputs(replace(plain, train=replace(plain.train, augment="light")), tmp_path)
    assert seen.rows == bare.rows
    assert NOT_KEPT not in [row[0] for row in seen.rows]
    assert torch.equal(seen.masks, bare.masks)
    assert not torch.equal(seen.image, bare.image)


def test_all_else_of_a_step_is_drawn_as_without_augmentation(tmp_path: Path) -> None:
    bare, _ = small_inputs(small_config(), tmp_path, 5)
    seen, _ = small_inputs(small_config(augment="strong", cutmix=1.0), tmp_path, 5)
    assert seen.positions == bare.positions
    for name in ("posterior_noise", "noise", "t", "importance"):
        assert torch.equal(getattr(seen, name), getattr(bare, name))


def sided_slices(folder: Path) -> PreparedSlices:
    """Slice 0 is empty, 1 has a right structure (label 1, on the left of the picture), 2 a left
    one (label 2, on the right)."""
    labels = np.zeros((3, SIZE, SIZE), np.uint8)
    labels[1, 12:20, 2:8] = 1
    labels[2, 12:20, 24:30] = 2
    np.save(folder / "labels.npy", labels)
    np.save(folder / "pixels.npy", labels.astype(np.float16) - 1)
    rule = ClassRule(((1,), (2,)), ("right", "left"), mirror_pairs=((0, 1),))
    return PreparedSlices([folder], rule, [[[1], [2]]])


def test_pasted_classes_stay_on_their_sides_in_mirrored_slices(tmp_path: Path) -> None:
    slices = sided_slices(tmp_path)
    latents = MaskLatents(tmp_path / "latents.npy", slices, ROW)
    config = small_config(cutmix=1.0, foreground_fraction=1.0, flips="h", batch_size=8)
    pasted = 0
    for step in range(10):
        inputs = StepSource(config, slices, latents, (8, *ROW[1:])).inputs(step)
        for masks, rows in zip(inputs.masks, inputs.rows, strict=True):
            assert not masks[0, :, 16:].any()
            assert not masks[1, :, :16].any()
            if masks.flatten(1).any(dim=1).all():
                pasted += 1
                assert rows == [NOT_KEPT, NOT_KEPT]
    assert pasted > 10


def test_nothing_is_pasted_between_cases_of_which_other_classes_were_drawn(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        sided_slices(tmp_path / name)
    slices = PreparedSlices(
        [tmp_path / "a", tmp_path / "b"],
        ClassRule(((1,), (2,)), ("right", "left")),
        [[[1], [2]], [[1], [2]]],
        [None, ["right"]],
    )
    assert slices.drawn_alike(0, 2)
    assert not slices.drawn_alike(1, 4)


@pytest.mark.slow
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    config = small_config(augment="strong", cutmix=0.5, foreground_fraction=1.0, batch_size=2)

    def losses(steps: range, folder: Path, trainer: Trainer) -> list[list[float]]:
        found = []
        for step in steps:
            inputs, latents = small_inputs(config, folder, step)
            found.append(trainer.train_step(inputs, latents).values.tolist())
        return found

    whole, half = small_trainer(config), small_trainer(config)
    at_once = losses(range(4), tmp_path / "a", whole)
    first = losses(range(2), tmp_path / "b", half)
    # What is kept of masks so far, or nothing: the same.
    second = losses(range(2, 4), tmp_path / "c", half)
    assert first + second == at_once
    ours, others = whole.model.state_dict(), half.model.state_dict()
    assert all(torch.equal(value, others[name]) for name, value in ours.items())


def test_settings_without_augmentation_are_those_of_earlier_versions() -> None:
    plain = PRESETS["tiny"]
    assert not {"augment", "cutmix"} & set(config_values(plain)["train"])
    assert "augment" not in to_toml(plain)
    assert 'augment = "none"' in to_toml(plain, explained=True)
    light = replace(plain, train=replace(plain.train, augment="light"))
    assert config_values(light)["train"]["augment"] == "light"
    assert 'augment = "light"' in to_toml(light)
    assert "cutmix" not in to_toml(light)
    assert from_dict(config_values(light), plain, source="test") == light


@pytest.mark.parametrize("wrong", [{"augment": "heavy"}, {"cutmix": 1.5}, {"cutmix": -0.1}])
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        TrainConfig(**wrong)  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_sheet_shows_training_slices_and_draws(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "new" / "sheet.png"
    augmentation_sheet(path, small_slices(tmp_path), small_config(augment="light"))
    with Image.open(path) as sheet:
        assert sheet.width > sheet.height > 300  # two slices, eight columns
