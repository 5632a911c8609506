"""What a person sees of a training: a live view on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sdseg_cli.core.filenames import printable
from sdseg_cli.core.progress import Pace, TrainProgress

LINE_EVERY_S = 30.0
"""Without a terminal a line comes this often at most, but for validations and the end."""
SMOOTHED_STEPS = 50
"""Losses are shown as a mean that looks back about so far."""


def words(text: str, style: str = "", keep: str = "") -> Text:
    """The one way of text to a terminal: no markup is read in it, and nothing steers the terminal.

    Args:
        text: May hold names of files and words of headers.
        style: Of all of it.
        keep: As for `printable`.
    """
    return Text(printable(text, keep), style)


@dataclass
class Smoothed:
    """The loss terms without their noise."""

    values: dict[str, float] = field(default_factory=dict)
    count: int = 0

    def tell(self, row: Mapping[str, float]) -> None:
        """Take in a line of the log."""
        losses = {key: value for key, value in row.items() if key.startswith("loss")}
        self.count += bool(losses)
        for key, value in losses.items():
            before = self.values.get(key, value)
            self.values[key] = before + (value - before) / min(self.count, SMOOTHED_STEPS)


class TrainLines:
    """One line at each validation, at the end, and now and then."""

    def __init__(self, console: Console, validations_after: float = 0.0) -> None:
        self._console = console
        self._pace, self._losses = Pace(validations_after), Smoothed()
        self._said_s = 0.0

    def __call__(self, now: TrainProgress) -> None:
        self._pace.tell(now)
        self._losses.tell(now.row)
        due = now.seconds - self._said_s >= LINE_EVERY_S or now.step == now.steps
        if now.row and (due or now.validated):
            self._said_s = now.seconds
            parts = [f"step {now.step}/{now.steps}", losses(self._losses.values)]
            parts.append(f"lr {now.row['lr']:.2g}")
            if now.validated:
                parts.append(dice(now))
            parts += [speed(self._pace.slices_per_second), *gpu(now), left(self._pace.seconds_left)]
            self._console.print(words(", ".join(part for part in parts if part)))


class TrainView:
    """The live view; to be entered before it is told anything.

    Args:
        console: A terminal.
        title: The run and its preset.
        validations_after: What follows takes as long as so many validations.
    """

    def __init__(self, console: Console, title: str, validations_after: float = 0.0) -> None:
        self._title = title
        self._pace, self._losses = Pace(validations_after), Smoothed()
        self._now: TrainProgress | None = None
        self._told_at = time.monotonic()
        self._live = Live(
            console=console, get_renderable=self.render, refresh_per_second=4, transient=True
        )

    def __enter__(self) -> TrainView:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __call__(self, now: TrainProgress) -> None:
        self._pace.tell(now)
        self._losses.tell(now.row)
        self._now, self._told_at = now, time.monotonic()

    def render(self) -> RenderableType:
        """The view as it stands; between reports its clocks go on."""
        title, now = words(self._title, "bold"), self._now
        title.no_wrap, title.overflow = True, "ellipsis"
        if now is None:
            return Group(title, words("getting ready", "dim"))
        since, remaining = time.monotonic() - self._told_at, self._pace.seconds_left
        clock = f"{duration(now.seconds + since)} gone"
        if remaining is not None:
            clock += f", {left(max(0.0, remaining - since))}"
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="cyan", no_wrap=True)
        grid.add_column()
        grid.add_row("step", _bar(now))
        grid.add_row("time", clock)
        grid.add_row("speed", speed(self._pace.slices_per_second) or "-")
        grid.add_row("loss", losses(self._losses.values).removeprefix("loss ") or "-")
        grid.add_row("learning rate", f"{now.row['lr']:.2e}" if now.row else "-")
        grid.add_row("validation", dice(now) or f"first at step {_first_validation(now)}")
        grid.add_row("checkpoint", f"step {now.checkpoint}" if now.checkpoint else "none yet")
        for memory in gpu(now):
            grid.add_row("memory", memory)
        return Group(title, grid)


def _bar(now: TrainProgress) -> RenderableType:
    bar = Table.grid(padding=(0, 1))
    share = 100 * now.step // now.steps
    bar.add_row(ProgressBar(now.steps, now.step, width=32), f"{now.step}/{now.steps}", f"{share} %")
    return bar


def _first_validation(now: TrainProgress) -> int:
    return min(now.steps, (now.step // now.validate_every + 1) * now.validate_every)


def losses(values: Mapping[str, float]) -> str:
    """`loss 0.1234 (latent 0.0234, noise 0.1000)`; "" before the first step."""
    terms = [
        f"{key.removeprefix('loss_')} {value:.4f}"
        for key, value in sorted(values.items())
        if key != "loss"
    ]
    total = f"{values['loss']:.4f}" if "loss" in values else ""
    return f"loss {total} ({', '.join(terms)})" if terms else f"loss {total}" if total else ""


def dice(now: TrainProgress) -> str:
    """The last and the best validation Dice; "" where there is none."""
    parts = []
    if now.validation:
        parts.append(f"Dice {now.validation['val_dice']:.3f} at step {now.validation['step']:.0f}")
    if now.best:
        parts.append(f"best {now.best['val_dice']:.3f} at step {now.best['step']}")
    return ", ".join(parts)


def speed(slices_per_second: float | None) -> str:
    """Three digits; "" where it is not known."""
    return "" if slices_per_second is None else f"{slices_per_second:.3g} slices/s"


def gpu(now: TrainProgress) -> list[str]:
    """Peak memory, where there is a GPU."""
    return [] if now.peak_gpu_bytes is None else [f"GPU peak {now.peak_gpu_bytes / 1e9:.1f} GB"]


def left(seconds: float | None) -> str:
    """`0:12:31 left`; "" where it is not known."""
    return "" if seconds is None else f"{duration(seconds)} left"


def duration(seconds: float) -> str:
    """`H:MM:SS`, days in hours."""
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"
