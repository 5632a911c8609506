from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sdseg_cli.core.errors import ConfigError
from sdseg_cli.core.presets import PRESETS
from sdseg_cli.inference.decoders import DecoderCheck, keep_with_run, read_check
from sdseg_cli.inference.predictor import Predictor
from sdseg_cli.model.autoencoder import Autoencoder
from sdseg_cli.model.diffusion import seeded_generator
from sdseg_cli.model.mask_decoder import build_mask_decoder
from sdseg_cli.model.starts import load_tiny_autoencoder
from sdseg_cli.model.tensor_files import read_metadata, read_tensors
from sdseg_cli.model.weights import WeightStore
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training import distill as distill_module
from sdseg_cli.training.batches import open_split
from sdseg_cli.training.calibration import Examples, adapted, cosine, distillation_loss
from sdseg_cli.training.distill import (
    Distiller,
    DistillOptions,
    Teacher,
    blend,
    changed,
    distill,
    mixed,
    prepared_masks,
    procedural,
)
from sdseg_cli.training.shapes import random_masks
from tests.conftest import Workspace, rated

SIZES = PRESETS["tiny"].model.autoencoder


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planes of 64 px and few examples."""
    settings = {"SIDE": 64, "RADIUS_PX": (3.0, 20.0), "POOL": 6, "WARMUP": 1}
    settings |= {"HELD_OUT": 2, "SAVE_EVERY": 2}
    for name, value in settings.items():
        monkeypatch.setattr(distill_module, name, value)


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    built = Autoencoder(SIZES)
    load_tiny_autoencoder(built)
    return built.eval().requires_grad_(False)


def generator(name: str | int = "test") -> torch.Generator:
    return seeded_generator(name, 0)


def test_shapes_are_minus_one_and_plus_one_from_empty_to_large() -> None:
    masks = random_masks(100, 64, generator())
    assert masks.shape == (100, 3, 64, 64)
    assert set(masks.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(masks[:, 0], masks[:, 1]) and torch.equal(masks[:, 0], masks[:, 2])
    share = (masks > 0).float().mean(dim=(1, 2, 3))
    assert share.min() == 0
    assert 0.05 < share.median() < 0.6
    assert share.max() > 0.8


def test_procedural_masks_are_zeros_and_ones_of_the_generator() -> None:
    masks = procedural(3, generator())
    assert masks.shape == (3, 1, 64, 64)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(masks, procedural(3, generator()))
    assert not torch.equal(masks, procedural(3, generator("other")))


def test_of_mixed_masks_some_are_prepared_and_some_procedural() -> None:
    ones = mixed(lambda count, _: torch.ones(count, 1, 64, 64))(40, generator())
    full = ones.flatten(1).all(dim=1)
    assert 10 <= int(full.sum()) <= 30


def test_the_teacher_decodes_as_a_prediction_does(autoencoder: Autoencoder) -> None:
    teacher = Teacher(autoencoder)
    square = torch.zeros(1, 1, 64, 64)
    square[..., 16:48, 16:48] = 1
    drawn = teacher.decode(teacher.encode(square))
    assert drawn.shape == (1, 64, 64)
    found = drawn[0] > 0.5
    overlap = 2 * (found & (square[0, 0] > 0)).sum() / (found.sum() + square.sum())
    assert overlap > 0.95


def test_examples_are_what_the_decoder_makes_of_disturbed_latents(autoencoder: Autoencoder) -> None:
    teacher = Teacher(autoencoder)
    made, again = (teacher.example(generator()) for _ in range(2))
    assert made.latent.shape == (1, 4, 8, 8)
    assert torch.equal(made.latent, again.latent)
    assert torch.equal(made.target, teacher.decode(made.latent))
    calm = teacher.encode(procedural(1, generator()))
    assert not torch.allclose(made.latent, calm, atol=1e-3)


@pytest.mark.parametrize(
    ("before", "shift", "growth", "after"),
    [
        ((16, 17, 16, 17), (2, -3), 1, (17, 20, 12, 15)),  # a dot moves and grows by one
        ((10, 15, 10, 15), (0, 0), -2, (12, 13, 12, 13)),  # of a square of 5 a dot is left
    ],
)
def test_a_changed_mask_is_moved_and_grown_or_shrunk(
    monkeypatch: pytest.MonkeyPatch, before, shift, growth, after
) -> None:
    mask, expected = torch.zeros(1, 32, 32), torch.zeros(1, 32, 32)
    for plane, (top, bottom, left, right) in ((mask, before), (expected, after)):
        plane[:, top:bottom, left:right] = 1
    draws = iter([torch.tensor(shift), torch.tensor(growth)])
    monkeypatch.setattr(torch, "randint", lambda *_, **__: next(draws))
    assert torch.equal(changed(mask, 6, generator()), expected)


def test_a_blend_is_a_mean_whose_shares_vary_over_the_plane() -> None:
    one, two = torch.zeros(1, 4, 8, 8), torch.full((1, 4, 8, 8), 10.0)
    found = blend(torch.cat([one, two]), generator())
    assert found.shape == (1, 4, 8, 8)
    assert 0 <= float(found.min()) < float(found.max()) <= 10
    assert torch.equal(found[:, 0], found[:, 3])
    assert float(found[0, 0].std()) > 0.5
    alike = blend(two.expand(3, -1, -1, -1), generator())
    assert torch.allclose(alike, two, atol=1e-5)


def test_the_loss_is_the_entropy_and_little_foreground_counts_for_more() -> None:
    target = torch.zeros(2, 2, 2)
    target[0, 0, 0] = 1  # a quarter; the other plane is empty
    # p = 1/2 everywhere: the entropy is log 2 on both.
    expected = math.log(2) * ((0.25 + 0.01) ** -0.5 + 0.01**-0.5) / 2
    found = distillation_loss(torch.zeros(2, 2, 2), target)
    assert found.item() == pytest.approx(expected)


def test_the_best_answer_to_a_probability_is_that_probability() -> None:
    target = torch.full((1, 4, 4), 0.4)
    answers = {
        p: distillation_loss(torch.logit(torch.full((1, 4, 4), p)), target).item()
        for p in (0.3, 0.4, 0.5)
    }
    assert min(answers, key=lambda p: answers[p]) == 0.4


@pytest.mark.slow
def test_training_learns_and_repeats_itself(autoencoder: Autoencoder) -> None:
    def trained() -> tuple[list[float], torch.Tensor]:
        torch.manual_seed(0)
        loop = Distiller(build_mask_decoder(SIZES), Teacher(autoencoder), steps=30)
        losses = [loop.train_step() for _ in range(30)]
        return losses, loop.average.leave.weight

    losses, weights = trained()
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    again, same = trained()
    assert losses == again
    assert torch.equal(weights, same)


def test_examples_are_renewed_in_turn(autoencoder: Autoencoder) -> None:
    loop = Distiller(build_mask_decoder(SIZES), Teacher(autoencoder), steps=30)
    loop.pool = loop.fill()
    before = loop.pool.latent.clone()
    for _ in range(distill_module.RENEW_EVERY + 1):
        loop.train_step()
    renewed = [not torch.equal(a, b) for a, b in zip(before, loop.pool.latent, strict=True)]
    assert renewed == [True, True, False, False, False, False]


def test_a_state_goes_on_with_the_same_weights_and_step(autoencoder: Autoencoder) -> None:
    teacher = Teacher(autoencoder)
    first = Distiller(build_mask_decoder(SIZES), teacher, steps=30)
    for _ in range(3):
        first.train_step()
    second = Distiller(build_mask_decoder(SIZES), teacher, steps=30)
    second.resume(first.state())
    assert second.step == 3
    latent = torch.randn(1, 4, 8, 8)
    assert torch.equal(second.average(latent), first.average(latent))
    assert torch.equal(second.decoder(latent), first.decoder(latent))


def test_the_learning_rate_warms_up_and_ends_at_a_fiftieth() -> None:
    assert cosine(0, 1000, warmup=100) == pytest.approx(1 / 100)
    assert cosine(500, 1000, warmup=100) == pytest.approx(0.02 + 0.98 / 2)
    assert cosine(1000, 1000, warmup=100) == pytest.approx(1 / 50)


@pytest.mark.slow
def test_a_decoder_gets_used_to_given_latents_and_the_given_one_stays() -> None:
    torch.manual_seed(0)
    decoder = build_mask_decoder(SIZES)
    before = {key: value.clone() for key, value in decoder.state_dict().items()}
    latent = torch.randn(4, 4, 8, 8)
    # The sign of the first channel is the mask.
    target = (latent[:, 0] > 0).float().repeat_interleave(8, 1).repeat_interleave(8, 2)
    found = adapted(decoder, Examples(latent, target), steps=60)
    assert all(torch.equal(value, before[key]) for key, value in decoder.state_dict().items())
    assert not found.training
    wrong = [((net(latent) > 0.5) != (target > 0)).float().mean() for net in (decoder, found)]
    assert wrong[1] < 0.5 * wrong[0]
    again = adapted(decoder, Examples(latent, target), steps=60)
    assert torch.equal(again(latent), found(latent))


@pytest.mark.slow
def test_what_is_distilled_lies_in_the_store_by_its_autoencoder(tmp_path: Path) -> None:
    report = distill(DistillOptions(steps=2, device="cpu", store=WeightStore(tmp_path)))
    assert report.decoder.parent == tmp_path / "mask-decoders"
    assert report.autoencoder.startswith(report.decoder.stem)
    assert read_metadata(report.decoder) == {"autoencoder": report.autoencoder}
    assert [path.name for path in report.decoder.parent.iterdir()] == [report.decoder.name]
    values = report.to_json()
    assert 0 < values["gflop"] < 0.1 * values["exact_gflop"]
    assert values["parameters"] == 108_664
    assert values["check"] is None


class Enough(Exception):  # noqa: N818, it is no error
    """Stands for a kill."""


@pytest.mark.slow
def test_killed_it_resumes_from_its_last_state_which_is_of_no_other_call(tmp_path: Path) -> None:
    seen: list[int] = []

    def kill(step: int, steps: int, _: str) -> None:
        seen.append(step)
        if seen == [1, 2, 3]:
            raise Enough

    file = tmp_path / "decoder.safetensors"
    options = DistillOptions(output=file, steps=5, device="cpu", store=WeightStore(tmp_path))
    with pytest.raises(Enough):
        distill(options, progress=kill)
    assert not file.exists()
    state = file.with_suffix(".state.pt").read_bytes()
    distill(options, progress=kill)
    assert seen == [1, 2, 3, 3, 4, 5]
    assert [path.name for path in tmp_path.iterdir()] == ["decoder.safetensors"]
    file.with_suffix(".state.pt").write_bytes(state)
    seen.clear()
    distill(replace(options, steps=2), progress=lambda step, *_: seen.append(step))
    assert seen == [1, 2]


def test_prepared_masks_are_those_of_training_cases_flipped(
    tiny_set: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill_module, "REAL_SHARE", 1.0)
    slices = open_split(tiny_set.manifest, "train")
    known = slices.batch(slices.with_foreground).labels > 0
    drawn = prepared_masks(tiny_set.manifest)(6, seeded_generator("test", 0))[:, 0] > 0
    ways = [plane.flip(axes) for plane in drawn for axes in ((), (0,), (1,), (0, 1))]
    found = [any(torch.equal(way, plane) for plane in known) for way in ways]
    assert all(any(found[4 * k : 4 * k + 4]) for k in range(6))
    assert not all(found)


@pytest.mark.slow
def test_a_run_is_measured_with_what_was_distilled_and_predicts_with_it_on_request(
    tiny_run: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(Path(shutil.copytree(tiny_run.run.path, tmp_path / "run")))
    rated(run, 0.1)
    measured: list[torch.nn.Module] = []

    def keep(decoder: torch.nn.Module, *_: object, **__: object) -> torch.nn.Module:
        measured.append(decoder)
        return decoder

    monkeypatch.setattr("sdseg_cli.training.calibration.adapted", keep)
    options = DistillOptions(output=tmp_path / "own.safetensors", steps=1, device="cpu")
    report = distill(options, run=run, manifest=tiny_run.manifest)
    assert report.check is not None
    assert read_check(run.path) == report.check
    own = read_tensors(tmp_path / "own.safetensors")
    assert torch.equal(measured[0].leave.weight, own["leave.weight"])
    assert Predictor(run.path, device="cpu", decoder="fast").decoder == "fast"
    assert Predictor(run.path, device="cpu", decoder="exact").decoder == "exact"


def test_no_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match="--steps is 0"):
        distill(DistillOptions(steps=0))


def test_a_run_that_was_trained_through_its_decoder_keeps_it(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.checkpoints.mkdir()
    decoder = build_mask_decoder(PRESETS["tiny"].model.autoencoder)
    keep_with_run(run, decoder, DecoderCheck(0, 0, 0.0, 0.0, trained_through=True))
    with pytest.raises(ConfigError, match="trained through its own fast decoder"):
        distill(DistillOptions(steps=1, device="cpu"), run=run)
