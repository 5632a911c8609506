"""What benchmarks share: a file of measurements that can be taken up again, clocks, the machine."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sdseg_cli.core.errors import RunError, SdsegError
from sdseg_cli.model.runtime import ran_out_of_memory

Row = dict[str, Any]


class Results:
    """Measurements by name, kept on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, Row] = json.loads(path.read_text()) if path.exists() else {}

    def measure(self, name: str, work: Callable[[], Row]) -> Row:
        """Do `work` unless its result is there; running out of memory is a result too."""
        if name in self.rows:
            print(f"{name}: done before", flush=True)
            return self.rows[name]
        try:
            row = work()
        except (RuntimeError, MemoryError, RunError) as error:
            # Training and prediction tell a person what to do about a full GPU.
            full = error.__cause__ if isinstance(error, RunError) else error
            if full is None or not ran_out_of_memory(full):
                raise
            row = {"error": str(full).splitlines()[0]}
        self.rows[name] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.rows, indent=1, allow_nan=False))
        temporary.replace(self.path)
        print(f"{name}: {row}", flush=True)
        return row


@contextmanager
def told() -> Iterator[None]:
    """What is wrong with a call is one line and a hint, as `sdseg` says it."""
    try:
        yield
    except SdsegError as failure:
        from sdseg_cli.cli.console import show_error  # which a bare machine with torch may not have

        show_error(failure)
        raise SystemExit(failure.exit_code) from failure


def clock(device: torch.device) -> float:
    """Seconds: of the processor, all threads together; on a GPU of the wall."""
    return time.process_time() if device.type == "cpu" else time.perf_counter()


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long one call takes, until the device has finished it."""

    def finished() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    finished()
    start = time.perf_counter()
    work()
    finished()
    return time.perf_counter() - start


def seconds_per_call(work: Callable[[], object], device: torch.device, budget_s: float) -> float:
    """Median over as many calls as fit the budget, at least three, after one to warm up."""
    seconds(work, device)
    taken: list[float] = []
    while len(taken) < 3 or (sum(taken) < budget_s and len(taken) < 200):
        taken.append(seconds(work, device))
    return sorted(taken)[len(taken) // 2]


def machine(device: torch.device) -> Row:
    """What the figures were measured on."""
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name and how many of its cores there are; Linux tells the name in a file
    only.
    """
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"
