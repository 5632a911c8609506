from __future__ import annotations

from pathlib import Path

import pytest

from sdseg_cli.commands.train import _run_folder, _saying_where_it_begins
from sdseg_cli.config import RunConfig
from sdseg_cli.console import Output
from sdseg_cli.progress import TrainProgress


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
        watch = _saying_where_it_begins(Output(), seen.append)
        for now in reports(*steps):
            watch(now)
        assert capsys.readouterr().err == line
        assert seen == reports(*steps)
