"""Work in several processes, whose results do not depend on how many, and the memory it may take.

Standard library only, so that a server of processes can load libraries while its parent does.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import signal
import threading
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TypeVar

from sdseg_cli.core.errors import RunError

Job = TypeVar("Job")
Result = TypeVar("Result")

# "fork" would copy locks held by other threads (progress bars, BLAS) into the children. A server of
# processes loads the libraries once for all of them; Windows has none, there each loads its own.
_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
_CGROUP_FILES = {
    "v2": ("memory.max", "memory.current", "inactive_file"),
    "v1": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
"""Of each version of cgroups: the limit, the use, and the part of the use that is file cache, which
is given up on demand.
"""


def warm_up(module: str) -> None:
    """Let the server of processes load a module now, while this process does something else."""
    if _METHOD == "forkserver":
        multiprocessing.set_forkserver_preload(["__main__", module])
        with _without_ctrl_c():
            multiprocessing.forkserver.ensure_running()


def in_processes(
    work: Callable[[Job], Result], jobs: Sequence[Job], workers: int
) -> Generator[Result, None, None]:
    """The results of the same work for each job, in the order of the jobs.

    Closing the iterator early, or an interrupt, lets the jobs in work finish and starts no more.

    Args:
        work: A function of a module, so that another process can find it.
        jobs: Its arguments.
        workers: Processes; 1 = this one.

    Raises:
        RunError: A process was killed.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        yield from (work(job) for job in jobs)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context(_METHOD), _begin)
    try:
        for future in [pool.submit(work, job) for job in jobs]:
            yield future.result()
    except BrokenProcessPool as error:
        raise RunError(
            "A worker process was killed, probably for want of memory.",
            "Run again with --workers 1; finished cases are kept.",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Processes started within the block ignore Ctrl-C, which is for the parent to answer.

    Without it, the server would print a traceback. Only the main thread may set it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def available_cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _begin() -> None:
    """In a new worker: leave Ctrl-C to the parent, and do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def largest_that_fits(bytes_of: Callable[[int], int], most: int, free: int) -> int:
    """The largest count, from 1 to `most`, that takes no more than the free bytes; 0 if none does.

    `bytes_of` is the memory that a count takes; it grows with the count.
    """
    return bisect_right(range(1, most + 1), free, key=bytes_of)


def require_batch_fits(bytes_of: Callable[[int], int], size: int, what: str = "predict") -> None:
    """Refuse a batch that does not fit into memory, before any is taken.

    Args:
        bytes_of: About the memory that a batch of a size takes.
        size: Slices of the batch.
        what: Its purpose, for the message.

    Raises:
        RunError: It does not fit; the hint names the largest that does.
    """
    need, free = bytes_of(size), available_bytes()
    if need <= free:
        return
    fits = largest_that_fits(bytes_of, size, free)
    raise RunError(
        f"--batch-size {size}: to {what} with it takes {need / 1e9:.2f} GB of memory, and "
        f"{free / 1e9:.2f} GB are free.",
        f"It fits with --batch-size {fits}."
        if fits
        else "Not even one slice fits: end other programs, or take a machine with more memory.",
    )


def available_bytes() -> int:
    """Memory that can still be taken before the system swaps or ends this process.

    It is the machine's free memory, or less in a container or a cluster's job, whose limits
    (cgroups) the machine's own figures do not show.
    """
    import psutil

    below_limits = cgroup_free(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    return min([int(psutil.virtual_memory().available), *below_limits])


def cgroup_free(membership: Path, mount: Path) -> Iterator[int]:
    """Bytes left below each limit that applies to this process; none but on Linux.

    Args:
        membership: `/proc/self/cgroup`: lines `number:controllers:/group`.
        mount: The folder of the groups, version 2 directly and version 1 in `memory`.
    """
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            files, root = _CGROUP_FILES["v2"], mount
        elif "memory" in controllers.split(","):
            files, root = _CGROUP_FILES["v1"], mount / "memory"
        else:
            continue
        # A limit holds for all groups within; in a container the outer ones cannot be seen.
        group = PurePosixPath(name)
        for folder in (group, *group.parents):
            free = _free(root / folder.relative_to("/"), *files)
            if free is not None:
                yield free


def _free(group: Path, limit: str, use: str, cache: str) -> int | None:
    """Bytes left below a group's limit; None where there is none."""
    try:
        most, used = int((group / limit).read_text()), int((group / use).read_text())
        statistics = (group / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):  # not there, or "max"
        return None
    given_up = [int(line.split()[1]) for line in statistics if line.split()[0] == cache]
    return max(0, most - used + sum(given_up))
