"""`sdseg prepare` with one process and with two, and killed at random moments.

    python -m benchmarks.prepare_workers SRC [--rounds 3] [--kill 20] [--crop body]

Speed: both in turn, several rounds, each from nothing; the medians and the best of each are
compared. Memory: the largest resident size of any process. Kill: SIGKILL to the whole process
group at random moments of one preparation, then the same command again; what comes out has to
equal, byte for byte, what an undisturbed run makes. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results import start


def arguments_of(src: Path, workers: int, crop: str) -> list[str]:
    """The command line that is measured."""
    options = ["--name", "measured", "--workers", str(workers), "--crop", crop, "--quiet"]
    return ["prepare", str(src), *options]


def measure(arguments: list[str], home: Path) -> tuple[float, int]:
    """Seconds from start to end, and the largest resident size of its processes in MiB."""
    started, peak = time.perf_counter(), 0
    process = start(home, *arguments, own_group=True)
    while process.poll() is None:
        peak = max([peak, *(resident_kib(pid) for pid in family(process.pid))])
        time.sleep(0.05)
    if process.returncode:
        raise SystemExit(f"prepare ended with {process.returncode}")
    return time.perf_counter() - started, peak // 1024


def family(pid: int) -> list[int]:
    """A process and its children (Linux)."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        children = []
    return [pid, *map(int, children)]


def resident_kib(pid: int) -> int:
    """The largest resident size a process had so far (Linux)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    lines = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(lines[0].split()[1]) if lines else 0


def digest(folder: Path) -> str:
    """sha256 over every file's path and bytes."""
    whole = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            whole.update(f"{path.relative_to(folder)} {content}\n".encode())
    return whole.hexdigest()


def killed(src: Path, crop: str, times: int, seconds: float, wanted: str, home: Path) -> int:
    """How many of so many killed and resumed preparations came out as wanted."""
    rng, good = random.Random(0), 0
    for _ in range(times):
        shutil.rmtree(home, ignore_errors=True)
        process = start(home, *arguments_of(src, 2, crop), own_group=True)
        time.sleep(rng.uniform(0.0, seconds))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        measure(arguments_of(src, 2, crop), home)
        good += digest(home / "prepared") == wanted
    return good


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("src", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kill", type=int, default=0)
    parser.add_argument("--crop", default="none")
    options = parser.parse_args()
    seconds: dict[int, list[float]] = {1: [], 2: []}
    peaks: dict[int, list[int]] = {1: [], 2: []}
    digests = set()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        for number in range(2 * options.rounds):
            workers = 1 + number % 2
            shutil.rmtree(home, ignore_errors=True)
            taken, peak = measure(arguments_of(options.src, workers, options.crop), home)
            seconds[workers].append(round(taken, 2))
            peaks[workers].append(peak)
            digests.add(digest(home / "prepared"))
        if len(digests) > 1:
            raise SystemExit("one and two processes do not make the same bytes")
        result: dict[str, object] = {
            "seconds": seconds,
            "peak_mib_of_a_process": {n: max(values) for n, values in peaks.items()},
            "speed_up_median": round(
                statistics.median(seconds[1]) / statistics.median(seconds[2]), 2
            ),
            "speed_up_best": round(min(seconds[1]) / min(seconds[2]), 2),
        }
        if options.kill:
            limit = min(seconds[2])
            good = killed(options.src, options.crop, options.kill, limit, digests.pop(), home)
            result |= {"killed": options.kill, "resumed_to_the_same_bytes": good}
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
