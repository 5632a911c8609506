"""How far seeded runs part: one object for the terminal, the JSON and the CSV."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.config import SampleConfig
from sdseg_cli.metrics.statistics import mean_and_sd
from sdseg_cli.report.tables import Cell, strict, write_csv, write_json

Map = Literal["seg", "score"]
MAPS: tuple[Map, ...] = ("seg", "score")
METRICS = ("psnr", "ssim", "ms_ssim", "lpips")
NO_LPIPS = (
    "lpips is absent: its weights do not come with sdseg; give the ImageNet AlexNet with "
    "--lpips-backbone and the LPIPS v0.1 heads with --lpips-linear"
)
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """Run 1 against another run on one case.

    Attributes:
        case_id: The case.
        run: The other run, from 2.
        values: (map, metric) -> one value per compared slice; PSNR is infinite where both runs give
            the same plane. No "lpips" without its weights.
    """

    case_id: str
    run: int
    values: dict[tuple[Map, str], Values]


@dataclass(frozen=True)
class StabilityReport:
    """What `stability` found and wrote."""

    run: Path
    split: str
    seeds: tuple[int, ...]
    """One per run."""
    sample: SampleConfig
    comparisons: tuple[Comparison, ...]
    dice: dict[str, tuple[float, ...]]
    """Case -> its Dice in each run; cases with an empty reference are left out."""
    files: tuple[Path, ...] = ()

    def mean(self, map_name: Map, metric: str) -> float | None:
        """The average over all compared slices of all cases; None where there is none."""
        return finite_mean(
            [c.values[map_name, metric] for c in self.comparisons if (map_name, metric) in c.values]
        )

    @property
    def dice_by_run(self) -> tuple[float, ...]:
        """Mean Dice over the cases, one value per run."""
        return tuple(float(np.mean(run)) for run in zip(*self.dice.values(), strict=True))

    @property
    def notes(self) -> tuple[str, ...]:
        """What the numbers leave out, and why a value is absent."""
        found = []
        if not any(("seg", "lpips") in c.values for c in self.comparisons):
            found.append(NO_LPIPS)
        for name in MAPS:
            values = np.concatenate(
                [np.empty(0), *(c.values[name, "psnr"] for c in self.comparisons)]
            )
            same = int(np.count_nonzero(np.isinf(values)))
            if same:
                rest = "averaged over the others" if same < values.size else "absent"
                found.append(
                    f"{name} psnr: {same} of {values.size} pairs of slices are identical, their "
                    f"psnr is infinite; it is {rest}"
                )
            elif not values.size:
                found.append(f"{name}: no slice has a reference, nothing was compared")
        left_out = [case_id for case_id in self.case_ids if case_id not in self.dice]
        if left_out:
            found.append(f"dice leaves out cases with an empty reference: {', '.join(left_out)}")
        return tuple(found)

    @property
    def case_ids(self) -> tuple[str, ...]:
        """Every case, in the order of the manifest."""
        return tuple(dict.fromkeys(c.case_id for c in self.comparisons))

    def to_json(self) -> dict[str, Any]:
        """The object of `--json`: strict JSON, null for what is absent."""
        mean, sd = mean_and_sd(self.dice_by_run)
        values: dict[str, object] = {
            "run": self.run,
            "split": self.split,
            "runs": len(self.seeds),
            "seeds": self.seeds,
            "sample": asdict(self.sample),
            **{name: {m: self.mean(name, m) for m in METRICS} for name in MAPS},
            "dice": {"mean": mean, "sd": sd, "by_run": self.dice_by_run},
            "notes": self.notes,
        }
        return cast("dict[str, Any]", strict(values))

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write stability.csv (a row per case and run) and stability.json."""
        table, summary = folder / "stability.csv", folder / "stability.json"
        keys = [(name, metric) for name in MAPS for metric in METRICS]
        found = {(c.case_id, c.run): c.values for c in self.comparisons}
        rows: list[dict[str, Cell]] = []
        for case_id in self.case_ids:
            for number, seed in enumerate(self.seeds, start=1):
                row: dict[str, Cell] = {"id": case_id, "run": number, "seed": seed}
                row["dice"] = self.dice[case_id][number - 1] if case_id in self.dice else None
                values = found.get((case_id, number), {})  # none for run 1, the yardstick
                for key in keys:
                    row["_".join(key)] = finite_mean([values[key]] if key in values else [])
                rows.append(row)
        columns = ["id", "run", "seed", "dice", *("_".join(key) for key in keys)]
        write_csv(table, columns, rows)
        write_json(summary, self.to_json())
        return table, summary


def finite_mean(parts: Sequence[Values]) -> float | None:
    """The mean of all finite values of some arrays; None where there is none."""
    values = np.concatenate([np.empty(0), *parts])
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else None
