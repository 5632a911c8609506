from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import sdseg_cli.demo.demo as demo_module
from sdseg_cli.cli import demo as command
from sdseg_cli.cli.app import run_command
from sdseg_cli.demo import phantom as phantom_module
from sdseg_cli.demo.demo import set_up
from sdseg_cli.runs.run_folder import RunDir

COMMANDS = ["prepare", "train", "predict", "evaluate", "stability"]


@pytest.fixture
def small_phantoms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three little patients in place of fourteen real-sized ones."""
    write = phantom_module.write_phantom_set

    def small(folder: Path, **words: Any) -> list[Path]:
        return write(folder, shape=(44, 44, 10), spacing_mm=(8.0, 8.0, 16.0), **words)

    monkeypatch.setattr(phantom_module, "write_phantom_set", small)
    monkeypatch.setattr(demo_module, "CASES", 3)


def test_the_demo_plans_five_commands_and_keeps_its_phantoms(
    small_phantoms: None, tmp_path: Path
) -> None:
    plan = set_up(tmp_path / "demo", steps=7)
    assert [arguments[0] for arguments in plan.commands] == COMMANDS
    assert plan.commands[1][-1] == "7"
    assert plan.scan.name == "img0001.nii.gz"
    written = plan.scan.stat().st_mtime_ns
    assert set_up(tmp_path / "demo").scan.stat().st_mtime_ns == written  # phantoms are kept


def test_a_run_that_was_longer_is_finished_already(small_phantoms: None, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "demo/runs/btcv/demo")
    run.path.mkdir(parents=True)
    run.config_file.write_text('preset = "tiny"\n[train]\nsteps = 300\n')
    assert set_up(tmp_path / "demo", steps=120).commands[1][-1] == "300"
    assert set_up(tmp_path / "demo", steps=400).commands[1][-1] == "400"


def test_the_demo_prints_and_runs_each_command(
    small_phantoms: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SDSEG_HOME", "elsewhere")
    ran: list[list[str]] = []

    def record(arguments: list[str], **_: Any) -> None:
        ran.append(arguments)

    monkeypatch.setattr(command, "_app_of", lambda context: record)
    folder = tmp_path / "demo"
    assert run_command(["demo", str(folder), "--steps", "7", "--device", "cpu"]) == 0
    err = capsys.readouterr().err
    assert [arguments[0] for arguments in ran] == COMMANDS
    for arguments in ran:
        assert f"SDSEG_HOME={folder} sdseg {arguments[0]}" in err
    assert ran[1][-2:] == ["--device", "cpu"]
    assert run_command(["demo", str(folder), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert set(values) == {"folder", "seconds", "mask", "picture"}


def test_a_stopped_training_stops_the_demo(
    small_phantoms: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDSEG_HOME", "elsewhere")
    ran: list[str] = []

    def stop_in_training(arguments: list[str], **_: Any) -> None:
        ran.append(arguments[0])
        if arguments[0] == "train":
            run = tmp_path / "demo" / "runs" / "btcv" / "demo"
            run.mkdir(parents=True, exist_ok=True)
            (run / "status.json").write_text('{"state": "stopped"}')

    monkeypatch.setattr(command, "_app_of", lambda context: stop_in_training)
    assert run_command(["demo", str(tmp_path / "demo")]) == 0
    assert ran == ["prepare", "train"]
    # The same command again must get past `prepare`, though the run still says "stopped".
    ran.clear()
    assert run_command(["demo", str(tmp_path / "demo")]) == 0
    assert ran == ["prepare", "train"]
