"""`prepare`, killed at random moments with all its processes, goes on to the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sdseg_cli.data.prepare import PrepareOptions, prepare
from tests.raw_cases import contents

MOMENTS = 20


def start(raw: Path, home: Path) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-m", "sdseg_cli", "prepare", str(raw), "--workers", "2", "-q"]
    environment = os.environ | {"SDSEG_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(arguments, env=environment, start_new_session=True)


@pytest.mark.slow
def test_sigkill_at_any_moment_leaves_what_the_same_command_finishes(
    raw: Path, tmp_path: Path
) -> None:
    prepare(raw, tmp_path / "undisturbed", PrepareOptions(workers=1))
    wanted = contents(tmp_path / "undisturbed")
    started = time.monotonic()
    assert start(raw, tmp_path / "once").wait() == 0
    seconds = time.monotonic() - started
    rng, stopped = random.Random(0), 0
    for number in range(MOMENTS):
        home = tmp_path / f"home {number}"
        process = start(raw, home)
        # Loading the libraries takes most of the time, and there is nothing to break yet.
        time.sleep(seconds * rng.uniform(0.3, 1.0))
        os.killpg(process.pid, signal.SIGKILL)  # an ended process stays until it is waited for
        stopped += process.wait() == -signal.SIGKILL
        prepare(raw, home, PrepareOptions(workers=1))
        assert contents(home) == wanted, f"moment {number}"
    assert stopped > MOMENTS / 2, "most were still at work"
