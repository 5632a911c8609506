"""Results as CSV and strict JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sdseg_cli.core.filenames import as_text, storable
from sdseg_cli.core.files import replacing

Cell = str | int | float | None

_FORMULA = re.compile(r"'*\s*[=+\-@\uff0b\uff0d\uff1d\uff20\x00-\x1f\x7f-\x9f]")
"""The beginning of a text that a spreadsheet would compute, or that steers a terminal; also with
apostrophes before it, so that removing one is unambiguous."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_QUOTED = re.compile(r"[\",;\x00-\x1f\x7f-\x9f\u2028\u2029]|^\s|\s$")


def strict(value: object) -> object:
    """A copy of nested dicts, lists and plain values that strict JSON in UTF-8 can hold.

    NaN and infinities become None, tuples lists, paths strings, and bytes of a name that are not
    UTF-8 escapes.

    Raises:
        TypeError: A value of any other type, for example an array.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return as_text(value)
    if isinstance(value, str):
        return storable(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, Mapping):
        return {storable(str(key)): strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no place in a report")


def write_json(path: Path, value: object) -> None:
    """Write a value as by `strict`, atomically; missing folders are made.

    Raises:
        RunError: The disk refused.
        TypeError: See `strict`.
    """
    text = json.dumps(strict(value), indent=2, ensure_ascii=False, allow_nan=False)
    with replacing(path) as temporary:
        # A byte of a name that is no UTF-8 becomes JSON's own escape, and comes back as it was.
        temporary.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Cell]]) -> None:
    """Write rows under a header, atomically; absent and non-finite values are empty cells.

    A text that a spreadsheet would compute, such as a file called "=1+1", gets an apostrophe before
    it, which `original` removes; numbers stay numbers. Missing folders are made.

    Raises:
        RunError: The disk refused.
        ValueError: A row has a key that is not among the columns.
    """
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream,
    ):
        stream.write(_csv_line(columns))
        for row in rows:
            if strange := row.keys() - set(columns):
                raise ValueError(f"fields not in the columns: {sorted(strange)}")
            stream.write(_csv_line([row.get(column) for column in columns]))


def original(cell: str) -> str:
    """The text that `write_csv` was given, from the cell as a CSV reader gives it."""
    return cell[1:] if cell.startswith("'") and _is_formula(cell[1:]) else cell


def _csv_line(cells: Sequence[Cell]) -> str:
    texts = [_csv_cell(cell) for cell in cells]
    return (",".join(texts) if texts != [""] else '""') + "\n"


def _csv_cell(value: Cell) -> str:
    if isinstance(value, float):
        return repr(float(value)) if math.isfinite(value) else ""
    if value is None or isinstance(value, int):
        return "" if value is None else str(value)
    text = storable(value)
    text = f"'{text}" if _is_formula(text) else text
    return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text


def _is_formula(text: str) -> bool:
    return bool(_FORMULA.match(text)) and not _NUMBER.fullmatch(text)
