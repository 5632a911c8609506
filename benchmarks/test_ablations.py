"""What benchmarks/ablations.py computes, on rows made by hand and on one training of two steps."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks.ablations import (
    COLLAPSE,
    TABLE6,
    Ablation,
    Training,
    case_mean,
    found_share,
    main,
    table,
)
from sdseg_cli.core.config_file import differing_keys
from sdseg_cli.core.presets import PRESETS
from tests.conftest import Workspace


def training(study: Ablation, variant: str, workspace: Path = Path()) -> Training:
    return Training(study.name, variant, study.variants[variant], workspace, "tiny", 2, 0, "val")


def row(variant: str, seed: int, dice: float, voxels: int) -> dict[str, object]:
    cases = [
        {"id": "a", "dice": dice, "iou": 0.25, "predicted_voxels": voxels, "reference_voxels": 30},
        {"id": "b", "dice": None, "iou": None, "predicted_voxels": 10, "reference_voxels": 10},
    ]
    return {
        "dataset": "set",
        "variant": variant,
        "seed": seed,
        "split": "val",
        "decoder": "exact",
        "step_s": 0.5,
        "val_dice": {"10": 0.0, "20": dice},
        "cases": cases,
    }


def test_foreground_found_is_counted_over_all_cases() -> None:
    assert found_share(row("x", 0, 0.5, 10)) == (10 + 10) / (30 + 10)


def test_a_case_without_a_dice_is_left_out_of_the_mean() -> None:
    assert case_mean(row("x", 0, 0.5, 10), "dice") == 0.5


def test_a_line_holds_the_mean_of_the_seeds_and_each() -> None:
    head, _, both, one = table(
        [row("x", 0, 0.5, 10), row("y", 0, 0.25, 30), row("x", 1, 0.75, 30)]
    ).splitlines()
    assert head.startswith("| set | validation Dice, step 10 | validation Dice, step 20 | val Dice")
    assert both == (
        "| x | 0.000 (0.000, 0.000) | 0.625 (0.500, 0.750) | 0.625 (0.500, 0.750) "
        "| 0.250 (0.250, 0.250) | 0.75 (0.50, 1.00) | exact | 0.50 | 2 |"
    )
    assert one == "| y | 0.000 | 0.250 | 0.250 | 0.250 | 1.00 | exact | 0.50 | 1 |"


def test_where_no_split_is_scored_the_validations_are_all() -> None:
    only = {**row("x", 0, 0.5, 10), "cases": [], "split": ""}
    assert table([only]).splitlines()[2] == "| x | 0.000 | 0.500 | 0.50 | 1 |"


@pytest.mark.parametrize("study", [COLLAPSE, TABLE6], ids=lambda study: study.name)
def test_variants_differ_and_each_has_a_run_of_its_own(study: Ablation) -> None:
    trainings = [training(study, variant) for variant in study.variants]
    assert len({one.run.path for one in trainings}) == len(trainings)
    configs = [one.config() for one in trainings]
    assert len(set(configs)) == len(configs)


def test_all_three_parts_are_the_preset_or_the_paper_s_loss() -> None:
    usual = {"dataset", "train.steps", "train.validate_every", "train.checkpoint_every"}
    usual.add("train.init")  # what is warm fits some variants only
    ours = training(TABLE6, "all three (z0, t = 999)").config()
    assert set(differing_keys(ours, PRESETS["tiny"])) <= usual
    paper = training(TABLE6, "all three").config()
    recipe = PRESETS["table6-full"].train
    for key in ("noise_loss_weight", "latent_loss_weight", "latent_loss", "timesteps"):
        assert getattr(paper.train, key) == getattr(recipe, key)


@pytest.mark.parametrize("form", ["", " (z0, t = 999)"])
@pytest.mark.parametrize(
    ("variant", "named"),
    [
        ("none", "table6-baseline"),
        ("concatenation", "table6-concat"),
        ("concatenation, trainable encoder", "table6-encoder"),
        ("all three", "table6-full"),
    ],
)
def test_the_rows_are_those_of_the_presets(variant: str, named: str, form: str) -> None:
    config = training(TABLE6, variant + form).config()
    theirs = PRESETS[named]
    assert config.model.fusion == theirs.model.fusion
    assert config.model.train_encoder == theirs.model.train_encoder
    assert config.train.latent_loss_weight == theirs.train.latent_loss_weight
    if variant != "all three" or not form:  # `tiny` has no noise term
        assert config.train.noise_loss_weight == theirs.train.noise_loss_weight


@pytest.mark.parametrize("asked", ["0", "-1", "11", "1,x"])
def test_a_variant_that_is_not_there_is_refused(
    asked: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--datasets", "tiny", "--steps", "1", "--out", "rows.json", f"--variants={asked}"]
    monkeypatch.setattr("sys.argv", ["ablations", "collapse", *words])
    with pytest.raises(SystemExit):
        main()
    assert "there are 1 to 10" in capsys.readouterr().err


def test_without_cases_that_have_a_score_a_mean_is_no_number() -> None:
    nothing = {"cases": [{"dice": None, "predicted_voxels": 3, "reference_voxels": 0}]}
    assert math.isnan(case_mean(nothing, "dice")) and math.isnan(found_share(nothing))


def test_a_variant_is_trained_and_scored(tiny_set: Workspace, tmp_path: Path) -> None:
    (tmp_path / "prepared").symlink_to(tiny_set.root / "prepared")
    found = training(COLLAPSE, "tiny and the mask's Dice", tmp_path).measure()
    assert [case["id"] for case in found["cases"]] == [
        case.id for case in tiny_set.manifest.cases("val")
    ]
    assert sorted(found["val_dice"]) == [1, 2]
    assert table([found]).splitlines()[2].startswith("| tiny and the mask's Dice | ")
