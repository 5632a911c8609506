from __future__ import annotations

import os
import signal
import time

import pytest

from sdseg_cli.core.errors import RunError
from sdseg_cli.core.processes import _without_ctrl_c, available_cores, in_processes


def slow_square(number: int) -> int:
    """The first job takes longest."""
    time.sleep(0.2 if number == 0 else 0)
    return number * number


def process_of(number: int) -> int:
    return os.getpid()


def die(number: int) -> None:
    os._exit(9)


def test_results_come_in_the_order_of_the_jobs() -> None:
    assert list(in_processes(slow_square, range(4), 2)) == [0, 1, 4, 9]


def test_one_worker_is_this_process_and_more_are_others() -> None:
    assert set(in_processes(process_of, range(2), 1)) == {os.getpid()}
    assert os.getpid() not in set(in_processes(process_of, range(2), 2))


def test_a_killed_worker_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(RunError, match="was killed") as caught:
        list(in_processes(die, range(2), 2))
    assert "--workers 1" in caught.value.hint


def test_there_is_a_core_to_work_on() -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)


def test_what_is_started_without_ctrl_c_is_started_with_it_ignored() -> None:
    before = signal.getsignal(signal.SIGINT)
    with _without_ctrl_c():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGINT) is before
