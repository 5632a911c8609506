"""The tables of an evaluation: every case, every class, both protocols."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdseg_cli.report import stored, wording
from sdseg_cli.report.view import Cell, Column, Row, Table, numeric


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
