"""How the same predictions fare by each protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sdseg_cli.core.errors import ConfigError
from sdseg_cli.evaluation.case_scores import CaseResult
from sdseg_cli.metrics import Grid, Protocol
from sdseg_cli.metrics.statistics import Summary, summarise


def chosen_way(protocol: str, grid: str) -> tuple[Protocol, Grid]:
    """Both options as typed, checked; the official protocol knows the model's grid only.

    Raises:
        ConfigError: There is no such protocol or grid.
    """
    for option, value, allowed in (
        ("--grid", grid, ("native", "model")),
        ("--protocol", protocol, ("standard", "official")),
    ):
        if value not in allowed:
            raise ConfigError(f"{option} is {value!r}.", f"Choose one of {', '.join(allowed)}.")
    if protocol == "official":
        return "official", "model"
    return "standard", "model" if grid == "model" else "native"


@dataclass(frozen=True)
class ProtocolSummary:
    """What the same predictions come to by one protocol on one grid."""

    protocol: Protocol
    grid: Grid
    dice: Summary
    iou: Summary
    excluded: int
    """Cases that are not scored."""

    @classmethod
    def of(cls, protocol: Protocol, grid: Grid, cases: Sequence[CaseResult]) -> ProtocolSummary:
        """Sum up the cases as scored by it."""
        dice, iou = (summarise([one.values[name] for one in cases]) for name in ("dice", "iou"))
        return cls(protocol, grid, dice, iou, len(cases) - dice.n)

    def to_json(self) -> dict[str, Any]:
        """A row of `protocols` in the JSON of `evaluate`."""
        return {
            "protocol": self.protocol,
            "grid": self.grid,
            "dice": self.dice.to_json(),
            "iou": self.iou.to_json(),
            "excluded": self.excluded,
        }
