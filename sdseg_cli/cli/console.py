"""What a person sees: progress on stderr, tables and JSON on stdout. Only the door uses this."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from sdseg_cli.cli.live import TrainLines, TrainView, words
from sdseg_cli.core import progress as callback
from sdseg_cli.core.errors import RunError, SdsegError
from sdseg_cli.core.filenames import printable, storable
from sdseg_cli.core.findings import Finding

SHOWN_WARNINGS = 3
LOG_EVERY_S = 15.0
"""Without a terminal, progress is a plain line this often."""


class _Stream:
    """Standard output or error: what it cannot encode is written out, and a refusal is told.

    Args:
        stream: The system's; None where it was closed before the start.
        lost: Called with what the system said when it takes no more; it may raise.
    """

    def __init__(self, stream: TextIO | None, lost: Callable[[str], None]) -> None:
        self._stream, self._lost = stream, lost

    def write(self, text: str) -> int:
        if self._stream is None:
            self._lost("it is closed")
            return len(text)
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            coding = self._stream.encoding or "ascii"
            plain = storable(text).encode(coding, "backslashreplace").decode(coding)
            self._guarded(lambda: self._stream and self._stream.write(plain))
        except (OSError, ValueError) as error:
            self._lost(_reason(error))
        return len(text)

    def flush(self) -> None:
        self._guarded(lambda: self._stream and self._stream.flush())

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    def _guarded(self, act: Callable[[], object]) -> None:
        try:
            act()
        except (OSError, ValueError) as error:
            self._lost(_reason(error))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()


def _stdout_lost(reason: str) -> None:
    raise RunError(
        f"standard output cannot be written to ({reason}).",
        "The work up to there is done, its files are whole: send the output elsewhere.",
    )


def _nobody_to_tell(reason: str) -> None:
    """What goes to stderr and is not taken cannot be complained about."""


@contextmanager
def guarded_streams() -> Iterator[None]:
    """Within the block a full or closed standard output is a RunError when it is written to or
    flushed; of standard error nobody could be told.
    """
    before = sys.stdout, sys.stderr
    sys.stdout = _Stream(before[0], _stdout_lost)
    sys.stderr = _Stream(before[1], _nobody_to_tell)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def let_go_of_stdout() -> None:
    """Have the interpreter's end not try once more to write what was not taken."""
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def show_error(failure: SdsegError) -> None:
    """One line of what happened and one of what to do, on stderr."""
    for head, text, style in (
        ("Error: ", failure.message, "bold red"),
        ("Hint: ", failure.hint, "bold cyan"),
    ):
        line = words(head, style) + words(_one_line(text), "default")
        Console(stderr=True, soft_wrap=True, highlight=False).print(line)


def _one_line(text: str) -> str:
    """Without the line breaks of other libraries' messages."""
    return re.sub(r"\s*\n\s*|[ \t]+", " ", text.strip())


def show_traceback() -> None:
    """Of the exception that is being handled, on stderr."""
    sys.stderr.write(printable(traceback.format_exc(), keep="\n"))


def show_help(context: typer.Context) -> None:
    """What a group of commands does when none of them is given."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _storable(value: Any) -> Any:
    """The same with texts that UTF-8 can hold: a name need not be UTF-8."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, Mapping):
        return {storable(str(key)): _storable(item) for key, item in value.items()}
    return [_storable(item) for item in value] if isinstance(value, list | tuple) else value


class Output:
    """How one command talks.

    Args:
        as_json: One JSON object on stdout and nothing else.
        quiet: No progress and no table; errors still show.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json, self.quiet = as_json, quiet
        self._out = Console(soft_wrap=True, highlight=False)
        self._log = Console(stderr=True, soft_wrap=True, highlight=False)

    def say(self, text: str) -> None:
        """A line on stderr, where there is no JSON or quiet."""
        if not (self.quiet or self.as_json):
            said = text.lstrip("\n")  # empty lines before it are ours
            self._log.print(*[""] * (len(text) - len(said)), words(said), sep="\n")

    def warn(self, findings: Sequence[Finding]) -> None:
        """Findings that stop nothing, on stderr; those of one kind after the third are counted."""
        told: Counter[str] = Counter()
        for one in findings:
            told[one.code] += 1
            if told[one.code] <= SHOWN_WARNINGS:
                self._warn(f"warning {one.code}, {one.case}: {one.measured}. {one.fix}")
        for code, count in told.items():
            if count > SHOWN_WARNINGS:
                self._warn(
                    f"warning {code}: {count - SHOWN_WARNINGS} more, see `sdseg check --json`"
                )

    def _warn(self, text: str) -> None:
        if not self.as_json:  # there they are in the object; --quiet silences no warning
            self._log.print(words(text))

    def object(self, values: Mapping[str, Any]) -> None:
        """One JSON object on stdout, strict: no NaN, no infinity, no half of a character."""
        text = json.dumps(_storable(values), allow_nan=False)
        # json leaves DEL as it is
        sys.stdout.write(text.replace("\x7f", "\\u007f") + "\n")

    def document(self, text: str) -> None:
        """A text on stdout as it is, to be piped into a file."""
        sys.stdout.write(text)

    def result(
        self,
        values: Mapping[str, Any],
        *,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        files: Sequence[Path] = (),
        unbroken: bool = False,
    ) -> None:
        """The end of a command: JSON, or a table and the path of each file written.

        With `unbroken` only the first column is folded where the terminal is narrow.
        """
        if self.as_json:
            self.object(values)
        self.table(title=title, columns=columns, rows=rows, unbroken=unbroken)
        if self.as_json or self.quiet:
            return
        for path in files:
            self._out.print(words(f"wrote {path}"))

    def table(
        self,
        *,
        title: str,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        unbroken: bool = False,
    ) -> None:
        """A table, where there is no JSON or quiet."""
        if self.as_json or self.quiet:
            return
        # Where no cell may break, lines between the columns would take the first one's place.
        lines: dict[str, Any] = {"box": SIMPLE_HEAD, "padding": (0, 0, 0, 1)} if unbroken else {}
        table = Table(title=words(title), title_justify="left", header_style="bold", **lines)
        for number, column in enumerate(columns):
            table.add_column(
                words(column, keep="\n"),
                justify="left" if number == 0 else "right",
                overflow="fold",
                no_wrap=unbroken and number > 0,
            )
        for row in rows:
            table.add_row(*(words(value) for value in row))
        self._out.print(table)

    def findings(
        self,
        values: Mapping[str, Any],
        *,
        title: str,
        rows: Sequence[tuple[str, str, str, str, str]],
    ) -> None:
        """Findings as JSON, or two lines each: what was measured, then what mends it.

        Args:
            values: The object of `--json`.
            title: Last line.
            rows: Level, code, case, what was measured, what mends it.
        """
        if self.as_json:
            self.object(values)
        if self.as_json or self.quiet:
            return
        for level, code, case, measured, fix in rows:
            style = "bold red" if level == "error" else "bold yellow"
            head = words(f"{level} ", style) + words(f"{code}  ", "bold") + words(f"{case}: ")
            self._out.print(head + words(_one_line(measured)))
            self._out.print(words("    Fix: ", "bold cyan") + words(fix, "default"))
        self._out.print(words(title, "bold"))

    @contextmanager
    def progress(self) -> Iterator[callback.Progress]:
        """A progress callback: a bar with the time left on a terminal, else a line now and then."""
        if self.quiet or self.as_json:
            yield callback.no_op
        elif self._log.is_terminal:
            with _bar(self._log) as shown:
                yield _BarProgress(shown)
        else:
            yield _LineProgress(self._log)

    @contextmanager
    def at_once(self, text: str) -> Iterator[Callable[[], None]]:
        """A callback that has a line printed on stderr, once, and that signal handlers may call.

        Another thread prints: a handler may have interrupted whoever holds the console. Neither
        --quiet nor --json silences what answers a key that was pressed.
        """
        asked: SimpleQueue[bool] = SimpleQueue()  # the one queue that handlers may put into

        def wait() -> None:
            if asked.get():
                self._log.print(words(text))

        printer = threading.Thread(target=wait, daemon=True)
        printer.start()
        try:
            yield lambda: asked.put(True)
        finally:
            asked.put(False)
            printer.join()

    @contextmanager
    def training(self, title: str, validations_after: float = 0.0) -> Iterator[callback.OnStep]:
        """A callback for `train`: a live view on a terminal, else a plain line now and then.

        Args:
            title: The run and its preset.
            validations_after: What follows the training takes as long as so many validations.
        """
        if self.quiet or self.as_json:
            yield callback.no_op
        elif sys.stderr.isatty() and not self._log.is_dumb_terminal:
            with TrainView(self._log, title, validations_after) as view:
                yield view
        else:  # a file, whatever FORCE_COLOR says: no control characters
            yield TrainLines(self._log, validations_after)


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


class _BarProgress:
    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task: TaskID | None = None
        self._done = 0

    def __call__(self, done: int, total: int, what: str) -> None:
        what = printable(what)
        if self._task is None or done < self._done:  # another piece of work begins
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(what, total=total)
        self._done = done
        self._bar.update(self._task, completed=done, total=total, description=what)


class _LineProgress:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = self._last = time.monotonic()
        self._first = 0
        self._done = 0

    def __call__(self, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        if done < self._done:
            self._started, self._first = now, done
        if self._done == 0:
            self._first = done
        self._done = done
        if now - self._last < LOG_EVERY_S or done == self._first:
            return
        self._last = now
        left = (now - self._started) / (done - self._first) * (total - done)
        self._console.print(words(f"{done}/{total} {what}, {left:.0f} s left"))
