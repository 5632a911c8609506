r"""Tables for a paper: plain LaTeX that needs no package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdseg_cli.core.files import replacing

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "\u00b1": r"$\pm$",
    "\u00d7": r"$\times$",
    "\u2212": r"$-$",
    "\u2013": "--",
    "\u202f": r"\,",
    "\n": " ",
    "\r": " ",
}


def escape(text: str) -> str:
    """The text as LaTeX prints it, whatever characters it holds."""
    return "".join(_SPECIAL.get(letter, letter) for letter in text)


def latex_table(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A table environment: the first column to the left, the others to the right.

    Args:
        columns: Names, in order.
        rows: One text per column each.
        caption: Under the table.

    Returns:
        LaTeX, every cell escaped, ending in a line break.

    Raises:
        ValueError: There is no column, or a row has more or fewer cells than there are columns.
    """
    if not columns:
        raise ValueError("a table without columns")
    lines = [_line(row, len(columns)) for row in rows]
    return "\n".join(
        (
            r"\begin{table}",
            r"\centering",
            rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
            r"\hline",
            _line(columns, len(columns)),
            r"\hline",
            *lines,
            r"\hline",
            r"\end{tabular}",
            rf"\caption{{{escape(caption)}}}",
            r"\end{table}",
            "",
        )
    )


def write_latex(
    path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str
) -> None:
    """Write `latex_table`, atomically.

    Args:
        path: The .tex file; missing folders are made.
        columns: As `latex_table`.
        rows: As `latex_table`.
        caption: As `latex_table`.

    Raises:
        RunError: The disk refused.
        ValueError: As `latex_table`.
    """
    text = latex_table(columns, rows, caption)
    with replacing(path) as temporary:
        # A file name may hold bytes that are no text; the table is worth more than they are.
        temporary.write_bytes(text.encode("utf-8", errors="replace"))


def class_rows(
    classes: Sequence[Mapping[str, Any]], columns: Sequence[str]
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A row for each class, for `write_latex`: the mean of each metric and its standard deviation.

    Args:
        classes: As in evaluate.json: `name`, and `metrics` by column with `mean` and `sd`; the
            union may be the last.
        columns: Metrics, in order.

    Returns:
        Columns and rows; "-" for what is undefined.
    """

    def cell(found: Mapping[str, float | None]) -> str:
        mean, sd = found["mean"], found.get("sd")
        if mean is None:
            return "-"
        return f"{mean:.3f}" if sd is None else f"{mean:.3f} \u00b1 {sd:.3f}"

    rows = [(str(of["name"]), *(cell(of["metrics"][name]) for name in columns)) for of in classes]
    return ("class", *columns), rows


def _line(cells: Sequence[str], count: int) -> str:
    if len(cells) != count:
        raise ValueError(f"a row of {len(cells)} cells under {count} columns")
    return " & ".join(_cell(cell) for cell in cells) + r" \\"


def _cell(text: str) -> str:
    # LaTeX reads "[" after a line break as the break's option, and "*" too.
    return f"{{{escape(text)}}}" if text[:1] in ("[", "*") else escape(text)
