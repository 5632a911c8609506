"""`sdseg predict DIR -o OUT`, killed, in two shards, and on a Ray cluster that loses an actor.

    python -m benchmarks.cohort_kills [--scans 30] [--kills 10] [--seed 0] [--no-ray]

Small made-up scans, three of them bad, and a model of a few steps whose last layer answers loudly,
so that masks are neither empty nor full. First a run that nobody disturbs. Then the same command,
killed with SIGKILL at random moments until so many processes have died; two shards at once, both
killed once; and Ray with two actors, one of which is killed. Each time the same command goes on,
and in the end every good scan has the undisturbed run's mask, byte for byte, the bad ones are
named, and nothing half-written is left. After each kill no mask that is there may differ either.
Prints one JSON object; ends with an error at the first thing that is not so.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from benchmarks.results import start
from sdseg_cli.core.files import LEFT_AFTER_S
from sdseg_cli.demo.phantom import write_phantom_set
from sdseg_cli.runs.checkpoint import Checkpoint
from sdseg_cli.runs.run_folder import RunDir

SHAPE, SPACING_MM = (44, 44, 10), (8.0, 8.0, 16.0)
SLICES = 2
PART_FAILED = 3
POLL_S = 0.02


@dataclass(frozen=True)
class Setting:
    """Where everything is.

    Attributes:
        home: The workspace.
        good: Cases that can be predicted.
        bad: Cases that cannot.
        masks: Case -> the undisturbed run's mask.
        seconds: How long that run took.
    """

    home: Path
    good: tuple[str, ...]
    bad: tuple[str, ...]
    masks: dict[str, bytes]
    seconds: float


def predict(home: Path, out: str, *more: str) -> subprocess.Popen[bytes]:
    """The command that begins a cohort, and goes on with it."""
    options = ["--run", "btcv/loud", "--device", "cpu", "--quiet", *more]
    scans, masks = str(home / "scans"), str(home / out)
    # A failed scan's message is not shown.
    return start(home, "predict", scans, "-o", masks, *options, stderr=subprocess.DEVNULL)


def make_run(home: Path) -> None:
    """A trained run that predicts neither nothing nor everything: `btcv/loud`."""
    write_phantom_set(home / "phantom", cases=7, seed=0, shape=SHAPE, spacing_mm=SPACING_MM)
    source = [str(home / "phantom"), "--dataset", "btcv", "--workers", "1", "--quiet"]
    steps = ["--run", "loud", "--steps", "2", "--init", "autoencoder", "--device", "cpu", "--quiet"]
    few = ["--set=train.batch_size=2", "--set=train.validation_slices=2"]
    for arguments in (["prepare", *source], ["train", "--dataset", "btcv", *steps, *few]):
        if start(home, *arguments, stderr=subprocess.DEVNULL).wait():
            raise SystemExit(f"{arguments[0]} failed")
    best = RunDir(home / "runs" / "btcv" / "loud").best
    checkpoint, name = Checkpoint.load(best), "unet.out.2.weight"
    last = checkpoint.weights[name]
    loud = torch.randn(last.shape, generator=torch.Generator().manual_seed(0)) * 0.3
    replace(checkpoint, weights={**checkpoint.weights, name: loud.to(last.dtype)}).save(best)


def make_scans(folder: Path, count: int, seed: int) -> tuple[list[str], list[str]]:
    """Small CTs: a body at 40 HU with an organ; the 3rd, 4th and 5th are bad, each in its way.

    Returns:
        Good cases and bad ones.
    """
    rng = np.random.default_rng(seed)
    names = [f"pt_{number}/ct" for number in range(1, count + 1)]
    for name in names:
        path = folder / f"{name}.nii.gz"
        path.parent.mkdir(parents=True)
        hu = np.full((24, 20, SLICES), -1000, np.int16)
        hu[3:21, 3:17] = 40
        row = int(rng.integers(5, 12))
        hu[row : row + 6, 6:12] = 180
        hu += rng.integers(-15, 15, hu.shape).astype(np.int16)
        nib.save(nib.Nifti1Image(hu, np.diag([-3.0, -3.0, 5.0, 1.0])), path)
    cut, text, series = (folder / f"{name}.nii.gz" for name in names[2:5])
    cut.write_bytes(cut.read_bytes()[:300])
    text.write_text("no scan")
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 2), np.int16), np.eye(4)), series)
    return names[:2] + names[5:], names[2:5]


def prepare(home: Path, scans: int, seed: int) -> Setting:
    """The scans, the run, and the masks that nobody disturbs."""
    make_run(home)
    good, bad = make_scans(home / "scans", scans, seed)
    started = time.monotonic()
    if predict(home, "undisturbed").wait() != PART_FAILED:
        raise SystemExit("the undisturbed run did not end with 3")
    seconds = time.monotonic() - started
    masks = {name: (home / "undisturbed" / f"{name}.nii.gz").read_bytes() for name in good}
    if not any(np.asarray(nib.load(path).dataobj).any() for path in found(home / "undisturbed")):
        raise SystemExit("every mask is empty: nothing would be compared")
    setting = Setting(home, tuple(good), tuple(bad), masks, seconds)
    check_end(setting, "undisturbed")
    return setting


def found(out: Path) -> list[Path]:
    """The masks that are there."""
    return [path for path in out.rglob("*.nii.gz") if not path.name.startswith(".")]


def check_masks(setting: Setting, out: str) -> int:
    """Whatever is there is whole and right; how many there are."""
    there = found(setting.home / out)
    for path in there:
        case = path.relative_to(setting.home / out).as_posix().removesuffix(".nii.gz")
        if path.read_bytes() != setting.masks[case]:
            raise SystemExit(f"{path} is not the undisturbed run's")
    return len(there)


def check_end(setting: Setting, out: str) -> None:
    """Every good scan is done, the bad ones are named, nothing half-written is left."""
    folder = setting.home / out
    if check_masks(setting, out) != len(setting.good):
        raise SystemExit(f"{folder}: a good scan has no mask")
    with (folder / "ledger.csv").open(newline="", encoding="utf-8") as stream:
        rows = {row["case"]: row for row in csv.DictReader(stream)}
    states = {case: row["status"] for case, row in rows.items()}
    if states != dict.fromkeys(setting.good, "done") | dict.fromkeys(setting.bad, "failed"):
        raise SystemExit(f"{folder}: the ledger says {states}")
    if not all(rows[case]["error"] for case in setting.bad):
        raise SystemExit(f"{folder}: a bad scan's error is empty")
    if list(folder.rglob(".*.part.*")):
        raise SystemExit(f"{folder}: something half-written is left")


def let_an_hour_pass(setting: Setting, out: str) -> None:
    """For what is half-written: younger files are left alone, somebody may be writing them."""
    for path in (setting.home / out).rglob(".*.part.*"):
        with suppress(FileNotFoundError):
            os.utime(path, (time.time() - 2 * LEFT_AFTER_S,) * 2)


def kill_and_go_on(setting: Setting, kills: int, seed: int) -> dict[str, Any]:
    """One process at a time, killed at random moments spread over the cohort.

    Each is killed up to a second after the masks are so many more, from none (so that it is
    starting, or verifying what is there) to twice as many as would bring all kills to the end.
    """
    rng, died, ended = random.Random(seed), 0, 0
    at: list[int] = []
    while True:
        out = f"killed-{ended}"
        process = predict(setting.home, out)
        if died < kills:
            there, step = len(found(setting.home / out)), 2 * len(setting.good) // kills
            moment = min(there + rng.randint(0, step), len(setting.good) - 1)
            wait_for_masks(setting, out, max(there, moment), [process])
            time.sleep(rng.uniform(0, 1))
            process.kill()
        code = process.wait()
        let_an_hour_pass(setting, out)
        masks = check_masks(setting, out)
        if code == PART_FAILED:
            check_end(setting, out)
            ended += 1
            if died == kills:
                return {"killed": died, "masks_at_each_kill": at, "cohorts_that_ended": ended}
        elif code != -signal.SIGKILL:
            raise SystemExit(f"the same command ended with {code}")
        else:
            died += 1
            at.append(masks)


def two_shards(setting: Setting) -> dict[str, Any]:
    """Two processes at once, both killed half-way, and both again."""
    parts = ("--shard", "0/2"), ("--shard", "1/2")
    both = [predict(setting.home, "shards", *part) for part in parts]
    wait_for_masks(setting, "shards", len(setting.good) // 2, both)
    for process in both:
        process.kill()
        process.wait()
    let_an_hour_pass(setting, "shards")
    masks = check_masks(setting, "shards")
    both = [predict(setting.home, "shards", *part) for part in parts]
    codes = [process.wait() for process in both]
    if set(codes) - {0, PART_FAILED}:
        raise SystemExit(f"the shards ended with {codes}")
    check_end(setting, "shards")
    return {"masks_when_both_were_killed": masks, "exit_codes": codes}


def ray_with_a_dead_actor(setting: Setting) -> dict[str, Any]:
    """Two actors on this machine; one is killed with SIGKILL while it predicts."""
    driver = predict(setting.home, "ray", "--engine", "ray", "--workers", "2")
    wait_for_masks(setting, "ray", len(setting.good) // 2, [driver])
    actors = actors_of(driver.pid)
    os.kill(actors[0], signal.SIGKILL)
    let_an_hour_pass(setting, "ray")
    masks = check_masks(setting, "ray")
    if driver.wait() != PART_FAILED:
        raise SystemExit(f"the driver ended with {driver.returncode}")
    check_end(setting, "ray")
    return {"actors": len(actors), "killed": 1, "masks_when_it_was_killed": masks}


def wait_for_masks(
    setting: Setting, out: str, count: int, processes: list[subprocess.Popen[bytes]]
) -> None:
    """Until so many are there; a process that ends before is an error."""
    while len(found(setting.home / out)) < count:
        if any(process.poll() is not None for process in processes):
            raise SystemExit(f"{out}: ended before {count} masks were there")
        time.sleep(POLL_S)


def actors_of(driver: int) -> list[int]:
    """Process ids of a driver's Ray actors (Linux)."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(status.parent.name)] = int(status.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue  # it has ended meanwhile

    def above(pid: int) -> Iterator[int]:
        while pid in parents:
            pid = parents[pid]
            yield pid

    ours = (pid for pid in parents if driver in above(pid))
    named = {pid: Path(f"/proc/{pid}/cmdline") for pid in ours}
    return [pid for pid, file in named.items() if file.read_bytes().startswith(b"ray::_Actor")]


def main() -> None:
    """Disturb, compare and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for option, default in (("--scans", 30), ("--kills", 10), ("--seed", 0)):
        parser.add_argument(option, type=int, default=default)
    parser.add_argument("--no-ray", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        setting = prepare(Path(folder), options.scans, options.seed)
        result: dict[str, Any] = {
            "good": len(setting.good),
            "bad": len(setting.bad),
            "undisturbed_seconds": round(setting.seconds, 1),
            "kills": kill_and_go_on(setting, options.kills, options.seed),
            "two_shards": two_shards(setting),
        }
        if not options.no_ray:
            result["ray"] = ray_with_a_dead_actor(setting)
    result["masks_equal_byte_for_byte"] = True
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
