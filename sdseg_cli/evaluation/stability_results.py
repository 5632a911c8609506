"""Differences of seeded runs: one object for the terminal, the JSON and the CSV; and Table 5 of the
paper with a row of ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np

from sdseg_cli.core.config import SampleConfig
from sdseg_cli.core.tables import Cell, strict, write_csv, write_json
from sdseg_cli.metrics.agreement import Flips
from sdseg_cli.metrics.similarity import (
    MAPS,
    METRICS,
    MS_SSIM_MIN_PX,
    Map,
    Measured,
    Values,
)
from sdseg_cli.metrics.statistics import mean_and_sd
from sdseg_cli.report.latex import write_latex

SHOWN_UNSTABLE = 5
UNION_NOTE = "of several classes: what is not given per class is of all as one foreground"
MS_SSIM_NOTE = (
    f"ms_ssim is absent: its five scales need planes of {MS_SSIM_MIN_PX} x {MS_SSIM_MIN_PX} px, "
    "and those of this set are smaller"
)


@dataclass(frozen=True)
class Comparison:
    """One run against another on one case, slice by slice of the same number.

    Attributes:
        case_id: The case.
        first: A run, from 1.
        other: A later run.
        values: (map, metric) -> one value per compared slice; PSNR is infinite where both runs give
            the same plane. No "lpips" without its weights.
    """

    case_id: str
    first: int
    other: int
    values: Measured


@dataclass(frozen=True)
class StabilityReport:
    """The result of `stability`."""

    run: Path
    split: str
    seeds: tuple[int, ...]
    """One per run."""
    sample: SampleConfig
    comparisons: tuple[Comparison, ...]
    """Run 1 with every other, or all pairs."""
    dice: dict[str, tuple[float, ...]]
    """Case -> its Dice in each run; cases with an empty reference are left out."""
    flips: dict[str, Flips] = field(default_factory=dict)
    """Case -> the voxels on which its runs differ, on the scan's own grid."""
    class_dice: dict[str, dict[str, tuple[float, ...]]] = field(default_factory=dict)
    """Of several classes, class -> case -> its Dice in each run; all else is of their union."""
    class_flips: dict[str, Flips] = field(default_factory=dict)
    """Class -> the voxels of all cases on which runs differ about it."""
    missing_lpips: tuple[str, ...] = ()
    """Names of the weights without which there is no LPIPS."""
    maps: tuple[Path, ...] = ()
    """Where each voxel's disagreement is written, case by case."""
    table5: tuple[Mapping[str, Any], ...] = ()
    """The paper's rows and ours, of `table5_rows`."""
    decoder: str | None = None
    """Which drew the masks."""
    run_threshold: float | None = None
    """The threshold that the run's validation chose; None of 0.5."""
    provenance: Mapping[str, object] = field(default_factory=dict)
    """Of `provenance`."""
    files: tuple[Path, ...] = ()

    @cached_property
    def first_vs_rest(self) -> tuple[Comparison, ...]:
        """The paper's similarities: run 1 with every other."""
        return tuple(c for c in self.comparisons if c.first == 1)

    def values(self, map_name: Map, metric: str, *, all_pairs: bool = False) -> Values:
        """One value per compared slice of every case and pair of runs."""
        chosen = self.comparisons if all_pairs else self.first_vs_rest
        key = (map_name, metric)
        return np.concatenate([np.empty(0), *(c.values[key] for c in chosen if key in c.values)])

    def mean(self, map_name: Map, metric: str, *, all_pairs: bool = False) -> float | None:
        """The average over all compared slices, identical ones left out of PSNR; None of none."""
        return finite_mean([self.values(map_name, metric, all_pairs=all_pairs)])

    def identical(self, map_name: Map, *, all_pairs: bool = False) -> int:
        """Number of compared pairs of slices that are identical."""
        return int(np.count_nonzero(np.isinf(self.values(map_name, "psnr", all_pairs=all_pairs))))

    def pairs(self, *, all_pairs: bool = False) -> int:
        """Number of pairs of slices for PSNR, SSIM and MS-SSIM."""
        return self.values("seg", "psnr", all_pairs=all_pairs).size

    @property
    def dice_by_run(self) -> tuple[float, ...]:
        """Mean Dice over the cases, one value per run."""
        return tuple(float(np.mean(run)) for run in zip(*self.dice.values(), strict=True))

    @property
    def dice_by_case(self) -> list[dict[str, Any]]:
        """Spread of each case's Dice over the runs."""
        found = []
        for case_id, values in self.dice.items():
            mean, sd = mean_and_sd(values)
            spread = {"mean": mean, "sd": sd, "min": min(values), "max": max(values)}
            found.append({"id": case_id, **spread})
        return found

    @property
    def most_unstable(self) -> tuple[str, ...]:
        """Up to five cases, worst first, by the share of their ever-foreground voxels that flip."""
        share = {case_id: flips.of_foreground or 0.0 for case_id, flips in self.flips.items()}
        ranked = sorted((name for name in share if share[name] > 0), key=lambda name: -share[name])
        return tuple(ranked[:SHOWN_UNSTABLE])

    @property
    def case_ids(self) -> tuple[str, ...]:
        """Every case, in the order of the manifest."""
        return tuple(dict.fromkeys(c.case_id for c in self.comparisons))

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on what the numbers leave out, and why a value is absent."""
        found = [lpips_note(self.missing_lpips)] if self.missing_lpips else []
        if self.pairs() and not self.values("seg", "ms_ssim").size:
            found.append(MS_SSIM_NOTE)
        for name in MAPS:
            same, all_of_them = self.identical(name), self.pairs()
            if same:
                rest = "averaged over the others" if same < all_of_them else "absent"
                found.append(
                    f"{name} psnr: {same} of {all_of_them} pairs of slices are identical, their "
                    f"psnr is infinite; it is {rest}"
                )
                if np.isinf(np.median(self.values(name, "psnr"))):
                    found.append(f"{name} psnr: its median is infinite, given as null")
            elif not all_of_them:
                found.append(f"{name}: no slice has a reference, nothing was compared")
        left_out = [case_id for case_id in self.case_ids if case_id not in self.dice]
        if left_out:
            found.append(f"dice leaves out cases with an empty reference: {', '.join(left_out)}")
        if self.class_dice:
            found.append(UNION_NOTE)
        empty = [case_id for case_id, flips in self.flips.items() if not flips.ever]
        if empty:
            found.append(f"no run finds anything in {', '.join(empty)}: no voxel could flip")
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """The object of `--json`: strict JSON, null for what is absent."""
        mean, sd = mean_and_sd(self.dice_by_run)
        spread = {"mean": mean, "sd": sd, "by_run": self.dice_by_run, "by_case": self.dice_by_case}
        by_case = [{"id": name, **_shares(flips)} for name, flips in self.flips.items()]
        values: dict[str, object] = {
            "run": self.run,
            "split": self.split,
            "runs": len(self.seeds),
            "seeds": self.seeds,
            "sample": asdict(self.sample),
            "decoder": self.decoder,
            **self.likeness(),
            "median": {name: {m: _median(self.values(name, m)) for m in METRICS} for name in MAPS},
            "all_pairs": self.likeness(all_pairs=True),
            "dice": spread,
            "flipped": {**_shares(sum(self.flips.values(), Flips())), "by_case": by_case},
            "most_unstable": self.most_unstable,
            "maps": self.maps,
            "table5": self.table5,
            **({} if self.run_threshold is None else {"run_threshold": self.run_threshold}),
            **({"classes": self.by_class} if self.class_dice else {}),
            "notes": self.notes,
            "provenance": self.provenance,
        }
        return cast("dict[str, Any]", strict(values))

    @property
    def by_class(self) -> list[dict[str, Any]]:
        """Of several classes: Dice, mean over the cases, and its spread over runs; flips."""
        found = []
        for name, cases in self.class_dice.items():
            by_run = [float(np.mean(run)) for run in zip(*cases.values(), strict=True)]
            mean, sd = mean_and_sd(by_run)
            flipped = _shares(self.class_flips.get(name, Flips()))
            dice = {"mean": mean, "sd": sd, "by_run": by_run, "cases": len(cases)}
            found.append({"name": name, "dice": dice, "flipped": flipped})
        return found

    def likeness(self, *, all_pairs: bool = False) -> dict[str, Any]:
        """Means of every metric for both maps, and how many pairs they come from."""
        return {
            **{n: {m: self.mean(n, m, all_pairs=all_pairs) for m in METRICS} for n in MAPS},
            "identical": {name: self.identical(name, all_pairs=all_pairs) for name in MAPS},
            "pairs": self.pairs(all_pairs=all_pairs),
        }

    def write(self, folder: Path) -> tuple[Path, ...]:
        """Write stability.csv (a row per case and run), stability_cases.csv and stability.json."""
        table, cases = folder / "stability.csv", folder / "stability_cases.csv"
        summary = folder / "stability.json"
        keys = [(name, metric) for name in MAPS for metric in METRICS]
        found = {(c.case_id, c.other): c.values for c in self.first_vs_rest}
        rows: list[dict[str, Cell]] = []
        for case_id in self.case_ids:
            for number, seed in enumerate(self.seeds, start=1):
                row: dict[str, Cell] = {"id": case_id, "run": number, "seed": seed}
                row["dice"] = self.dice[case_id][number - 1] if case_id in self.dice else None
                values = found.get((case_id, number), {})  # none for run 1, the yardstick
                for key in keys:
                    row["_".join(key)] = finite_mean([values[key]] if key in values else [])
                for name in MAPS:  # how many slices have no finite PSNR
                    psnr = values.get((name, "psnr"))
                    same = None if psnr is None else int(np.count_nonzero(np.isinf(psnr)))
                    row[f"{name}_identical"] = same
                rows.append(row)
        columns = [*("_".join(key) for key in keys), *(f"{name}_identical" for name in MAPS)]
        write_csv(table, ["id", "run", "seed", "dice", *columns], rows)
        write_csv(cases, _CASE_COLUMNS, self._case_rows())
        write_json(summary, self.to_json())
        return table, cases, summary

    def _case_rows(self) -> list[dict[str, Cell]]:
        dice = {row["id"]: row for row in self.dice_by_case}
        rows: list[dict[str, Cell]] = []
        for case_id, flips in self.flips.items():
            spread = dice.get(case_id, {})
            row: dict[str, Cell] = {"id": case_id, "flipped": flips.fraction}
            row |= {f"dice_{name}": spread.get(name) for name in ("mean", "sd", "min", "max")}
            rows.append({**row, "flipped_of_foreground": flips.of_foreground})
        return rows


_CASE_COLUMNS = (
    "id",
    *("dice_mean", "dice_sd", "dice_min", "dice_max"),
    *("flipped", "flipped_of_foreground"),
)


def lpips_note(missing: Sequence[str]) -> str:
    """Why LPIPS is absent, and the commands that get what it needs."""
    commands = " && ".join(f"sdseg weights fetch {name}" for name in missing)
    return f"lpips is absent: the weights of LPIPS do not come with sdseg; run {commands}"


def finite_mean(parts: Sequence[Values]) -> float | None:
    """The mean of all finite values of some arrays; None where there is none."""
    values = np.concatenate([np.empty(0), *parts])
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else None


def _median(values: Values) -> float | None:
    return float(np.median(values)) if values.size else None


def _shares(flips: Flips) -> dict[str, float | None]:
    return {"fraction": flips.fraction, "of_foreground": flips.of_foreground}


_HEADS = {"lpips": ("LPIPS", 4), "psnr": ("PSNR, dB", 2), "ssim": ("SSIM", 4)}
_HEADS["ms_ssim"] = ("MS-SSIM", 4)
_KEYS = tuple((metric, name) for metric in _HEADS for name in MAPS)
COLUMNS = ("method", "data", *(name for name, _ in _HEADS.values()))
"""Each cell is Seg / Score, as the paper prints them."""


_PAPER: dict[str, dict[str, dict[str, float | None]]] = {
    "MedSegDiff-V2": {
        "seg": {"lpips": 0.3139, "psnr": 11.93, "ssim": 0.578, "ms_ssim": 0.640},
        "score": {"lpips": 0.2904, "psnr": 14.45, "ssim": 0.466, "ms_ssim": 0.623},
    },
    "Diff-U-Net": {
        "seg": {"lpips": 0.0633, "psnr": 23.72, "ssim": 0.967, "ms_ssim": 0.944},
        "score": {"lpips": 0.0672, "psnr": 24.67, "ssim": 0.967, "ms_ssim": 0.940},
    },
    "SDSeg": {
        "seg": {"lpips": 0.0199, "psnr": 27.63, "ssim": 0.9796, "ms_ssim": 0.9897},
        "score": {"lpips": 0.0143, "psnr": 31.55, "ssim": 0.9764, "ms_ssim": 0.9909},
    },
}
"""Table 5 of the paper (arXiv 2406.18361)."""


@dataclass(frozen=True)
class Row:
    """One method on one data set."""

    method: str
    data: str
    values: dict[str, dict[str, float | None]]
    """`{"seg": {"psnr": 27.63, ...}, "score": {...}}`; None where it was not measured."""

    @property
    def cells(self) -> tuple[str, ...]:
        """Cells as text, with the paper's decimals; a dash for a missing value."""
        pairs = ([_text(metric, self.values[name][metric]) for name in MAPS] for metric in _HEADS)
        return (self.method, self.data, *(" / ".join(pair) for pair in pairs))

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"method": self.method, "data": self.data, **self.values}


def table5_rows(report: StabilityReport, dataset: str) -> tuple[Row, ...]:
    """The paper's rows, then ours.

    Args:
        report: Of `stability`; first against rest is taken, as the paper does.
        dataset: The prepared set's name.
    """
    paper = (Row(method, "BTCV, paper", values) for method, values in _PAPER.items())
    measured: dict[str, dict[str, float | None]] = {
        name: {metric: report.mean(name, metric) for metric in METRICS} for name in MAPS
    }
    return (*paper, Row("this run", dataset, measured))


def table5_caption(report: StabilityReport, dataset: str) -> str:
    """Caption of Table 5."""
    same = ", ".join(f"{name.title()} {report.identical(name)}" for name in MAPS)
    return (
        f"Stability of {len(report.seeds)} runs on {dataset} ({report.split}), Seg / Score, first "
        f"against rest, beside Table 5 of the paper. Its rows are of BTCV, other data: they say "
        f"how large such numbers are, not which method is better. PSNR is the mean of the pairs "
        f"that differ; identical of {report.pairs()}: {same}."
    )


def write_table5(folder: Path, report: StabilityReport, dataset: str) -> tuple[Path, Path]:
    """Write table5.csv and table5.tex.

    Args:
        folder: Made if missing.
        report: Of `stability`.
        dataset: The prepared set's name.

    Raises:
        RunError: The disk refused.
    """
    rows = table5_rows(report, dataset)
    table, latex = folder / "table5.csv", folder / "table5.tex"
    keys = [f"{name}_{metric}" for metric, name in _KEYS]
    lines: list[dict[str, Cell]] = [
        {
            "method": row.method,
            "data": row.data,
            **{f"{name}_{metric}": row.values[name][metric] for metric, name in _KEYS},
        }
        for row in rows
    ]
    write_csv(table, ["method", "data", *keys], lines)
    write_latex(latex, COLUMNS, [row.cells for row in rows], table5_caption(report, dataset))
    return table, latex


def _text(metric: str, value: float | None) -> str:
    return "-" if value is None else str(round(value, _HEADS[metric][1]))
