from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from sdseg_cli.core.errors import RunError
from sdseg_cli.core.processes import (
    _without_ctrl_c,
    available_bytes,
    available_cores,
    cgroup_free,
    in_processes,
    largest_that_fits,
    require_batch_fits,
)


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


MB = 1 << 20


def group(folder: Path, limit: str, use: int, cache: int, *, version: int = 2) -> None:
    """The files of a control group."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{use}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file_not 9\n{names[2]} {cache}\n")


def member(folder: Path, *lines: str) -> Path:
    """A `/proc/self/cgroup`."""
    path = folder / "cgroup"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_a_group_has_left_what_its_limit_leaves_and_what_its_cache_gives_up(tmp_path: Path) -> None:
    group(tmp_path / "job" / "step", str(100 * MB), 70 * MB, 20 * MB)
    assert list(cgroup_free(member(tmp_path, "0::/job/step"), tmp_path)) == [50 * MB]


def test_an_outer_groups_limit_counts_too(tmp_path: Path) -> None:
    group(tmp_path / "job" / "step", "max", 70 * MB, 0)
    group(tmp_path / "job", str(90 * MB), 80 * MB, 0)
    assert list(cgroup_free(member(tmp_path, "0::/job/step"), tmp_path)) == [10 * MB]


def test_a_group_beyond_its_limit_has_nothing_left(tmp_path: Path) -> None:
    group(tmp_path, str(10 * MB), 12 * MB, 0)
    assert list(cgroup_free(member(tmp_path, "0::/"), tmp_path)) == [0]


def test_in_a_container_the_group_is_the_root_whatever_its_name(tmp_path: Path) -> None:
    group(tmp_path / "memory", str(30 * MB), 10 * MB, 1 * MB, version=1)
    lines = ("5:cpu,cpuacct:/docker/abc", "4:memory:/docker/abc", "1:name=systemd:/docker/abc")
    assert list(cgroup_free(member(tmp_path, *lines), tmp_path)) == [21 * MB]


def test_without_groups_nothing_is_limited(tmp_path: Path) -> None:
    assert list(cgroup_free(tmp_path / "no such file", tmp_path)) == []
    assert list(cgroup_free(member(tmp_path, "0::/", "3:cpu:/"), tmp_path)) == []


def test_this_process_has_something_left() -> None:
    assert available_bytes() > MB


def test_the_largest_batch_that_fits_is_found() -> None:
    assert largest_that_fits(lambda size: 100 + 7 * size, 10**12, 1000) == 128  # 100 + 896
    assert largest_that_fits(lambda size: size, 5, 1000) == 5
    assert largest_that_fits(lambda size: 2000 + size, 5, 1000) == 0


def test_a_batch_that_does_not_fit_is_refused_with_the_one_that_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sdseg_cli.core.processes.available_bytes", lambda: 5_000_000_000)
    require_batch_fits(lambda size: size * 10**9, 5)
    with pytest.raises(RunError) as refused:
        require_batch_fits(lambda size: size * 10**9, 100, "train")
    assert refused.value.message == (
        "--batch-size 100: to train with it takes 100.00 GB of memory, and 5.00 GB are free."
    )
    assert refused.value.hint == "It fits with --batch-size 5."
    with pytest.raises(RunError) as refused:
        require_batch_fits(lambda size: size * 10**10, 1)
    assert refused.value.hint.startswith("Not even one slice fits")
