"""Values out of a report's JSON, which another version may have written or a hand damaged.

Each function gives what it is asked for, or nothing; none fails.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from sdseg_cli.core.errors import DataError
from sdseg_cli.core.json_files import read_object


class Unreadable(ValueError):  # noqa: N818 - never leaves the shelf
    """A file is there but says nothing that can be shown; the message says why."""


def read(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None if there is no such file.

    Raises:
        Unreadable: It is damaged, or holds no object.
    """
    if not path.exists():
        return None
    try:
        return read_object(path)
    except DataError as error:
        why = error.message.removeprefix(f"{path}: ").removesuffix(".")
        raise Unreadable(why if error.code else f"damaged ({why})") from error


def mapping(value: object) -> dict[str, Any]:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def items(value: object) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def rows(value: object) -> list[dict[str, Any]]:
    """The objects of a list."""
    return [item for item in items(value) if isinstance(item, dict)]


def texts(value: object) -> tuple[str, ...]:
    """The strings and numbers of a list, as text."""
    return tuple(str(item) for item in items(value) if isinstance(item, str | int | float))


def text(value: object) -> str:
    """A string or a number as text; empty for anything else."""
    return str(value) if isinstance(value, str | int | float) else ""


def settings(value: object) -> str:
    """An object as "steps 1, eta 0.0"; empty texts are left out."""
    pairs = ((name, text(of)) for name, of in mapping(value).items())
    return ", ".join(f"{name} {of}" for name, of in pairs if of)


def number(value: object) -> float | None:
    """The value if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < 1e300 and math.isfinite(value) else None
