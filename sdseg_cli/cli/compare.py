"""`sdseg compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdseg_cli.cli import options as opt
from sdseg_cli.cli.console import Output
from sdseg_cli.cli.options import open_run, refuse_given, scoring, typed, whole_numbers, workspace
from sdseg_cli.core.errors import ConfigError

if TYPE_CHECKING:
    from sdseg_cli.evaluation.compare import Comparison


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A run, or with --ref a folder of masks.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one, of the same cases.")],
    ref: Annotated[
        Path | None, typer.Option(help="Folder of reference masks, for two folders of masks.")
    ] = None,
    target: opt.Target = None,
    classes: opt.Classes = None,
    dataset: opt.ReferenceLayout = None,
    split: opt.Split = "test",
    grid: opt.GridName = "native",
    protocol: opt.ProtocolName = "standard",
    tolerance: opt.Tolerance = 2.0,
    lesions: opt.Lesions = False,
    detection_iou: opt.DetectionIou = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Compare only the cases that both have.")
    ] = False,
    resample: opt.Resample = False,
    report: Annotated[
        Path | None, typer.Option(help="Folder for the report; default for runs: in run B.")
    ] = None,
    workers: opt.Workers = None,
    seed: opt.Seed = 0,
    batch_size: opt.BatchSize = None,
    decoder: opt.Decoder = "auto",
    device: opt.Device = "auto",
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Compare two runs or folders of masks: difference, interval, p."""
    of_folders: dict[str, object] = {
        "--target": target,
        "--classes": classes,
        "--dataset": dataset,
        "--resample": resample or None,
        "--workers": workers,
    }
    if ref is None:
        refuse_given(of_folders, "goes with --ref", "Runs know what counts in their data.")
        _require_runs(a, b)
    from sdseg_cli.data.classes import parse_scored
    from sdseg_cli.evaluation.compare import compare_folders, compare_runs
    from sdseg_cli.evaluation.evaluation_split import SplitOptions
    from sdseg_cli.evaluation.folders import FolderOptions

    output = Output(as_json=as_json, quiet=quiet)
    options = scoring(
        tolerance,
        detection_iou,
        lesions=lesions,
        grid=grid,
        protocol=protocol,
        allow_missing=allow_missing,
    )
    if ref is not None:
        with output.progress() as progress:
            found = compare_folders(
                Path(a),
                Path(b),
                ref,
                reading=FolderOptions(
                    whole_numbers("--target", target),
                    parse_scored(classes),
                    dataset,
                    resample,
                    workers,
                ),
                options=options,
                report=report,
                command=typed(),
                progress=progress,
            )
    else:
        runs = open_run(a, output), open_run(b, output)
        with output.progress() as progress:
            found = compare_runs(
                *runs,
                workspace(),
                options=options,
                cases=SplitOptions(split, seed, device, batch_size, decoder),
                report=report,
                command=typed(),
                progress=progress,
            )
    _show(found, output)


def _show(found: Comparison, output: Output) -> None:
    from sdseg_cli.evaluation.compare import TABLE

    values = found.to_json()
    output.result(
        values,
        title=f"A: {values['a']}   B: {values['b']}   ({values['protocol']} protocol, "
        f"{values['grid']} grid)",
        columns=TABLE,
        rows=found.rows(),
        files=found.files,
        unbroken=True,
    )
    for note in values["notes"]:
        output.say(note)
    output.say(values["verdict"])
    if not found.files:
        output.say("no file was written: --report FOLDER writes CSV, JSON, LaTeX and a picture")


def _require_runs(*names: str) -> None:
    """Refuse folders of masks, which need references. Raises ConfigError."""
    for name in names:
        folder = Path(name)
        if folder.is_dir() and not (folder / "config.toml").is_file():
            raise ConfigError(
                f"{name}: a folder, but no run.",
                "Two folders of masks need their references: add --ref FOLDER.",
            )
