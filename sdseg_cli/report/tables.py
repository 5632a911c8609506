"""Results as CSV and strict JSON."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sdseg_cli.atomic import replacing
from sdseg_cli.filenames import as_text, storable

Cell = str | int | float | None


def strict(value: object) -> object:
    """The same value as strict JSON can say it.

    Args:
        value: Nested dicts, lists, tuples, strings, numbers, booleans, None and paths.

    Returns:
        A copy in which NaN and infinities are None, tuples are lists, and paths are strings; no
        string holds what UTF-8 cannot say.

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
    """Write strict JSON, atomically.

    Args:
        path: The file; missing folders are made.
        value: As for `strict`.

    Raises:
        RunError: The disk refused.
        TypeError: See `strict`.
    """
    text = json.dumps(strict(value), indent=2, ensure_ascii=False, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Cell]]) -> None:
    """Write rows under a header, atomically; absent and non-finite values are empty cells.

    Args:
        path: The file; missing folders are made.
        columns: Names, in order.
        rows: One mapping per line, with no key outside `columns`.

    Raises:
        RunError: The disk refused.
        ValueError: A row has a key that is no column.
    """
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as stream,
    ):
        writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _csv_cell(value) for key, value in row.items()})


def _csv_cell(value: Cell) -> str | int:
    if isinstance(value, float):
        return repr(float(value)) if math.isfinite(value) else ""
    if isinstance(value, str):
        return storable(value)
    return "" if value is None else value
