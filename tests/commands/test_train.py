from __future__ import annotations

from pathlib import Path

import pytest

from sdseg_cli.commands.train import _run_folder
from sdseg_cli.config import RunConfig


def test_a_run_goes_where_its_path_says_and_only_a_bare_word_is_a_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SDSEG_HOME", "/home")
    runs, settings = Path("/home/runs/set"), RunConfig(preset="tiny", seed=3)
    assert _run_folder(None, "set", settings) == runs / "tiny-seed3"
    assert _run_folder("mine", "set", settings) == runs / "mine"
    for path in ("./mine", "../mine", "mine/", "a/mine", "/mine", "."):
        assert _run_folder(path, "set", settings) == Path(path)
