from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sdseg_cli.cli.app import run_command
from sdseg_cli.cli.console import Output
from sdseg_cli.cli.train import _calibrated, _next_command, _run_folder, _saying_first_step, _show
from sdseg_cli.core.config import RunConfig
from sdseg_cli.core.config_file import from_dict, to_toml
from sdseg_cli.core.presets import PRESETS
from sdseg_cli.core.progress import TrainProgress
from sdseg_cli.data.prepare import PrepareOptions, prepare
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training.train import TrainReport
from tests.conftest import PLANE, Workspace, tiny_settings, write_case
from tests.raw_cases import contents


def test_a_run_goes_where_its_path_says_and_only_a_bare_word_is_a_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SDSEG_HOME", "/home")
    runs, settings = Path("/home/runs/set"), RunConfig(preset="tiny", seed=3)
    assert _run_folder(None, "set", settings) == runs / "tiny-seed3"
    assert _run_folder("mine", "set", settings) == runs / "mine"
    for path in ("./mine", "../mine", "mine/", "a/mine", "/mine", "."):
        assert _run_folder(path, "set", settings) == Path(path)


def reports(*steps: int) -> list[TrainProgress]:
    return [TrainProgress(step, steps=9, slices_per_step=1, validate_every=5) for step in steps]


def test_where_a_run_goes_on_is_said_once_when_its_first_step_is_near(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = {(4, 5, 6): "going on from step 4\n", (0, 1, 2): ""}
    for steps, line in said.items():
        seen: list[TrainProgress] = []
        on_step = _saying_first_step(Output(), seen.append)
        for now in reports(*steps):
            on_step(now)
        assert capsys.readouterr().err == line
        assert seen == reports(*steps)


def test_every_setting_is_shown_and_what_is_shown_gives_the_same_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.toml").write_text("[train]\nsteps = 9\npatience = 2\n")
    given = ["--config", "c.toml", "--set", "train.patience=3", "--preset", "sd", "--seed", "5"]
    assert run_command(["train", "--show-config", *given]) == 0
    out, err = capsys.readouterr()
    shown = from_dict(tomllib.loads(out), RunConfig(), source="shown")
    assert (shown.train.steps, shown.train.patience, shown.seed) == (9, 3, 5)
    recipe = replace(PRESETS["sd"].train, steps=9, patience=3)
    assert shown == replace(PRESETS["sd"], seed=5, train=recipe) and err == ""
    assert "# Stop after so many validations without a better Dice; 0 = never.\npatience = 3" in out
    (tmp_path / "shown.toml").write_text(out)
    assert run_command(["train", "--show-config", "--config", "shown.toml"]) == 0
    assert capsys.readouterr().out == out
    assert run_command(["train", "--show-config", *given, "--json"]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert {one["key"]: one["value"] for one in settings}["train.patience"] == 3
    assert list(tmp_path.iterdir()) == [tmp_path / "c.toml", tmp_path / "shown.toml"]


def test_only_its_own_settings_are_shown_of_another_network(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_command(["train", "--show-config", "--model", "dynunet"]) == 0
    out = capsys.readouterr().out
    assert 'network = "dynunet"' in out and "fusion" not in out and "[model.unet]" not in out


@pytest.mark.slow
def test_the_contact_sheet_of_the_augmentation_is_drawn_and_nothing_trained(
    tiny_run: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SDSEG_HOME", str(tiny_run.root))
    monkeypatch.chdir(tmp_path)
    before = sorted(tiny_run.root.rglob("*"))
    given = ["--set", "train.augment=light", "--seed", "3", "--show-augmentation", "sheet.png"]
    assert run_command(["train", "--dataset", "tiny", *given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "sheet": "sheet.png",
        "augment": "light",
        "cutmix": 0.0,
        "flips": "h",
        "seed": 3,
        "warnings": [],
    }
    assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(tiny_run.root.rglob("*")) == before
    assert run_command(["train", "--dataset", "tiny", "--show-augmentation", "plain.png"]) == 0
    assert "only mirrors are shown" in capsys.readouterr().err


@pytest.mark.parametrize(("weight", "decoder"), [(0.0, "exact"), (1.0, "fast")])
def test_what_a_skipped_calibration_leaves_is_the_decoder_of_the_loss(
    tiny_run: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    weight: float,
    decoder: str,
) -> None:
    def interrupted(*_: object, on_stop: Callable[[], None], **__: object) -> None:
        on_stop()

    monkeypatch.setattr("sdseg_cli.training.calibration.calibrate", interrupted)
    settings = tiny_settings(mask_loss_weight=weight)
    (tmp_path / "config.toml").write_text(to_toml(settings))
    report = TrainReport(tmp_path, 4, 0, 1.0, {}, "finished", {})
    _calibrated(Output(), report, RunDir(tmp_path), tiny_run.manifest, "cpu")
    assert f"predicts with the {decoder} decoder" in capsys.readouterr().err


def test_the_seconds_of_training_and_of_the_whole_command_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = TrainReport(tmp_path, 4, 0, 61.4, {}, "finished", {})
    _show(Output(), report, None, RunDir(tmp_path), 90.2)
    lines = capsys.readouterr().out.splitlines()
    of = {name: next(line for line in lines if name in line) for name in ("validation ", "in all")}
    assert "61" in of["validation "] and "90" in of["in all"]
    values = _show(Output(as_json=True), report, None, RunDir(tmp_path), 90.2)
    assert (values["seconds"], values["seconds_total"]) == (61.4, 90.2)


def test_training_ends_with_the_command_to_type_next(
    tiny_run: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDSEG_HOME", str(tiny_run.root))
    report = TrainReport(tiny_run.run.path, 4, 0, 1.0, {}, "finished", {})
    assert _next_command(report, tiny_run.manifest) == "sdseg evaluate --run tiny/run"
    untested = replace(tiny_run.manifest, entries=tiny_run.manifest.cases("train"))
    elsewhere = replace(report, run=Path("/my runs/a"))
    assert _next_command(elsewhere, untested) == (
        "sdseg predict SCAN -o mask.nii.gz --run '/my runs/a'"
    )
    monkeypatch.setattr("sys.argv", ["sdseg", "train", "--dataset", "my set"])
    again = _next_command(replace(report, state="stopped"), untested)
    assert again == "sdseg train --dataset 'my set'"


@pytest.mark.parametrize("assigned", ["preset=sd", "dataset=other", 'preset="tiny"'])
def test_what_has_an_option_of_its_own_is_no_setting(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    assigned: str,
) -> None:
    """A preset's name alone would be kept with the run, without the preset's settings."""
    monkeypatch.chdir(tmp_path)
    assert run_command(["train", "--show-config", "--set", assigned]) == 2
    key = assigned.partition("=")[0]
    error, hint = capsys.readouterr().err.splitlines()
    assert error == f"Error: --set {assigned}: {key} has an option of its own."
    assert hint.startswith(f"Hint: Write --{key} ")


@pytest.fixture
def folded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with the set "toy" of three cases, two in two folds and one that tests."""
    for number in (1, 2, 3):
        write_case(tmp_path / "raw", number)
    prepare(tmp_path / "raw", tmp_path, PrepareOptions(name="toy", workers=1, size=PLANE, folds=2))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_fold_that_is_not_there_is_refused_before_anything_is_made(
    folded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {"2": "folds 0 to 1", "x": '--fold is "x"', "-1": '--fold is "-1"'}
    for given, says in wrong.items():
        assert run_command(["train", "--dataset", "toy", "--fold", given]) == 2
        assert says in capsys.readouterr().err
    assert not (folded / "runs").exists()


@pytest.mark.slow
def test_all_folds_are_trained_once_and_predict_together(
    folded: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdseg_cli.training.calibration.calibrate", lambda *_, **__: None)
    small = ["--set", "train.batch_size=2", "--set", "train.validation_slices=2"]
    start = ["train", "--dataset", "toy", "--fold", "all", "--steps", "2", *small]
    assert run_command([*start, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = ["tiny-fold0", "tiny-fold1"]
    assert [Path(one["run"]).name for one in found["folds"]] == names
    assert [one["state"] for one in found["folds"]] == ["finished"] * 2
    best = [folded / "runs" / "toy" / name / "checkpoints" / "best.pt" for name in names]
    written = [path.read_bytes() for path in best]
    assert run_command(start) == 0
    assert capsys.readouterr().err.count("it was finished already") == 2
    assert [path.read_bytes() for path in best] == written
    scan = str(folded / "raw" / "case_1" / "image.nii.gz")
    ways = {"a.nii.gz": ["--folds"], "b.nii.gz": ["--run", names[0], "--run", f"toy/{names[1]}"]}
    for name, given in ways.items():
        assert run_command(["predict", scan, "-o", name, "--json", *given]) == 0
        assert [Path(one).name for one in json.loads(capsys.readouterr().out)["runs"]] == names
    assert (folded / "a.nii.gz").read_bytes() == (folded / "b.nii.gz").read_bytes()
    cohort = ["predict", "raw", "-o", "out", "--json"]
    assert run_command([*cohort, "--folds"]) == 0
    capsys.readouterr()
    model = json.loads((folded / "out" / ".ledger" / "model").read_text())
    assert [Path(one).name for one in model["members"]] == names
    for given, skipped in ((), 3), (("--run", names[0]), 0):  # both go on; another begins anew
        assert run_command([*cohort, *given]) == 0
        assert json.loads(capsys.readouterr().out)["skipped"] == skipped


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--dataset", "tiny"], "--dataset does not go with --add"),
        (["--run", "tiny/run", "--preset", "tiny", "--fold", "0"], "--preset, --fold does not go"),
        (["--run", "tiny/run", "--batch-size", "auto"], "--batch-size auto does not go"),
        ([], "--add goes on from a run"),
        (["--run", "tiny/other"], "other"),
        (["--run", "tiny/run", "--set", "train.stepz=3"], "stepz"),
        (["--run", "tiny/run", "--set", "dataset=tiny"], "dataset has an option of its own"),
    ],
)
def test_what_does_not_go_with_added_cases_is_refused(
    tiny_run: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: list[str],
    told: str,
) -> None:
    monkeypatch.setenv("SDSEG_HOME", str(tiny_run.root))
    write_case(tiny_run.root / "more", 9)
    assert run_command(["train", "--add", str(tiny_run.root / "more"), *given]) == 2
    assert told in capsys.readouterr().err
    made = {path.name for kind in ("runs", "prepared") for path in (tiny_run.root / kind).iterdir()}
    assert made == {"tiny"}


@pytest.mark.slow
def test_a_run_goes_on_with_an_added_case_and_the_same_command_resumes_it(
    tiny_run: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SDSEG_HOME", str(tiny_run.root))
    write_case(tiny_run.root / "more", 9)
    before = contents(tiny_run.run.path), contents(tiny_run.manifest.root)
    line = ["train", "--run", "tiny/run", "--add", str(tiny_run.root / "more"), "--steps", "4"]
    assert run_command([*line, "--json", "--seed", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["dataset"], found["added"], found["corrected"]) == (
        "tiny-added-1", ["case_9"], []
    )  # fmt: skip
    assert found["before"]["val_dice"] == tiny_run.run.best_validation()[0]
    run = RunDir(tiny_run.root / "runs" / "tiny-added-1" / "run")
    assert found["step"] == 4 and run.best.is_file()
    assert (run.config().seed, run.config().train.learning_rate) == (1, 5e-4)
    assert (contents(tiny_run.run.path), contents(tiny_run.manifest.root)) == before
    assert run_command([*line, "--seed", "1"]) == 0
    assert "it was finished already" in capsys.readouterr().err
