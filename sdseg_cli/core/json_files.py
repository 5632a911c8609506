"""JSON and text from disk: of another program, of another version, or damaged by an editor.

Any fault of a file is one DataError. A value that passes is plain: no NaN, no infinity, no key
twice, no number that float or int64 arithmetic cannot hold, no deep nesting.
"""

from __future__ import annotations

import codecs
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

from sdseg_cli.core.errors import DataError

DEEPEST = 64
"""Levels of lists and objects; ours have less than ten."""
LONGEST_NUMBER = 64
"""Digits of a whole number that is read at all; 2**64 has twenty."""
LARGEST = 2**64
"""Whole numbers are below this: sizes, times in nanoseconds and seeds are."""
GET_AGAIN = "Write the file again with the program that made it, or delete it."

_MARKS = (  # longest first: UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),  # as PowerShell writes
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path, hint: str) -> str:
    """The text of a file: UTF-8, or as the byte order mark at its beginning says.

    Raises:
        DataError: It is missing or not such text; with the hint.
    """
    try:
        return _decoded(_content(path, hint))
    except ValueError as error:
        raise DataError(f"{path}: {error}.", f"Save it as UTF-8. {hint}", "damaged") from error


def read_json(path: Path, hint: str = GET_AGAIN, *, largest: int = LARGEST) -> Any:
    """The value in a JSON file, decoded as by `read_text`; whole numbers are below `largest`.

    Raises:
        DataError: It is missing, cannot be read, or is no plain JSON; of code "damaged" then.
    """
    return parse_json(_content(path, hint), source=str(path), hint=hint, largest=largest)


def read_object(path: Path, hint: str = GET_AGAIN, *, largest: int = LARGEST) -> dict[str, Any]:
    """The object in a JSON file, read as by `read_json`.

    Raises:
        DataError: As `read_json`, or it holds something else than an object.
    """
    value = read_json(path, hint, largest=largest)
    if not isinstance(value, dict):
        raise DataError(f"{path}: damaged (not a JSON object).", hint, "damaged")
    return value


def parse_json(
    content: bytes | str, *, source: str, hint: str = GET_AGAIN, largest: int = LARGEST
) -> Any:
    """The value of a piece of JSON, given as text or as bytes, decoded as by `read_text`.

    Args:
        content: The text, or its bytes.
        source: Where it comes from, for the message.
        hint: What to do where it is damaged.
        largest: Whole numbers are below this.

    Raises:
        DataError: It is no plain JSON.
    """
    try:
        value = json.loads(
            _decoded(content) if isinstance(content, bytes) else content,
            parse_constant=_refused,
            parse_float=_number,
            parse_int=partial(_whole, largest=largest),
            object_pairs_hook=_object,
        )
        if too_deep(value):
            raise RecursionError
    except (RecursionError, ValueError) as error:  # of JSON, of its encoding, or of ours
        why = "nested too deeply" if isinstance(error, RecursionError) else error
        raise DataError(f"{source}: damaged ({why}).", hint, "damaged") from error
    return value


def too_deep(value: object) -> bool:
    """True if lists and dictionaries are nested more than `DEEPEST` deep."""
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


def _content(path: Path, hint: str) -> bytes:
    try:
        if path.exists() and not path.is_file():  # a pipe may never end
            raise DataError(f"{path}: is no file.", hint, "damaged")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).", hint) from error


def _decoded(content: bytes) -> str:
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text: {error.reason} at byte {error.start}") from error
    if "\0" in text:
        raise ValueError("holds zero bytes: UTF-16 without its mark, or no text")
    return text


def _refused(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is beyond any number")
    return value


def _whole(text: str, largest: int) -> int:
    if len(text) > LONGEST_NUMBER:
        raise ValueError(f"a number of {len(text)} digits")
    value = int(text)
    if abs(value) >= largest:
        raise ValueError(f"{text} is beyond any whole number")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands twice in one object")
    return found
