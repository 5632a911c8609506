"""Finding: one thing that is wrong or odd about a data set, and its fix. Standard library."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from sdseg_cli.core.filenames import natural_key

ERROR, WARNING = "error", "warning"

EVERY_CASE = "*"
"""The case of a finding about the whole set."""


@dataclass(frozen=True)
class Finding:
    """One finding.

    Attributes:
        code: Its kind, in words that stay: "grid-shape", "hu-offset", ...
        level: "error" stops `prepare`; "warning" does not.
        case: Case id, or `EVERY_CASE`.
        measured: The fault in words, with the numbers measured.
        fix: The command or option that resolves it.
    """

    code: str
    level: str
    case: str
    measured: str
    fix: str

    def to_json(self) -> dict[str, str]:
        """For `--json`."""
        return asdict(self)


def warning(code: str, case: str, measured: str, fix: str) -> Finding:
    """A finding that does not stop `prepare`."""
    return Finding(code, WARNING, case, measured, fix)


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors first, then by code and case."""
    return tuple(
        sorted(findings, key=lambda one: (one.level != ERROR, one.code, natural_key(one.case)))
    )
