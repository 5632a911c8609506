"""How a verb tells whoever called it how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called as `progress(done, total, what)`, for example `progress(3, 30, "case 07")`."""


def silent(done: int, total: int, what: str) -> None:
    """The default: say nothing."""
