"""The parts of the page: texts in tables, places in plots, cases by id.

Each is made from the JSON object of its command, which the command itself has in memory and another
reads from the report folder. What an earlier version did not write yet is absent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdseg_cli.report import wording
from sdseg_cli.report.plots import Dot, Plot, class_distribution, distribution, sweep_chart

Found = Mapping[str, Any]
"""The JSON object of a command."""
Facts = tuple[tuple[str, str], ...]
"""Name and value of what was measured."""

PROTOCOLS = {
    "standard": "A case with both masks empty is excluded and listed; with one empty, Dice is 0 "
    "and distances are undefined and counted.",
    "official": "The rules of the official SDSeg code, on its 256 x 256 planes: an empty reference "
    "scores 1 against a non-empty prediction and 0 against an empty one.",
}


@dataclass(frozen=True)
class Column:
    """A heading of a table."""

    label: str
    unit: str = ""
    is_text: bool = False
    """Sorted as text, else as numbers."""


@dataclass(frozen=True)
class Cell:
    """One entry: a text, and the number it is sorted by."""

    text: str
    value: float | None = None
    """None of a text, and where undefined."""
    below: str = ""
    """A smaller second line."""


@dataclass(frozen=True)
class Row:
    """One line."""

    cells: tuple[Cell, ...]
    case_id: str = ""
    """The case whose picture belongs to it."""


@dataclass(frozen=True)
class Table:
    """Columns and rows."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


def _numeric(value: float | None, places: int) -> Cell:
    return Cell(wording.number(value, places), value)


@dataclass(frozen=True)
class Part:
    """Fields that every part has."""

    facts: Facts
    notes: tuple[str, ...]
    provenance: Found
    checkpoint: str | None
    """Sha256 of the weights it was made with."""

    @property
    def case_ids(self) -> tuple[str, ...]:
        """The cases it names."""
        return ()


def _common(found: Found, facts: Facts) -> dict[str, Any]:
    provenance = found.get("provenance", {})
    return {
        "facts": facts,
        "notes": _texts(found, "notes"),
        "provenance": provenance,
        "checkpoint": provenance.get("sha256", {}).get("checkpoint"),
    }


def _texts(found: Found, key: str) -> tuple[str, ...]:
    return tuple(str(item) for item in found.get(key, ()))


def _named(facts: Mapping[str, str]) -> Facts:
    """Those that have a value."""
    return tuple((name, value) for name, value in facts.items() if value.strip())


def _settings(sample: Found | None) -> str:
    """A way of sampling as "steps 1, eta 0.0"."""
    pairs = ((name, wording.text(value)) for name, value in (sample or {}).items())
    return ", ".join(f"{name} {value}" for name, value in pairs if value)


@dataclass(frozen=True)
class Metric:
    """One metric over all cases."""

    label: str
    unit: str
    meaning: str
    better: str
    """In words, empty if not stated."""
    arrow: str
    """The same as a sign."""
    mean: str
    median: str
    sd: str
    ci95: str
    n: str
    undefined: str
    plot: Plot | None


@dataclass(frozen=True)
class Featured:
    """A case the page shows at once."""

    heading: str
    case_id: str
    score: str


@dataclass(frozen=True)
class ByClass:
    """What `evaluate` found for each class of a run."""

    names: tuple[str, ...]
    """In the order of the run, which gives their colours."""
    table: Table
    """A row per class, then the union."""
    plots: tuple[tuple[str, str, Plot], ...]
    """Metric, unit, and a strip for each class."""
    values: tuple[Mapping[str, tuple[Cell, ...]], ...]
    """Of each class, then of the union: case -> the cells of its row in the table of cases."""


@dataclass(frozen=True)
class Evaluation(Part):
    """Results of `evaluate`."""

    protocol: str
    metrics: tuple[Metric, ...]
    featured: tuple[Featured, ...]
    """Best, median and worst."""
    ranked: tuple[str, ...]
    """Ids of scored cases, worst first."""
    rank_label: str
    """The metric they are ranked by."""
    worst: tuple[tuple[str, str], ...]
    """Id and score of the worst."""
    excluded: tuple[str, ...]
    missing: tuple[str, ...]
    cases: Table
    classes: Table | None
    protocols: Table | None
    protocol_gap: str
    """Difference of the protocols; empty if there is one only."""
    by_class: ByClass | None = None
    """Of a run of several classes."""
    folds: Table | None = None
    """Of all folds of a set."""

    @property
    def row_noun(self) -> str:
        """What a row of the table of cases is, and a dot of a plot."""
        return "case and class" if self.classes else "case"

    @property
    def case_ids(self) -> tuple[str, ...]:
        """Of the table, and the worst."""
        rows = (row.case_id for row in self.cases.rows)
        return (*rows, *(case_id for case_id, _ in self.worst))


def evaluation_part(found: Found) -> Evaluation:
    """Results of `evaluate`, as the page shows them.

    Args:
        found: The object of evaluate.json.

    Raises:
        LookupError, TypeError, ValueError, ArithmeticError, AttributeError: It is none.
    """
    summaries, cases = dict(found["metrics"]), list(found["cases"])
    if not summaries:
        raise ValueError("no metric")
    units = {column: wording.unit_of(column, found.get("units", {})) for column in summaries}
    better = found.get("better", {})
    rank = "dice" if "dice" in summaries else next(iter(summaries))
    ranked = _ranked(cases, rank, better.get(rank, "higher"))
    score = {case_id: wording.number(value, 3) for case_id, value in ranked}
    worst = found.get("worst") or [case_id for case_id, _ in ranked[:5]]
    classes, table = found.get("classes") or {}, _case_table(cases, units)
    protocols, gap = _protocol_table(found.get("protocols") or (), of_means=bool(classes))
    several = isinstance(classes, list)  # a mapping: labels that were scored each on its own
    return Evaluation(
        **_common(found, _evaluation_facts(found, cases)),
        protocol=PROTOCOLS.get(found.get("protocol", ""), ""),
        metrics=tuple(
            _metric(column, summary, units[column], better.get(column, ""), cases)
            for column, summary in summaries.items()
        ),
        featured=_featured(ranked),
        ranked=tuple(score),
        rank_label=wording.label(rank, units[rank]),
        worst=tuple((str(id), score.get(id, wording.ABSENT)) for id in worst),
        excluded=_texts(found, "excluded"),
        missing=_texts(found, "missing"),
        cases=table,
        classes=None if several else _class_table(classes, units),
        protocols=protocols,
        protocol_gap=gap,
        by_class=_by_class(found, units, _shown_keys(cases, units), rank) if several else None,
        folds=_fold_table(found, units),
    )


def _by_class(
    found: Found, units: Mapping[str, str], keys: Mapping[str, str], rank: str
) -> ByClass:
    """The classes of a run, and their union if it is there."""
    classes = list(found["classes"])
    union = [{"name": "all as one", **found["union"]}] if found.get("union") else []
    better, places = found.get("better", {}), wording.decimals(units[rank])
    rank_label = wording.label(rank, units[rank])
    columns = [
        Column("Class", is_text=True),
        Column(f"{rank_label}, mean", units[rank]),
        Column("median", units[rank]),
        Column("95 % interval", is_text=True),
        Column("n"),
        Column("Worst case", is_text=True),
        *(Column(wording.label(key, unit), unit) for key, unit in units.items() if key != rank),
    ]
    rows = []
    for one in (*classes, *union):
        summary, worst = one["metrics"][rank], _ranked(one["cases"], rank, better.get(rank, ""))
        rest = (_mean(one["metrics"][key], unit) for key, unit in units.items() if key != rank)
        cells = (
            Cell(str(one["name"])),
            _numeric(summary["mean"], places),
            _numeric(summary["median"], places),
            Cell(wording.interval(summary["ci95"], places)),
            _numeric(summary["n"], 0),
            Cell(worst[0][0] if worst else wording.ABSENT),
        )
        rows.append(Row((*cells, *rest)))
    plots = []
    for key, unit in units.items():
        least = 0.0 if better.get(key, "") in ("higher", "lower") else -math.inf
        strips = [(str(one["name"]), _dots(one["cases"], key, unit)) for one in classes]
        plot = class_distribution(strips, (least, math.inf if unit else 1.0))
        if plot is not None:
            plots.append((wording.label(key, unit), unit, plot))
    decimal = {key: wording.decimals(unit) for key, unit in units.items()}
    values = tuple(
        {row.case_id: row.cells for row in _table(one["cases"], keys, decimal).rows}
        for one in (*classes, *union)
    )
    names = tuple(str(one["name"]) for one in classes)
    return ByClass(names, Table(tuple(columns), tuple(rows)), tuple(plots), values)


def _dots(cases: Sequence[Found], column: str, unit: str) -> list[Dot]:
    """The cases for which a metric is defined."""
    places = wording.decimals(unit)
    return [
        Dot(str(case["id"]), case[column], wording.number(case[column], places))
        for case in cases
        if case.get(column) is not None
    ]


def _evaluation_facts(found: Found, cases: Sequence[Found]) -> Facts:
    tolerance = found.get("tolerance") or {}
    within = f"{wording.text(tolerance.get('value'))} {wording.text(tolerance.get('unit'))}"
    return _named(
        {
            "Run": wording.text(found.get("run")),
            "Predictions": wording.text(found.get("pred")),
            "References": wording.text(found.get("ref")),
            "Split": wording.text(found.get("split")),
            "Cases scored": str(len({case["id"] for case in cases})),
            "Protocol": wording.text(found.get("protocol")),
            "Grid": wording.text(found.get("grid")),
            "Tolerance": within.strip(),
            "Lesions found from IoU": wording.text(found.get("detection_iou")),
            "Seed": wording.text(found.get("seed")),
            "Sampling": _settings(found.get("sample")),
            "Decoder": wording.text(found.get("decoder")),
            "Threshold, of the validation": wording.text(found.get("run_threshold")),
        }
    )


def _metric(column: str, summary: Found, unit: str, better: str, cases: Sequence[Found]) -> Metric:
    places = wording.decimals(unit)
    least = 0.0 if better in ("higher", "lower") else -math.inf
    dots = _dots(cases, column, unit)
    return Metric(
        label=wording.label(column, unit),
        unit=unit,
        meaning=wording.MEANINGS.get(wording.base_name(column, unit), ""),
        better=wording.BETTER.get(better, ""),
        arrow=wording.ARROWS.get(better, ""),
        mean=wording.number(summary["mean"], places),
        median=wording.number(summary["median"], places),
        sd=wording.number(summary.get("sd"), places),
        ci95=wording.interval(summary["ci95"], places),
        n=wording.number(summary["n"], 0),
        undefined=wording.number(summary.get("undefined"), 0),
        plot=distribution(dots, (least, math.inf if unit else 1.0)),
    )


def _ranked(cases: Sequence[Found], rank: str, better: str) -> list[tuple[str, float]]:
    """Id and score of every scored case, worst first; of several classes the mean."""
    scores: dict[str, list[float]] = {}
    for case in cases:
        if case.get(rank) is not None:
            scores.setdefault(str(case["id"]), []).append(case[rank])
    means = [(case_id, sum(values) / len(values)) for case_id, values in scores.items()]
    if better == "higher":
        return sorted(means, key=lambda pair: pair[1])
    return sorted(means, key=lambda pair: -abs(pair[1]))


def _featured(ranked: Sequence[tuple[str, float]]) -> tuple[Featured, ...]:
    """Best, median and worst, those of the .png; fewer where these are one case."""
    if not ranked:
        return ()
    chosen = {"best": ranked[-1], "median": ranked[(len(ranked) - 1) // 2], "worst": ranked[0]}
    headings: dict[tuple[str, float], list[str]] = {}
    for heading, case in chosen.items():
        headings.setdefault(case, []).append(heading)
    return tuple(
        Featured(" and ".join(names), case_id, wording.number(score, 3))
        for (case_id, score), names in headings.items()
    )


def _case_table(cases: Sequence[Found], units: Mapping[str, str]) -> Table:
    """Every case with all its values: its name, the metrics, then what they were counted on."""
    places = {key: wording.decimals(unit) for key, unit in units.items()}
    return _table(cases, _shown_keys(cases, units), places)


def _shown_keys(cases: Sequence[Found], units: Mapping[str, str]) -> dict[str, str]:
    """The columns of the table of cases, and their units."""
    held = dict.fromkeys(key for case in cases for key in case)
    names = [key for key in ("id", "class") if key in held]
    counts = [key for key in held if key not in (*names, *units)]
    return {key: units.get(key, "") for key in (*names, *units, *counts)}


def _table(rows: Sequence[Found], units: Mapping[str, str], places: Mapping[str, int]) -> Table:
    """Rows of JSON under the given columns; numbers of others than `places` are whole."""
    is_text = {
        key: key == "id" or any(isinstance(row.get(key), str) for row in rows) for key in units
    }

    def cell(key: str, value: Any) -> Cell:
        if is_text[key]:
            return Cell(wording.text(value) or wording.ABSENT)
        return _numeric(value, places.get(key, 0))

    return Table(
        tuple(Column(wording.label(key, unit), unit, is_text[key]) for key, unit in units.items()),
        tuple(Row(tuple(cell(key, row.get(key)) for key in units), str(row["id"])) for row in rows),
    )


def _fold_table(found: Found, units: Mapping[str, str]) -> Table | None:
    """Per fold the mean of each metric, then mean and spread of these, and the test cases."""
    folds = found.get("folds")
    if not folds:
        return None
    columns = [Column(wording.label(column, unit), unit) for column, unit in units.items()]
    named = [(f"fold {one['fold']}", one["metrics"]) for one in folds]
    if "ensemble" in found:
        named.append(("test cases, by all folds", found["ensemble"]["metrics"]))
    rows = [
        Row((Cell(name), *(_mean(of[column], unit) for column, unit in units.items())))
        for name, of in named
    ]
    for name, key in (("SD of folds", "sd"), ("mean of folds", "mean")):
        spread = found["fold_spread"]
        values = (_numeric(spread[column][key], 3) for column in units)
        rows.insert(len(folds), Row((Cell(name), *values)))
    return Table((Column("Fold", is_text=True), *columns), tuple(rows))


def _class_table(classes: Mapping[str, Found], units: Mapping[str, str]) -> Table | None:
    """Per class the mean of each metric and its interval."""
    if not classes:
        return None
    columns = [Column(wording.label(column, unit), unit) for column, unit in units.items()]
    rows = [
        Row((Cell(name), *(_mean(found[column], unit) for column, unit in units.items())))
        for name, found in classes.items()
    ]
    return Table((Column("Class", is_text=True), *columns), tuple(rows))


def _protocol_table(rows: Sequence[Found], *, of_means: bool) -> tuple[Table | None, str]:
    """The same predictions under each protocol, of several classes the means over them; and how far
    these part.
    """
    if not rows:
        return None, ""
    dice, iou = ("Dice, mean of classes", "IoU, mean of classes") if of_means else ("Dice", "IoU")
    names = ("Protocol", "Grid", dice, "Dice, median", iou, "IoU, median", "Cases", "Excluded")
    columns = tuple(Column(name, "", place < 2) for place, name in enumerate(names))
    lines = tuple(
        Row(
            (
                Cell(row["protocol"]),
                Cell(row["grid"]),
                _mean(row["dice"], ""),
                _numeric(row["dice"]["median"], 3),
                _mean(row["iou"], ""),
                _numeric(row["iou"]["median"], 3),
                _numeric(row["dice"]["n"], 0),
                _numeric(row["excluded"], 0),
            )
        )
        for row in rows
    )
    means = [row["dice"]["mean"] for row in rows if row["dice"]["mean"] is not None]
    gap = wording.number(max(means) - min(means), 3) if len(means) > 1 else ""
    return Table(columns, lines), gap


def _mean(summary: Found, unit: str) -> Cell:
    """The mean, below it the interval."""
    places = wording.decimals(unit)
    below = wording.interval(summary["ci95"], places)
    mean = summary["mean"]
    return Cell(wording.number(mean, places), mean, "" if below == wording.ABSENT else below)


MAPS = {"seg": "Seg", "score": "Score"}


@dataclass(frozen=True)
class Stability(Part):
    """Results of `stability`."""

    metrics: Table
    has_all_pairs: bool
    cases: Table | None
    most_unstable: tuple[str, ...]
    maps: tuple[str, ...]
    table5: Table | None
    classes: Table | None = None
    """Of a run of several classes."""

    @property
    def case_ids(self) -> tuple[str, ...]:
        """Of the table, and the most unstable."""
        rows = self.cases.rows if self.cases else ()
        return (*(row.case_id for row in rows), *self.most_unstable)


def stability_part(found: Found) -> Stability:
    """Results of `stability`, as the page shows them.

    Args:
        found: The object of stability.json.

    Raises:
        LookupError, TypeError, ValueError, ArithmeticError, AttributeError: It is none.
    """
    return Stability(
        **_common(found, _stability_facts(found)),
        metrics=_similarity_table(found),
        has_all_pairs=bool(found.get("all_pairs")),
        cases=_stability_cases(found),
        most_unstable=_texts(found, "most_unstable"),
        maps=_texts(found, "maps"),
        table5=_free_table([_flattened(row) for row in found.get("table5", ())]),
        classes=_stability_classes(found.get("classes") or ()),
    )


def _stability_classes(classes: Sequence[Found]) -> Table | None:
    """Per class the Dice over the runs and the share of voxels that flip."""
    if not classes:
        return None
    labels = ("Dice, mean", "Dice, SD of the runs", "Flipped voxels", "Of any run's foreground")
    units = ("", "", "%", "%")
    columns = (Column(name, unit) for name, unit in zip(labels, units, strict=True))
    rows = []
    for one in classes:
        dice, flipped = one.get("dice", {}), one.get("flipped", {})
        scores = (_numeric(dice.get(key), 4) for key in ("mean", "sd"))
        shares = (_percent(flipped.get(key)) for key in _SHARES)
        rows.append(Row((Cell(str(one["name"])), *scores, *shares)))
    return Table((Column("Class", is_text=True), *columns), tuple(rows))


def _dice(found: Found) -> str:
    """What is meant by the Dice of `stability`, where there are several."""
    return "Dice of all classes as one" if found.get("classes") else "Dice"


def _stability_facts(found: Found) -> Facts:
    dice, flipped = found["dice"], found.get("flipped", {})
    mean, sd = dice["mean"], dice["sd"]
    spread = "" if sd is None else f" ± {wording.number(sd, max(4, wording.digits(sd)))}"
    facts = {
        "Run": wording.text(found.get("run")),
        "Split": wording.text(found.get("split")),
        "Runs": wording.text(found.get("runs")),
        "Seeds": ", ".join(_texts(found, "seeds")),
        "Sampling": _settings(found.get("sample")),
        "Decoder": wording.text(found.get("decoder")),
        "Threshold, of the validation": wording.text(found.get("run_threshold")),
        f"{_dice(found)}, mean ± SD of the runs": ""
        if mean is None
        else wording.number(mean, 4) + spread,
    }
    for key, label in _SHARES.items():
        share = flipped.get(key)
        facts[label] = "" if share is None else wording.percent(share)
    of = f" of {wording.number(found['pairs'], 0)}" if "pairs" in found else ""
    for name, label in MAPS.items():
        if name in found.get("identical", {}):
            same = wording.number(found["identical"][name], 0)
            facts[f"Identical pairs, {label}"] = f"{same}{of}"
    return _named(facts)


_SHARES = {"fraction": "Voxels that ever flip", "of_foreground": "Of what any run marked"}


def _similarity_table(found: Found) -> Table:
    """Seg and Score, run 1 against the others and, where measured, every pair of runs."""
    sources = [(found, "first against rest")]
    if found.get("all_pairs"):
        sources.append((found["all_pairs"], "all pairs"))
    columns = [Column("Metric", is_text=True)]
    columns += [Column(f"{label}, {how}") for label in MAPS.values() for _, how in sources]
    rows = []
    for metric in ("lpips", "psnr", "ssim", "ms_ssim"):
        arrow = wording.ARROWS["lower" if metric == "lpips" else "higher"]
        values = (source[name].get(metric) for name in MAPS for source, _ in sources)
        cells = (_numeric(value, 2 if metric == "psnr" else 4) for value in values)
        rows.append(Row((Cell(f"{wording.label(metric)} {arrow}"), *cells)))
    return Table(tuple(columns), tuple(rows))


def _stability_cases(found: Found) -> Table | None:
    """Per case the spread of its Dice and the share of voxels that flip."""
    dice = {row["id"]: row for row in found["dice"].get("by_case", ())}
    flipped = {row["id"]: row for row in found.get("flipped", {}).get("by_case", ())}
    spread = ("mean", "sd", "min", "max")
    columns = (
        Column("Case", is_text=True),
        *(Column(f"{_dice(found)}, {'SD' if key == 'sd' else key}") for key in spread),
        Column("Flipped voxels", "%"),
        Column("Of any run's foreground", "%"),
    )
    rows = []
    for case_id in dict.fromkeys([*dice, *flipped]):
        scores = (_numeric(dice.get(case_id, {}).get(key), 4) for key in spread)
        shares = (_percent(flipped.get(case_id, {}).get(key)) for key in _SHARES)
        rows.append(Row((Cell(case_id), *scores, *shares), case_id))
    return Table(columns, tuple(rows)) if rows else None


def _percent(share: float | None) -> Cell:
    if share is None:
        return Cell(wording.ABSENT)
    return _numeric(100 * share, wording.digits(100 * share))


def _flattened(row: Found) -> dict[str, Any]:
    """`{"dice": {"mean": 1}}` as `{"dice_mean": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        inner = value if isinstance(value, dict) else {}
        flat |= {f"{key}_{name}": v for name, v in inner.items()} if inner else {key: value}
    return flat


def _free_table(rows: Sequence[Found]) -> Table | None:
    """All columns of the rows, in order of appearance; empty ones are left out."""
    keys = dict.fromkeys(key for row in rows for key in row)
    keys = {key: None for key in keys if any(row.get(key) is not None for row in rows)}
    if not keys:
        return None
    is_text = {key: any(isinstance(row.get(key), str) for row in rows) for key in keys}

    def cell(key: str, value: Any) -> Cell:
        if is_text[key]:
            return Cell(wording.text(value) or wording.ABSENT)
        if isinstance(value, int):
            return _numeric(value, 0)
        return _numeric(value, 4 if value is None or abs(value) <= 1 else 2)

    return Table(
        tuple(Column(_heading(key), "", is_text[key]) for key in keys),
        tuple(Row(tuple(cell(key, row.get(key)) for key in keys)) for row in rows),
    )


def _heading(key: str) -> str:
    """`seg_ms_ssim` as "Seg MS-SSIM"."""
    first, _, rest = key.partition("_")
    if first in MAPS and rest:
        return f"{MAPS[first]} {wording.label(rest)}"
    if first == "dice" and rest:
        return f"Dice, {'SD' if rest == 'sd' else rest}"
    return wording.label(key)


@dataclass(frozen=True)
class Sweep(Part):
    """Effect of more steps and samples."""

    table: Table
    chart: Plot | None


def sweep_part(found: Found) -> Sweep:
    """Results of a sweep over ways of sampling, as the page shows them.

    Args:
        found: The object of sweep.json.

    Raises:
        LookupError, TypeError, ValueError, ArithmeticError, AttributeError: It is none.
    """
    table = _free_table([_flattened(row) for row in found["sweep"]])
    if table is None:
        raise ValueError("no rows")
    lines: dict[str, dict[int, tuple[float, float]]] = {}
    for row in found["sweep"]:
        if row["dice"]["mean"] is not None:
            line = lines.setdefault(f"eta {row['eta']}, samples {row['samples']}", {})
            line[row["steps"]] = (row["dice"]["mean"], row["dice"]["sd"] or 0.0)
    return Sweep(**_common(found, ()), table=table, chart=sweep_chart(lines))
