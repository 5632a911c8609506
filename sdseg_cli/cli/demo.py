"""`sdseg demo`."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path
from typing import Annotated, cast

import typer

from sdseg_cli.cli import options as opt
from sdseg_cli.cli.console import Output
from sdseg_cli.demo.demo import STEPS


def demo(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder for everything it makes.")] = Path("demo"),
    steps: Annotated[int, typer.Option(help="Optimiser steps of the training.")] = STEPS,
    device: opt.Device = "auto",
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Make a CT phantom set and run the main commands on it."""
    from sdseg_cli.demo.demo import set_up

    started = time.monotonic()
    output = Output(as_json=as_json, quiet=quiet)
    output.say("making a CT phantom set")
    with output.progress() as progress:
        plan = set_up(folder, steps=steps, progress=progress)
    os.environ["SDSEG_HOME"] = str(folder)
    for arguments in plan.commands:
        output.say(f"\n$ SDSEG_HOME={shlex.quote(str(folder))} sdseg {shlex.join(arguments)}")
        computed_on = ["--device", device] if arguments[0] != "prepare" else []
        silence = ["--quiet"] if quiet or as_json else []
        _app_of(context)([*arguments, *computed_on, *silence], standalone_mode=False)
        if arguments[0] == "train" and plan.was_stopped():
            output.say("\nstopped; to go on, run the same command again.")
            return
    seconds = time.monotonic() - started
    if as_json:
        output.object(
            {
                "folder": str(folder),
                "seconds": round(seconds, 1),
                "mask": str(plan.mask),
                "picture": str(plan.picture),
            }
        )
    output.say(f"\ndone in {seconds:.0f} s; look at {plan.picture}")


def _app_of(context: typer.Context) -> typer.core.TyperGroup:
    """The whole command line, so that each command runs exactly as if it had been typed."""
    return cast("typer.core.TyperGroup", context.find_root().command)
