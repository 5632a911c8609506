"""stability.json and sweep.json as a page shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdseg_cli.report import stored, wording
from sdseg_cli.report.stored import Unreadable
from sdseg_cli.report.sweep_chart import SweepChart, sweep_chart
from sdseg_cli.report.wording import Cell, Column, Row, Table, numeric

METRICS = {"lpips": "lower", "psnr": "higher", "ssim": "higher", "ms_ssim": "higher"}
"""Metric -> what is better."""
MAPS = {"seg": "Seg", "score": "Score"}


@dataclass(frozen=True)
class Stability:
    """What `stability` found, ready to show."""

    facts: tuple[tuple[str, str], ...]
    metrics: Table
    has_all_pairs: bool
    cases: Table | None
    most_unstable: tuple[str, ...]
    maps: tuple[str, ...]
    table5: Table | None
    notes: tuple[str, ...]
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class Sweep:
    """What more steps and samples bring."""

    table: Table
    chart: SweepChart | None
    notes: tuple[str, ...]
    provenance: Mapping[str, Any]


def stability_view(found: Mapping[str, Any]) -> Stability:
    """Read what `stability` wrote.

    Args:
        found: The object of stability.json.

    Returns:
        The view; what is absent there is absent here.

    Raises:
        Unreadable: It has neither of the maps' metrics.
    """
    if not any(isinstance(found.get(name), dict) for name in MAPS):
        raise Unreadable("it has no metrics; another version may have written it")
    return Stability(
        facts=_facts(found),
        metrics=_metric_table(found),
        has_all_pairs=bool(stored.mapping(found.get("all_pairs"))),
        cases=_case_table(found),
        most_unstable=stored.texts(found.get("most_unstable")),
        maps=stored.texts(found.get("maps")),
        table5=_free_table([_flattened(row) for row in stored.rows(found.get("table5"))]),
        notes=stored.texts(found.get("notes")),
        provenance=stored.mapping(found.get("provenance")),
    )


def sweep_view(found: Mapping[str, Any]) -> Sweep:
    """Read what `stability --steps --eta` wrote.

    Args:
        found: The object of sweep.json.

    Returns:
        One row per way of sampling.

    Raises:
        Unreadable: It has no rows.
    """
    listed = stored.rows(found.get("sweep"))
    if not listed:
        raise Unreadable("it has no rows; another version may have written it")
    flat = [_flattened(row) for row in listed]
    table = _free_table(flat)
    if table is None:
        raise Unreadable("its rows are empty")
    return Sweep(
        table,
        sweep_chart(listed),
        stored.texts(found.get("notes")),
        stored.mapping(found.get("provenance")),
    )


def _facts(found: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    dice, flipped = stored.mapping(found.get("dice")), stored.mapping(found.get("flipped"))
    identical, pairs = stored.mapping(found.get("identical")), stored.number(found.get("pairs"))
    mean, sd = stored.number(dice.get("mean")), stored.number(dice.get("sd"))
    facts = {"Run": stored.text(found.get("run")), "Split": stored.text(found.get("split"))}
    facts["Runs"] = stored.text(found.get("runs"))
    facts["Seeds"] = ", ".join(stored.texts(found.get("seeds")))
    facts["Sampling"] = stored.settings(found.get("sample"))
    facts["Decoder"] = stored.text(found.get("decoder"))
    if mean is not None:
        spread = "" if sd is None else f" ± {wording.number(sd, max(4, wording.digits(sd)))}"
        facts["Dice, mean ± SD of the runs"] = wording.number(mean, 4) + spread
    facts["Voxels that ever flip"] = _share(flipped.get("fraction"))
    facts["Of what any run marked"] = _share(flipped.get("of_foreground"))
    for name, label in MAPS.items():
        if (same := stored.number(identical.get(name))) is not None:
            of = "" if pairs is None else f" of {wording.count(pairs)}"
            facts[f"Identical pairs, {label}"] = f"{wording.count(same)}{of}"
    return tuple((name, value) for name, value in facts.items() if value)


def _share(value: object) -> str:
    share = stored.number(value)
    return "" if share is None else wording.percent(share)


def _percent(share: float | None) -> Cell:
    return (
        Cell(wording.ABSENT) if share is None else numeric(100 * share, wording.digits(100 * share))
    )


def _metric_table(found: Mapping[str, Any]) -> Table:
    """Seg and Score, run 1 against the others and, where measured, every pair of runs."""
    all_pairs = stored.mapping(found.get("all_pairs"))
    sources = [(found, "first against rest")]
    sources += [(all_pairs, "all pairs")] if all_pairs else []
    columns = [Column("Metric", "", True)]
    columns += [Column(f"{label}, {how}") for label in MAPS.values() for _, how in sources]
    rows = []
    for metric, better in METRICS.items():
        values = [
            stored.number(stored.mapping(source.get(name)).get(metric))
            for name in MAPS
            for source, _ in sources
        ]
        cells = (numeric(value, 2 if metric == "psnr" else 4) for value in values)
        rows.append(Row((Cell(f"{wording.label(metric)} {wording.ARROWS[better]}"), *cells), ""))
    return Table(tuple(columns), tuple(rows))


def _case_table(found: Mapping[str, Any]) -> Table | None:
    """Per case the spread of its Dice and the share of voxels that flip."""
    dice = _by_case(stored.mapping(found.get("dice")).get("by_case"))
    flipped = _by_case(stored.mapping(found.get("flipped")).get("by_case"))
    ids = list(dict.fromkeys([*dice, *flipped]))
    if not ids:
        return None
    dice_keys, flip_keys = ("mean", "sd", "min", "max"), ("fraction", "of_foreground")
    columns = (
        Column("Case", "", True),
        *(Column(f"Dice, {'SD' if key == 'sd' else key}") for key in dice_keys),
        Column("Flipped voxels", "%"),
        Column("Of any run's foreground", "%"),
    )
    rows = []
    for case_id in ids:
        spread = [stored.number(dice.get(case_id, {}).get(key)) for key in dice_keys]
        shares = [stored.number(flipped.get(case_id, {}).get(key)) for key in flip_keys]
        cells = (
            Cell(case_id),
            *(numeric(value, 4) for value in spread),
            *(_percent(share) for share in shares),
        )
        rows.append(Row(cells, case_id))
    return Table(columns, tuple(rows))


def _by_case(value: object) -> dict[str, dict[str, Any]]:
    """Case -> its values, from a list of objects with an id, or from an object of objects."""
    if isinstance(value, dict):
        pairs = {str(name): item for name, item in value.items()}
        return {
            name: item if isinstance(item, dict) else {"fraction": item}
            for name, item in pairs.items()
        }
    return {stored.text(row["id"]): row for row in stored.rows(value) if "id" in row}


def _flattened(row: Mapping[str, Any]) -> dict[str, Any]:
    """`{"dice": {"mean": 1}}` as `{"dice_mean": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in row.items():
        inner = value if isinstance(value, dict) else None
        flat |= {f"{key}_{name}": v for name, v in inner.items()} if inner else {str(key): value}
    return {key: value for key, value in flat.items() if not isinstance(value, dict | list)}


def _free_table(rows: list[dict[str, Any]]) -> Table | None:
    """Whatever columns the rows have, in the order they appear; empty ones are left out."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    keys = [key for key in keys if any(row.get(key) is not None for row in rows)]
    if not keys:
        return None
    is_text = {key: any(isinstance(row.get(key), str) for row in rows) for key in keys}
    columns = tuple(Column(_heading(key), "", is_text[key]) for key in keys)
    return Table(
        columns,
        tuple(Row(tuple(_free_cell(row.get(k), is_text[k]) for k in keys), "") for row in rows),
    )


def _heading(key: str) -> str:
    """`seg_ms_ssim` as "Seg MS-SSIM"."""
    first, _, rest = key.partition("_")
    if first in MAPS and rest:
        return f"{MAPS[first]} {wording.label(rest)}"
    if first == "dice" and rest:
        return f"Dice, {'SD' if rest == 'sd' else rest}"
    return wording.label(key)


def _free_cell(value: object, is_text: bool) -> Cell:
    if is_text:
        return Cell(stored.text(value) or wording.ABSENT)
    found = stored.number(value)
    whole = isinstance(value, int)
    return numeric(found, 0 if whole else 4 if found is None or abs(found) <= 1 else 2)
