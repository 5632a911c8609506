"""The table of commands, and the one place where errors become messages and exit codes.

Nothing heavy is imported at the top of `cli/`: commands import their work inside their bodies, so
that --help starts at once.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from sdseg_cli import __version__
from sdseg_cli.cli.bench import bench
from sdseg_cli.cli.check import check
from sdseg_cli.cli.compare import compare
from sdseg_cli.cli.console import show_error, show_help
from sdseg_cli.cli.demo import demo
from sdseg_cli.cli.distill import distill
from sdseg_cli.cli.evaluate import evaluate
from sdseg_cli.cli.next import next_scans
from sdseg_cli.cli.options import PanelCommand
from sdseg_cli.cli.predict import predict
from sdseg_cli.cli.prepare import prepare
from sdseg_cli.cli.runs import runs
from sdseg_cli.cli.stability import stability
from sdseg_cli.cli.train import train
from sdseg_cli.cli.weights import weights
from sdseg_cli.core.errors import ConfigError, RunError, SdsegError, near
from sdseg_cli.core.filenames import printable, storable

UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""typer carries its own click in newer versions; this is the right one in all."""

HELP = frozenset({"--help", "-h", "--version"})
LONGEST_SHOWN = 60
"""Characters shown of a name that the system refused."""
INTERRUPTED = 130
"""128 + SIGINT, as in shells."""

app = typer.Typer(
    name="sdseg",
    help="Segment medical volumes with a single-step latent diffusion model (SDSeg).",
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (prepare, train, runs, predict, evaluate, compare, stability, check, demo):
    app.command(cls=PanelCommand)(command)
app.command("next", cls=PanelCommand)(next_scans)
app.command(cls=PanelCommand)(distill)
app.command(cls=PanelCommand)(bench)
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
    for number in range(3):  # a closed standard stream: no file that is opened may become one
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    code = run_command(sys.argv[1:])
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):  # so that the interpreter does not try again at its end
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    raise SystemExit(code)


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
        return _failed(_unexpected(failure), debug)
    if code == INTERRUPTED:
        show_error(RunError("interrupted.", "Run the same command again; whole files stay."))
    return code if isinstance(code, int) else 0  # a command that found faults says so itself


def _misused(failure: Exception) -> ConfigError:
    """A refusal of the option parser, which proposes any name that shares some letters; this
    proposes only what may be a misspelling.
    """
    context: Any = getattr(failure, "ctx", None)
    command = context.command_path if context is not None else "sdseg"
    if possible := getattr(failure, "possibilities", None):
        failure.possibilities = near(getattr(failure, "option_name", ""), possible)  # type: ignore[attr-defined]
    message = getattr(failure, "format_message", failure.__str__)()
    unknown = re.match("No such command '(.*?)'", message, re.DOTALL)
    if unknown and context is not None:
        names = context.command.list_commands(context)
        meant = [f" Did you mean '{name}'?" for name in near(unknown[1], names)[:1]]
        message = f"{unknown[0]}.{''.join(meant)}"
    return ConfigError(message, f"See {command} --help.")


def _require_working_folder(arguments: Sequence[str]) -> None:
    """Refuse a current folder that was deleted; help does not need one. Raises ConfigError."""
    if not HELP & set(arguments):
        try:
            Path.cwd()
        except OSError as gone:
            raise ConfigError(
                "the folder that this command runs in is not there any more.",
                "Change to a folder that is: cd.",
            ) from gone


def _unexpected(failure: Exception) -> SdsegError:
    """An error of the system or a library, or a bug."""
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
    what = f"{type(failure).__name__}: {failure}" if str(failure) else type(failure).__name__
    return RunError(what, "This is a bug: add --debug and report what it shows.")


def _system_says(failure: OSError) -> SdsegError:
    """An error of the system that was not expected at this place."""
    name = os.fsdecode(failure.filename) if isinstance(failure.filename, str | bytes) else ""
    short = name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}..."
    why = failure.strerror or type(failure).__name__
    if failure.errno in (errno.ENAMETOOLONG, errno.EILSEQ, errno.ELOOP, errno.ENOTDIR):
        return ConfigError(f"{short}: cannot be a file's name ({why}).", "Correct the name.")
    if failure.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(f"{short or 'the disk'}: cannot be written ({why}).", "Free space on it.")
    return RunError(
        f"{short or 'the system'}: {why}.",
        "Check that it is there, its permissions, and the disk; --debug shows where it failed.",
    )


def _failed(failure: SdsegError, debug: bool) -> int:
    with guarded_streams():
        if debug:
            sys.stderr.write(printable(traceback.format_exc(), keep="\n"))
        show_error(failure)
    return failure.exit_code


@contextmanager
def guarded_streams() -> Iterator[None]:
    """Within the block, writing to a full or closed standard output is a RunError, and standard
    error takes everything: there is nowhere to report its own failure.
    """
    before = sys.stdout, sys.stderr
    out = _Stream(before[0], _stdout_lost)
    sys.stdout, sys.stderr = out, _Stream(before[1], _ignored)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        # A log handler of a library may keep the stream and flush it as Python ends.
        out.lost = _ignored


def _stdout_lost(reason: str) -> None:
    raise RunError(
        f"standard output cannot be written to ({reason}).",
        "The work up to there is done, its files are whole: send the output elsewhere.",
    )


def _ignored(reason: str) -> None:
    """Standard error is lost, and an error about it would be lost as well."""


class _Stream:
    """A standard stream that writes out what its encoding lacks, and reports a failure to write.

    Args:
        stream: The system's; None where it was closed before the start.
        lost: Called with the system's reason when a write fails; it may raise.
    """

    def __init__(self, stream: TextIO | None, lost: Callable[[str], None]) -> None:
        self._stream, self.lost = stream, lost

    def write(self, text: str) -> int:
        if self._stream is None:
            self.lost("it is closed")
            return len(text)
        with self._guarded():
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                coding = self._stream.encoding or "ascii"
                self._stream.write(storable(text).encode(coding, "backslashreplace").decode(coding))
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            with self._guarded():
                self._stream.flush()

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            self.lost((getattr(error, "strerror", None) or str(error)).lower())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
