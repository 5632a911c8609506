from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

import pytest

from sdseg_cli.core.errors import ConfigError, RunError
from sdseg_cli.runs.log import (
    TAIL_BYTES,
    RunLog,
    last_step,
    read_log,
    require_tensorboard,
    truncate_log,
)


def write(folder: Path, steps: range, loss: float) -> None:
    log = RunLog(folder / "log.jsonl", after=steps.start - 1, tensorboard=folder / "board")
    with closing(log):
        for step in steps:
            log.write({"step": step, "loss": loss * step, "lr": 0.5})
        log.write({"step": steps[-1], "val_dice": 0.25})


def test_each_line_is_in_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n')
    with closing(RunLog(path)) as log:
        log.write({"step": 2, "loss": 0.5})
        log.sync()
        assert path.read_text() == '{"step": 1}\n{"step": 2, "loss": 0.5}\n'


def test_the_last_step_is_read_from_the_end_of_the_file(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    assert last_step(log) is None
    log.write_text("{torn")
    assert last_step(log) is None
    log.write_bytes(
        b"x" * 9 * TAIL_BYTES + b'\n{"step": 7}\n{"step": 8, "loss": 1}\n{"step": 9, "l'
    )
    assert last_step(log) == 8


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_one_clear_error() -> None:
    with (
        closing(RunLog(Path("/dev/full"))) as log,
        pytest.raises(RunError, match="No space left") as caught,
    ):
        log.write({"step": 1})
    assert "same command" in caught.value.hint


def test_a_log_that_cannot_be_opened_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        RunLog(tmp_path / "file" / "log.jsonl")


def test_log_lines_past_the_checkpoint_and_a_torn_last_line_are_dropped(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\n{"step": 2}\n{"step": 2, "val_dice": 0.5}\n{"step": 3}\n{"st')
    truncate_log(log, 2)
    assert log.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 2, "val_dice": 0.5}\n'


@pytest.mark.parametrize("tail", [b"\0\0\0\n", b"\xff\xfe\n", b'{"st\n', b'{"step": 3}'])
def test_damage_past_the_checkpoint_is_dropped_with_all_that_follows(
    tmp_path: Path, tail: bytes
) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"step": 1}\n{"step": 2}\n' + tail + b'{"step": 4}\n')
    truncate_log(log, 2)
    assert log.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_a_log_damaged_in_the_middle_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\nxx\n{"step": 3}\n')
    before = log.read_bytes()
    with pytest.raises(RunError, match="damaged after step 1, before the checkpoint of step 2"):
        truncate_log(log, 2)
    assert log.read_bytes() == before


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


@pytest.mark.parametrize(
    "line",
    [
        b'{"step": ' + b"9" * 5000 + b"}",
        b'{"step": 1e999}',
        b'{"step": NaN}',
        b'{"step": -1}',
        b'{"step": "7"}',
        b"[" * 100_000,
        b"7",
    ],
)
def test_a_line_without_a_step_is_passed_over(tmp_path: Path, line: bytes) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"step": 1}\n' + line + b"\n")
    if len(line) < TAIL_BYTES:
        assert last_step(log) == 1
    assert read_log(log) == [{"step": 1}]
    truncate_log(log, 1)
    assert log.read_bytes() == b'{"step": 1}\n'


def test_of_a_line_only_finite_numbers_are_drawn(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "loss": NaN, "lr": 0.5, "note": "x", "more": [1], "b": true}\n')
    assert read_log(log) == [{"step": 1, "lr": 0.5}]
