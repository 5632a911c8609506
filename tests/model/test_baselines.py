from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from sdseg_cli.core.config import BASELINES, ModelConfig
from sdseg_cli.core.errors import ConfigError
from sdseg_cli.core.presets import PRESETS, for_network
from sdseg_cli.model import baselines
from sdseg_cli.model.baselines import Baseline, build_baseline, build_model
from sdseg_cli.model.interface import class_probabilities
from sdseg_cli.model.sdseg import SDSeg

SIDE = 64
WEIGHTS = {
    ("unet", "tiny"): 3_532_753,
    ("unet-r50", "tiny"): 27_047_841,
    ("swin-unetr", "tiny"): 6_302_875,
    ("dynunet", "tiny"): 3_585_444,
    ("segresnet", "tiny"): 3_877_729,
    ("transunet", "tiny"): 2_630_241,
    ("swinunet", "tiny"): 3_051_385,
    ("ssformer", "tiny"): 2_789_217,
    ("li-segpnet", "tiny"): 2_633_241,
    ("unet", "sd"): 31_113_217,
    ("unet-r50", "sd"): 32_109_681,
    ("swin-unetr", "sd"): 25_139_275,
    ("dynunet", "sd"): 33_461_829,
    ("segresnet", "sd"): 6_299_073,
    ("transunet", "sd"): 105_322_001,
    ("swinunet", "sd"): 27_175_525,
    ("ssformer", "sd"): 65_957_569,
    ("li-segpnet", "sd"): 10_517_841,
}
"""Trained weights, as docs/CLI.md says in millions."""


def built(name: str, scale: str = "tiny") -> Baseline:
    """The network, or a skip where a package it needs is absent."""
    absent = [package for package in BASELINES[name].needs if find_spec(package) is None]
    if absent:
        pytest.skip(f"{name} needs {', '.join(absent)}")
    torch.manual_seed(0)
    return build_baseline(ModelConfig(network=name, scale=scale))


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", BASELINES)
def test_every_network_answers_one_probability_per_pixel(name: str) -> None:
    model = built(name).eval()
    image = torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    assert model.logits(image).shape == (2, 1, 1, SIDE, SIDE)
    probability = model.probability(image)
    assert probability.shape == (2, 1, SIDE, SIDE)
    assert ((probability > 0) & (probability < 1)).all()
    assert torch.equal(probability, model.logits(image)[:, 0].sigmoid())


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scale"), WEIGHTS)
def test_how_large_a_network_is_stays_what_the_docs_say(name: str, scale: str) -> None:
    if scale == "sd" and name not in ("swin-unetr", "segresnet"):
        with torch.device("meta"):
            model = built(name, scale)
    else:
        model = built(name, scale)
    count = sum(value.numel() for value in model.parameters())
    assert count == WEIGHTS[name, scale]


def test_every_network_has_a_stated_size_and_source() -> None:
    assert {name for name, _ in WEIGHTS} == set(BASELINES)
    assert all(network.paper and network.answers for network in BASELINES.values())


def test_the_published_sizes_are_met_to_half_a_percent() -> None:
    # No independent check of SSFormer: the width of its decoder was chosen by it.
    published = {name: network.published for name, network in BASELINES.items()}
    assert {name for name, size in published.items() if size} == {
        "transunet",
        "swinunet",
        "ssformer",
    }
    for name, size in published.items():
        if size:
            assert WEIGHTS[name, "sd"] / 1e6 == pytest.approx(float(size), rel=0.005)


def test_lower_levels_of_nnunets_network_answer_too_while_it_learns() -> None:
    model, image = built("dynunet"), torch.zeros(1, 3, SIDE, SIDE)
    assert model.logits(image).shape == (1, 1 + 3, 1, SIDE, SIDE)
    assert model.eval().logits(image).shape == (1, 1, 1, SIDE, SIDE)


@pytest.mark.slow
def test_a_network_is_built_where_it_is_named_and_sdseg_where_none_is() -> None:
    tiny = PRESETS["tiny"]
    assert isinstance(build_model(tiny.model), SDSeg)
    assert isinstance(build_model(for_network(tiny, "unet").model), Baseline)


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    needy = replace(BASELINES["unet"], needs=("no_such_package",))
    monkeypatch.setitem(baselines.BASELINES, "unet", needy)
    with pytest.raises(ConfigError, match="unet needs no_such_package") as caught:
        build_baseline(ModelConfig(network="unet", scale="tiny"))
    assert "pip install no_such_package" in caught.value.hint


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("overlapping", [False, True])
@pytest.mark.parametrize("name", BASELINES)
def test_a_network_of_several_classes_begins_with_their_shares(
    name: str, overlapping: bool
) -> None:
    built(name)  # or a skip
    config = ModelConfig(network=name, scale="tiny", classes=2, overlapping=overlapping)
    model = build_baseline(config)
    for part in BASELINES[name].answers:  # without what its random weights say
        for module in model.unet.get_submodule(part).modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.zero_()
    model.start_at(torch.tensor([0.05, 0.002]))
    answers = class_probabilities(model.logits(torch.zeros(2, 3, SIDE, SIDE)).flatten(0, 1), 2)
    expected = torch.tensor([0.05, 0.002]).view(1, 2, 1, 1).expand(answers.shape)
    assert torch.allclose(answers, expected, atol=1e-6)
