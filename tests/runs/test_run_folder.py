from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sdseg_cli.core.errors import ConfigError
from sdseg_cli.runs.run_folder import RunDir, find_run, words_of
from tests.json_cases import DAMAGED, OF_ANOTHER_KIND


def _run(workspace: Path, name: str, state: str, age: int) -> Path:
    run = RunDir(workspace / "runs" / "set" / name)
    run.best.parent.mkdir(parents=True)
    run.best.touch()
    run.config_file.touch()
    run.status_file.write_text(json.dumps({"state": state}))
    os.utime(run.best, (1000 - age, 1000 - age))
    return run.path


def test_the_newest_finished_run_wins_over_a_newer_stopped_one(tmp_path: Path) -> None:
    _run(tmp_path, "old", "finished", age=9)
    newest = _run(tmp_path, "new", "finished", age=5)
    _run(tmp_path, "stopped", "stopped", age=1)
    assert find_run(tmp_path, None).path == newest


def test_without_a_finished_run_the_newest_stopped_one_is_found(tmp_path: Path) -> None:
    _run(tmp_path, "older", "stopped", age=9)
    newest = _run(tmp_path, "newer", "stopped", age=1)
    assert find_run(tmp_path, None).path == newest


def test_a_run_is_found_by_path_by_dataset_and_name_and_by_name(tmp_path: Path) -> None:
    path = _run(tmp_path, "mine", "finished", age=0)
    for asked in (path, Path("set/mine"), Path("mine")):
        assert find_run(tmp_path, asked).path == path


@pytest.mark.parametrize("path", ["./mine", "mine/", "../here/mine"])
def test_what_is_written_as_a_path_is_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    _run(tmp_path, "mine", "finished", age=0)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert find_run(tmp_path, "mine").path == tmp_path / "runs" / "set" / "mine"
    with pytest.raises(ConfigError, match="no run there"):
        find_run(tmp_path, path)
    (tmp_path / "runs" / "set" / "mine").rename(tmp_path / "here" / "mine")
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


def test_a_run_that_was_only_begun_is_named_where_none_can_predict(tmp_path: Path) -> None:
    path = _run(tmp_path, "young", "stopped", age=0)
    RunDir(path).best.unlink()
    with pytest.raises(ConfigError, match=r"begun: .*young") as caught:
        find_run(tmp_path, None)
    assert "same `sdseg train` command" in caught.value.hint


def test_a_run_before_its_first_validation_cannot_predict(tmp_path: Path) -> None:
    path = _run(tmp_path, "young", "running", age=0)
    RunDir(path).best.unlink()
    with pytest.raises(ConfigError, match="no checkpoint to predict with yet"):
        find_run(tmp_path, path)


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
