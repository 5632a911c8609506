"""The error family: what happened, then what to do.

SdsegError                 exit code
├── ConfigError                2      an option, a preset or a configuration file is wrong
├── DataError                  2      an input file or data set is missing or wrong
│   └── GeometryError          2      an image and a mask do not lie on one grid
├── WeightsError               2      weights are missing, damaged or of another architecture
└── RunError                   1      the work itself failed
    └── CohortError            3      part of a cohort failed, the rest is done
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

NEAR = 0.75
"""Similarity, as difflib has it, from which a word counts as a misspelling of another."""


class SdsegError(Exception):
    """Base of every error a user can act on.

    Args:
        message: What happened, in one line, naming the file, case or option.
        hint: What to do about it, in one line.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type[SdsegError], tuple[str, ...]]:
        # Errors cross process boundaries in `prepare`; the default would lose the hint.
        return type(self), (self.message, self.hint)


class ConfigError(SdsegError):
    """An option, a preset or a configuration file is wrong."""

    exit_code = 2


class DataError(SdsegError):
    """An input file or a data set is missing, unreadable or inconsistent.

    Args:
        message: As for `SdsegError`.
        hint: As for `SdsegError`.
        code: The kind of fault, one word for findings, for example "damaged".
    """

    exit_code = 2

    def __init__(self, message: str, hint: str, code: str = "") -> None:
        super().__init__(message, hint)
        self.code = code

    def __reduce__(self) -> tuple[type[SdsegError], tuple[str, ...]]:
        return type(self), (self.message, self.hint, self.code)


class GeometryError(DataError):
    """An image and a mask (or two masks) do not lie on the same grid."""


class WeightsError(SdsegError):
    """Weights are missing, damaged or belong to another architecture."""

    exit_code = 2


class RunError(SdsegError):
    """The work itself failed, for example a training run that diverged."""

    exit_code = 1


class CohortError(RunError):
    """Part of a cohort failed or was not begun; the rest is done."""

    exit_code = 3


def near(word: str, known: Iterable[str]) -> list[str]:
    """The known words that `word` may be a misspelling of, the likeliest first.

    Case, and the dashes in front of options, do not count.
    """
    import difflib

    plain = {one.lstrip("-").lower(): one for one in known}
    slips = difflib.get_close_matches(word.lstrip("-").lower(), list(plain), n=3, cutoff=NEAR)
    return [plain[slip] for slip in slips]
