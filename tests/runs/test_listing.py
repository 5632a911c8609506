"""The list of runs: what it says of good ones, bad ones and strangers."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sdseg_cli.cli.app import run_command
from sdseg_cli.cli.runs import _ago
from sdseg_cli.core.config_file import to_toml
from sdseg_cli.core.presets import PRESETS
from sdseg_cli.runs.run_folder import RunDir, RunSummary, list_runs
from tests.json_cases import DAMAGED, OF_ANOTHER_KIND


def make_run(
    workspace: Path,
    name: str,
    written: int,
    *,
    status: dict[str, Any] | None = None,
    best: bool = True,
) -> RunDir:
    """A run of 300 steps that was last written to so many seconds after 1970."""
    run = RunDir(workspace / "runs" / name)
    (run.path / "checkpoints").mkdir(parents=True)
    config = PRESETS["tiny"]
    config = replace(config, train=replace(config.train, steps=300))
    run.config_file.write_text(to_toml(config))
    if status is not None:
        run.status_file.write_text(json.dumps(status))
    if best:
        run.best.write_bytes(b"x" * 1000)
    for path in run.path.rglob("*"):
        os.utime(path, (written, written))
    return run


def ended(state: str, step: int = 300, dice: float = 0.5) -> dict[str, Any]:
    return {"state": state, "step": step, "best": {"step": step - 100, "val_dice": dice}}


def names(found: list[RunSummary]) -> list[str]:
    return [f"{one.dataset}/{one.path.name}" for one in found]


def test_runs_are_listed_the_newest_first_with_what_predict_would_take(tmp_path: Path) -> None:
    make_run(tmp_path, "a/old", 1000, status=ended("finished"))
    make_run(tmp_path, "b/finished", 2000, status=ended("finished", dice=0.75))
    make_run(tmp_path, "a/stopped", 3000, status=ended("stopped", step=200))
    found = list_runs(tmp_path)
    assert names(found) == ["a/stopped", "b/finished", "a/old"]
    assert [one.default for one in found] == [False, True, False]
    one = found[1]
    assert (one.preset, one.step, one.steps, one.state) == ("tiny", 300, 300, "finished")
    assert (one.best_dice, one.best_step) == (0.75, 200)
    assert one.written.timestamp() == 2000
    files = (RunDir(one.path).config_file, RunDir(one.path).status_file)
    assert one.bytes == 1000 + sum(path.stat().st_size for path in files)


def test_evaluating_an_old_run_does_not_make_it_newer(tmp_path: Path) -> None:
    old = make_run(tmp_path, "a/old", 1000, status=ended("finished"))
    make_run(tmp_path, "a/new", 2000, status=ended("finished"))
    old.report.mkdir()
    (old.report / "evaluate.json").write_text("{}")
    assert names(list_runs(tmp_path)) == ["a/new", "a/old"]


def test_a_run_that_nobody_works_on_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path, "a/one", 1000, status=ended("running", step=200))
    make_run(tmp_path, "a/killed_at_once", 900, best=False)
    assert [one.state for one in list_runs(tmp_path)] == ["interrupted", "interrupted"]
    assert [one.step for one in list_runs(tmp_path)] == [200, 0]
    monkeypatch.setattr(RunDir, "is_locked", lambda run: run.path.name == "one")
    assert [one.state for one in list_runs(tmp_path)] == ["running", "interrupted"]


def test_a_run_that_trains_is_as_far_as_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, "a/one", 1000, status=ended("running", step=200))
    make_run(tmp_path, "a/new", 900, status=ended("running", step=0))
    run.log_file.write_text('{"step": 222}\n{"step": 223, "lo')
    assert {one.path.name: one.step for one in list_runs(tmp_path)} == {"one": 200, "new": 0}
    monkeypatch.setattr(RunDir, "is_locked", lambda run: True)
    assert {one.path.name: one.step for one in list_runs(tmp_path)} == {"one": 222, "new": 0}


def test_damaged_and_foreign_folders_do_not_break_the_list(tmp_path: Path) -> None:
    make_run(tmp_path, "a/good", 1000, status=ended("finished"))
    broken = make_run(tmp_path, "a/broken", 2000, status=ended("finished"))
    broken.config_file.write_bytes(b"\xff = [")
    half = make_run(tmp_path, "a/half", 500, best=False)
    half.status_file.write_text('{"state": "fin')
    os.utime(half.status_file, (500, 500))
    odd = make_run(tmp_path, "a/odd", 400, status={"state": 3, "step": "x", "best": []}, best=False)
    odd.config_file.write_text("preset = 7\ntrain = 1\n")
    os.utime(odd.config_file, (400, 400))
    (tmp_path / "runs" / "notes.txt").write_text("x")
    (tmp_path / "runs" / "a" / "stray.txt").write_text("x")
    (tmp_path / "runs" / "b" / "pictures").mkdir(parents=True)
    found = {one.path.name: one for one in list_runs(tmp_path)}
    assert {name: one.state for name, one in found.items()} == {
        "broken": "damaged",
        "good": "finished",
        "half": "damaged",
        "odd": "damaged",
    }
    assert found["broken"].preset is None and found["broken"].steps is None
    assert (found["odd"].step, found["odd"].steps, found["odd"].best_dice) == (None, None, None)


def test_the_command_lists_runs_and_speaks_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SDSEG_HOME", str(tmp_path))
    assert run_command(["runs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"runs": []}
    assert run_command(["runs"]) == 0
    assert "no run yet" in capsys.readouterr().err

    run = make_run(tmp_path, "a/mine", 1000, status=ended("finished"))
    assert run_command(["runs", "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["runs"]
    assert entry.pop("bytes") > 1000
    assert entry == {
        "run": str(run.path),
        "dataset": "a",
        "preset": "tiny",
        "step": 300,
        "steps": 300,
        "best": {"step": 200, "val_dice": 0.5},
        "state": "finished",
        "written": "1970-01-01T00:16:40+00:00",
        "default": True,
    }
    assert run_command(["runs"]) == 0
    shown = capsys.readouterr()
    for part in ("a/mine (tiny) *", "300/300", "0.500 at 200", "finished"):
        assert part in shown.out
    assert "without --run" in shown.err


def test_ages_have_one_unit() -> None:
    assert _ago(59) == "just now"
    assert _ago(119) == "1 min ago"
    assert _ago(7200) == "2 h ago"
    assert _ago(3 * 86400) == "3 d ago"


@pytest.mark.parametrize("content", [*DAMAGED.values(), *OF_ANOTHER_KIND.values()])
def test_whatever_a_file_of_a_run_holds_the_others_are_listed(
    tmp_path: Path, content: bytes
) -> None:
    make_run(tmp_path, "a/good", 1000, status=ended("finished"))
    for name in ("config.toml", "status.json", "log.jsonl", ".lock"):
        run = make_run(tmp_path, f"a/{name.strip('.')}", 900, status=ended("stopped"))
        (run.path / name).write_bytes(content)
    found = {one.path.name: one.state for one in list_runs(tmp_path)}
    assert found == {
        "good": "finished",
        "config.toml": "damaged",
        "status.json": "damaged",
        "log.jsonl": "stopped",
        "lock": "stopped",
    }


def test_pipes_folders_and_links_to_nowhere_in_place_of_files_break_no_list(tmp_path: Path) -> None:
    make_run(tmp_path, "a/good", 1000, status=ended("finished"))
    for name in ("config.toml", "status.json", "log.jsonl", "checkpoints/best.pt"):
        for kind in ("pipe", "folder", "link"):
            run = make_run(tmp_path, f"a/{name[:4]}-{kind}", 900, status=ended("running"))
            (run.path / name).unlink(missing_ok=True)
            if kind == "pipe":
                os.mkfifo(run.path / name)
            elif kind == "folder":
                (run.path / name).mkdir()
            else:
                (run.path / name).symlink_to("nowhere")
    found = {one.path.name: one for one in list_runs(tmp_path)}
    assert len(found) == 13 and found["good"].default
    assert {found[f"conf-{kind}"].state for kind in ("pipe", "folder")} == {"damaged"}
