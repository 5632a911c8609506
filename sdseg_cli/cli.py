"""The door: the table of commands, and the one place where errors become messages and exit codes.

Nothing heavy is imported here or in `commands/`: verbs are imported inside the command bodies, so
that --help costs nothing.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from sdseg_cli import __version__
from sdseg_cli.commands.bench import bench
from sdseg_cli.commands.check import check
from sdseg_cli.commands.compare import compare
from sdseg_cli.commands.demo import demo
from sdseg_cli.commands.distill import distill
from sdseg_cli.commands.evaluate import evaluate
from sdseg_cli.commands.predict import predict
from sdseg_cli.commands.prepare import prepare
from sdseg_cli.commands.runs import runs
from sdseg_cli.commands.stability import stability
from sdseg_cli.commands.train import train
from sdseg_cli.commands.weights import weights
from sdseg_cli.console import show_error, show_help, show_traceback
from sdseg_cli.errors import ConfigError, RunError, SdsegError

UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""typer carries its own click in newer versions; this is the right one in all."""

INTERRUPTED = 130
"""128 and the number of SIGINT, as shells say it."""

app = typer.Typer(
    name="sdseg",
    help="Segment medical volumes with a single-step latent diffusion model (SDSeg).",
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (
    prepare,
    train,
    runs,
    predict,
    evaluate,
    compare,
    stability,
    check,
    demo,
    distill,
    bench,
)
for command in COMMANDS:
    app.command()(command)
app.add_typer(weights)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        typer.echo(f"sdseg {__version__}")
        raise typer.Exit
    show_help(context)


def main() -> None:
    """The console script."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a letter it cannot show is no reason to fail
        sys.stdout.reconfigure(errors="backslashreplace")
    raise SystemExit(run_command(sys.argv[1:]))


def run_command(arguments: Sequence[str]) -> int:
    """Run one command line and show its errors.

    Returns:
        0 done; 1 the work failed; 2 usage, configuration or bad input; 3 part of a cohort failed;
        130 interrupted by Ctrl-C.
    """
    debug = "--debug" in arguments
    try:
        code = app(list(arguments), standalone_mode=False)
    except SdsegError as failure:
        return _failed(failure, debug)
    except UsageError as failure:
        context = getattr(failure, "ctx", None)
        command = context.command_path if context is not None else "sdseg"
        spoken = getattr(failure, "format_message", failure.__str__)()
        return _failed(ConfigError(spoken, f"See {command} --help."), debug)
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED  # newer versions of typer return it themselves
    except Exception as failure:  # noqa: BLE001, the last handler
        what = f"{type(failure).__name__}: {failure}" if str(failure) else type(failure).__name__
        return _failed(
            RunError(what, "This is a bug: add --debug and report what it shows."), debug
        )
    if code == INTERRUPTED:
        show_error(RunError("interrupted.", "Run the same command again; whole files stay."))
    return code if isinstance(code, int) else 0  # a command that found faults says so itself


def _failed(failure: SdsegError, debug: bool) -> int:
    if debug:
        show_traceback()
    show_error(failure)
    return failure.exit_code
