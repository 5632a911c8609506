"""A table as LaTeX source that needs no package."""

from __future__ import annotations

from collections.abc import Sequence

_ESCAPED = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{letter: rf"\{letter}" for letter in "&%$#_{}"},
}


def latex_table(columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """A `table` with a caption; the first column to the left, the others to the right.

    Args:
        columns: Heads, in order.
        rows: Cells, as many in each row as there are columns.
        caption: Below the table.

    Returns:
        LaTeX source in which every text is escaped.

    Raises:
        ValueError: A row has more or fewer cells than there are columns.
    """
    if any(len(row) != len(columns) for row in rows):
        raise ValueError(f"a row without {len(columns)} cells")
    lines = [" & ".join(map(_escaped, row)) + r" \\" for row in (columns, *rows)]
    return "\n".join(
        (
            r"\begin{table}",
            r"\centering",
            rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
            r"\hline",
            lines[0],
            r"\hline",
            *lines[1:],
            r"\hline",
            r"\end{tabular}",
            rf"\caption{{{_escaped(caption)}}}",
            r"\end{table}",
            "",
        )
    )


def _escaped(text: str) -> str:
    """One pass, letter by letter, so that no escape is escaped again."""
    return "".join(_ESCAPED.get(letter, letter) for letter in text)
