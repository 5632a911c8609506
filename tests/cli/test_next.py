from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdseg_cli.cli.app import run_command
from sdseg_cli.inference.ledger import DONE, FAILED, Ledger, Row


def write(folder: Path, name: str, status: str = DONE, **stability: Any) -> None:
    row = Row(name, f"/scans/{name}", f"{folder}/{name}", status, stability=stability)
    Ledger(folder).write(Path(name), row)


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    folder = tmp_path / "masks"
    write(folder, "steady", runs=3, dice=0.98, flipped=0.04)
    write(folder, "shaky", runs=3, dice=0.6, flipped=0.5)
    write(folder, "empty", runs=3, dice=None, flipped=None)
    write(folder, "alike", runs=3, dice=0.4, flipped=0.5)
    write(folder, "once")
    write(folder, "failed", FAILED)
    return folder


def test_the_least_stable_come_first_and_the_empty_ones_last(
    masks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["next", str(masks), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["case"] for one in found["scans"]] == ["alike", "shaky", "steady", "empty"]
    assert found["scans"][1] == {
        "case": "shaky",
        "input": "/scans/shaky",
        "output": f"{masks}/shaky",
        "foreground_voxels": None,
        "runs": 3,
        "dice": 0.6,
        "flipped": 0.5,
    }
    assert (found["of"], found["drawn_once"]) == (4, 1)


def test_only_so_many_are_listed(masks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["next", str(masks), "-n", "2"]) == 0
    out, err = capsys.readouterr()
    assert "2 of 4 masks" in out and "shaky" in out and "steady" not in out
    assert "1 other masks were drawn once: not ranked." in err
    assert "sdseg train --run RUN --add COPY" in err


def test_masks_that_say_nothing_are_refused_with_the_command_that_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plain").mkdir()
    write(tmp_path / "once", "a")
    for name, said in (
        ("nowhere", "nowhere"),
        ("plain", "no folder of masks"),
        ("once", "none of its 1 masks was drawn several times"),
    ):
        assert run_command(["next", str(tmp_path / name)]) == 2
        err = capsys.readouterr().err
        assert said in err and "--runs 5" in err
