"""What C code prints does not reach the terminal, and what comes after it does."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading

import pytest

from sdseg_cli.imaging.io.native import silenced


def test_only_what_is_printed_within_the_block_is_gone(capfd):
    os.write(1, b"before\n")
    with silenced() as printed:
        os.write(1, b"library on stdout\n")
        os.write(2, b"library on stderr\n")
        ctypes.CDLL(None).puts(b"library in C's buffer")
    os.write(1, b"after\n")
    os.write(2, b"after\n")
    out, err = capfd.readouterr()
    assert (out, err) == ("before\nafter\n", "after\n")
    assert printed[0].splitlines() == [
        "library on stdout", "library on stderr", "library in C's buffer"
    ]  # fmt: skip


def test_an_error_within_the_block_gives_the_streams_back(capfd):
    with pytest.raises(RuntimeError), silenced():
        raise RuntimeError
    os.write(2, b"heard\n")
    assert capfd.readouterr().err == "heard\n"


def test_blocks_in_many_threads_leave_the_streams_as_they_were(capfd):
    def work() -> None:
        for _ in range(50):
            with silenced():
                os.write(2, b"noise\n")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(2, b"heard\n")
    assert capfd.readouterr().err == "heard\n"


def test_closed_streams_are_no_obstacle():
    code = (
        "import os; os.close(1); os.close(2)\n"
        "from sdseg_cli.imaging.io.native import silenced\n"
        "with silenced(): pass\n"
        "raise SystemExit(7)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 7
