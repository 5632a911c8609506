from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import sdseg_cli.core.locks as lock_module
from sdseg_cli.core.errors import RunError
from sdseg_cli.core.locks import is_locked, locked
from tests.json_cases import DAMAGED

pytestmark = pytest.mark.skipif(lock_module.fcntl is None, reason="no flock on this platform")


def test_a_second_holder_is_refused_with_the_name_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "run" / ".lock"
    with locked(path):
        assert is_locked(path)
        who = f"process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(RunError, match=who) as caught, locked(path):
            pass
        assert "--run" in caught.value.hint
        assert is_locked(path)
    assert not is_locked(path)


def test_nothing_is_left_of_a_lock(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path / "set" / "run" / ".lock"):
        raise KeyError
    assert not list(tmp_path.iterdir())
    with locked(tmp_path / "set" / "run" / ".lock"):
        (tmp_path / "set" / "run" / "log.jsonl").touch()
    assert [path.name for path in (tmp_path / "set" / "run").iterdir()] == ["log.jsonl"]


HOLD = """
import os, sys, time
from pathlib import Path
from sdseg_cli.core.locks import locked
with locked(Path(sys.argv[1])):
    if not os.fork():
        print(os.getpid(), flush=True)  # by the worker: it has let go of the lock by now
    time.sleep(60)
"""


def test_a_killed_process_holds_no_lock_though_its_worker_lives_on(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        try:
            assert is_locked(path)
            assert json.loads(path.read_text())["pid"] == process.pid
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert path.exists()
            assert not is_locked(path)
            with locked(path):
                assert json.loads(path.read_text())["pid"] == os.getpid()
        finally:
            os.kill(worker, signal.SIGKILL)


def test_a_file_that_its_holder_removed_meanwhile_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, take = tmp_path / ".lock", lock_module.take
    seen: list[int] = []

    def late(descriptor: int, **how: bool) -> bool | None:
        if not seen:  # between opening and locking, the last holder ends
            path.unlink()
        seen.append(descriptor)
        return take(descriptor, **how)

    monkeypatch.setattr(lock_module, "take", late)
    with locked(path):
        assert len(seen) == 2
        assert is_locked(path)


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"), locked(tmp_path / "file" / ".lock"):
        pass
    assert not is_locked(tmp_path / "nothing" / ".lock")


@pytest.mark.parametrize("content", [*DAMAGED.values(), b'{"pid": "1", "host": 3}', b"[]"])
def test_a_holder_that_cannot_be_read_is_another_process(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".lock").write_bytes(content)
    assert lock_module.holder(tmp_path / ".lock") == "another process"
