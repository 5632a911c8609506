"""The command line, in process: no subprocess, no model unless a command needs one."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

import sdseg_cli.cli.app as cli
from sdseg_cli import __version__
from sdseg_cli.cli.app import run_command
from sdseg_cli.core.config import RunConfig, SampleConfig
from sdseg_cli.core.config_file import to_toml
from sdseg_cli.core.errors import RunError
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training.calibration import adapted
from tests.conftest import Workspace, write_case
from tests.parity.fill import tiny_autoencoder, tiny_checkpoint


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty workspace."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDSEG_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path


@pytest.fixture
def raw(home: Path) -> Path:
    """`raw` in the current folder: three cases to prepare."""
    for number in (1, 2, 3):
        write_case(home / "raw", number)
    return home / "raw"


@pytest.fixture
def run_home(tiny_run: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A workspace with a run; the current folder is an empty one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDSEG_HOME", str(tiny_run.root))
    return tmp_path


@pytest.fixture
def wide_home(wide_run: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A workspace with a run; the current folder is an empty one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDSEG_HOME", str(wide_run.root))
    return tmp_path


@pytest.fixture
def brief_calibration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps of adapting the fast decoder instead of 200."""
    monkeypatch.setattr("sdseg_cli.training.calibration.ADAPT_STEPS", 3)
    monkeypatch.setattr("sdseg_cli.training.calibration.adapted", partial(adapted, steps=3))


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in ("prepare", "train", "runs", "predict", "evaluate", "stability", "check", "demo"):
        assert name in shown


@pytest.mark.parametrize("asked", [["--help"], ["weights", "--help"]])
def test_no_summary_is_cut_at_80_columns(
    asked: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run_command(asked) == 0
    _, *shown = capsys.readouterr().out.splitlines()
    assert not [line for line in shown if line.endswith("...") or len(line) > 80]


def test_help_shows_options_in_panels_as_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["predict", "--help"]) == 0
    shown = capsys.readouterr().out
    panels = ("Input and output", "Post-processing", "Sampling", "Hardware and speed")
    headings = ["Arguments", *panels, "Many scans and clusters", "Messages and help"]
    assert [line[:-1] for line in shown.splitlines() if line[:1].strip()][1:] == headings
    cut = {heading: shown.index(f"\n{heading}:\n") for heading in headings}
    assert cut["Post-processing"] < shown.index("--min-size ML") < cut["Sampling"]
    assert shown.index("--help") > cut["Messages and help"]
    assert shown.isascii()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--version"]) == 0
    assert capsys.readouterr().out == f"sdseg {__version__}\n"


MISTAKES = {
    "a missing scan": (["predict", "no.nii.gz", "-o", "m.nii.gz"], "no.nii.gz does not exist"),
    "a folder as scan": (["predict", "folder", "-o", "m.nii.gz"], "folder is a folder"),
    "an unknown kind of scan": (["predict", "notes.txt", "-o", "m.nii.gz"], "notes.txt"),
    "an unknown kind of mask": (["predict", "text.nii.gz", "-o", "m.doc"], "m.doc"),
    "a missing source": (["prepare", "nowhere"], "nowhere"),
    "an empty source": (["prepare", "folder"], "folder"),
    "an unknown layout": (["prepare", "folder", "--dataset", "nope"], "nope"),
    "a bad target": (["prepare", "folder", "--target", "a"], '--target "a"'),
    "a bad window": (["prepare", "folder", "--window", "5"], '--window "5"'),
    "an unknown crop": (["prepare", "folder", "--crop", "head"], "head"),
    "an unprepared data set": (["train", "--dataset", "sts"], "sts"),
    "an unknown preset": (["train", "--dataset", "x", "--preset", "big"], 'no preset "big"'),
    "an unknown setting": (["train", "--dataset", "x", "--set", "a=1"], 'unknown key "a"'),
    "a missing settings file": (["train", "--dataset", "x", "--config", "c.toml"], "c.toml"),
    "no run yet to evaluate": (["evaluate"], "no run yet"),
    "no run yet to repeat": (["stability", "--runs", "5"], "no run yet"),
    "a run that is not there": (["evaluate", "--run", "gone"], "gone: no run there"),
    "half of a pair of folders": (["evaluate", "--pred", "folder"], "--pred and --ref"),
    "an unknown option": (["train", "--dataste", "x"], "No such option"),
    "a missing option": (["train"], "Missing option"),
    "an unknown command": (["segment", "x"], "No such command"),
    "no step at all": (["evaluate", "--steps", "0"], "--steps"),
    "no sample at all": (["stability", "--samples", "0"], "--samples"),
    "a word among steps": (["stability", "--steps", "1,x"], '--steps "1,x" is no list'),
    "no step in a list": (["stability", "--steps", "0"], "--steps 0 is not in the range"),
    "too much noise in a list": (["stability", "--eta", "0,3"], "--eta 3 is not in the range"),
    "too much noise": (["evaluate", "--eta", "1.5"], "--eta"),
    "steps of somebody else's masks": (
        ["evaluate", "--pred", "folder", "--ref", "folder", "--steps", "2"],
        "--steps does not go with --pred and --ref",
    ),
    "weights that are not there": (["weights", "add", "no.ckpt"], "no.ckpt: no such file"),
    "weights that are a text": (["weights", "add", "notes.txt"], "notes.txt"),
    "weights that are a folder": (["weights", "add", "folder"], "folder"),
    "unknown public weights": (["weights", "fetch", "vgg"], 'called "vgg"'),
    "a run to export that is not there": (["weights", "export", "gone"], "gone: no run there"),
    "a model that is not there": (
        ["predict", "scan.nii.gz", "-o", "m.nii.gz", "--model", "gone"],
        "gone",
    ),
    "a run and a model": (
        ["predict", "scan.nii.gz", "-o", "m.nii.gz", "--model", "a", "--run", "b"],
        "--run and --model",
    ),
    "a word for a number": (["stability", "--runs", "many"], "valid integer"),
    "no batch at all": (["train", "--dataset", "x", "--batch-size", "0"], '--batch-size is "0"'),
    "a word for a batch": (["train", "--dataset", "x", "--batch-size", "abc"], "abc"),
    "a batch and a half": (["train", "--dataset", "x", "--batch-size", "1.5"], "1.5"),
    "no worker at all": (["train", "--dataset", "x", "--workers", "0"], "--workers"),
    "fewer workers than none": (["train", "--dataset", "x", "--workers", "-2"], "--workers"),
    "a batch in uneven parts": (
        ["train", "--dataset", "x", "--set", "train.accumulate=3"],
        "train.batch_size 4 does not split into 3 parts",
    ),
    "a batch and uneven parts of it": (
        ["train", "--dataset", "x", "--batch-size", "6", "--set", "train.accumulate=4"],
        "4",
    ),
}


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_a_mistake_is_one_line_a_hint_and_exit_code_2(
    mistake: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "folder").mkdir()
    (home / "notes.txt").write_text("x")
    (home / "text.nii.gz").write_text("not a scan")
    before = _files(home)
    arguments, named = MISTAKES[mistake]
    assert run_command(arguments) == 2
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert len(lines) == 2, err
    assert lines[0].startswith("Error: ") and named in lines[0]
    assert lines[1].startswith("Hint: ") and len(lines[1]) > len("Hint: ")
    assert _files(home) == before, "a mistake writes nothing"


def test_ctrl_c_ends_in_one_line_and_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sdseg_cli.runs.run_folder.list_runs", interrupted)
    assert run_command(["runs"]) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == "Error: interrupted."
    assert err.splitlines()[1].startswith("Hint: Run the same command again")


@pytest.mark.slow
def test_a_text_file_named_nii_gz_is_refused_with_a_run_at_hand(
    run_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_home / "text.nii.gz").write_text("not a scan")
    assert run_command(["predict", "text.nii.gz", "-o", "m.nii.gz"]) == 2
    assert "text.nii.gz" in capsys.readouterr().err
    assert _files(run_home) == ["text.nii.gz"]


def test_a_mask_of_another_shape_stops_prepare(
    home: Path, raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = nib.Nifti1Image(np.zeros((40, 36, 5), np.uint8), np.eye(4))
    nib.save(wrong, raw / "case_2" / "label.nii.gz")
    assert run_command(["prepare", "raw"]) == 2
    err = capsys.readouterr().err
    assert "case_2" in err and "Hint: " in err
    assert not (home / "home" / "prepared" / "raw" / "manifest.json").exists()


@pytest.mark.slow
def test_predict_says_what_it_wrote_and_json_is_one_object(
    run_home: Path, tiny_run: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    scan = str(tiny_run.scan)
    assert run_command(["predict", scan, "-o", "mask.nii.gz", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    best = tiny_run.run.status()["best"]
    assert "wrote mask.nii.gz" in out
    assert "using run" in err
    assert f"validation Dice {best['val_dice']:.3f} at step {best['step']}" in err
    assert "\x1b" not in out + err, "no control codes without a terminal"
    arguments = ["predict", scan, "-o", "again.nii.gz", "--device", "cpu", "--json"]
    assert run_command(arguments) == 0
    out, err = capsys.readouterr()
    values = json.loads(out)
    assert err == ""
    assert set(values) >= {"output", "run", "seed", "slices", "foreground_voxels", "seconds"}
    assert (run_home / "again.nii.gz").read_bytes() == (run_home / "mask.nii.gz").read_bytes()


@pytest.mark.slow
def test_evaluate_and_stability_speak_the_contracts_json(
    wide_home: Path,
    wide_run: Workspace,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SDSEG_WEIGHTS", str(wide_home / "store"))
    assert run_command(["evaluate", "--json", "--device", "cpu"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert set(values["metrics"]) >= {"dice", "iou"}
    assert set(values["metrics"]["dice"]) >= {"mean", "median", "ci95", "n"}
    assert [case["id"] for case in values["cases"]] == [wide_run.manifest.cases("test")[0].id]
    assert run_command(["stability", "--runs", "2", "--json", "--device", "cpu"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["runs"] == 2
    for kind in ("seg", "score"):
        assert set(values[kind]) == {"psnr", "ssim", "ms_ssim", "lpips"}
    assert values["seg"]["lpips"] is None
    assert any("LPIPS" in note for note in values["notes"])
    assert set(values["dice"]) >= {"mean", "sd"}
    (case,) = wide_run.manifest.cases("test")
    assert [Path(path).name for path in values["maps"]] == [f"{case.id}.nii.gz"]


@pytest.mark.slow
def test_stability_shows_table5_and_where_the_weights_of_lpips_are(
    wide_home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDSEG_WEIGHTS", str(wide_home / "store"))
    monkeypatch.setenv("COLUMNS", "160")
    asked = ["stability", "--runs", "3", "--table5", "--device", "cpu"]
    assert run_command(asked) == 0
    out, err = capsys.readouterr()
    assert "needs weights: sdseg weights fetch lpips-alexnet, lpips-linear" in out
    assert "score, all pairs" in out
    assert "27.63 / 31.55" in out and "other data" in out
    assert "voxels that flip: " in err
    assert run_command([*asked, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in values["table5"]][-2:] == ["SDSeg", "this run"]
    assert run_command([*asked, "--steps", "1,2"]) == 2
    assert "--table5 shows one way of sampling" in capsys.readouterr().err


@pytest.mark.slow
def test_lists_of_steps_and_eta_make_a_sweep(
    wide_home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDSEG_WEIGHTS", str(wide_home / "store"))
    asked = ["stability", "--runs", "2", "--steps", "1,2", "--eta", "0,1", "--device", "cpu"]
    assert run_command([*asked, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    rows = [(row["steps"], row["eta"], row["samples"]) for row in values["sweep"]]
    assert rows == [(1, 0.0, 1), (2, 0.0, 1), (2, 1.0, 1)]
    assert all(row["seconds_per_slice"] > 0 for row in values["sweep"])
    assert all(Path(path).is_file() for path in values["files"])


@pytest.mark.slow
def test_sampling_options_are_laid_over_the_settings_of_the_run(
    wide_home: Path,
    wide_run: Workspace,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reached: list[SampleConfig] = []

    def nothing(model: object, pixels: torch.Tensor, slices: object, **how: Any) -> torch.Tensor:
        reached.append(how["sample"])
        return torch.zeros(len(pixels), 1, *pixels.shape[-2:])

    monkeypatch.setattr("sdseg_cli.inference.predictor.predict_planes", nothing)
    predict = ["predict", str(wide_run.scan), "-o", "m.nii.gz"]
    several = ["--steps", "2", "--eta", "0.5", "--samples", "3", "--json", "--device", "cpu"]
    for command in (predict, ["evaluate"], ["stability", "--runs", "2"]):
        assert run_command([*command, *several]) == 0
        sample = json.loads(capsys.readouterr().out)["sample"]
        expected = {"steps": 2, "eta": 0.5, "samples": 3, "noise": "slice", "flips": ""}
        assert sample == expected
        assert set(reached) == {SampleConfig(**sample)}
        reached.clear()
    for command in (predict, ["evaluate"], ["stability"]):
        assert run_command([*command, "--eta", "1"]) == 2
        assert "--eta has no effect with one reverse step" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_is_exported_and_its_package_predicts_the_same_mask_quietly(
    run_home: Path, tiny_run: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["weights", "export", "tiny/run", "-o", "package", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert set(values) == {"package", "sha256", "bytes"}
    scan, masks = str(tiny_run.scan), []
    for name, option in (("r", ["--run", "tiny/run"]), ("p", ["--model", "package"])):
        assert run_command(["predict", scan, "-o", f"{name}.nii.gz", *option, "--quiet"]) == 0
        masks.append((run_home / f"{name}.nii.gz").read_bytes())
    assert capsys.readouterr() == ("", ""), "--quiet"
    assert masks[0] == masks[1]


@pytest.mark.slow
def test_an_official_model_becomes_a_package_by_its_window(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDSEG_WEIGHTS", str(home / "store"))
    torch.save(tiny_checkpoint(), home / "m.ckpt")
    assert run_command(["weights", "add", "m.ckpt", "--name", "off", "--quiet"]) == 0
    assert run_command(["weights", "export", "off"]) == 2
    assert "--window" in capsys.readouterr().err
    export = ["weights", "export", "off", "--window", "-125,275", "--quiet"]
    assert run_command(export) == 0
    assert run_command([*export, "--float32", "-o", "exact"]) == 0
    described = json.loads((home / "off.sdseg" / "sdseg.json").read_text())
    assert described["data"]["normalisation"] == {"kind": "window", "low": -125.0, "high": 275.0}
    sizes = [(home / p / "model.safetensors").stat().st_size for p in ("off.sdseg", "exact")]
    assert sizes[1] == pytest.approx(2 * sizes[0], rel=0.02)


@pytest.mark.parametrize("option", [["--float32"], ["--window", "-125,275"]])
def test_what_is_for_official_models_is_refused_for_a_run(
    run_home: Path, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    assert run_command(["weights", "export", "tiny/run", *option]) == 2
    assert "official models" in capsys.readouterr().err
    assert _files(run_home) == []


@pytest.mark.slow
@pytest.mark.usefixtures("brief_calibration")
def test_train_starts_where_init_says(
    run_home: Path, tiny_run: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--set=train.batch_size=1", "--set=train.validation_slices=1", "--steps=1", "--json"]
    start = ["train", "--dataset", "tiny", "--device", "cpu", "--run", str(tmp_path / "r")]
    assert run_command([*start, *own, "--init", "tiny/run"]) == 0
    origin = json.loads(capsys.readouterr().out)["origin"]
    assert origin["model"].startswith("run, step ")
    start[-1] = str(tmp_path / "s")
    assert run_command([*start, *own, "--init", "nowhere"]) == 2
    assert "no run, no package" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_weights_alone_shows_what_it_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["weights"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("list", "add", "fetch", "export"))


def test_weights_list_shows_the_store_and_what_can_be_fetched(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDSEG_WEIGHTS", str(home / "store"))
    torch.save(tiny_autoencoder(), home / "model.ckpt")
    assert run_command(["weights", "add", "model.ckpt", "--name", "kl-f8", "--json"]) == 0
    added = json.loads(capsys.readouterr().out)
    assert (added["name"], added["kind"]) == ("kl-f8", "autoencoder")
    assert Path(added["file"]).is_file()
    assert run_command(["weights", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in listed["weights"]] == ["kl-f8"]
    absent = ["ldm-8", "sd-vae-ft-mse", "lpips-alexnet", "lpips-linear"]
    assert [known["name"] for known in listed["known"]] == absent
    assert run_command(["weights", "list"]) == 0
    assert "kl-f8" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.usefixtures("brief_calibration")
def test_prepare_and_train_run_from_the_command_line(
    home: Path, raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["prepare", "raw", "--workers", "1", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["cases"] == {"train": 1, "val": 1, "test": 1}
    assert (values["slices"], values["skipped"]) == (18, [])
    short = ["--steps", "1", "--set", "train.batch_size=1", "--set", "train.validation_slices=1"]
    assert run_command(["train", "--dataset", "raw", *short, "--device", "cpu", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["step"] == 1
    assert set(values["best"]) == {"step", "val_dice"}
    assert Path(values["run"]) == home / "home" / "runs" / "raw" / "tiny"


@pytest.mark.parametrize(("given", "batch_size", "adapts"), [("auto", 2, True), ("6", 6, False)])
def test_train_passes_on_how_to_compute(
    given: str, batch_size: int, adapts: bool, run_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_on: list[Any] = []

    def reached(config: RunConfig, *_: object, **how: Any) -> None:
        options = how["options"]
        given_on.append(
            (config.train.batch_size, options.adapts, options.compiled, options.workers)
        )
        raise RunError("far enough.", "Stop.")

    monkeypatch.setattr("sdseg_cli.training.train.train", reached)
    command = ["train", "--dataset", "tiny", "--set", "train.batch_size=2", "--run", "new"]
    options = ["--batch-size", given, "--compile", "--workers", "3", "--device", "cpu"]
    assert run_command([*command, *options]) == 1
    assert given_on == [(batch_size, adapts, True, 3)]


def test_a_bug_is_one_line_and_debug_shows_the_traceback(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("a broken invariant")

    monkeypatch.setattr(cli, "app", broken)
    assert run_command(["evaluate"]) == 1
    plain = capsys.readouterr().err
    assert "ValueError: a broken invariant" in plain
    assert "Traceback" not in plain
    assert run_command(["evaluate", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_prepare_says_what_counts_as_foreground(
    home: Path, raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["prepare", "raw", "--workers", "1"]) == 0
    err = capsys.readouterr().err
    assert "CT, window -175 to 250, crop none; labels 3: it is the foreground" in err
    assert f"next: SDSEG_HOME={home / 'home'} sdseg train --dataset raw" in err


def test_prepare_says_which_labels_become_background(
    home: Path, raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for label in raw.glob("*/label.nii.gz"):
        image = nib.load(label)
        values = np.asanyarray(image.dataobj).astype(np.uint8)
        values[:4] = 5
        nib.save(nib.Nifti1Image(values, image.affine), label)
    assert run_command(["prepare", "raw", "--workers", "1", "--target", "3"]) == 0
    err = capsys.readouterr().err
    assert "labels in no class become background (share of labelled voxels): label_5 (5) " in err
    assert run_command(["prepare", "raw", "--workers", "1", "--classes", "any"]) == 0
    err = capsys.readouterr().err
    assert "background" not in err and "--classes all: each a class; --target 1,2: some" in err
    assert run_command(["prepare", "raw", "--workers", "1", "--mirror-pairs", "none"]) == 0
    assert "--classes any, without --mirror-pairs" in capsys.readouterr().err


def test_a_set_that_is_replaced_under_a_run_is_reported_under_quiet_too(
    home: Path, raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare = ["prepare", "raw", "--workers", "1", "--quiet"]
    assert run_command(prepare) == 0
    run = RunDir(home / "home" / "runs" / "raw" / "mine")
    run.checkpoints.mkdir(parents=True)
    run.config_file.write_text(to_toml(RunConfig(dataset="raw")))
    run.best.touch()
    capsys.readouterr()
    for target, replaced in ((None, False), ("3", True), ("3", False)):
        assert run_command([*prepare, *(["--target", target] if target else [])]) == 0
        err = capsys.readouterr().err
        assert (
            "warning set-replaced: raw is about to be replaced by another set of this name: "
            "classes from one foreground of all labels to one foreground of labels 3; runs trained "
            "on it as it was no longer fit: raw/mine. They still predict" in err
        ) is replaced
        assert err.count("set-replaced") == replaced  # once, before it is replaced


@pytest.mark.slow
@pytest.mark.usefixtures("brief_calibration")
def test_a_trailing_slash_is_the_same_data_set_and_a_finished_run_says_so(
    run_home: Path, tiny_run: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    own = [f"--set=train.{key}" for key in ("batch_size=2", "validate_every=2")]
    own += [f"--set=train.{key}" for key in ("validation_slices=4", "checkpoint_every=2")]
    for name in ("tiny", "tiny/"):
        arguments = ["train", "--dataset", name, "--run", "run", "--steps", "4", *own]
        assert run_command([*arguments, "--device", "cpu"]) == 0
        err = capsys.readouterr().err
        assert "going on from step 4" in err
        assert "finished already" in err


def test_odd_values_are_reported_on_stderr_and_counted_after_the_third(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(1, 8):
        write_case(home / "raw", number)
        label = home / f"raw/case_{number}/label.nii.gz"
        image = nib.load(label)
        if number > 3:
            values = np.asanyarray(image.dataobj) // 3 * 255
            nib.save(nib.Nifti1Image(values.astype(np.uint8), image.affine), label)
    assert run_command(["prepare", "raw", "--workers", "1", "--classes", "any"]) == 0
    err = capsys.readouterr().err
    assert err.count("warning label-255, case_") == 3
    assert "warning label-255: 1 more, see `sdseg check --json`" in err
    assert run_command(["prepare", "raw", "--workers", "1", "--classes", "any", "--json"]) == 0
    captured = capsys.readouterr()
    cases = [one["case"] for one in json.loads(captured.out)["warnings"]]
    assert (cases, captured.err) == (["case_4", "case_5", "case_6", "case_7"], "")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("train --zzz 1", "No such option: --zzz\n"),
        ("train --dataste x", "No such option: --dataste (Possible options: --dataset)\n"),
        ("predict s -o m.nii --modle x", "No such option: --modle (Possible options: --model)\n"),
        ("trian", "No such command 'trian'. Did you mean 'train'?\n"),
        ("segment", "No such command 'segment'.\n"),
        ("weights lst", "No such command 'lst'. Did you mean 'list'?\n"),
    ],
)
def test_only_likely_misspellings_are_corrected(
    typed: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(typed.split()) == 2
    assert capsys.readouterr().err.startswith(f"Error: {said}")


def test_a_damaged_entry_of_the_store_is_listed_as_such(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDSEG_WEIGHTS", str(home / "store"))
    torch.save(tiny_autoencoder(), home / "model.ckpt")
    assert run_command(["weights", "add", "model.ckpt"]) == 0
    (home / "store" / "kl-f8.json").write_bytes(b"[" * 100_000)
    capsys.readouterr()
    assert run_command(["weights", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in listed["weights"]] == ["model"]
    assert [entry["name"] for entry in listed["damaged"]] == ["kl-f8"]
    assert "kl-f8" not in [known["name"] for known in listed["known"]]
    assert run_command(["weights", "list"]) == 0
    out, err = capsys.readouterr()
    assert "damaged" in out and "kl-f8.json: damaged description of weights." in err


class Full:
    """A stream that takes nothing."""

    encoding = "utf-8"

    def __init__(self, error: OSError) -> None:
        self.error = error

    def write(self, text: str) -> int:
        raise self.error

    def flush(self) -> None:
        """There is nothing in it."""

    def isatty(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("stdout", "why"),
    [
        (Full(OSError(errno.ENOSPC, "No space left on device")), "no space left on device"),
        (Full(BrokenPipeError(errno.EPIPE, "Broken pipe")), "broken pipe"),
        (Full(OSError(errno.EIO, "Input/output error")), "input/output error"),
        (None, "it is closed"),
    ],
)
@pytest.mark.parametrize("arguments", [["runs"], ["runs", "--json"], ["--version"], ["-h"]])
def test_an_output_that_takes_nothing_is_one_line(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stdout: Full | None,
    why: str,
    arguments: list[str],
) -> None:
    monkeypatch.setattr("sys.stdout", stdout)
    assert run_command(arguments) == 1
    monkeypatch.undo()
    error, hint = [x for x in capsys.readouterr().err.splitlines() if "no run yet" not in x]
    assert error == f"Error: standard output cannot be written to ({why})."
    assert hint.startswith("Hint: ")


@pytest.mark.parametrize("stderr", [None, Full(OSError(errno.ENOSPC, "full"))])
def test_without_standard_error_the_exit_code_stays(
    home: Path, monkeypatch: pytest.MonkeyPatch, stderr: Full | None
) -> None:
    monkeypatch.setattr("sys.stderr", stderr)
    assert run_command(["runs"]) == 0
    assert run_command(["predict", "no.nii.gz", "-o", "m.nii.gz"]) == 2


def test_what_a_terminal_cannot_show_is_written_out(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stderr", shown)
    assert run_command(["predict", os.fsdecode(b"g\xfc \xc3\x9f.nii.gz"), "-o", "m.nii.gz"]) == 2
    monkeypatch.undo()
    shown.flush()
    assert b"Error: g\\xfc \\xdf.nii.gz does not exist." in shown.buffer.getvalue()


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (MemoryError(), 1, "the memory that is free does not suffice."),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "n" * 300),
            2,
            "cannot be a file's name",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "the disk: cannot be written"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 1, "x: Permission denied."),
        (ValueError("embedded null byte"), 2, "holds a NUL character"),
    ],
)
def test_what_the_system_says_is_one_line_and_no_bug(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raised: Exception,
    code: int,
    said: str,
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr("sdseg_cli.runs.run_folder.list_runs", failing)
    assert run_command(["runs"]) == code
    error, hint = capsys.readouterr().err.splitlines()
    assert said in error and len(error) < 200
    assert "is a bug" not in hint


def test_a_folder_that_was_deleted_under_the_command_is_named(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "gone").mkdir()
    os.chdir(home / "gone")
    (home / "gone").rmdir()
    assert run_command(["runs"]) == 2
    assert "is not there any more" in capsys.readouterr().err
    assert run_command(["--version"]) == 0
    os.chdir(home)


LONG = "n" * 300
LONG_NAMES = (
    ["predict", LONG, "-o", "m"],
    ["predict", f"{LONG}.nii.gz", "-o", "m.nii.gz"],
    ["predict", "scan.nii.gz", "-o", f"{LONG}/m.nii.gz"],
    ["predict", "scan.nii.gz", "-o", "m.nii.gz", "--model", LONG],
    ["evaluate", "--run", LONG],
    ["check", LONG],
    ["prepare", LONG],
    ["train", "--dataset", LONG],
    ["train", "--dataset", "x", "--config", LONG],
    ["weights", "add", LONG],
    ["compare", LONG, f"{LONG}2"],
)


@pytest.mark.parametrize("arguments", LONG_NAMES, ids=lambda words: " ".join(words)[:30])
def test_a_name_of_300_letters_is_a_line_and_no_bug(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert run_command(arguments) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("Error: ") and "is a bug" not in hint


PREDICT = ["predict", "-o", "m.nii.gz"]
KINDS = (".nii.gz", ".nii", ".mha", ".nrrd", ".zip", ".dcm", "")
PIPES = [
    *([*PREDICT, f"pipe{kind}"] for kind in KINDS),
    ["train", "--dataset", "x", "--config", "pipe"],
    ["prepare", ".", "--split-file", "pipe"],
    ["weights", "add", "pipe"],
    ["stability", "--lpips-linear", "pipe"],
]


@pytest.mark.parametrize("arguments", PIPES, ids=" ".join)
def test_a_pipe_is_not_waited_for(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    os.mkfifo(home / arguments[-1])
    assert run_command(arguments) == 2
    assert f"{arguments[-1]}: is a pipe or a device" in capsys.readouterr().err


def test_a_device_is_not_read_to_its_end(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "zero.nii.gz").symlink_to("/dev/zero")
    assert run_command([*PREDICT, "zero.nii.gz"]) == 2
    assert "is a pipe or a device" in capsys.readouterr().err


def test_an_error_that_names_what_is_no_utf8_is_shown_all_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cli.show_error(RunError("a\udcff: no.", "b\ud800"))
    assert capsys.readouterr().err == "Error: a\\xff: no.\nHint: b\\ud800\n"


def test_a_log_handler_that_outlives_a_command_may_still_flush(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """MONAI makes one on import; Python flushes it at its end, when the stream may be closed."""
    stream = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(sys, "stdout", stream)
    with cli.guarded_streams():
        handler = logging.StreamHandler(sys.stdout)
        handler.flush()
    stream.close()
    handler.flush()
    with cli.guarded_streams(), pytest.raises(RunError, match="standard output cannot be written"):
        sys.stdout.flush()
