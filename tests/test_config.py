from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sdseg_cli.config import RunConfig, SampleConfig, TrainConfig
from sdseg_cli.config_file import (
    differing_keys,
    from_dict,
    load_toml,
    parse_assignment,
    read_toml,
    to_toml,
)
from sdseg_cli.errors import ConfigError
from sdseg_cli.presets import PRESETS, preset


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_survives_toml(tmp_path: Path, name: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(to_toml(preset(name)))
    assert load_toml(path, RunConfig()) == preset(name)


def test_the_sd_preset_is_the_papers_recipe() -> None:
    recipe = preset("sd").train
    assert (recipe.steps, recipe.batch_size, recipe.learning_rate) == (100_000, 4, 4e-5)
    assert (recipe.warmup_steps, recipe.weight_decay, recipe.clip_norm) == (10_000, 0.01, 0.0)
    assert (recipe.latent_loss_weight, recipe.noise_loss_weight) == (1.0, 1.0)
    assert (recipe.foreground_weight, recipe.foreground_fraction) == (0.0, 0.0)
    assert (recipe.timesteps, recipe.flips, recipe.ema_decay) == ("uniform", "hv", 0.9999)


@pytest.mark.parametrize(
    ("name", "differs"),
    [
        ("baseline", ["model.fusion", "model.train_encoder", "train.latent_loss_weight"]),
        ("concat", ["model.train_encoder", "train.latent_loss_weight"]),
        ("encoder", ["train.latent_loss_weight"]),
        ("full", []),
    ],
)
def test_a_row_of_table_6_differs_from_the_paper_in_its_switches_only(
    name: str, differs: list[str]
) -> None:
    row = preset(f"table6-{name}")
    assert differing_keys(preset("sd"), row) == ["preset", *differs]
    if "model.fusion" in differs:
        assert row.model.fusion == "cross-attention"
    assert row.model.train_encoder is ("model.train_encoder" not in differs)
    assert row.train.latent_loss_weight == (0.0 if "train.latent_loss_weight" in differs else 1.0)


def test_prediction_as_in_the_paper_is_the_default() -> None:
    sample = preset("sd").sample
    assert (sample.steps, sample.eta, sample.samples, sample.noise) == (1, 0.0, 1, "slice")


def test_values_are_laid_over_the_preset_and_the_rest_stays() -> None:
    changed = from_dict({"train": {"steps": 7}}, preset("tiny"), source="x")
    assert changed.train.steps == 7
    assert dataclasses.replace(changed, train=preset("tiny").train) == preset("tiny")


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r'unknown key "train\.step"') as caught:
        from_dict({"train": {"step": 7}}, RunConfig(), source="x")
    assert caught.value.hint.startswith(
        'Did you mean "train.steps"? Keys of [train]: init, steps, '
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.steps=many", "is no whole number"),
        ("train.steps=1.5", "is no whole number"),
        ("train.steps=true", "is no whole number"),
        ("train.steps=0", "train.steps is 0"),
        ("train=3", "is a section"),
        ("train.threshold=0.7", 'train.threshold is "0.7"'),
        ("train.flips=true", "is no text"),
        ("train.timesteps=often", 'train.timesteps is "often"'),
        ("model.parameterisation=x0", 'model.parameterisation is "x0"'),
        ("model.unet.channel_mult=2", "list of whole numbers"),
        ("model.fusion=sum", 'model.fusion is "sum"'),
        ("sample.steps=1001", "sample.steps is 1001"),
        ("sample.eta=1.5", "sample.eta is 1.5"),
        ("sample.samples=0", "sample.samples is 0"),
        ("sample.noise=none", 'sample.noise is "none"'),
        ("train.foreground_fraction=2", "foreground_fraction is 2"),
        ("train.steps", "has no value"),
        ("train.learning_rate=nan", "train.learning_rate is nan"),
        ("train.ema_decay=5", "train.ema_decay is 5"),
        ("train.clip_norm=-1", "train.clip_norm is -1"),
        ("train.foreground_weight=-3", "train.foreground_weight is -3"),
        ("train.mask_loss_weight=-1", "train.mask_loss_weight is -1"),
        ("sample.flips=vh", 'sample.flips is "vh"'),
        ("model.unet.model_channels=48", "multiples of 32"),
        ("model.unet.heads=5", "multiples of 5"),
        ("model.unet.channel_mult=[]", r"widths \[\] are not all"),
        ("model.autoencoder.channels=100", "multiples of 32"),
    ],
)
def test_a_wrong_value_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(parse_assignment(text), RunConfig(), source="--set")


def test_a_loss_of_the_mask_may_stand_alone_but_not_with_a_draw_by_other_weights() -> None:
    alone = {"noise_loss_weight": 0.0, "latent_loss_weight": 0.0, "mask_loss_weight": 1.0}
    assert from_dict({"train": alone}, RunConfig(), source="test").train.mask_loss_weight == 1
    drawn = {"mask_loss_weight": 1.0, "timesteps": "latent-weighted"}
    with pytest.raises(ConfigError, match="does not go with"):
        from_dict({"train": drawn}, RunConfig(), source="test")


def test_assignments_read_numbers_lists_and_bare_words() -> None:
    config = RunConfig()
    for text in ("train.learning_rate=1", "model.unet.channel_mult=[1, 3]", "train.flips=h"):
        config = from_dict(parse_assignment(text), config, source="--set")
    assert config.train.learning_rate == 1.0
    assert config.model.unet.channel_mult == (1, 3)
    assert config.train.flips == "h"


def test_a_file_that_is_no_toml_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("train = [")
    with pytest.raises(ConfigError, match="no valid TOML"):
        read_toml(tmp_path / "c.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_toml(tmp_path / "missing.toml")


def test_differing_keys_are_named_with_their_sections() -> None:
    a, b = RunConfig(), RunConfig(seed=1, train=TrainConfig(steps=5))
    assert differing_keys(a, b) == ["seed", "train.steps"]


def test_an_unknown_preset_lists_the_known() -> None:
    with pytest.raises(ConfigError) as caught:
        preset("huge")
    assert caught.value.hint == (
        "Choose one of tiny, sd, table6-baseline, table6-concat, table6-encoder, table6-full."
    )


@pytest.mark.parametrize("setting", [{"samples": 2}, {"eta": 0.5, "steps": 2}])
def test_settings_that_need_noise_are_refused_without_it(setting: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="would change nothing"):
        SampleConfig(noise="zero", **setting)
    assert SampleConfig(noise="zero", steps=3).noise == "zero"
