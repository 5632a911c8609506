"""`sdseg prepare`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdseg_cli.cli import options as opt
from sdseg_cli.cli.console import Output
from sdseg_cli.cli.options import (
    one_input,
    pair,
    refuse_pipes,
    say_next,
    typed,
    whole_numbers,
    workspace,
)
from sdseg_cli.core.processes import warm_up
from sdseg_cli.data.manifest import Manifest

if TYPE_CHECKING:
    from sdseg_cli.core.findings import Finding
    from sdseg_cli.data.prepare import PrepareOptions, PrepareReport


def prepare(
    src: Annotated[
        Path | None, typer.Argument(metavar="SRC", help="Folder of scans and masks.")
    ] = None,
    input_path: opt.Input = None,
    dataset: opt.Layout = None,
    name: Annotated[str | None, typer.Option(help="Name of the prepared set.")] = None,
    target: Annotated[
        str | None, typer.Option(help="Labels that count as foreground, e.g. 1,2,5; default: all.")
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="all (each label a class), any (all as one), or liver=6,kidneys=2+3,4.",
        ),
    ] = None,
    class_names: opt.ClassNames = None,
    ignore: Annotated[
        int | None,
        typer.Option(metavar="LABEL", help="Label of pixels that count in no loss and no metric."),
    ] = None,
    mirror_pairs: Annotated[
        str | None,
        typer.Option(
            metavar="PAIRS",
            help="Labels that change places in a mirror, 3:4,5:6, or none; default: by names.",
        ),
    ] = None,
    split_file: Annotated[
        Path | None, typer.Option(help="JSON file or folder of train/val/test.txt.")
    ] = None,
    window: Annotated[str | None, typer.Option(help="HU window LO,HI, e.g. -175,250.")] = None,
    image_glob: opt.ImageGlob = None,
    label_glob: opt.LabelGlob = None,
    crop: Annotated[
        str, typer.Option(help="none, or body: a square around the body in each slice.")
    ] = "none",
    workers: opt.Processes = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave bad cases out and list them.")
    ] = False,
    folds: Annotated[
        int | None,
        typer.Option(metavar="N", help="Also deal all but the test cases into N folds."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Slice scans and masks to 256x256 and freeze the split by case."""
    source = one_input(src, input_path, "SRC")
    refuse_pipes(split_file, class_names)
    if workers != 1:
        warm_up("sdseg_cli.data.prepared")
    from sdseg_cli.data.prepare import PrepareOptions
    from sdseg_cli.data.prepare import prepare as run_prepare
    from sdseg_cli.runs.run_folder import replaced

    options = PrepareOptions(
        dataset=dataset,
        name=name,
        target=whole_numbers("--target", target),
        classes=classes,
        class_names=class_names,
        ignore=ignore,
        mirror_pairs=mirror_pairs,
        split_file=split_file,
        window=pair("--window", window),
        image_glob=image_glob,
        label_glob=label_glob,
        crop=crop,
        workers=workers,
        skip_bad=skip_bad,
        seed=seed,
        folds=folds,
    )
    output = Output(as_json=as_json, quiet=quiet)
    said: list[Finding] = []

    def on_replace(root: Path, settings: Mapping[str, Any]) -> Finding | None:
        """Say it while the set in place is still there: at once, and again if more changes."""
        found = replaced(root, settings)
        if found is not None and found not in said:
            said.append(found)
            output.warn([found])
        return found

    with output.progress() as progress:
        report = run_prepare(source, workspace(), options, progress=progress, on_replace=on_replace)
    made = Manifest.load(report.manifest)
    # A surprise, where a parent of several sets was given.
    output.say(f"scans below {os.path.commonpath([case.image.parent for case in made.entries])}")
    output.say(_settings(made))
    for line in _class_lines(made, report, options):
        output.say(line)
    output.say(f"split: {made.split['rule']}")
    if report.folds:
        counts = ", ".join(map(str, report.folds))
        tests = " test cases are in none" if report.cases["test"] else ""
        output.say(
            f"{len(report.folds)} folds of {counts} cases;{tests or ' all cases are in one'}"
        )
    for skip in report.skipped:
        output.say(f"skipped {skip['case']}: {skip['why']}")
    output.warn([one for one in report.warnings if one not in said])
    output.result(
        report.to_json(),
        title=f"prepared {report.manifest.parent.name}",
        columns=("split", "cases"),
        rows=[*((k, str(v)) for k, v in report.cases.items()), ("slices", str(report.slices))],
        files=[report.manifest],
    )
    fold = " --fold all" if report.folds else ""
    say_next(output, f"sdseg train --dataset {quote(made.name)}{fold}")


def _class_lines(
    manifest: Manifest, report: PrepareReport, options: PrepareOptions
) -> Iterator[str]:
    """The classes, what mirrors make of them, the command that merges them, and other labels."""
    from sdseg_cli.data.classes import mirror_words

    rule = manifest.classes
    if report.classes:
        each = (
            f"{one['name']} ({'+'.join(map(str, one['labels']))}) {_share(one['share'])}"
            for one in report.classes
        )
        kind = ", regions that overlap" if rule.overlapping else ""
        yield f"classes{kind}, with their share of the foreground: {', '.join(each)}"
        if mirrors := mirror_words(rule):
            yield mirrors
        named = {"--class-names": options.class_names, "--mirror-pairs": options.mirror_pairs}
        without = " and ".join(option for option, value in named.items() if value is not None)
        if report.by_default and without:
            yield f"for one foreground of all instead: --classes any, without {without}"
        elif report.by_default:
            yield f"for one foreground of all instead: {typed()} --classes any"
    if report.background:
        others = ", ".join(
            f"{one['name']} ({one['label']}) {_share(one['share'])}" for one in report.background
        )
        yield f"labels in no class become background (share of labelled voxels): {others}"
    if rule.ignore is not None:
        yield f"label {rule.ignore} counts in no loss and no metric"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}" if share < 0.01 else f"{share:.1%}"


def _settings(manifest: Manifest) -> str:
    """Modality, window, crop and foreground of a set, in a line."""
    labels = ", ".join(map(str, manifest.labels))
    if (several := len(manifest.classes)) > 1:
        counted = f"{several} classes"
    elif manifest.target is not None:
        counted = f"{', '.join(map(str, manifest.target))} count as foreground"
    elif len(manifest.labels) > 1:
        counted = "all count as one foreground (--classes all: each a class; --target 1,2: some)"
    else:
        counted = "it is the foreground"
    window = manifest.normalisation
    return (
        f"{manifest.modality}, {window['kind']} {window['low']:g} to {window['high']:g}, "
        f"crop {manifest.crop}; labels {labels}: {counted}"
    )
