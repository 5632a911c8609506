"""`log.jsonl` and TensorBoard."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from sdseg_cli.errors import ConfigError
from sdseg_cli.training.log import open_log, require_tensorboard


def write(folder: Path, steps: range, loss: float, *, board: bool = True) -> None:
    after, path = steps.start - 1, folder / "log.jsonl"
    with open_log(path, after=after, tensorboard=folder / "board" if board else None) as log:
        for step in steps:
            log.write({"step": step, "loss": loss * step, "lr": 0.5})
        log.write({"step": steps[-1], "val_dice": 0.25})


def test_each_row_is_on_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    with open_log(path, after=0) as log:
        log.write({"step": 1, "loss": 0.5})
        assert path.read_text() == '{"step": 1, "loss": 0.5}\n'
    write(tmp_path, range(2, 3), 1.0, board=False)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 2]
    assert [file.name for file in tmp_path.iterdir()] == ["log.jsonl"]


def test_tensorboard_has_each_step_once_after_a_resume(tmp_path: Path) -> None:
    accumulators = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="TensorBoard is optional"
    )
    write(tmp_path, range(1, 7), 1.0)
    write(tmp_path, range(5, 9), 10.0)  # killed after 6, resumed from the checkpoint of 4
    # TensorBoard reads files by their names, of which the first part is the second of the start.
    seen = accumulators.EventAccumulator(str(tmp_path / "board")).Reload()
    losses = [(event.step, event.value) for event in seen.Scalars("loss/total")]
    assert losses == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 50), (6, 60), (7, 70), (8, 80)]
    assert [event.step for event in seen.Scalars("validation Dice")] == [8]
    assert {event.value for event in seen.Scalars("learning rate")} == {0.5}


def test_without_tensorboard_the_command_to_install_it_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ConfigError, match="not installed") as caught:
        require_tensorboard()
    assert "pip install 'sdseg-cli[tensorboard]'" in caught.value.hint
