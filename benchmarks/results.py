"""What benchmarks share: their command lines, a file of measurements that can be taken up again,
clocks, the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sdseg_cli.core.errors import RunError, SdsegError
from sdseg_cli.core.progress import TrainProgress
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


def command(doc: str | None, *, workspace: bool = False) -> argparse.ArgumentParser:
    """A parser described by the first line of a module's text, perhaps with --workspace."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    if workspace:
        here = Path(os.environ.get("SDSEG_HOME", "."))
        parser.add_argument("--workspace", type=Path, default=here)
    return parser


def start(
    home: Path, *arguments: str, stderr: int | None = None, own_group: bool = False
) -> subprocess.Popen[bytes]:
    """`sdseg ARGUMENTS` in a workspace, on one thread."""
    environment = os.environ | {"SDSEG_HOME": str(home), "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "sdseg_cli", *arguments]
    return subprocess.Popen(line, env=environment, stderr=stderr, start_new_session=own_group)


@contextmanager
def told() -> Iterator[None]:
    """What is wrong with a call is one line and a hint, as `sdseg` says it."""
    try:
        yield
    except SdsegError as failure:
        from sdseg_cli.cli.console import show_error  # which a bare machine with torch may not have

        show_error(failure)
        raise SystemExit(failure.exit_code) from failure


@dataclass
class StepClock:
    """Processor seconds of training steps, given to `train` as `on_step`.

    A step that ended with a validation is counted as the mean of the others.
    """

    steps: int = 0
    """Counted ones: all but the first, whose beginning was not seen."""
    dice: dict[int, float] = field(default_factory=dict)
    """Step -> validation Dice."""
    _plain: list[float] = field(default_factory=list)
    _last: float = 0.0

    def __call__(self, now: TrainProgress) -> None:
        mark, last = time.process_time(), self._last
        self._last = mark
        if not last:
            return
        self.steps += 1
        if now.validated:
            self.dice[now.step] = round(now.validation["val_dice"], 4)
        else:
            self._plain.append(mark - last)

    @property
    def per_step(self) -> float | None:
        """The mean; None where no step was seen."""
        return sum(self._plain) / len(self._plain) if self._plain else None

    @property
    def spent_s(self) -> float:
        """Of all counted steps."""
        return self.steps * (self.per_step or 0.0)


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
