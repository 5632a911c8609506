from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sdseg_cli.core.config import RunConfig
from sdseg_cli.core.errors import ConfigError, RunError
from sdseg_cli.model.distributed import Ranks
from sdseg_cli.training import step as trainer_module
from tests.training.small import small_config, small_inputs, small_slices, small_trainer


def values_of(config: RunConfig, folder: Path, steps: int = 2) -> list[list[float]]:
    """Loss, L_noise and L_latent of the first steps."""
    loop, found = small_trainer(config), []
    for step in range(steps):
        inputs, latents = small_inputs(config, folder, step)
        found.append(loop.train_step(inputs, latents).values[:3].tolist())
    return found


@pytest.mark.slow
def test_kept_moments_give_the_same_losses_to_the_last_bit(tmp_path: Path) -> None:
    first = values_of(small_config(), tmp_path)
    inputs, _ = small_inputs(small_config(), tmp_path)
    assert inputs.known.all()  # all were computed by the first run
    assert values_of(small_config(), tmp_path) == first


@pytest.mark.parametrize("foreground_weight", [pytest.param(0.0, marks=pytest.mark.slow), 20.0])
def test_a_batch_in_parts_is_the_same_step(tmp_path: Path, foreground_weight: float) -> None:
    whole = values_of(small_config(foreground_weight=foreground_weight), tmp_path)
    parts = values_of(small_config(foreground_weight=foreground_weight, accumulate=4), tmp_path)
    for one, other in zip(whole, parts, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_the_log_row_holds_the_terms_of_eq_3(tmp_path: Path) -> None:
    config = small_config(noise_loss_weight=0.5, latent_loss_weight=2.0)
    inputs, latents = small_inputs(config, tmp_path)
    row = small_trainer(config).train_step(inputs, latents).row()
    assert row["step"] == 1
    assert row["lr"] == pytest.approx(1e-3 / 50)
    assert row["loss"] == pytest.approx(0.5 * row["loss_noise"] + 2 * row["loss_latent"])


@pytest.mark.parametrize("parameterisation", ["eps", "v"])
@pytest.mark.parametrize("timesteps", ["uniform", "last"])
def test_every_recipe_takes_a_step(tmp_path: Path, parameterisation: str, timesteps: str) -> None:
    recipe = {"noise_loss_weight": 1.0, "latent_loss": "l1", "foreground_weight": 0.0}
    config = small_config(timesteps=timesteps, foreground_fraction=0.0, **recipe)
    config = replace(config, model=replace(config.model, parameterisation=parameterisation))
    row = small_trainer(config).train_step(*small_inputs(config, tmp_path)).row()
    assert row["loss"] == pytest.approx(row["loss_noise"] + row["loss_latent"], rel=1e-6)
    if parameterisation == "eps" and timesteps == "last":
        # The latent loss is the noise loss amplified by 38.66 at t = 999.
        assert row["loss_latent"] / row["loss_noise"] == pytest.approx(38.66, rel=1e-3)


def out_of_memory_above(size: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The objective runs out of memory above so many samples; the list gets what it was given."""
    asked: list[int] = []
    forward = trainer_module.Objective.forward

    def limited(self: trainer_module.Objective, inputs: object, *rest: object) -> torch.Tensor:
        asked.append(len(inputs.positions))  # type: ignore[attr-defined]
        if asked[-1] > size:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, inputs, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer_module.Objective, "forward", limited)
    return asked


def test_out_of_memory_names_what_to_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out_of_memory_above(2, monkeypatch)
    config = small_config()
    with pytest.raises(RunError, match="out of memory at step 1 with batch size 4") as caught:
        small_trainer(config).train_step(*small_inputs(config, tmp_path))
    assert "--batch-size 2" in caught.value.hint
    assert "train.accumulate=2" in caught.value.hint


@pytest.mark.slow
def test_an_adapting_trainer_goes_on_in_smaller_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config()
    expected = values_of(config, tmp_path, steps=1)[0]
    asked = out_of_memory_above(1, monkeypatch)
    loop = small_trainer(config, adapts=True)
    inputs, latents = small_inputs(config, tmp_path)
    assert loop.train_step(inputs, latents).values[:3].tolist() == pytest.approx(expected, rel=1e-5)
    assert asked == [4, 2, 1, 1, 1, 1]
    loop.train_step(*small_inputs(config, tmp_path, 1))
    assert asked[6:] == [1, 1, 1, 1]  # it remembers


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(trainer_module.Objective, "forward", broken)
    config = small_config()
    with pytest.raises(RuntimeError, match="a bug"):
        small_trainer(config, adapts=True).train_step(*small_inputs(config, tmp_path))


def test_a_batch_that_cannot_be_shared_evenly_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size 4 cannot be shared by 3 processes"):
        small_trainer(small_config(), ranks=Ranks(0, 3))


def test_weights_that_are_no_numbers_are_noticed() -> None:
    loop = small_trainer(small_config())
    assert loop.is_finite()
    with torch.no_grad():
        loop.trained[3].view(-1)[0] = float("inf")
    assert not loop.is_finite()


def test_early_stop_counts_validations_since_the_best() -> None:
    loop = small_trainer(small_config(patience=2, validate_every=10))
    assert not loop.exhausted  # nothing validated yet
    loop.best, loop.step = {"step": 10, "val_dice": 0.5}, 29
    assert not loop.exhausted
    loop.step = 30
    assert loop.exhausted
    loop.config = small_config(patience=0, validate_every=10)
    assert not loop.exhausted


def test_validation_is_the_mean_dice_per_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slices = small_slices(tmp_path)
    truth = (slices.batch(range(4)).labels > 0).float()
    truth[1] = 0  # 112 of 160 pixels are missed: Dice 2 x 48 / (48 + 160)
    monkeypatch.setattr(
        trainer_module,
        "predict_planes",
        lambda model, image, positions, **_: truth[list(positions), None],
    )
    loop = small_trainer(small_config())
    found = loop.validate(slices, keep=[3, 0])
    assert found.dice == pytest.approx(96 / 208)
    assert np.array_equal(found.planes, truth[[3, 0]].numpy())


@pytest.mark.parametrize(
    ("setting", "threshold", "dice"),
    # Slice 1 has 112 pixels, of which the half at 0.7 is found; slice 3 its 48; and 448 pixels at
    # 0.6 are background. Above 0.6: 2 x 104 / (104 + 160); above 0.5: 2 x 104 / (104 + 448 + 160).
    [("validation", 0.6, 208 / 264), ("half", 0.5, 208 / 712)],
)
def test_a_validation_chooses_the_threshold_with_the_highest_dice(
    setting: str, threshold: float, dice: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slices = small_slices(tmp_path)
    truth = slices.batch(range(4)).labels > 0
    probability = torch.where(truth, 0.9, 0.05)
    probability[1] = 0.05
    probability[1, 4:12, 6:13] = 0.7  # 8 x 7 of the square's 8 x 14
    probability[0, :14, :] = 0.6  # 14 x 32
    monkeypatch.setattr(
        trainer_module,
        "predict_planes",
        lambda model, image, positions, **_: probability[list(positions), None],
    )
    found = small_trainer(small_config(threshold=setting)).validate(slices, keep=[0])
    assert (found.threshold, found.dice) == (threshold, pytest.approx(dice))
    assert (found.planes > 0.5).sum() == (0 if setting == "validation" else 448)


def test_the_checkpoint_to_predict_with_holds_no_optimiser() -> None:
    loop = small_trainer(small_config())
    best = loop.checkpoint({}, resumable=False)
    assert not best.optimizer
    assert best.weights["unet.out.2.bias"].dtype == torch.float16
    assert replace(best, weights={}).step == 0
