"""How runs are found and listed, good ones and bad ones; and who may replace their set."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdseg_cli.cli.app import run_command
from sdseg_cli.cli.runs import _ago
from sdseg_cli.core.config_file import to_toml
from sdseg_cli.core.errors import ConfigError, RunError
from sdseg_cli.core.locks import locked
from sdseg_cli.core.presets import PRESETS
from sdseg_cli.data.manifest import lock_of
from sdseg_cli.data.prepare import PrepareOptions, prepare
from sdseg_cli.data.spec import ClassRule
from sdseg_cli.runs.run_folder import (
    RunDir,
    RunSummary,
    find_run,
    list_runs,
    replaced,
    require_settled,
    words_of,
)
from tests.fake_run import Workspace, make_workspace
from tests.json_cases import DAMAGED, OF_ANOTHER_KIND
from tests.raw_cases import contents

TINY = PRESETS["tiny"]
SETTINGS = to_toml(replace(TINY, train=replace(TINY.train, steps=300)))


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
    run.checkpoints.mkdir(parents=True)
    run.config_file.write_text(SETTINGS)
    if status is not None:
        run.status_file.write_text(json.dumps(status))
    if best:
        run.best.write_bytes(b"x" * 1000)
    for path in run.path.rglob("*"):
        os.utime(path, (written, written))
    return run


def ended(state: str, step: int = 300, dice: float = 0.5) -> dict[str, Any]:
    return {"state": state, "step": step, "best": {"step": step - 100, "val_dice": dice}}


@pytest.mark.parametrize("state", ["finished", "stopped"])
def test_the_newest_finished_run_is_found_or_without_one_the_newest(
    tmp_path: Path, state: str
) -> None:
    make_run(tmp_path, "set/old", 1, status=ended(state))
    newest = make_run(tmp_path, "set/new", 5, status=ended(state))
    if state == "finished":
        make_run(tmp_path, "set/stopped", 9, status=ended("stopped"))
    assert find_run(tmp_path, None).path == newest.path


def test_a_run_is_found_by_path_by_dataset_and_name_and_by_name(tmp_path: Path) -> None:
    path = make_run(tmp_path, "set/mine", 0).path
    for asked in (path, Path("set/mine"), Path("mine")):
        assert find_run(tmp_path, asked).path == path


@pytest.mark.parametrize("path", ["./mine", "mine/", "../here/mine"])
def test_what_is_written_as_a_path_is_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    mine = make_run(tmp_path, "set/mine", 0).path
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert find_run(tmp_path, "mine").path == mine
    with pytest.raises(ConfigError, match="no run there"):
        find_run(tmp_path, path)
    mine.rename(tmp_path / "here" / "mine")
    assert find_run(tmp_path, path).path.samefile(tmp_path / "here" / "mine")


def test_only_words_may_be_names() -> None:
    assert words_of("mine") == ["mine"]
    assert words_of("set/mine") == ["set", "mine"]
    for path in ("./mine", "../mine", "mine/", "/mine", ".", "..", "/", "a/../b", ""):
        assert words_of(path) == [], path


def test_no_run_yet_says_how_to_train_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run yet") as caught:
        find_run(tmp_path, None)
    assert "sdseg train" in caught.value.hint
    with pytest.raises(ConfigError, match="no run there"):
        find_run(tmp_path, Path("nowhere"))


def test_a_run_before_its_first_validation_cannot_predict_and_is_named(tmp_path: Path) -> None:
    path = make_run(tmp_path, "set/young", 0, best=False).path
    with pytest.raises(ConfigError, match="no checkpoint to predict with yet"):
        find_run(tmp_path, path)
    with pytest.raises(ConfigError, match=r"begun: .*young") as caught:
        find_run(tmp_path, None)
    assert "same `sdseg train` command" in caught.value.hint


@pytest.mark.parametrize(
    "content",
    [
        *DAMAGED.values(),
        *OF_ANOTHER_KIND.values(),
        b'{"state": "up"}',
        b'{"state": 3}',
        b'{"step": "9"}',
        b'{"step": true}',
        b'{"best": []}',
        b'{"best": {"step": 1.5}}',
        b'{"best": {"val_dice": "high"}}',
    ],
)
def test_a_damaged_status_says_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "status.json").write_bytes(content)
    assert RunDir(tmp_path).status() == {}


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
    odd = make_run(tmp_path, "a/odd", 400, status={"state": 3, "step": "x", "best": []}, best=False)
    odd.config_file.write_text("preset = 7\ntrain = 1\n")
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


@pytest.fixture
def trained(tmp_path: Path) -> Workspace:
    """A set "toy" and a run "toy/tiny" that was trained on it."""
    return make_workspace(tmp_path, {"a": np.ones((16, 16, 4), np.uint8)})


def test_a_run_that_loses_its_set_is_named_and_what_changed(trained: Workspace) -> None:
    settings = trained.manifest.inference_settings()
    root = trained.root / "prepared" / "toy"
    assert replaced(root, settings) is None
    found = replaced(root, {**settings, "crop": "body", "data_sha256": "1"})
    assert found is not None
    assert (found.code, found.level, found.case) == ("set-replaced", "warning", "*")
    assert found.measured == (
        "toy is about to be replaced by another set of this name: crop from none to body; "
        "runs trained on it as it was no longer fit: toy/tiny"
    )
    assert "--name toy_2" in found.fix


def test_other_classes_of_a_replaced_set_are_said_in_words(trained: Workspace) -> None:
    root = trained.root / "prepared" / "toy"
    names = ("liver", "spleen", "aorta", "colon", "lung")
    several = ClassRule(tuple((n,) for n in range(1, 6)), names, 9, ((0, 1),)).to_settings()
    found = replaced(root, {"target": [1, 2, 3, 4, 5], **several})
    assert found is not None
    assert "classes from one foreground of all labels to 5 (liver, spleen, aorta, colon, ...) " in (
        found.measured
    )
    assert "without label 9" in found.measured and "target" not in found.measured
    other_scans = replaced(root, {"data_sha256": "1"})
    assert other_scans is not None and "other scans or label maps" in other_scans.measured


def test_a_run_of_other_classes_than_the_replaced_set_did_not_fit_before(
    trained: Workspace,
) -> None:
    run = RunDir(trained.run)
    config = run.config()
    config = replace(config, model=replace(config.model, classes=7))
    run.config_file.write_text(to_toml(config))
    assert replaced(trained.root / "prepared" / "toy", {"crop": "body"}) is None


def test_without_a_set_or_a_run_nothing_is_lost(trained: Workspace) -> None:
    root, others = trained.root / "prepared" / "toy", {"crop": "body"}
    assert replaced(root.with_name("new"), others) is None
    (trained.run / "checkpoints" / "best.pt").unlink()  # it has learned nothing yet
    assert replaced(root, others) is None


def test_a_set_is_not_replaced_under_a_run_that_trains(trained: Workspace) -> None:
    root = trained.root / "prepared" / "toy"
    with locked(trained.run / ".lock"):
        assert replaced(root, trained.manifest.inference_settings()) is None
        said = r"toy would change \(crop from none to body\), and .*toy/tiny is"
        with pytest.raises(ConfigError, match=said):
            replaced(root, {"crop": "body"})


def test_prepare_refuses_that_before_it_reads_a_scan(
    trained: Workspace, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a scan was read")

    monkeypatch.setattr("sdseg_cli.data.prepare._records", never)
    before = contents(trained.root)
    with locked(trained.run / ".lock"), pytest.raises(ConfigError, match="being trained on it"):
        prepare(
            raw,
            trained.root,
            PrepareOptions(name="toy", crop="body", workers=1),
            on_replace=replaced,
        )
    assert contents(trained.root) == before


def test_a_set_whose_scans_changed_is_not_replaced_under_a_run_that_trains(
    trained: Workspace, raw: Path
) -> None:
    prepare(
        raw, trained.root, PrepareOptions(name="toy", workers=1), on_replace=replaced
    )  # other scans: a warning
    manifest = replace(trained.manifest, root=trained.root / "prepared" / "toy").path
    before = manifest.read_bytes()
    (raw / "pt_1" / "image.nii.gz").unlink()
    (raw / "pt_1" / "label.nii.gz").unlink()
    with locked(trained.run / ".lock"), pytest.raises(ConfigError, match="another split"):
        prepare(raw, trained.root, PrepareOptions(name="toy", workers=1), on_replace=replaced)
    assert manifest.read_bytes() == before


def test_a_training_waits_for_a_set_that_is_being_prepared(trained: Workspace) -> None:
    require_settled(trained.manifest)
    root = trained.root / "prepared" / "toy"
    with locked(lock_of(root)), pytest.raises(RunError, match=r"process \d+ on .* is preparing"):
        require_settled(trained.manifest)


def test_a_training_does_not_begin_on_a_set_that_changed_since_it_was_read(
    trained: Workspace,
) -> None:
    newer = replace(trained.manifest, crop="body")
    newer.path.write_text(newer.to_text())
    with pytest.raises(ConfigError, match="prepared anew"):
        require_settled(trained.manifest)
