"""`sdseg compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdseg_cli.cli.console import Output
from sdseg_cli.cli.options import (
    Adapter,
    BatchSize,
    Classes,
    Debug,
    Decoder,
    DetectionIou,
    Device,
    GridName,
    Json,
    Lesions,
    ProtocolName,
    Quiet,
    Resample,
    Seed,
    Split,
    Target,
    Tolerance,
    Workers,
    judged_by,
    open_run,
    typed,
    whole_numbers,
    workspace,
)
from sdseg_cli.core.errors import ConfigError

if TYPE_CHECKING:
    from sdseg_cli.evaluation.compare import Comparison


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A run, or with --ref a folder of masks.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another, of the same cases.")],
    ref: Annotated[Path | None, typer.Option(help="References of two folders of masks.")] = None,
    target: Target = None,
    classes: Classes = None,
    dataset: Adapter = None,
    split: Split = "test",
    grid: GridName = "native",
    protocol: ProtocolName = "standard",
    tolerance: Tolerance = 2.0,
    lesions: Lesions = False,
    detection_iou: DetectionIou = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Compare the cases that both have.")
    ] = False,
    resample: Resample = False,
    report: Annotated[
        Path | None, typer.Option(help="Folder for the files; of runs: in run B.")
    ] = None,
    workers: Workers = None,
    seed: Seed = 0,
    batch_size: BatchSize = None,
    decoder: Decoder = "auto",
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Compare two runs or folders of masks: differences, interval, p."""
    from sdseg_cli.evaluation.compare import compare_folders, compare_runs
    from sdseg_cli.evaluation.evaluation_split import SplitOptions
    from sdseg_cli.evaluation.folders import FolderOptions

    of_folders: dict[str, object] = {
        "--target": target,
        "--classes": classes,
        "--dataset": dataset,
        "--resample": resample or None,
        "--workers": workers,
    }
    _check(a, b, ref, of_folders)
    output = Output(as_json=as_json, quiet=quiet)
    options = judged_by(
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
                    whole_numbers("--classes", classes),
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


def _check(a: str, b: str, ref: Path | None, of_folders: dict[str, object]) -> None:
    """Refuse options that would be ignored, and folders of masks without references."""
    if ref is not None:
        return
    for option, value in of_folders.items():
        if value is not None:
            raise ConfigError(f"{option} goes with --ref.", "Runs know what counts in their data.")
    for name in (a, b):
        folder = Path(name)
        if folder.is_dir() and not (folder / "config.toml").is_file():
            raise ConfigError(
                f"{name}: a folder, but no run.",
                "Two folders of masks need their references: add --ref FOLDER.",
            )
