"""The demo: a CT phantom set, and the commands to run on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sdseg_cli.core.progress import Progress, no_op

CASES = 14
SEED = 0
STEPS = 120
NAME = "btcv"
RUN = "demo"


@dataclass(frozen=True)
class Demo:
    """The result of `sdseg demo`.

    Attributes:
        folder: The workspace: holds the phantom, the prepared set, the run and the mask.
        commands: Arguments of `sdseg`, in order, to be run with SDSEG_HOME at `folder`.
        scan: The scan that is predicted.
        mask: The mask that comes of it.
        picture: What to look at afterwards.
    """

    folder: Path
    commands: tuple[tuple[str, ...], ...]
    scan: Path
    mask: Path
    picture: Path

    def was_stopped(self) -> bool:
        """The training was stopped before its end, so what follows would not be the demo's."""
        from sdseg_cli.runs.run_folder import RunDir

        run = RunDir(self.folder / "runs" / NAME / RUN)
        return run.status().get("state") == "stopped"


def set_up(folder: Path, *, steps: int = STEPS, progress: Progress = no_op) -> Demo:
    """Make the phantom set (if it is not there yet) and say which commands to run on it.

    Args:
        folder: The demo's workspace; made if missing.
        steps: Optimiser steps of the training.
        progress: Called after each phantom.

    Raises:
        RunError: The folder cannot be written to.
    """
    from sdseg_cli.demo.phantom import PLACE, write_phantom_set
    from sdseg_cli.runs.run_folder import RunDir

    phantom = folder / "phantom"
    made = {part: sorted((phantom / PLACE / part).glob("*.nii.gz")) for part in ("img", "label")}
    if any(len(files) != CASES for files in made.values()):
        made["img"] = write_phantom_set(phantom, cases=CASES, seed=SEED, progress=progress)
    scan = made["img"][0]  # case 1 is a test case of BTCV's split
    mask = folder / f"mask_of_{scan.name}"
    run = folder / "runs" / NAME / RUN
    if RunDir(run).config_file.is_file():  # of a version that trained longer
        steps = max(steps, RunDir(run).config().train.steps)
    commands = (
        ("prepare", str(phantom), "--dataset", NAME),
        ("train", "--dataset", NAME, "--run", RUN, "--steps", str(steps)),
        ("predict", str(scan), "-o", str(mask), "--run", str(run)),
        ("evaluate", "--run", str(run)),
        ("stability", "--runs", "3", "--run", str(run)),
    )
    return Demo(folder, commands, scan, mask, run / "report" / "test" / "cases.png")
