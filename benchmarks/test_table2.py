"""What benchmarks/table2.py computes, on rows made by hand and on one run of seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.comparison_table import by_case, paired_difference, table
from benchmarks.gpu_steps import seconds_in_a_row
from benchmarks.results import Results
from benchmarks.table2 import (
    Task,
    fitting_steps,
    measured,
    row_of,
    settings_of,
    step_seconds,
)
from sdseg_cli.core.errors import ConfigError
from sdseg_cli.data.prepare import PrepareOptions, prepare
from sdseg_cli.model.weights import WeightStore
from sdseg_cli.training.batches import StepInputs, StepSource, open_split
from sdseg_cli.training.initialise import initial_checkpoint
from sdseg_cli.training.latents import open_latents
from sdseg_cli.training.step import StepResult, Trainer
from tests.conftest import PLANE, Workspace
from tests.raw_cases import IDS
from tests.training.test_train_classes import write_case

CPU = torch.device("cpu")


def row(model: str, seed: int, dice: dict[str, float | None]) -> dict[str, object]:
    return {
        "dataset": "set",
        "model": model,
        "seed": seed,
        "steps": 10,
        "training_s": 5.0,
        "parameters": 2_500_000,
        "gflop_per_slice": 7.25,
        "slices_per_s": 4.0,
        "cases": [{"id": case, "dice": value} for case, value in dice.items()],
    }


@pytest.mark.parametrize(("per_step", "steps"), [(0.5, 20), (3.0, 3), (40.0, 1)])
def test_so_many_steps_as_fit_the_budget(per_step: float, steps: int) -> None:
    assert fitting_steps(10.0, per_step) == steps


def test_seeds_are_averaged_case_by_case_and_cases_without_a_value_are_left_out() -> None:
    rows = [row("unet", 0, {"a": 0.5, "b": 0.2}), row("unet", 1, {"a": 0.7, "b": None})]
    assert by_case(rows, "dice") == {"a": pytest.approx(0.6)}


def test_differences_are_taken_within_cases() -> None:
    ours = {"a": 0.5, "b": 0.7, "c": 1.0}
    assert paired_difference(ours, {"a": 0.4, "b": 0.6}) == "-0.100 (-0.100 to -0.100)"
    assert paired_difference({"a": 0.5}, {"b": 0.5}) == "-"
    six = {name: 0.1 * n for n, name in enumerate("abcdef", start=1)}
    # All six are better with theirs: two of 2^6 patterns of signs are that extreme.
    assert paired_difference(dict.fromkeys(six, 0.0), six).endswith(", p 0.031")


def test_the_table_has_a_line_per_model_with_its_difference_to_sdseg() -> None:
    rows = [row("sdseg", 0, {"a": 0.5, "b": 0.7}), row("unet", 0, {"a": 0.4, "b": 0.6})]
    head, _, ours, theirs = table(rows).splitlines()
    assert head.startswith("| set | Dice | Dice less sdseg's | weights (M) | GFLOP/slice")
    assert ours == "| sdseg | 0.600 (0.500 to 0.700) | - | 2.50 | 7.25 | 4.00 | 10 | 5 | 1 |"
    assert "| -0.100 (-0.100 to -0.100) |" in theirs


def test_the_table_says_which_settings_were_changed() -> None:
    changed = row("sdseg", 0, {"a": 0.5}) | {"settings": ["train.batch_size=16", "train.flips=hv"]}
    lines = table([changed, row("unet", 0, {"a": 0.4})]).splitlines()
    assert lines[-1] == "sdseg: train.batch_size=16, train.flips=hv"
    assert [line.split(" | ")[0] for line in lines[2:4]] == ["| unet", "| sdseg"]


def test_a_model_with_other_settings_has_a_line_of_its_own_and_its_difference() -> None:
    changed = row("sdseg", 0, {"a": 0.7}) | {"settings": ["train.flips=hv"]}
    lines = table([row("sdseg", 0, {"a": 0.5}), changed, row("sdseg", 1, {"a": 0.3})]).splitlines()
    assert lines[2].startswith("| sdseg | 0.400 | - |")
    assert lines[2].endswith("| 2 (0.500, 0.300) |")
    assert lines[3].startswith("| sdseg (2) | 0.700 | +0.300 |")
    assert lines[3].endswith("| 1 |")
    assert lines[-1] == "sdseg (2): train.flips=hv"


def test_a_setting_is_for_all_models_or_for_the_one_it_names() -> None:
    assigned = ["train.batch_size=16", "sdseg:model.unet.model_channels=96", "unet:model.scale=sd"]
    assert settings_of("sdseg", assigned) == (assigned[0], "model.unet.model_channels=96")
    assert settings_of("unet", assigned) == (assigned[0], "model.scale=sd")
    assert settings_of("dynunet", assigned) == (assigned[0],)


@pytest.mark.parametrize(
    ("assigned", "told"),
    [("vnet:model.scale=sd", 'no model "vnet"'), ("train.steps=5", "follows from the other")],
)
def test_settings_of_other_models_and_of_the_budget_are_refused(assigned: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        settings_of("unet", [assigned])


def test_settings_change_the_configuration_and_name_the_row_and_the_run(
    tiny_set: Workspace,
) -> None:
    plain = Task(tiny_set.root, "tiny", "sdseg", 0, "tiny", 600.0, CPU)
    own = replace(plain, settings=("model.unet.model_channels=96", "train.batch_size=16"))
    # Files and runs made before there were settings go on.
    assert plain.name == "tiny/sdseg-tiny/600s/seed0"
    assert plain.run.path == tiny_set.root / "runs/tiny/table2-sdseg-tiny-600s-seed0"
    assert own.name == (
        "tiny/sdseg-tiny[model.unet.model_channels=96,train.batch_size=16]/600s/seed0"
    )
    assert own.run.path.parent == plain.run.path.parent and own.run.path != plain.run.path
    assert (own.config().model.unet.model_channels, own.config().train.batch_size) == (96, 16)
    assert own.config(20).train.batch_size == 16
    assert own.config().model.autoencoder == plain.config().model.autoencoder


def test_what_only_sdseg_has_is_refused_for_a_baseline(tiny_set: Workspace) -> None:
    settings = ("model.unet.model_channels=96",)
    task = Task(tiny_set.root, "tiny", "unet", 0, "tiny", 1.0, CPU, settings)
    with pytest.raises(ConfigError, match=r"unet does not use model\.unet"):
        task.config()


def test_a_set_of_several_classes_has_their_recipe(tmp_path: Path) -> None:
    for seed, name in enumerate(IDS):
        write_case(tmp_path / "raw" / name, seed)
    prepare(tmp_path / "raw", tmp_path, PrepareOptions(name="two", workers=1, size=PLANE, ignore=9))
    config = Task(tmp_path, "two", "sdseg", 0, "tiny", 1.0, CPU).config()
    assert (config.model.classes, config.train.class_balance) == (2, 0.5)
    assert config.train.mask_loss_weight == 1


def test_a_model_that_does_not_fit_into_memory_is_not_trained(tmp_path: Path) -> None:
    task = Task(tmp_path, "set", "unet", 0, "tiny", 1.0, CPU)
    results = Results(tmp_path / "results.json")
    results.rows["step/set/unet-tiny"] = {"error": "CUDA out of memory."}
    assert row_of(task, results) == {"error": "CUDA out of memory."}
    assert list(results.rows) == ["step/set/unet-tiny"]


def test_steps_in_a_row_are_timed_when_the_latents_are_there(
    tiny_set: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Task(tiny_set.root, "tiny", "sdseg", 0, "tiny", 1.0, CPU).config()
    slices = open_split(tiny_set.manifest, "train")
    trainer = Trainer(config, initial_checkpoint(config, {}, slices, WeightStore.default()), CPU)
    latents = open_latents([tmp_path], slices, trainer.model, {}, CPU)
    source = StepSource(config, slices, latents, trainer.model.latent_shape(*slices.plane))
    known: list[bool] = []

    def step(inputs: StepInputs, *_: object) -> StepResult:
        known.append(bool(inputs.known.all()))
        return type(trainer).train_step(trainer, inputs, latents)

    monkeypatch.setattr(trainer, "train_step", step)
    assert seconds_in_a_row(trainer, source, latents, 1) > 0
    assert known == [False, True]


def test_lengths_have_one_decimal() -> None:
    found = row("sdseg", 0, {"a": 0.5, "b": 0.5})
    found["cases"] = [{"id": "a", "dice": 0.5, "hd95": 10.04}, {"id": "b", "dice": 0.5, "hd95": 12}]
    head, _, line = table([found]).splitlines()
    assert head.startswith("| set | Dice | HD95 (px) |")
    assert line.startswith("| sdseg | 0.500 (0.500 to 0.500) | 11.0 (10.0 to 12.0) | - |")


def test_a_row_is_trained_scored_and_timed(
    tiny_set: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.table2.MEASURED", 2)
    (tmp_path / "prepared").symlink_to(tiny_set.root / "prepared")
    task = Task(tmp_path, "tiny", "unet", 0, "tiny", 2.0, CPU)
    per_step = step_seconds(task)["seconds_per_step"]
    assert per_step > 0
    found = measured(task, 1.0)
    assert (found["steps"], found["model"], found["parameters"]) == (2, "unet", 3_532_753)
    assert [case["id"] for case in found["cases"]] == [
        case.id for case in tiny_set.manifest.cases("test")
    ]
    assert found["training_s"] > 0 and found["slices_per_s"] > 0
    assert table([found]).splitlines()[2].startswith("| unet | ")
    assert found["settings"] == []


def test_a_step_with_the_loss_of_the_mask_is_timed(
    tiny_set: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.table2.WARM", 0)
    monkeypatch.setattr("benchmarks.table2.MEASURED", 1)
    settings = ("train.mask_loss_weight=1",)
    task = Task(tiny_set.root, "tiny", "sdseg", 0, "tiny", 1.0, CPU, settings)
    assert step_seconds(task)["seconds_per_step"] > 0
    assert not task.run.path.exists(), "the run begins with its training"
