"""Output: names and headers neither steer the terminal nor are markup; how a training is shown."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from sdseg_cli.cli import console
from sdseg_cli.cli.console import (
    Output,
    TrainLines,
    TrainView,
    dice_text,
    duration,
    losses_text,
    show_error,
)
from sdseg_cli.core.errors import DataError
from sdseg_cli.core.findings import Finding
from sdseg_cli.core.progress import TrainProgress, no_op

NAME = "[red]a\x1b]0;owned\x07\x1b[2J\x7f\x9b1m\u202eb\u2066\r\nc\udce9\x00"
SHOWN = r"[red]a\x1b]0;owned\x07\x1b[2J\x7f\x9b1m\u202eb\u2066\r\nc\xe9\x00"
FINDING = Finding("code", "warning", NAME, NAME, NAME)


def harmless(text: str) -> None:
    assert not any(sign in text for sign in "\x1b\x07\x7f\x9b\u202e\u2066\r\x00\udce9")
    assert "[red]" in text  # no markup


@pytest.mark.parametrize(
    "write",
    [
        lambda out: out.say(NAME),
        lambda out: out.warn([FINDING]),
        lambda out: out.result({}, title="t", columns=(), rows=(), files=(Path(NAME),)),
        lambda out: out.table(title=NAME, columns=(NAME, "b"), rows=((NAME, NAME),), unbroken=True),
        lambda out: out.findings({}, title=NAME, findings=[FINDING]),
        lambda out: show_error(DataError(NAME, NAME)),
    ],
)  # fmt: skip
def test_no_output_reaches_the_terminal_raw(write, capsys):
    write(Output())
    harmless("".join(capsys.readouterr()))


def test_a_line_of_text_is_one_line(capsys):
    Output().say(NAME)
    assert capsys.readouterr().err == SHOWN + "\n"


def test_progress_and_the_live_view_are_plain_text(monkeypatch):
    file = io.StringIO()
    log = Console(file=file, width=300)
    monkeypatch.setattr(console, "PROGRESS_EVERY_S", -1.0)
    lines = console._LineProgress(log)
    lines(0, 3, NAME)
    lines(1, 3, NAME)
    lines(2, 3, NAME)
    bar: Progress = console._bar(Console(file=file, width=300, force_terminal=True))
    console._BarProgress(bar)(1, 3, NAME)
    log.print(bar)
    log.print(TrainView(log, NAME).render())
    harmless(file.getvalue())
    assert file.getvalue().count("owned") == 3


def test_json_is_ascii_without_control_characters(capsys):
    Output(as_json=True).object({"name": NAME})
    text = capsys.readouterr().out
    assert text.isascii()
    assert text.rstrip("\n").isprintable()
    # Half a character, as Python holds a byte that is no UTF-8, is written out.
    assert json.loads(text) == {"name": NAME.replace("\udce9", "\\xe9")}


NOW = TrainProgress(step=0, steps=100, slices_per_step=4, validate_every=50)


def row(step: int, loss: float = 0.5) -> dict[str, float]:
    return {"step": step, "loss": loss, "loss_noise": 0.2, "loss_latent": 0.3, "lr": 1e-4}


def report(step: int, seconds: float, **changes: object) -> TrainProgress:
    return replace(NOW, step=step, seconds=seconds, row=row(step), **changes)  # type: ignore[arg-type]


def lines(*reports: TrainProgress) -> list[str]:
    file = io.StringIO()
    say = TrainLines(Console(file=file, soft_wrap=True))
    for one in (NOW, *reports):
        say(one)
    return file.getvalue().splitlines()


def test_a_log_gets_a_line_every_half_minute_and_at_the_end() -> None:
    said = lines(*(report(step, float(step)) for step in range(1, 101)))
    assert [line.split(",")[0] for line in said] == [
        "step 30/100",
        "step 60/100",
        "step 90/100",
        "step 100/100",
    ]
    assert said[0] == (
        "step 30/100, loss 0.5000 (latent 0.3000, noise 0.2000), lr 0.0001, 4 slices/s, "
        "0:01:10 left"
    )


def test_a_log_gets_a_line_at_each_validation_and_no_control_characters() -> None:
    found = {"step": 2, "val_dice": 0.25}
    said = lines(report(1, 0.1), report(2, 0.2, validation=found, best=found), report(3, 0.3))
    assert len(said) == 1
    assert "Dice 0.250 at step 2, best 0.250 at step 2" in said[0]
    assert said[0].isprintable()


def test_the_view_shows_everything_on_eighty_columns() -> None:
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=False)
    view = TrainView(console, "runs/btcv/tiny, preset tiny")
    console.print(view.render())
    assert "getting ready" in file.getvalue()
    view(replace(NOW, step=40, checkpoint=40))
    found, best = {"step": 43, "val_dice": 0.5}, {"step": 20, "val_dice": 0.75}
    for step in (41, 42, 43, 44):
        seen = {"validation": found, "best": best} if step >= 43 else {}
        view(report(step, 2.0 * (step - 40), checkpoint=40, peak_gpu_bytes=3_210_000_000, **seen))
    console.print(view.render())
    shown = file.getvalue()
    for part in (
        "runs/btcv/tiny, preset tiny",
        "44/100 44 %",
        "0:00:08 gone, 0:01:52 left",  # 56 steps of 2 s
        "2 slices/s",
        "0.5000 (latent 0.3000, noise 0.2000)",
        "1.00e-04",
        "Dice 0.500 at step 43, best 0.750 at step 20",
        "step 40",
        "GPU peak 3.2 GB",
    ):
        assert part in shown, shown
    assert max(map(len, shown.splitlines())) <= 80


def test_before_the_first_validation_the_view_says_when_it_comes() -> None:
    file = io.StringIO()
    console = Console(file=file, width=80)
    view = TrainView(console, "x")
    view(replace(NOW, step=60, steps=90))
    console.print(view.render())
    assert "first at step 90" in file.getvalue()
    assert "none yet" in file.getvalue()


def test_losses_are_smoothed_from_the_first_step_on() -> None:
    said = TrainLines(Console(file=io.StringIO()))
    for step, row in enumerate(({}, {"loss": 4.0, "lr": 1.0}, {"loss": 2.0, "lr": 1.0})):
        said(replace(NOW, step=step, row=row))
    assert said.losses == {"loss": 3.0}


def test_what_is_not_known_is_left_out() -> None:
    assert losses_text({}) == ""
    assert losses_text({"loss": 0.25}) == "loss 0.2500"
    assert dice_text(NOW) == ""
    assert dice_text(replace(NOW, best={"step": 3, "val_dice": 0.5})) == "best 0.500 at step 3"


def test_times_are_hours_minutes_and_seconds() -> None:
    assert duration(0) == "0:00:00"
    assert duration(3599.6) == "1:00:00"
    assert duration(100 * 3600 + 61) == "100:01:01"


@pytest.mark.parametrize("how", [{"quiet": True}, {"as_json": True}])
def test_quiet_and_json_silence_a_training(
    how: dict[str, bool], capsys: pytest.CaptureFixture[str]
) -> None:
    with Output(**how).training("x") as on_step:
        assert on_step is no_op
    assert capsys.readouterr() == ("", "")


def test_a_file_gets_plain_lines_whatever_is_forced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Output().training("x") as on_step:
        on_step(NOW)
        on_step(report(100, 1.0))
    assert capsys.readouterr().err.rstrip("\n").isprintable()


def test_a_terminal_gets_the_live_view_and_its_last_words_are_wiped() -> None:
    file = io.StringIO()
    with TrainView(Console(file=file, force_terminal=True, width=80), "the run") as view:
        view(report(1, 1.0))
    assert "the run" in file.getvalue()
    assert file.getvalue().endswith("\x1b[2K")  # erases the line it stood on


@pytest.mark.parametrize("how", [{}, {"quiet": True}, {"as_json": True}])
def test_a_signal_is_answered_on_stderr_once_while_it_trains(
    how: dict[str, bool], capsys: pytest.CaptureFixture[str]
) -> None:
    with Output(**how).at_once("stopping") as asked:
        asked()
        asked()
    assert capsys.readouterr() == ("", "stopping\n")
    with Output(**how).at_once("stopping"):
        pass
    assert capsys.readouterr() == ("", "")
