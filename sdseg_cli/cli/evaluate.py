"""`sdseg evaluate`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from sdseg_cli.cli import options as opt
from sdseg_cli.cli.console import Output
from sdseg_cli.cli.options import (
    number,
    open_folds,
    open_run,
    refuse_given,
    sampling,
    scoring,
    typed,
    whole_numbers,
    workspace,
)
from sdseg_cli.core.errors import ConfigError
from sdseg_cli.core.processes import warm_up

if TYPE_CHECKING:
    from sdseg_cli.evaluation.results import EvaluateReport
    from sdseg_cli.metrics.statistics import Summary

_SHORT = {
    "dice": "Dice",
    "iou": "IoU",
    "precision": "preci-\nsion",
    "hd95": "HD95",
    "assd": "ASSD",
    "surface_dice": "surf.\nDice",
    "volume_difference": "vol.\ndiff.",
    "detection_f1": "lesion\nF1",
}
"""Names of metrics at the head of a narrow column."""
_OF_OTHER_CASES = (
    "A run is scored on cases of the set it was trained on (--split). For other cases: sdseg "
    "predict SCANS -o MASKS --run RUN, then sdseg evaluate --pred MASKS --ref REFERENCES."
)
_OF_ITS_CLASSES = (
    "A run is scored by the classes of its set. For others: sdseg predict SCANS -o MASKS --run "
    "RUN, then sdseg evaluate --pred MASKS --ref REFERENCES, with this option."
)
_NAME_WIDTH, _SHORTEST_NAME = 27, 14
"""On a narrow terminal a case's name is folded to the first, borders included; down to the second
where all columns then fit into one table."""


def evaluate(
    run: opt.Run = None,
    folds: Annotated[
        bool,
        opt.FileOption(
            "--folds", help="Every case by the fold that did not train on it, test cases by all."
        ),
    ] = False,
    pred: Annotated[
        Path | None, opt.ReferenceOption(help="Folder of masks to score, instead of a run.")
    ] = None,
    ref: Annotated[
        Path | None, opt.ReferenceOption(help="Folder of reference masks of the same names.")
    ] = None,
    target: opt.Target = None,
    classes: opt.Classes = None,
    dataset: opt.ReferenceLayout = None,
    resample: opt.Resample = False,
    allow_missing: Annotated[
        bool,
        opt.ReferenceOption("--allow-missing", help="With --ref: leave out cases without a mask."),
    ] = False,
    workers: opt.Workers = None,
    report_folder: Annotated[
        Path | None, opt.ReferenceOption("--report", help="With --ref: folder for the report.")
    ] = None,
    split: opt.Split = "test",
    grid: opt.GridName = "native",
    protocol: opt.ProtocolName = "standard",
    tolerance: opt.Tolerance = 2.0,
    lesions: opt.Lesions = False,
    detection_iou: opt.DetectionIou = None,
    seed: opt.Seed = 0,
    steps: opt.Steps = None,
    eta: opt.Eta = None,
    samples: opt.Samples = None,
    batch_size: opt.BatchSize = None,
    decoder: opt.Decoder = "auto",
    device: opt.Device = "auto",
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Score predictions case by case: overlap, distances and volume."""
    of_run: dict[str, object] = {
        "--run": run,
        "--folds": folds or None,
        "--steps": steps,
        "--eta": eta,
        "--samples": samples,
    }
    of_folders = {
        "--target": target,
        "--classes": classes,
        "--dataset": dataset,
        "--resample": resample or None,
        "--allow-missing": allow_missing or None,
        "--workers": workers,
        "--report": report_folder,
    }
    if folds and split != "test":
        raise ConfigError(
            f"--split {split} does not go with --folds, which judges every case.", "Leave it out."
        )
    if (pred is None) != (ref is None):
        raise ConfigError("--pred and --ref belong together.", "Give both folders, or neither.")
    one_of_both = "Score either a run, or two folders of masks."
    if pred is None:
        refuse_given({"--dataset": dataset}, "does not go with a run", _OF_OTHER_CASES)
        refuse_given(
            {"--target": target, "--classes": classes}, "does not go with a run", _OF_ITS_CLASSES
        )
        refuse_given(of_folders, "does not go with a run", one_of_both)
    else:
        refuse_given(of_run, "does not go with --pred and --ref", one_of_both)
    output = Output(as_json=as_json, quiet=quiet)
    if pred is not None and ref is not None:
        if workers != 1:
            warm_up("sdseg_cli.evaluation.pairs")
        from sdseg_cli.data.classes import parse_scored
        from sdseg_cli.evaluation.folders import FolderOptions, evaluate_folders

        with output.progress() as progress:
            report = evaluate_folders(
                pred,
                ref,
                reading=FolderOptions(
                    whole_numbers("--target", target),
                    parse_scored(classes),
                    dataset,
                    resample,
                    workers,
                ),
                options=scoring(
                    tolerance,
                    detection_iou,
                    lesions=lesions,
                    grid=grid,
                    protocol=protocol,
                    allow_missing=allow_missing,
                ),
                report=report_folder,
                command=typed(),
                progress=progress,
            )
    else:
        from sdseg_cli.evaluation.evaluate import evaluate as run_evaluate
        from sdseg_cli.evaluation.evaluation_split import SplitOptions
        from sdseg_cli.evaluation.folds import evaluate_folds

        judged = scoring(tolerance, detection_iou, lesions=lesions, grid=grid, protocol=protocol)
        cases = SplitOptions(split, seed, device, batch_size, decoder)
        found = open_folds(run, output) if folds else None
        folder = open_run(run, output) if found is None else found.finished[0]
        sample = sampling(folder.config().sample, steps, eta, samples)
        with output.progress() as progress:
            work = (
                partial(run_evaluate, folder.path)
                if found is None
                else partial(evaluate_folds, found)
            )
            report = work(
                workspace(),
                options=judged,
                cases=cases,
                sample=sample,
                command=typed(),
                progress=progress,
            )
    _show(report, output)
    if not report.files:
        output.say("no file was written: --report FOLDER writes report.html, CSV, JSON and LaTeX")


def _show(report: EvaluateReport, output: Output) -> None:
    """Print notes, then the table of cases and statistics, in parts where it is too wide."""
    values = report.to_json()
    units, metrics = values["units"], values["metrics"]
    _show_folds(report, output)
    if report.rule is not None:
        rows = [
            (name, *_cells(units, {column: of[column].mean for column in units}))
            for name, of in report.class_rows()
        ]
        return _print(report, output, ["class", *_heads(units)], rows, 1)
    of_class = () if values["classes"] is None else ("class",)
    rows = [
        (case["id"], *(str(case[one]) for one in of_class), *_cells(units, case))
        for case in values["cases"]
    ]
    blank = ("",) * len(of_class)
    for label, summaries in (values["classes"] or {}).items():
        rows.append(("mean", label, *_statistic(units, summaries, "mean")))
    for what in ("mean", "sd", "median"):
        rows.append((what, *blank, *_statistic(units, metrics, what)))
    for end, what in enumerate(("95% low", "95% high")):
        bounds = {name: metrics[name]["ci95"][end] for name in units}
        rows.append((what, *blank, *_cells(units, bounds)))
    rows.append(("cases", *blank, *(str(metrics[name]["n"]) for name in units)))
    columns = ["case", *of_class, *_heads(units)]
    return _print(report, output, columns, rows, len(columns) - len(units))


def _show_folds(report: EvaluateReport, output: Output) -> None:
    """Of folds, the table of their means, and the test cases by all of them."""
    if not report.folds:
        return
    rows = [
        (f"fold {one.fold}", str(one.cases), *_means(report.units, one.metrics))
        for one in report.folds
    ]
    spread = report.fold_spread
    rows.append(("mean of folds", "", *_means(report.units, spread)))
    rows.append(("SD of folds", "", *_cells(report.units, {k: v.sd for k, v in spread.items()})))
    if report.ensemble is not None:
        count = str(len(report.ensemble.case_ids))
        rows.append(("test, by all", count, *_means(report.units, report.ensemble.metrics)))
    columns = ["fold", "cases", *_heads(report.units)]
    width = shutil.get_terminal_size().columns
    for shown in _fitting(columns, rows, 1, width):
        output.table(
            title="each fold, on the cases that it did not train on",
            columns=_picked(columns, shown),
            rows=[_picked(row, shown) for row in rows],
            unbroken=True,
        )


def _means(units: Mapping[str, str], metrics: Mapping[str, Summary]) -> list[str]:
    return _cells(units, {name: of.mean for name, of in metrics.items()})


def _print(
    report: EvaluateReport,
    output: Output,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    first: int,
) -> None:
    """Notes, and the table; its `first` columns stand in each part."""
    values = report.to_json()
    for case in values["excluded"]:
        output.say(f"excluded {case}: reference and prediction are both empty")
    for note in values["notes"]:
        output.say(note)
    if values["protocols"]:
        dice = "Dice" if report.rule is None else "Dice, mean over classes,"
        output.say(f"{dice} of the same predictions: {_by_protocol(values['protocols'])}")
    *others, last = _fitting(columns, rows, first, shutil.get_terminal_size().columns)
    title = f"{values['protocol']} protocol, {values['grid']} grid"
    if tolerance := values["tolerance"]:
        title += f", surface Dice within {tolerance['value']:g} {tolerance['unit']}"
    if values["detection_iou"] is not None:
        title += f", lesions from IoU {values['detection_iou']:g}"
    for shown in others:
        output.table(
            title=title,
            columns=_picked(columns, shown),
            rows=[_picked(row, shown) for row in rows],
            unbroken=True,
        )
    output.result(
        values,
        title=title,
        columns=_picked(columns, last),
        rows=[_picked(row, last) for row in rows],
        files=report.files,
        unbroken=True,
    )


def _by_protocol(rows: Sequence[Mapping[str, Any]]) -> str:
    """`standard on the native grid 0.812, ...`: the mean under each protocol."""
    return ", ".join(
        f"{row['protocol']} on the {row['grid']} grid {number(row['dice']['mean'])}" for row in rows
    )


def _fitting(
    columns: Sequence[str], rows: Sequence[Sequence[str]], first: int, width: int
) -> list[list[int]]:
    """Indices of the columns of each table: several where a terminal is too narrow for one.

    Args:
        columns: Heads, of one line or more.
        rows: Cells.
        first: So many columns at the left are in each table.
        width: Of the terminal, in characters.
    """
    lines = [[head, *(row[n] for row in rows)] for n, head in enumerate(columns)]
    wide = [max(len(line) for cell in cells for line in cell.split("\n")) + 2 for cells in lines]
    free = width - 1 - sum(wide[1:])
    wide[0] = min(wide[0], free if free >= _SHORTEST_NAME else _NAME_WIDTH)
    tables: list[list[int]] = []
    used = width
    for n in range(first, len(columns)):
        if used + wide[n] > width:
            tables.append(list(range(first)))
            used = 1 + sum(wide[:first])
        tables[-1].append(n)
        used += wide[n]
    return tables


def _picked(values: Sequence[str], numbers: Sequence[int]) -> list[str]:
    return [values[n] for n in numbers]


def _heads(units: Mapping[str, str]) -> list[str]:
    """Each column's head, with its unit on a line of its own."""
    heads = []
    for column, unit in units.items():
        name = column.removesuffix(f"_{unit}")
        heads.append(
            _SHORT.get(name, name.replace("_", "\n")) + ("" if unit == "1" else f"\n{unit}")
        )
    return heads


def _cells(units: Mapping[str, str], values: Mapping[str, float | None]) -> list[str]:
    """Shares with three decimals, mm, px and ml with as many as fit five digits."""
    return [
        number(values[column]) if unit == "1" else _length(values[column])
        for column, unit in units.items()
    ]


def _length(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.1f}"


def _statistic(
    units: Mapping[str, str], summaries: Mapping[str, Mapping[str, Any]], what: str
) -> list[str]:
    return _cells(units, {name: summaries[name][what] for name in units})
