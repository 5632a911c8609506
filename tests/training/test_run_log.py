from __future__ import annotations

from pathlib import Path

import pytest

from sdseg_cli.errors import RunError
from sdseg_cli.training.run_log import RunLog, truncate_log


def test_each_line_is_in_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n')
    with RunLog(path) as log:
        log.write({"step": 2, "loss": 0.5})
        log.sync()
        assert path.read_text() == '{"step": 1}\n{"step": 2, "loss": 0.5}\n'


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_is_one_clear_error() -> None:
    with RunLog(Path("/dev/full")) as log, pytest.raises(RunError, match="No space left") as caught:
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


def test_a_log_damaged_in_the_middle_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\nxx\n{"step": 3}\n')
    with pytest.raises(RunError, match="line 2"):
        truncate_log(log, 2)
