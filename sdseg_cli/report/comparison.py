"""Two evaluations of the same cases side by side: numbers, verdict, files.

Dice is the metric that decides and is judged by its own p; the others are looked at beside it, so
their p are adjusted for their number (Holm).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from sdseg_cli.metrics.paired import FEWEST_TO_TEST, Paired, paired, with_holm
from sdseg_cli.report.comparison_picture import comparison_picture
from sdseg_cli.report.latex import write_latex
from sdseg_cli.report.tables import Cell, strict, write_csv, write_json

PRIMARY = "dice"
LEVEL = 0.05
TABLE = ("metric", "A", "B", "B - A", "95 % interval", "n", "p")

Evaluation = Mapping[str, Any]
"""The JSON object of `evaluate`."""


@dataclass(frozen=True)
class Comparison:
    """What `compare` found and wrote."""

    a: Evaluation
    b: Evaluation
    names: tuple[str, str]
    """What A and B are called: runs or folders."""
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """The metrics that both have."""
        return tuple(name for name in self.a["metrics"] if name in self.b["metrics"])

    @cached_property
    def cases(self) -> dict[str, tuple[dict[str, float | None], dict[str, float | None]]]:
        """Case -> its values of A and of B, means over its classes; in A's order."""
        first, second = (case_means(one, self.columns) for one in (self.a, self.b))
        absent: dict[str, float | None] = dict.fromkeys(self.columns)
        ids = dict.fromkeys([*first, *second])
        return {name: (first.get(name, absent), second.get(name, absent)) for name in ids}

    @cached_property
    def metrics(self) -> dict[str, Paired]:
        """Column -> B against A."""
        found = {
            name: paired(
                [values[name] for values, _ in self.cases.values()],
                [values[name] for _, values in self.cases.values()],
                self.a["better"][name],
            )
            for name in self.columns
        }
        beside = with_holm({name: one for name, one in found.items() if name != PRIMARY})
        return {name: beside.get(name, one) for name, one in found.items()}

    @property
    def verdict(self) -> str:
        """What the numbers allow to say of the primary metric, in a sentence."""
        found = self.metrics[PRIMARY]
        if found.n == 0 or found.difference is None:
            return "No case has a Dice in both: nothing can be said."
        low, high = found.ci95
        interval = (
            "" if low is None or high is None else f", 95 % interval {low:+.3f} to {high:+.3f}"
        )
        head = f"Mean Dice of B - A: {found.difference:+.4f} over {found.n} cases{interval}."
        if found.p is None:
            differing = found.better_a + found.better_b
            return (
                f"{head} Too few to test: {differing} of them differ, and with fewer than "
                f"{FEWEST_TO_TEST} no result could reach p < {LEVEL}. It describes these cases and "
                "says nothing of others."
            )
        tested = f"Wilcoxon signed-rank p = {found.p:.2g}"
        if found.p >= LEVEL:
            return f"{head} {tested}: no difference is shown, which is no proof that there is none."
        winner = "B" if found.better_b > found.better_a else "A"
        return f"{head} {tested}: {winner} is better on such cases."

    @property
    def all_notes(self) -> tuple[str, ...]:
        """What was said beforehand, and which metrics leave out cases."""
        left_out = [
            f"{name}: {one.only_a + one.only_b} cases have a value in only one of the two and are "
            f"left out (A alone {one.only_a}, B alone {one.only_b})"
            for name, one in self.metrics.items()
            if one.only_a + one.only_b
        ]
        return (*self.notes, *left_out)

    def to_json(self) -> dict[str, Any]:
        """The object of `--json`."""
        rows = [
            {
                "id": name,
                **{
                    f"{column}_{side}": values[column]
                    for column in self.columns
                    for side, values in (("a", a), ("b", b))
                },
            }
            for name, (a, b) in self.cases.items()
        ]
        values = {
            "a": self.names[0],
            "b": self.names[1],
            "grid": self.a["grid"],
            "protocol": self.a["protocol"],
            "primary": PRIMARY,
            "verdict": self.verdict,
            "metrics": {name: one.to_json() for name, one in self.metrics.items()},
            "cases": rows,
            "notes": self.all_notes,
        }
        return cast("dict[str, Any]", strict(values))

    def rows(self) -> list[tuple[str, ...]]:
        """The table, a row for each metric, under `TABLE`."""
        return [(name, *_cells(one)) for name, one in self.metrics.items()]

    def write(self, folder: Path) -> Comparison:
        """Write compare.csv, compare.json, compare.tex and compare.png; returns it with its files.

        Raises:
            RunError: The disk refused.
        """
        files = [folder / f"compare.{kind}" for kind in ("csv", "json", "tex", "png")]
        found = self.to_json()
        rows = cast("list[dict[str, Cell]]", found["cases"])
        write_csv(files[0], list(rows[0]) if rows else ["id"], rows)
        write_json(files[1], found)
        caption = f"A: {self.names[0]}. B: {self.names[1]}. {self.verdict}"
        write_latex(files[2], TABLE, self.rows(), caption)
        dice = {name: (a[PRIMARY], b[PRIMARY]) for name, (a, b) in self.cases.items()}
        comparison_picture(files[3], dice, self.names, self.metrics[PRIMARY])
        return replace(self, files=tuple(files))


def case_means(found: Evaluation, columns: tuple[str, ...]) -> dict[str, dict[str, float | None]]:
    """Case -> column -> its value, with several classes the mean of those that have one."""
    gathered: dict[str, list[Mapping[str, Any]]] = {}
    for row in found["cases"]:
        gathered.setdefault(row["id"], []).append(row)
    means: dict[str, dict[str, float | None]] = {}
    for name, rows in gathered.items():
        means[name] = {}
        for column in columns:
            values = [row[column] for row in rows if row[column] is not None]
            means[name][column] = sum(values) / len(values) if values else None
    return means


def _cells(one: Paired) -> tuple[str, ...]:
    low, high = one.ci95
    interval = "-" if low is None or high is None else f"{low:+.3f} to {high:+.3f}"
    p = one.p if one.p_holm is None else one.p_holm
    means = ["-" if value is None else f"{value:.3f}" for value in (one.a, one.b)]
    difference = "-" if one.difference is None else f"{one.difference:+.3f}"
    shown = "too few" if p is None else f"{p:.2g}"
    return (*means, difference, interval, str(one.n), shown)
