"""`sdseg check`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer

from sdseg_cli.cli import options as opt
from sdseg_cli.cli.console import Output
from sdseg_cli.cli.options import one_input, whole_numbers
from sdseg_cli.core.findings import EVERY_CASE, Finding
from sdseg_cli.core.processes import warm_up

SHOWN_CASES = 3
"""More cases than this with one finding share a row; --json names them all."""


def check(
    src: Annotated[
        Path | None, typer.Argument(metavar="SRC", help="Folder of a data set, or one scan.")
    ] = None,
    input_path: opt.Input = None,
    dataset: opt.Layout = None,
    target: Annotated[
        str | None, typer.Option(help="Labels that count as foreground, e.g. 1,2,5.")
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="Classes, as prepare takes them: all, any, liver=6,4."),
    ] = None,
    class_names: opt.ClassNames = None,
    split_file: Annotated[
        Path | None, typer.Option(help="JSON file or folder of train/val/test.txt, to find leaks.")
    ] = None,
    image_glob: opt.ImageGlob = None,
    label_glob: opt.LabelGlob = None,
    workers: opt.Processes = None,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Find what is wrong or odd in a data set or scan, and the fix."""
    source = one_input(src, input_path, "SRC")
    if workers != 1 and source.is_dir():
        warm_up("sdseg_cli.data.check")
    from sdseg_cli.data.check import check as run_check
    from sdseg_cli.data.classes import ClassOptions

    output = Output(as_json=as_json, quiet=quiet)
    with output.progress() as progress:
        report = run_check(
            source,
            dataset=dataset,
            image_glob=image_glob,
            label_glob=label_glob,
            options=ClassOptions(whole_numbers("--target", target), classes, class_names),
            split_file=split_file,
            workers=workers,
            progress=progress,
        )
    warnings = len(report.findings) - report.errors
    cases = _count(report.cases, "case")
    found = f"{_count(report.errors, 'error')}, {_count(warnings, 'warning')} in {cases}"
    output.findings(
        report.to_json(),
        title=found if report.findings else f"nothing found in {cases}",
        findings=_grouped(report.findings),
    )
    if report.errors:
        raise typer.Exit(2)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _grouped(findings: Sequence[Finding]) -> Iterator[Finding]:
    """The findings, with the cases of one kind named in the first where there are many."""
    for _, group in groupby(findings, lambda one: (one.level, one.code)):
        alike = list(group)
        if len(alike) > SHOWN_CASES:
            names = ", ".join(one.case for one in alike[:SHOWN_CASES])
            alike = [replace(alike[0], case=f"{names} and {len(alike) - SHOWN_CASES} more")]
        for one in alike:
            yield replace(one, case="all") if one.case == EVERY_CASE else one
