"""Output for people and programs: progress on stderr, tables and JSON on stdout."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import typer
from rich import progress as bars
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sdseg_cli.core.errors import SdsegError
from sdseg_cli.core.filenames import printable
from sdseg_cli.core.findings import ERROR, EVERY_CASE, Finding
from sdseg_cli.core.progress import OnStep, Pace, Progress, TrainProgress, no_op
from sdseg_cli.core.tables import strict

SHOWN_WARNINGS = 3
"""Further warnings of one code are only counted."""
PROGRESS_EVERY_S, TRAINING_EVERY_S = 15.0, 30.0
"""Without a terminal, progress is a plain line about this often."""
SMOOTHED_STEPS = 50
"""Losses are shown as a mean over about so many steps."""


def words(text: str, style: str = "", keep: str = "") -> Text:
    """Text for a terminal: no markup is read in it, and nothing in it steers the terminal.

    All text goes through here, for it may hold names of files and words of headers.

    Args:
        text: Any.
        style: Of all of it.
        keep: As for `printable`.
    """
    return Text(printable(text, keep), style)


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


def show_help(context: typer.Context) -> None:
    """Show the help of a group of commands where none of them is given."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


class Output:
    """Output of one command.

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
            line = text.lstrip("\n")  # empty lines before it are ours
            self._log.print(*[""] * (len(text) - len(line)), words(line), sep="\n")

    def warn(self, findings: Sequence[Finding]) -> None:
        """Findings that stop nothing, on stderr; those of one kind after the third are counted."""
        if self.as_json:  # they are in the object; --quiet silences no warning
            return
        counts: Counter[str] = Counter()
        lines = []
        for one in findings:
            counts[one.code] += 1
            if counts[one.code] <= SHOWN_WARNINGS:
                case = "" if one.case == EVERY_CASE else f", {one.case}"
                lines.append(f"{one.code}{case}: {one.measured}. {one.fix}")
        for code, count in counts.items():
            if count > SHOWN_WARNINGS:
                lines.append(f"{code}: {count - SHOWN_WARNINGS} more, see `sdseg check --json`")
        for line in lines:
            self._log.print(words(f"warning {line}"))

    def object(self, values: Mapping[str, Any]) -> None:
        """One JSON object on stdout, as by `strict`."""
        text = json.dumps(strict(values)).replace("\x7f", "\\u007f")  # json leaves DEL as it is
        sys.stdout.write(f"{text}\n")

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
            return
        self.table(title=title, columns=columns, rows=rows, unbroken=unbroken)
        if not self.quiet:
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
        self, values: Mapping[str, Any], *, title: str, findings: Iterable[Finding]
    ) -> None:
        """Findings as JSON, or two lines each: what was measured, then the fix.

        Args:
            values: The object of `--json`.
            title: Last line.
            findings: Those to show; the case of one may name several.
        """
        if self.as_json:
            self.object(values)
        if self.as_json or self.quiet:
            return
        for one in findings:
            level = words(f"{one.level} ", "bold red" if one.level == ERROR else "bold yellow")
            head = level + words(f"{one.code}  ", "bold") + words(f"{one.case}: ")
            self._out.print(head + words(_one_line(one.measured)))
            self._out.print(words("    Fix: ", "bold cyan") + words(one.fix, "default"))
        self._out.print(words(title, "bold"))

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """A progress callback: a bar with the time left on a terminal, else a line now and then."""
        if self.quiet or self.as_json:
            yield no_op
        elif self._log.is_terminal:
            with _bar(self._log) as shown:
                yield _BarProgress(shown)
        else:
            yield _LineProgress(self._log)

    @contextmanager
    def at_once(self, text: str) -> Iterator[Callable[[], None]]:
        """A callback that prints a line on stderr, once, and that signal handlers may call.

        Another thread prints, for a handler may have interrupted code that holds the console's
        lock. Neither --quiet nor --json silences the answer to a key that was pressed.
        """
        requests: SimpleQueue[bool] = SimpleQueue()  # the one queue that handlers may put into

        def wait() -> None:
            if requests.get():
                self._log.print(words(text))

        printer = threading.Thread(target=wait, daemon=True)
        printer.start()
        try:
            yield lambda: requests.put(True)
        finally:
            requests.put(False)
            printer.join()

    @contextmanager
    def training(self, title: str, validations_after: float = 0.0) -> Iterator[OnStep]:
        """A callback for `train`: a live view on a terminal, else a plain line now and then.

        For `title` and `validations_after` see `TrainView`.
        """
        if self.quiet or self.as_json:
            yield no_op
        elif sys.stderr.isatty() and not self._log.is_dumb_terminal:
            with TrainView(self._log, title, validations_after) as view:
                yield view
        else:  # a file, whatever FORCE_COLOR says: no control characters
            yield TrainLines(self._log, validations_after)


def _bar(console: Console) -> bars.Progress:
    return bars.Progress(
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TextColumn("left"),
        bars.TimeRemainingColumn(),
        console=console,
        transient=True,
    )


class _BarProgress:
    """Progress on a terminal: one bar, begun anew with each piece of work."""

    def __init__(self, bar: bars.Progress) -> None:
        self._bar = bar
        self._task: bars.TaskID | None = None
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
    """Progress in a log: a line now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = self._last = time.monotonic()
        self._first = self._done = 0

    def __call__(self, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        if done < self._done:
            self._started, self._first = now, done
        if self._done == 0:
            self._first = done
        self._done = done
        if now - self._last < PROGRESS_EVERY_S or done == self._first:
            return
        self._last = now
        left = (now - self._started) / (done - self._first) * (total - done)
        self._console.print(words(f"{done}/{total} {what}, {left:.0f} s left"))


class _Training:
    """State of a training: its pace, and its losses without their noise.

    Args:
        console: Where it is shown.
        validations_after: What follows the training takes as long as so many validations.
    """

    def __init__(self, console: Console, validations_after: float = 0.0) -> None:
        self.console = console
        self.pace = Pace(validations_after)
        self.losses: dict[str, float] = {}
        self._reports = 0

    def take(self, now: TrainProgress) -> None:
        """Take in one report."""
        self.pace.take(now)
        found = {key: value for key, value in now.row.items() if key.startswith("loss")}
        self._reports += bool(found)
        for key, value in found.items():
            before = self.losses.get(key, value)
            self.losses[key] = before + (value - before) / min(self._reports, SMOOTHED_STEPS)


class TrainLines(_Training):
    """A training in a log: a line at each validation, at the end, and now and then."""

    _shown_s = 0.0

    def __call__(self, now: TrainProgress) -> None:
        self.take(now)
        due = now.seconds - self._shown_s >= TRAINING_EVERY_S or now.step == now.steps
        if now.row and (due or now.validated):
            self._shown_s = now.seconds
            parts = (
                f"step {now.step}/{now.steps}",
                losses_text(self.losses),
                f"lr {now.row['lr']:.2g}",
                dice_text(now) if now.validated else "",
                _speed(self.pace),
                _memory(now),
                _left(self.pace.seconds_left),
            )
            self.console.print(words(", ".join(part for part in parts if part)))


class TrainView(_Training):
    """A training on a terminal: a live view, to be entered before the first report.

    Args:
        console: A terminal.
        title: The run and its preset.
        validations_after: As for `_Training`.
    """

    def __init__(self, console: Console, title: str, validations_after: float = 0.0) -> None:
        super().__init__(console, validations_after)
        self._title = words(title, "bold")
        self._title.no_wrap, self._title.overflow = True, "ellipsis"
        self._now: TrainProgress | None = None
        self._reported_at = time.monotonic()
        self._live = Live(
            console=console, get_renderable=self.render, refresh_per_second=4, transient=True
        )

    def __enter__(self) -> TrainView:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __call__(self, now: TrainProgress) -> None:
        self.take(now)
        self._now, self._reported_at = now, time.monotonic()

    def render(self) -> RenderableType:
        """The view of this moment; between reports its clocks go on."""
        now = self._now
        if now is None:
            return Group(self._title, words("getting ready", "dim"))
        since, remaining = time.monotonic() - self._reported_at, self.pace.seconds_left
        clock = f"{duration(now.seconds + since)} gone"
        if remaining is not None:
            clock += f", {_left(max(0.0, remaining - since))}"
        bar = Table.grid(padding=(0, 1))
        share = f"{100 * now.step // now.steps} %"
        bar.add_row(ProgressBar(now.steps, now.step, width=32), f"{now.step}/{now.steps}", share)
        first = min(now.steps, (now.step // now.validate_every + 1) * now.validate_every)
        rows: dict[str, RenderableType] = {
            "step": bar,
            "time": clock,
            "speed": _speed(self.pace) or "-",
            "loss": losses_text(self.losses).removeprefix("loss ") or "-",
            "learning rate": f"{now.row['lr']:.2e}" if now.row else "-",
            "validation": dice_text(now) or f"first at step {first}",
            "checkpoint": f"step {now.checkpoint}" if now.checkpoint else "none yet",
            "memory": _memory(now),
        }
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="cyan", no_wrap=True)
        grid.add_column()
        for name, value in rows.items():
            if value:
                grid.add_row(name, value)
        return Group(self._title, grid)


def losses_text(values: Mapping[str, float]) -> str:
    """`loss 0.1234 (latent 0.0234, noise 0.1000)`; "" before the first step."""
    if "loss" not in values:
        return ""
    terms = [
        f"{key.removeprefix('loss_')} {value:.4f}"
        for key, value in sorted(values.items())
        if key != "loss"
    ]
    return f"loss {values['loss']:.4f}" + (f" ({', '.join(terms)})" if terms else "")


def dice_text(now: TrainProgress) -> str:
    """The last and the best validation Dice; "" where there is none."""
    parts = []
    if now.validation:
        parts.append(f"Dice {now.validation['val_dice']:.3f} at step {now.validation['step']:.0f}")
    if now.best:
        parts.append(f"best {now.best['val_dice']:.3f} at step {now.best['step']}")
    return ", ".join(parts)


def _speed(pace: Pace) -> str:
    """Three digits; "" where it is not known."""
    known = pace.slices_per_second
    return "" if known is None else f"{known:.3g} slices/s"


def _memory(now: TrainProgress) -> str:
    """Peak memory of the GPU; "" where there is none."""
    return "" if now.peak_gpu_bytes is None else f"GPU peak {now.peak_gpu_bytes / 1e9:.1f} GB"


def _left(seconds: float | None) -> str:
    """`0:12:31 left`; "" where it is not known."""
    return "" if seconds is None else f"{duration(seconds)} left"


def duration(seconds: float) -> str:
    """`H:MM:SS`, days in hours."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"
