"""JSON as it comes from disk: of another program, of another version, or damaged by a hand.

Whatever is wrong with a file is one DataError. What passes is plain: no NaN, no infinity, no key
twice, no number that float or int64 arithmetic cannot hold, not nested so deep that others stumble.
"""

from __future__ import annotations

import codecs
import json
import math
from pathlib import Path
from typing import Any

from sdseg_cli.core.errors import DataError

DEEPEST = 64
"""Levels of lists and objects; ours have less than ten."""
LONGEST_NUMBER = 64
"""Digits of a whole number that are looked at; 2**64 has twenty."""
LARGEST = 2**64
"""Whole numbers are below this: sizes, times in nanoseconds and seeds are."""
GET_AGAIN = "Write the file again with the program that made it, or delete it."


def read_json(path: Path, hint: str = GET_AGAIN) -> Any:
    """The value in a JSON file, in UTF-8 or UTF-16, with or without a byte order mark.

    Args:
        path: The file; nothing but a regular file is opened, for a pipe may never end.
        hint: What to do where it cannot be read.

    Raises:
        DataError: It is missing, cannot be read, or is no plain JSON; of code "damaged" then.
    """
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path}: is no file.", hint, "damaged")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).", hint) from error
    return parse_json(content, source=str(path), hint=hint)


def read_object(path: Path, hint: str = GET_AGAIN) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        DataError: As `read_json`, or it holds something else than an object.
    """
    value = read_json(path, hint)
    if not isinstance(value, dict):
        raise DataError(f"{path}: damaged (not a JSON object).", hint, "damaged")
    return value


def parse_json(content: bytes | str, *, source: str, hint: str = GET_AGAIN) -> Any:
    """The value that a piece of JSON says.

    Args:
        content: The text, or its bytes in UTF-8 or UTF-16.
        source: Where it comes from, for the message.
        hint: What to do where it is damaged.

    Raises:
        DataError: It is no plain JSON.
    """
    try:
        value = json.loads(
            _decoded(content) if isinstance(content, bytes) else content,
            parse_constant=_refused,
            parse_float=_number,
            parse_int=_whole,
            object_pairs_hook=_object,
        )
        if too_deep(value):
            raise ValueError(f"nested more than {DEEPEST} deep")
    except RecursionError as error:
        raise DataError(f"{source}: damaged (nested too deep).", hint, "damaged") from error
    except ValueError as error:  # of JSON, of its encoding, or of ours
        raise DataError(f"{source}: damaged ({error}).", hint, "damaged") from error
    return value


def too_deep(value: object) -> bool:
    """Whether lists and dictionaries are nested more than `DEEPEST` deep."""
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def _decoded(content: bytes) -> str:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # as PowerShell writes
        return content.decode("utf-16")
    return content.decode("utf-8-sig")


def _refused(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:LONGEST_NUMBER]} is beyond every number")
    return value


def _whole(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise ValueError(f"a whole number of {len(text)} digits")
    value = int(text)
    if abs(value) >= LARGEST:
        raise ValueError(f"{text} is beyond every whole number")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands twice in one object")
    return found
