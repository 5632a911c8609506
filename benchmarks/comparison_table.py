"""Rows of trained and scored models -> the table of Table 2's form."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

from benchmarks.results import Row
from sdseg_cli.core.config import SDSEG
from sdseg_cli.metrics.statistics import bootstrap_ci95, paired

METRICS = {"dice": "Dice", "iou": "IoU", "hd95_mm": "HD95 (mm)", "hd95": "HD95 (px)"}
DIGITS = {"hd95_mm": ".1f", "hd95": ".1f"}
"""Of metrics that are lengths; the others are shares."""


def by_case(rows: Sequence[Row], metric: str) -> dict[str, float]:
    """Case -> the mean over seeds; a case without a value in some seed is left out."""
    found: dict[str, list[float | None]] = {}
    for row in rows:
        for case in row["cases"]:
            found.setdefault(case["id"], []).append(case.get(metric))
    whole = {key: [v for v in values if v is not None] for key, values in found.items()}
    return {key: fmean(values) for key, values in whole.items() if len(values) == len(rows)}


def paired_difference(ours: dict[str, float], theirs: dict[str, float]) -> str:
    """Mean of theirs less ours over the cases of both, its 95 % interval, and p if there is one."""
    cases = list(dict.fromkeys([*ours, *theirs]))
    found = paired([ours.get(one) for one in cases], [theirs.get(one) for one in cases], "higher")
    if found.difference is None:
        return "-"
    p = "" if found.p is None else f", p {found.p:.2g}"
    return _interval(found.difference, found.ci95, "+.3f") + p


def table(rows: Sequence[Row]) -> str:
    """Table 2's form, in Markdown: a block per data set, a line per model and its settings. The
    differences are to the first line of SDSeg.
    """
    lines: list[str] = []
    rows = sorted(rows, key=lambda row: bool(row.get("settings")))  # the presets as they are first
    names = _names(rows)
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        here = [row for row in rows if row["dataset"] == dataset]
        shown = {key: text for key, text in METRICS.items() if any(by_case(here[:1], key))}
        head = [dataset, *shown.values(), f"Dice less {SDSEG}'s", "weights (M)", "GFLOP/slice"]
        head += ["slices/s", "steps", "seconds", "seeds (Dice of each)"]
        lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        groups = {which: [row for row in here if _which(row) == which] for which in names}
        first = next((which for which in groups if which[0] == SDSEG and groups[which]), None)
        ours = by_case(groups[first], "dice") if first else {}
        for which, mine in groups.items():
            if not mine:
                continue
            cells = [names[which]]
            cells += [with_interval(by_case(mine, key), DIGITS.get(key, ".3f")) for key in shown]
            mean_dice = by_case(mine, "dice")
            cells.append("-" if which == first else paired_difference(ours, mean_dice))
            cells += [f"{mine[0]['parameters'] / 1e6:.2f}", f"{mine[0]['gflop_per_slice']:.2f}"]
            cells += [f"{median(row['slices_per_s'] for row in mine):.2f}", str(mine[0]["steps"])]
            seconds = [row["training_s"] for row in mine if row["training_s"] is not None]
            cells += [f"{fmean(seconds):.0f}" if seconds else "-", _seeds(mine)]
            lines.append(f"| {' | '.join(cells)} |")
    changed = {name: which[1:] for which, name in names.items() if which[1:]}
    lines += [""] * bool(changed)
    lines += [f"{name}: {', '.join(settings)}" for name, settings in changed.items()]
    return "\n".join(lines).lstrip("\n")


def _which(row: Row) -> tuple[str, ...]:
    """The model and the settings it was given."""
    return (row["model"], *sorted(row.get("settings", ())))


def _names(rows: Sequence[Row]) -> dict[tuple[str, ...], str]:
    """A name for each model and its settings; a number tells those of one model apart."""
    names: dict[tuple[str, ...], str] = {}
    for which in dict.fromkeys(map(_which, rows)):
        number = 1 + sum(known[0] == which[0] for known in names)
        names[which] = which[0] if number == 1 else f"{which[0]} ({number})"
    return names


def _seeds(rows: Sequence[Row]) -> str:
    """How many, and where they are several the mean Dice of each: seeds may differ more than
    models.
    """
    if len(rows) == 1:
        return "1"
    each = [list(by_case([row], "dice").values()) for row in rows]
    means = [format(fmean(one), ".3f") if one else "-" for one in each]
    return f"{len(rows)} ({', '.join(means)})"


def with_interval(values: dict[str, float], form: str = ".3f") -> str:
    """Mean over cases and its 95 % interval; "-" without a case."""
    found = list(values.values())
    return _interval(fmean(found), bootstrap_ci95(found), form) if found else "-"


def _interval(mean: float, bounds: tuple[float | None, float | None], form: str) -> str:
    low, high = bounds
    return format(mean, form) + (
        "" if low is None or high is None else f" ({low:{form}} to {high:{form}})"
    )
