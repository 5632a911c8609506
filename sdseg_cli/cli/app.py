"""The table of commands, and the one place where errors become messages and exit codes.

Nothing heavy is imported at the top of `cli/`: commands import their work inside their bodies, so
that --help starts at once.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sdseg_cli import __version__
from sdseg_cli.cli.bench import bench
from sdseg_cli.cli.check import check
from sdseg_cli.cli.compare import compare
from sdseg_cli.cli.console import (
    guarded_streams,
    let_go_of_stdout,
    show_error,
    show_help,
    show_traceback,
)
from sdseg_cli.cli.demo import demo
from sdseg_cli.cli.distill import distill
from sdseg_cli.cli.evaluate import evaluate
from sdseg_cli.cli.options import PanelCommand
from sdseg_cli.cli.predict import predict
from sdseg_cli.cli.prepare import prepare
from sdseg_cli.cli.runs import runs
from sdseg_cli.cli.stability import stability
from sdseg_cli.cli.train import train
from sdseg_cli.cli.weights import weights
from sdseg_cli.core.errors import ConfigError, RunError, SdsegError, near

UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""typer carries its own click in newer versions; this is the right one in all."""

HELP = frozenset({"--help", "-h", "--version"})
LONGEST_SHOWN = 60
"""Letters of a name that the system did not take."""
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
    app.command(cls=PanelCommand)(command)
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
    _occupy_closed()
    code = run_command(sys.argv[1:])
    let_go_of_stdout()
    raise SystemExit(code)


def _occupy_closed() -> None:
    """Standard streams that were closed: no file that is opened may become one of them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free


def run_command(arguments: Sequence[str]) -> int:
    """Run one command line and show its errors.

    Returns:
        0 done; 1 the work failed; 2 usage, configuration or bad input; 3 part of a cohort failed;
        130 interrupted by Ctrl-C.
    """
    debug = "--debug" in arguments
    try:
        with guarded_streams():
            _require_working_folder(arguments)
            code = app(list(arguments), standalone_mode=False)
            sys.stdout.flush()
    except SdsegError as failure:
        return _failed(failure, debug)
    except UsageError as failure:
        return _failed(_misused(failure), debug)
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED  # newer versions of typer return it themselves
    except Exception as failure:  # noqa: BLE001, the last handler
        return _failed(_spoken(failure), debug)
    if code == INTERRUPTED:
        show_error(RunError("interrupted.", "Run the same command again; whole files stay."))
    return code if isinstance(code, int) else 0  # a command that found faults says so itself


def _misused(failure: Exception) -> ConfigError:
    """What the option parser refuses. It proposes whatever shares some letters; here only what may
    be a slip of the hand is.
    """
    context: Any = getattr(failure, "ctx", None)
    command = context.command_path if context is not None else "sdseg"
    if possible := getattr(failure, "possibilities", None):
        failure.possibilities = near(getattr(failure, "option_name", ""), possible)  # type: ignore[attr-defined]
    spoken = getattr(failure, "format_message", failure.__str__)()
    unknown = re.match("No such command '(.*?)'", spoken, re.DOTALL)
    if unknown and context is not None:
        names = context.command.list_commands(context)
        meant = [f" Did you mean '{name}'?" for name in near(unknown[1], names)[:1]]
        spoken = f"{unknown[0]}.{''.join(meant)}"
    return ConfigError(spoken, f"See {command} --help.")


def _require_working_folder(arguments: Sequence[str]) -> None:
    """Raises ConfigError where the current folder was deleted; help can do without."""
    if not HELP & set(arguments):
        try:
            Path.cwd()
        except OSError as gone:
            raise ConfigError(
                "the folder that this command runs in is not there any more.",
                "Change to a folder that is: cd.",
            ) from gone


def _spoken(failure: Exception) -> SdsegError:
    """What only the system, or no one, has a message for."""
    what = f"{type(failure).__name__}: {failure}" if str(failure) else type(failure).__name__
    if isinstance(failure, MemoryError):
        detail = f" ({failure})" if str(failure) else ""
        return RunError(
            f"the memory that is free does not suffice{detail}.",
            "Give a smaller --batch-size, end other programs, or take a machine with more memory.",
        )
    if isinstance(failure, OSError) and failure.errno is not None:
        return _system_says(failure)
    if isinstance(failure, ValueError) and "embedded null" in str(failure):
        return ConfigError(
            "a name holds a NUL character, which no file can have.", "Correct the name."
        )
    return RunError(what, "This is a bug: add --debug and report what it shows.")


def _system_says(failure: OSError) -> SdsegError:
    """An error of the system that nobody expected at this place."""
    name = os.fsdecode(failure.filename) if isinstance(failure.filename, str | bytes) else ""
    short = name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}..."
    why = failure.strerror or type(failure).__name__
    if failure.errno in (errno.ENAMETOOLONG, errno.EILSEQ, errno.ELOOP, errno.ENOTDIR):
        return ConfigError(f"{short}: cannot be a file's name ({why}).", "Correct the name.")
    if failure.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(f"{short or 'the disk'}: cannot be written ({why}).", "Make room on it.")
    return RunError(
        f"{short or 'the system'}: {why}.",
        "Check that it is there, its permissions, and the disk; --debug shows where it failed.",
    )


def _failed(failure: SdsegError, debug: bool) -> int:
    with guarded_streams():
        if debug:
            show_traceback()
        show_error(failure)
    return failure.exit_code
