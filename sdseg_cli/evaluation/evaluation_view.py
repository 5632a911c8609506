"""evaluate.json as a page shows it: texts in tables, places in plots, cases by number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdseg_cli.report import stored, wording
from sdseg_cli.report.distribution import Distribution, distribution
from sdseg_cli.report.stored import Unreadable
from sdseg_cli.report.wording import Cell, Column, Row, Table, numeric

PROTOCOLS = {
    "standard": "A case with both masks empty is excluded and listed; with one empty, Dice is 0 "
    "and distances are undefined and counted.",
    "official": "The rules of the official SDSeg code, on its 256 x 256 planes: an empty reference "
    "scores 1 against a non-empty prediction and 0 against an empty one.",
}


@dataclass(frozen=True)
class Metric:
    """One metric over all cases."""

    column: str
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
    plot: Distribution | None
    values: tuple[str, ...]
    """Per dot of the plot, as text."""
    cases: tuple[str, ...]
    """Per dot of the plot, its case's id."""


@dataclass(frozen=True)
class Featured:
    """A case the page shows at once."""

    heading: str
    case_id: str
    score: str


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found, ready to show."""

    facts: tuple[tuple[str, str], ...]
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
    """How far the protocols part; empty if there is one only."""
    notes: tuple[str, ...]
    provenance: Mapping[str, Any]


def evaluation_view(found: Mapping[str, Any]) -> Evaluation:
    """Read what `evaluate` wrote.

    Args:
        found: The object of evaluate.json.

    Returns:
        The view; what is absent there is absent here.

    Raises:
        Unreadable: It has no metrics or no list of cases.
    """
    summaries, cases = stored.mapping(found.get("metrics")), stored.rows(found.get("cases"))
    if not summaries or not isinstance(found.get("cases"), list):
        raise Unreadable("it has no metrics or no cases; another version may have written it")
    stated = {str(k): stored.text(v) for k, v in stored.mapping(found.get("units")).items()}
    units = {column: wording.unit_of(column, stated) for column in summaries}
    better = {str(k): stored.text(v) for k, v in stored.mapping(found.get("better")).items()}
    rank = "dice" if "dice" in summaries else next(iter(summaries))
    ranked = _ranked(cases, rank, better.get(rank, "higher"))
    score = {case_id: wording.number(value, 3) for case_id, value in ranked}
    worst = stored.texts(found.get("worst")) or tuple(case_id for case_id, _ in ranked[:5])
    protocols, gap = protocol_table(found)
    return Evaluation(
        facts=_facts(found, cases),
        protocol=PROTOCOLS.get(stored.text(found.get("protocol")), ""),
        metrics=tuple(_metric(c, summaries[c], units[c], better, cases) for c in summaries),
        featured=_featured(ranked),
        ranked=tuple(case_id for case_id, _ in ranked),
        rank_label=wording.label(rank, units[rank]),
        worst=tuple((case_id, score.get(case_id, wording.ABSENT)) for case_id in worst),
        excluded=stored.texts(found.get("excluded")),
        missing=stored.texts(found.get("missing")),
        cases=case_table(cases, units),
        classes=class_table(stored.mapping(found.get("classes")), units),
        protocols=protocols,
        protocol_gap=gap,
        notes=stored.texts(found.get("notes")),
        provenance=stored.mapping(found.get("provenance")),
    )


def _facts(found: Mapping[str, Any], cases: list[dict[str, Any]]) -> tuple[tuple[str, str], ...]:
    """What was measured, as pairs of name and value."""
    tolerance = stored.mapping(found.get("tolerance"))
    every = {
        "Run": stored.text(found.get("run")),
        "Predictions": stored.text(found.get("pred")),
        "References": stored.text(found.get("ref")),
        "Split": stored.text(found.get("split")),
        "Cases scored": str(len({stored.text(case.get("id")) for case in cases})),
        "Protocol": stored.text(found.get("protocol")),
        "Grid": stored.text(found.get("grid")),
        "Tolerance": f"{stored.text(tolerance.get('value'))} {stored.text(tolerance.get('unit'))}",
        "Lesions found from IoU": stored.text(found.get("detection_iou")),
        "Seed": stored.text(found.get("seed")),
        "Sampling": stored.settings(found.get("sample")),
        "Decoder": stored.text(found.get("decoder")),
    }
    return tuple((name, value.strip()) for name, value in every.items() if value.strip())


def _metric(
    column: str,
    summary: object,
    unit: str,
    better: Mapping[str, str],
    cases: list[dict[str, Any]],
) -> Metric:
    found, places = stored.mapping(summary), wording.decimals(unit)
    ends = [stored.number(end) for end in stored.items(found.get("ci95"))]
    low, high = ends if len(ends) == 2 else (None, None)
    known = [
        (stored.text(case.get("id")), value)
        for case in cases
        if (value := stored.number(case.get(column))) is not None
    ]

    def written(key: str) -> str:
        return wording.number(stored.number(found.get(key)), places)

    return Metric(
        column=column,
        label=wording.label(column, unit),
        unit=unit,
        meaning=wording.MEANINGS.get(wording.base_name(column, unit), ""),
        better=wording.BETTER.get(better.get(column, ""), ""),
        arrow=wording.ARROWS.get(better.get(column, ""), ""),
        mean=written("mean"),
        median=written("median"),
        sd=written("sd"),
        ci95=wording.interval(low, high, places),
        n=wording.count(stored.number(found.get("n"))),
        undefined=wording.count(stored.number(found.get("undefined"))),
        plot=distribution([value for _, value in known]),
        values=tuple(wording.number(value, places) for _, value in known),
        cases=tuple(case_id for case_id, _ in known),
    )


def _ranked(cases: list[dict[str, Any]], rank: str, better: str) -> list[tuple[str, float]]:
    """Id and score of every scored case, worst first; of several classes the mean."""
    scores: dict[str, list[float]] = {}
    for case in cases:
        if (value := stored.number(case.get(rank))) is not None:
            scores.setdefault(stored.text(case.get("id")), []).append(value)
    means = [(case_id, sum(values) / len(values)) for case_id, values in scores.items()]
    return sorted(means, key=lambda pair: _goodness(pair[1], better))


def _goodness(value: float, better: str) -> float:
    """The value, turned so that more is better."""
    return {"lower": -value, "zero": -abs(value)}.get(better, value)


def _featured(ranked: list[tuple[str, float]]) -> tuple[Featured, ...]:
    """Best, median and worst, those of the .png; fewer where these are one case."""
    if not ranked:
        return ()
    chosen = {"best": ranked[-1], "median": ranked[(len(ranked) - 1) // 2], "worst": ranked[0]}
    headings: dict[str, list[str]] = {}
    for heading, (case_id, _) in chosen.items():
        headings.setdefault(case_id, []).append(heading)
    scores = dict(ranked)
    return tuple(
        Featured(" and ".join(names), case_id, wording.number(scores[case_id], 3))
        for case_id, names in headings.items()
    )


def case_table(cases: list[dict[str, Any]], units: Mapping[str, str]) -> Table:
    """Every case with all its values, metrics first."""
    others = {key: None for case in cases for key in case if key not in units}
    extra = [key for key in others if key not in ("id", "class")]
    keys = [key for key in ("id", "class") if key in others] + [*units, *extra]
    is_text = {
        key: key == "id" or any(isinstance(case.get(key), str) for case in cases) for key in keys
    }
    columns = tuple(
        Column(wording.label(key, units.get(key, "")), units.get(key, ""), is_text[key])
        for key in keys
    )
    return Table(columns, tuple(_case_row(case, keys, units, is_text) for case in cases))


def _case_row(
    case: dict[str, Any], keys: list[str], units: Mapping[str, str], is_text: Mapping[str, bool]
) -> Row:
    cells = []
    for key in keys:
        if is_text[key]:
            cells.append(Cell(stored.text(case.get(key)) or wording.ABSENT, None))
        else:
            cells.append(
                numeric(
                    stored.number(case.get(key)),
                    wording.decimals(units[key]) if key in units else 0,
                )
            )
    return Row(tuple(cells), stored.text(case.get("id")))


def class_table(classes: Mapping[str, Any], units: Mapping[str, str]) -> Table | None:
    """Per class the mean of each metric and its interval."""
    if not classes:
        return None
    columns = (
        Column("Class", "", True),
        *(Column(wording.label(column, unit), unit, False) for column, unit in units.items()),
    )
    rows = []
    for name, summaries in classes.items():
        found = stored.mapping(summaries)
        means = (_summary_cell(found.get(column), unit) for column, unit in units.items())
        rows.append(Row((Cell(str(name), None), *means), ""))
    return Table(columns, tuple(rows))


def protocol_table(found: Mapping[str, Any]) -> tuple[Table | None, str]:
    """The same predictions under each protocol, and how far these part."""
    listed = stored.rows(found.get("protocols"))
    if not listed:
        return None, ""
    names = ("Protocol", "Grid", "Dice", "Dice, median", "IoU", "IoU, median", "Cases", "Excluded")
    columns = tuple(Column(name, "", place < 2) for place, name in enumerate(names))
    rows, means = [], []
    for item in listed:
        dice, iou = stored.mapping(item.get("dice")), stored.mapping(item.get("iou"))
        cells = (
            Cell(stored.text(item.get("protocol")), None),
            Cell(stored.text(item.get("grid")), None),
            _summary_cell(dice, ""),
            numeric(stored.number(dice.get("median")), 3),
            _summary_cell(iou, ""),
            numeric(stored.number(iou.get("median")), 3),
            numeric(stored.number(dice.get("n")), 0),
            numeric(stored.number(item.get("excluded")), 0),
        )
        rows.append(Row(cells, ""))
        if (mean := stored.number(dice.get("mean"))) is not None:
            means.append(mean)
    gap = wording.number(max(means) - min(means), 3) if len(means) > 1 else ""
    return Table(columns, tuple(rows)), gap


def _summary_cell(summary: object, unit: str) -> Cell:
    """The mean, below it the interval and the number of cases."""
    found, places = stored.mapping(summary), wording.decimals(unit)
    mean = stored.number(found.get("mean"))
    ends = [stored.number(end) for end in stored.items(found.get("ci95"))]
    below = wording.interval(ends[0], ends[1], places) if len(ends) == 2 else ""
    return Cell(wording.number(mean, places), mean, "" if below == wording.ABSENT else below)
