"""`sdseg train`, killed at random moments and resumed by the same command.

    python -m benchmarks.kill_train [--kills 20] [--aimed 5] [--steps 60] [--seed 0]

A small phantom set, one run that nobody disturbs, then runs that are killed with SIGKILL: `--kills`
times after a random time, `--aimed` times at the sight of a half-written checkpoint. After each
kill every checkpoint has to be whole; the same command goes on, and a run that reaches its end has
to have the undisturbed run's log, byte for byte, the same values in its last checkpoint, and the
same files, no more and no fewer. Prints one JSON object; ends with an error at the first thing that
is not so.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import start
from sdseg_cli.core.files import file_sha256
from sdseg_cli.demo.phantom import write_phantom_set
from sdseg_cli.runs.checkpoint import Checkpoint
from sdseg_cli.runs.run_folder import RunDir

SHAPE, SPACING_MM = (44, 44, 10), (8.0, 8.0, 16.0)
TRAIN = {
    "batch_size": 2,
    "checkpoint_every": 5,
    "validate_every": 10,
    "validation_slices": 4,
}
POLL_S = 0.001


@dataclass
class Killed:
    """What happened so far."""

    moments: Counter[str] = field(default_factory=Counter)
    """What the process was doing -> how often it was killed there."""
    runs: int = 0
    """That reached their end."""
    steps_repeated: list[int] = field(default_factory=list)
    """Per kill, how many logged steps were past the newest checkpoint."""


def prepare(home: Path) -> None:
    """Make the phantom set and prepare it."""
    raw = home / "phantom"
    write_phantom_set(raw, cases=7, seed=0, shape=SHAPE, spacing_mm=SPACING_MM)
    sdseg = start(home, "prepare", str(raw), "--dataset", "btcv", "--workers", "1", "--quiet")
    if sdseg.wait():
        raise SystemExit("prepare failed")


def train(home: Path, run: str, steps: int) -> subprocess.Popen[bytes]:
    """The command that begins a run, and resumes it."""
    own = [f"--set=train.{key}={value}" for key, value in TRAIN.items()]
    options = ["--run", run, "--steps", str(steps), "--device", "cpu", "--quiet", *own]
    return start(home, "train", "--dataset", "btcv", *options)


def wait_for_half_a_checkpoint(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Until one of this process is seen, or it ends."""
    while process.poll() is None and not list(folder.glob(f".{process.pid}-*.part.*.pt")):
        time.sleep(POLL_S)


def logged(log: Path) -> list[int]:
    """The steps of its lines; only the last may be half-written."""
    if not log.exists():
        return []
    *whole, rest = log.read_text(encoding="utf-8").split("\n")
    if rest and "}" in rest:
        raise SystemExit(f"a line that is no line: {rest}")
    return [json.loads(line)["step"] for line in whole]


def check_checkpoints(folder: Path) -> int:
    """Every checkpoint is what its hash says; the newest's step, or 0."""
    steps = [0]
    for path in folder.glob("*.pt"):
        if path.name.startswith("."):
            continue
        beside = path.with_name(f"{path.name}.sha256")
        # `best.pt` has none for the moment in which it is exchanged.
        if beside.exists() or path.name != "best.pt":
            written = beside.read_text(encoding="utf-8").split()[0]
            if file_sha256(path) != written:
                raise SystemExit(f"{path} is not whole")
        if path.stem.startswith("step-"):
            steps.append(int(path.stem.removeprefix("step-")))
    return max(steps)


def compare(run: Path, wanted: Path, steps: int, killed: Killed) -> None:
    """A run that reached its end against the one nobody disturbed."""
    files = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    others = {str(p.relative_to(wanted)) for p in wanted.rglob("*") if p.is_file()}
    if files != others:
        raise SystemExit(f"{run}: not the same files: {sorted(files ^ others)}")
    for name in ("log.jsonl", "config.toml", "status.json"):
        if (run / name).read_bytes() != (wanted / name).read_bytes():
            raise SystemExit(f"{run / name} is not the undisturbed run's")
    # Their bytes may differ: pickle writes a repeated name in full or as a reference to the first.
    ours, theirs = (Checkpoint.load(RunDir(r).step_file(steps)) for r in (run, wanted))
    if not same(vars(ours), vars(theirs)):
        raise SystemExit(f"{run}: its last checkpoint is not the undisturbed run's")
    killed.runs += 1


def same(one: Any, other: Any) -> bool:
    """Whether two values of a checkpoint are equal to the last bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def kill_and_resume(home: Path, steps: int, kills: int, aimed: int, seed: int) -> Killed:
    """Run, kill and resume until so many processes were killed, and end the last run."""
    started = time.monotonic()
    if train(home, "undisturbed", steps).wait():
        raise SystemExit("train failed")
    seconds = time.monotonic() - started
    runs, rng, killed = home / "runs" / "btcv", random.Random(seed), Killed()
    plan = ["random"] * kills + ["aimed"] * aimed
    rng.shuffle(plan)
    while True:
        name = f"killed-{killed.runs}"
        run = runs / name
        before = len(logged(run / "log.jsonl"))
        process = train(home, name, steps)
        try:
            if not plan:
                process.wait()
            elif plan[-1] == "aimed":
                wait_for_half_a_checkpoint(process, run / "checkpoints")
            else:
                process.wait(timeout=rng.uniform(0.0, 0.5 * seconds))
        except subprocess.TimeoutExpired:
            pass
        process.kill()  # does nothing to one that has ended
        code = process.wait()
        newest = check_checkpoints(run / "checkpoints")
        rows = logged(run / "log.jsonl")
        if code == 0:
            compare(run, runs / "undisturbed", steps, killed)
            if not plan:
                return killed
        elif code > 0:
            raise SystemExit(f"the same command ended with {code}")
        else:
            plan.pop()
            torn = list((run / "checkpoints").glob(".*.part.*.pt"))
            where = "writing a checkpoint" if torn else "in a step or validation"
            killed.moments[where if torn or len(rows) != before else "starting"] += 1
            killed.steps_repeated.append(max([newest, *rows]) - newest)


def main() -> None:
    """Kill, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for option, default in (("--kills", 20), ("--aimed", 5), ("--steps", 60), ("--seed", 0)):
        parser.add_argument(option, type=int, default=default)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        prepare(home)
        killed = kill_and_resume(home, options.steps, options.kills, options.aimed, options.seed)
    result = {
        "killed": sum(killed.moments.values()),
        "while": dict(killed.moments),
        "resumed": sum(killed.moments.values()),
        "runs_that_reached_their_end": killed.runs,
        "logs_equal_to_the_undisturbed_byte_for_byte": killed.runs,
        "last_checkpoints_equal_to_the_last_bit": killed.runs,
        "steps_repeated_mean": round(sum(killed.steps_repeated) / len(killed.steps_repeated), 1),
        "steps_repeated_max": max(killed.steps_repeated),
    }
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
