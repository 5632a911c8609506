"""Work on many things in several processes; the results do not depend on how many. Standard
library only, so that a server of processes can load the libraries while its parent does.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from sdseg_cli.core.errors import RunError

Job = TypeVar("Job")
Result = TypeVar("Result")

# "fork" would copy locks held by other threads (progress bars, BLAS) into the children. A server of
# processes loads the libraries once for all of them; Windows has none, there each loads its own.
_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def warm_up(module: str) -> None:
    """Let the server of processes load a module now, while this process does something else."""
    if _METHOD == "forkserver":
        multiprocessing.set_forkserver_preload(["__main__", module])
        with _without_ctrl_c():
            multiprocessing.forkserver.ensure_running()


def in_processes(
    work: Callable[[Job], Result], jobs: Sequence[Job], workers: int
) -> Generator[Result, None, None]:
    """Do the same work for each job, giving each result in the order of the jobs.

    Closing the iterator early, or an interrupt, lets the jobs in work finish and starts no more.

    Args:
        work: A function of a module, so that another process can find it.
        jobs: What to work on.
        workers: Processes; 1 = this one.

    Yields:
        What `work` returns.

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
    """What is started within ignores Ctrl-C for good: it is the parent's to answer it.

    The server would print a traceback of whatever it is loading. Only the main thread may ask.
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
