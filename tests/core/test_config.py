from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdseg_cli.core.config import RunConfig, SampleConfig, TrainConfig, VisionConfig
from sdseg_cli.core.config_file import (
    as_begun,
    differing_keys,
    from_dict,
    load_toml,
    parse_assignment,
    read_toml,
    settings_of,
    to_toml,
)
from sdseg_cli.core.errors import ConfigError
from sdseg_cli.core.presets import PRESETS, for_classes, preset

PAPERS_VISION: dict[str, Any] = {"vision": VisionConfig(), "condition_channels": 4}


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


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@pytest.mark.slow
@given(dataset=TEXTS, init=TEXTS, seed=st.integers(-(2**63), 2**63 - 1), rate=st.floats(1e-12, 10))
def test_any_settings_survive_toml(dataset: str, init: str, seed: int, rate: float) -> None:
    config = from_dict(
        {"dataset": dataset, "seed": seed, "train": {"init": init, "learning_rate": rate}},
        RunConfig(),
        source="test",
    )
    for explained in (False, True):
        values = tomllib.loads(to_toml(config, explained=explained))
        assert from_dict(values, RunConfig(), source="test") == config


def test_emoji_stand_in_toml_as_they_are() -> None:
    assert 'dataset = "😀 größe"\n' in to_toml(RunConfig(dataset="😀 größe"))


@pytest.mark.parametrize("key", ["dataset", "train.init"])
def test_a_name_that_is_no_utf8_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} .* is not UTF-8"):
        from_dict(parse_assignment(f"{key}=a\udcffb"), RunConfig(), source="--set")


def test_every_setting_is_explained_in_a_line_by_the_text_below_its_field() -> None:
    found = {setting.key: setting for setting in settings_of(preset("tiny"))}
    assert found["train.clip_norm"].what == "Largest gradient norm; 0 = no clipping (the paper)."
    assert found["model.unet.channel_mult"].value == [1, 2, 4]
    sections = {"model", "train", "sample", "model.autoencoder", "model.vision", "model.unet"}
    keys = {
        f"{section}.{field.name}".lstrip(".")
        for section in ("", *sections)
        for field in dataclasses.fields(attrgetter(section)(RunConfig()) if section else RunConfig)
    }
    # Not shown of one class, and without folds.
    several = {"model.classes", "model.overlapping", "fold"}
    assert found.keys() == keys - sections - several
    assert all(setting.what and "\n" not in setting.what for setting in found.values())


@pytest.mark.parametrize("end", ["\n", "\r", "\u2028", "\x85", "\0"])
def test_a_setting_of_two_lines_is_refused_whole(end: str) -> None:
    with pytest.raises(ConfigError, match=r"has .* in it"):
        parse_assignment(f"train.steps=3{end}seed=4")


DEEP = "[" * 100_000 + "]" * 100_000
WRONG = {
    "of 5,000 digits": ("train.steps", "9" * 5000),
    "of 400 digits": ("train.learning_rate", "9" * 400),
    "of 21 digits": ("seed", "9" * 21),
    "beyond a seed": ("seed", str(2**64)),
    "of 20,000 bits": ("train.steps", "0x" + "f" * 5000),
    "nested deep": ("train.steps", DEEP),
    "nested in objects": ("train.steps", "{a=" * 300 + "1" + "}" * 300),
    "huge in a list": ("model.unet.channel_mult", f"[{'0x' + 'f' * 5000}]"),
    "too wide": ("model.unet.channel_mult", "[1, 999999999]"),
    "of many levels": ("model.autoencoder.channel_mult", "[1,1,1,1,1,1,1,1,1]"),
    "NaN": ("train.weight_decay", "nan"),
    "infinite": ("train.clip_norm", "inf"),
    "a date": ("train.init", "2020-01-01"),
    "a long text": ("train.steps", '"' + "x" * 10_000 + '"'),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_value_that_no_run_can_have_is_one_short_error(tmp_path: Path, what: str) -> None:
    key, value = WRONG[what]
    section, _, name = key.rpartition(".")
    head = f"[{section}]\n" if section else ""
    (tmp_path / "c.toml").write_text(f"{head}{name} = {value}\n")
    with pytest.raises(ConfigError) as in_file:
        load_toml(tmp_path / "c.toml", RunConfig())
    with pytest.raises(ConfigError) as given_alone:
        from_dict(parse_assignment(f"{key}={value}"), RunConfig(), source="--set")
    for caught in (in_file, given_alone):
        assert len(caught.value.message) < 200 + len(str(tmp_path))


def test_a_byte_order_mark_before_toml_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(b"\xef\xbb\xbfseed = 3\r\n")
    assert load_toml(tmp_path / "c.toml", RunConfig()).seed == 3


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("train.step", 'Did you mean "train.steps"? Keys of [train]: init, steps, '),
        ("steps", 'Did you mean "train.steps" or "sample.steps"? Keys of the top level: dataset, '),
        ("trian.steps", 'Did you mean "train"? Keys of the top level: '),
        ("model.unet.lr", "Keys of [model.unet]: model_channels, channel_mult, "),
        ("zzz", "Keys of the top level: dataset, preset, seed, fold, [model], [train], [sample]. "),
    ],
)
def test_an_unknown_key_lists_its_section_and_what_may_have_been_meant(key: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(parse_assignment(f"{key}=1"), RunConfig(), source="--set")
    assert caught.value.hint.startswith(hint)


def test_a_file_of_settings_says_what_its_preset_would_change() -> None:
    """`tiny` has a vision encoder of its own, so a run with the paper's has to say so."""
    config = replace(preset("tiny"), model=replace(preset("tiny").model, **PAPERS_VISION))
    assert tomllib.loads(to_toml(config))["model"]["vision"] == {"widths": [], "blocks": []}
    assert "vision" not in to_toml(preset("sd"))
    assert "class_balance" not in to_toml(preset("tiny"))
    several = for_classes(preset("tiny"), 3, overlapping=False)
    assert "class_balance = 0.5" in to_toml(several)
    even = replace(several, train=replace(several.train, class_balance=0.0))
    assert "class_balance = 0.0" in to_toml(even)


def test_a_run_goes_on_with_the_networks_it_began_with(tmp_path: Path) -> None:
    """The file of an older version says nothing of later settings; what is chosen now stays."""
    file = tmp_path / "config.toml"
    tiny, papers = preset("tiny"), replace(preset("tiny").model, **PAPERS_VISION)
    assert as_begun(tiny, file) == tiny
    file.write_text('preset = "tiny"\n[model]\nparameterisation = "z0"\n[train]\nsteps = 4\n')
    assert as_begun(tiny, file).model == papers
    assert as_begun(tiny, file).train == tiny.train
    wider = replace(tiny, model=replace(tiny.model, condition_channels=8))
    assert as_begun(wider, file).model.condition_channels == 8
    several = for_classes(tiny, 3, overlapping=False)
    assert (several.train.class_balance, as_begun(several, file).train.class_balance) == (0.5, 0.0)
    file.write_text(to_toml(tiny))
    assert as_begun(tiny, file) == tiny
