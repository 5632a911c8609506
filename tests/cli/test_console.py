"""Nothing that comes from a file's name or header steers the terminal or is read as markup."""

from __future__ import annotations

import ast
import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

import sdseg_cli
from sdseg_cli.cli import console
from sdseg_cli.cli.console import Output, show_error
from sdseg_cli.cli.live import TrainView
from sdseg_cli.core.errors import DataError
from sdseg_cli.core.filenames import printable
from sdseg_cli.core.findings import Finding

NAME = "[red]a\x1b]0;owned\x07\x1b[2J\x7f\x9b1m\u202eb\u2066\r\nc\udce9\x00"
SHOWN = r"[red]a\x1b]0;owned\x07\x1b[2J\x7f\x9b1m\u202eb\u2066\r\nc\xe9\x00"
FINDING = Finding("code", "warning", NAME, NAME, NAME)


def test_what_steers_a_terminal_is_made_visible():
    assert printable("a\x1b[31m\x07\x9d\x7f\u202e\u2028\ufeff\udcff\t\n") == (
        r"a\x1b[31m\x07\x9d\x7f\u202e\u2028\ufeff\xff\t\n"
    )
    assert printable("two\nlines", keep="\n") == "two\nlines"


def test_names_of_all_scripts_stay_as_they_are():
    for name in ("scan 1.nii.gz", "Übung_é", "扫描", "\u0646\u200c\u0645", "👩\u200d⚕️", "a\u00a0b"):
        assert printable(name) == name


def harmless(text: str) -> None:
    assert not any(sign in text for sign in "\x1b\x07\x7f\x9b\u202e\u2066\r\x00\udce9")
    assert "[red]" in text  # no markup


@pytest.mark.parametrize(
    "tell",
    [
        lambda out: out.say(NAME),
        lambda out: out.warn([FINDING]),
        lambda out: out.result({}, title="t", columns=(), rows=(), files=(Path(NAME),)),
        lambda out: out.table(title=NAME, columns=(NAME, "b"), rows=((NAME, NAME),), unbroken=True),
        lambda out: out.findings({}, title=NAME, rows=((NAME,) * 5,)),
        lambda out: show_error(DataError(NAME, NAME)),
    ],
)  # fmt: skip
def test_nothing_that_is_told_reaches_the_terminal_raw(tell, capsys):
    tell(Output())
    told = capsys.readouterr()
    harmless(told.out + told.err)


def test_a_line_of_text_is_one_line(capsys):
    Output().say(NAME)
    assert capsys.readouterr().err == SHOWN + "\n"


def test_progress_and_the_live_view_are_plain_text(monkeypatch):
    file = io.StringIO()
    log = Console(file=file, width=300)
    monkeypatch.setattr(console, "LOG_EVERY_S", -1.0)
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


def test_one_function_alone_makes_text_for_the_terminal():
    makers = []
    for path in Path(sdseg_cli.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Text":
                makers.append(path.name)
    assert makers == ["live.py"]
