from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from sdseg_cli.core.presets import PRESETS
from sdseg_cli.model.autoencoder import Autoencoder
from sdseg_cli.model.diffusion import seeded_generator
from sdseg_cli.model.mask_decoder import build_mask_decoder
from sdseg_cli.model.starts import load_tiny_autoencoder
from sdseg_cli.training import distillation
from sdseg_cli.training.distillation import (
    Distiller,
    Examples,
    Teacher,
    adapted,
    blend,
    changed,
    cosine,
    distillation_loss,
    mixed,
    procedural,
)

SIZES = PRESETS["tiny"].model.autoencoder


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    built = Autoencoder(SIZES)
    load_tiny_autoencoder(built)
    return built.eval().requires_grad_(False)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Planes of 64 px and few examples."""
    monkeypatch.setattr(distillation, "SIDE", 64)
    monkeypatch.setattr(distillation, "RADIUS_PX", (3.0, 20.0))
    monkeypatch.setattr(distillation, "POOL", 6)
    monkeypatch.setattr(distillation, "WARMUP", 1)
    yield


def generator(name: str = "test") -> torch.Generator:
    return seeded_generator(name, 0)


def test_procedural_masks_are_zeros_and_ones_of_the_generator() -> None:
    masks = procedural(3, generator())
    assert masks.shape == (3, 1, 256, 256)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(masks, procedural(3, generator()))
    assert not torch.equal(masks, procedural(3, generator("other")))


def test_of_mixed_masks_some_are_prepared_and_some_procedural(small: None) -> None:
    ones = mixed(lambda count, _: torch.ones(count, 1, 64, 64))(40, generator())
    full = ones.flatten(1).all(dim=1)
    assert 10 <= int(full.sum()) <= 30


def test_the_teacher_decodes_as_a_prediction_does(autoencoder: Autoencoder, small: None) -> None:
    teacher = Teacher(autoencoder)
    square = torch.zeros(1, 1, 64, 64)
    square[..., 16:48, 16:48] = 1
    drawn = teacher.decode(teacher.encode(square))
    assert drawn.shape == (1, 64, 64)
    found = drawn[0] > 0.5
    overlap = 2 * (found & (square[0, 0] > 0)).sum() / (found.sum() + square.sum())
    assert overlap > 0.95


def test_examples_are_what_the_decoder_makes_of_disturbed_latents(
    autoencoder: Autoencoder, small: None
) -> None:
    teacher = Teacher(autoencoder)
    made, again = (teacher.example(generator()) for _ in range(2))
    assert made.latent.shape == (1, 4, 8, 8)
    assert torch.equal(made.latent, again.latent)
    assert torch.equal(made.target, teacher.decode(made.latent))
    calm = teacher.encode(procedural(1, generator()))
    assert not torch.allclose(made.latent, calm, atol=1e-3)


def test_a_changed_mask_is_shifted_and_grown_by_some_pixels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dot = torch.zeros(1, 1, 32, 32)
    dot[..., 16, 16] = 1
    draws = iter([torch.tensor([2, -3]), torch.tensor(1)])
    monkeypatch.setattr(torch, "randint", lambda *_, **__: next(draws))
    expected = torch.zeros(32, 32)
    expected[17:20, 12:15] = 1
    assert torch.equal(changed(dot[0], 6, generator())[0], expected)


def test_a_changed_mask_may_shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    square = torch.zeros(1, 1, 32, 32)
    square[..., 10:15, 10:15] = 1
    draws = iter([torch.tensor([0, 0]), torch.tensor(-2)])
    monkeypatch.setattr(torch, "randint", lambda *_, **__: next(draws))
    found = changed(square[0], 6, generator())[0]
    assert found.sum() == 1
    assert found[12, 12] == 1


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


def test_training_learns_and_repeats_itself(autoencoder: Autoencoder, small: None) -> None:
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


def test_examples_are_renewed_in_turn(autoencoder: Autoencoder, small: None) -> None:
    loop = Distiller(build_mask_decoder(SIZES), Teacher(autoencoder), steps=30)
    loop.fill()
    assert loop.pool is not None
    before = loop.pool.latent.clone()
    for _ in range(distillation.RENEW_EVERY + 1):
        loop.train_step()
    renewed = [not torch.equal(a, b) for a, b in zip(before, loop.pool.latent, strict=True)]
    assert renewed == [True, True, False, False, False, False]


def test_a_state_goes_on_with_the_same_weights_and_step(
    autoencoder: Autoencoder, small: None
) -> None:
    teacher = Teacher(autoencoder)
    first = Distiller(build_mask_decoder(SIZES), teacher, steps=30)
    for _ in range(3):
        first.train_step()
    second = Distiller(build_mask_decoder(SIZES), teacher, steps=30)
    second.go_on(first.state())
    assert second.step == 3
    latent = torch.randn(1, 4, 8, 8)
    assert torch.equal(second.average(latent), first.average(latent))
    assert torch.equal(second.decoder(latent), first.decoder(latent))


def test_the_learning_rate_warms_up_and_ends_at_a_fiftieth() -> None:
    assert cosine(0, 1000, warmup=100) == pytest.approx(1 / 100)
    assert cosine(500, 1000, warmup=100) == pytest.approx(0.02 + 0.98 / 2)
    assert cosine(1000, 1000, warmup=100) == pytest.approx(1 / 50)


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
