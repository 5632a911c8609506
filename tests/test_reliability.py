"""Every row of docs/RELIABILITY.md, run: one line and a hint, no traceback, nothing written."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from sdseg_cli.cli.app import run_command
from tests.conftest import linked_copy
from tests.reliability_cases import ROWS, Row

PAGE = Path(__file__).resolve().parents[1] / "docs/RELIABILITY.md"
BEGIN, END = "<!-- rows: pytest tests/test_reliability.py --write-docs -->", "<!-- end of rows -->"
ALL = [row for rows in ROWS.values() for row in rows]
PRECIOUS = b"a mask of yesterday"
_written: dict[str, str] = {}


def marks(row: Row) -> tuple[pytest.MarkDecorator, ...]:
    """Slow where a mask is predicted to its end: half a second each."""
    return (pytest.mark.slow,) if row.home == "run" and row.code == 0 else ()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with an old mask in it and a workspace `home`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SDSEG_HOME", "home")
    monkeypatch.setenv("SDSEG_WEIGHTS", "home/weights")
    (tmp_path / "home").mkdir()
    (tmp_path / "mask.nii.gz").write_bytes(PRECIOUS)
    return tmp_path


def contents(folder: Path) -> dict[str, object]:
    """What each file holds; of a large one, shared by hard links, which file it is, and when it
    was written."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(folder).as_posix(): _held(path) for path in files}


def _held(path: Path) -> object:
    state = path.stat()
    return path.read_bytes() if state.st_nlink == 1 else (state.st_ino, state.st_mtime_ns)


def line_of(row: Row, printed: str, folder: Path) -> str:
    """The line that says it, free of this machine's folders and of its zlib."""
    lines = [line for line in printed.splitlines() if row.says in line]
    said = lines[-1].removeprefix("Error: ").replace(f"{folder}/", "").replace(str(folder), ".")
    said = re.sub(r"\(char \d+\)", "(char N)", said)  # as long as this test's folder
    said = re.sub(r'"(seconds\w*)": [\d.]+', r'"\1": N', said)
    return re.sub(r"at most [\d,]+", "at most N", said)


def as_markdown(row: Row, line: str) -> str:
    command = row.command.replace("\n", "\\n")
    command = command if len(command) < 100 else f"{command[:60]}…"
    said = line if len(line) < 260 else f"{line[:200]}…"
    cells = (row.what, f"`sdseg {command}`", str(row.code), said.replace("|", "\\|"))
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("row", [pytest.param(row, id=row.what, marks=marks(row)) for row in ALL])
def test_it_ends_as_the_page_says(
    row: Row,
    place: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if row.home == "run":
        linked_copy(request.getfixturevalue("shared_run").root, place / "home")
    row.build(place)
    before = contents(place)
    capsys.readouterr()
    assert run_command(shlex.split(row.command)) == row.code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert "This is a bug" not in err
    after = contents(place)
    error = ""
    if row.code:
        assert out == ""
        error, hint = err.splitlines()[-2:]
        assert error.startswith("Error: ") and row.says in error
        assert hint.startswith("Hint: ") and len(hint) > len("Hint: ")
        assert not [line for line in err.splitlines()[:-2] if line.startswith(("Error", "Hint"))]
        assert after == before, "nothing is written, nothing replaced"
    else:
        assert before.items() - {("mask.nii.gz", PRECIOUS)} <= after.items()
        assert not [name for name in after if ".part" in name]
    _written[row.what] = as_markdown(
        row, line_of(row, out + err if row.code == 0 else error, place)
    )
    if not request.config.getoption("--write-docs"):
        assert _written[row.what] in PAGE.read_text(encoding="utf-8").splitlines()


def test_the_page_lists_every_row_in_order(request: pytest.FixtureRequest) -> None:
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    rows, _, tail = rest.partition(END)
    if request.config.getoption("--write-docs"):
        tables = [table(heading) for heading in ROWS]
        PAGE.write_text(f"{head}{BEGIN}\n\n{''.join(tables)}{END}{tail}", encoding="utf-8")
        return
    listed = [line.split(" | ")[0].removeprefix("| ") for line in rows.splitlines()]
    assert [what for what in listed if what in {row.what for row in ALL}] == [
        row.what for row in ALL
    ], "run: pytest tests/test_reliability.py --write-docs"
    assert len(ALL) == len({row.what for row in ALL}) > 50


def table(heading: str) -> str:
    lines = [_written[row.what] for row in ROWS[heading]]
    top = f"### {heading}\n\n| input | command | exit code | what is printed |\n|---|---|---|---|\n"
    return top + "\n".join(lines) + "\n\n"
