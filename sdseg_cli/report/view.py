"""A table as a page shows it: every cell a text, and the number it is sorted by."""

from __future__ import annotations

from dataclasses import dataclass

from sdseg_cli.report import wording


@dataclass(frozen=True)
class Column:
    """A heading."""

    label: str
    unit: str = ""
    is_text: bool = False
    """Sorted as text, else as numbers."""


@dataclass(frozen=True)
class Cell:
    """One entry."""

    text: str
    value: float | None = None
    """What a column of numbers is sorted by; None where undefined."""
    below: str = ""
    """A smaller second line."""


@dataclass(frozen=True)
class Row:
    """One line."""

    cells: tuple[Cell, ...]
    case_id: str
    """The case whose picture belongs to it; empty if there is none."""


@dataclass(frozen=True)
class Table:
    """Columns and rows."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


def numeric(value: float | None, places: int) -> Cell:
    """A number with so many decimals."""
    return Cell(wording.number(value, places), value)
