"""Options of `evaluate`, `compare`, `stability` and `sweep`, each in the dataclass that has it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any


def gathered(given: dict[str, Any], **kinds: type) -> dict[str, Any]:
    """The given options, those of a dataclass as one argument; an argument given whole stays.

    Args:
        given: Name -> value, of arguments and of fields.
        kinds: Argument -> the dataclass it takes.
    """
    left = dict(given)
    for argument, kind in kinds.items():
        if argument not in left:
            names = [field.name for field in fields(kind) if field.name in left]
            left[argument] = kind(**{name: left.pop(name) for name in names})
    return left
