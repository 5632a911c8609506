"""`sdseg distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdseg_cli.cli.console import Output
from sdseg_cli.cli.options import Debug, Device, Json, Quiet, Run, number, workspace


def distill(
    run: Run = None,
    preset: Annotated[
        str, typer.Option(help="Without --run: whose autoencoder, tiny or sd.")
    ] = "tiny",
    dataset: Annotated[
        str | None, typer.Option(help="A prepared set, whose training masks are half of them all.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Seed of all examples.")] = 0,
    out: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file; default: the weight store.")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train an autoencoder's fast mask decoder.

    With --run, measure what it costs that run.
    """
    from sdseg_cli.data.manifest import Manifest
    from sdseg_cli.runs.run_folder import find_run
    from sdseg_cli.training.distill import DistillOptions
    from sdseg_cli.training.distill import distill as run_distill

    output = Output(as_json=as_json, quiet=quiet)
    found = None if run is None else find_run(workspace(), run)
    own = None if found is None else Manifest.find(workspace(), found.config().dataset)
    with output.progress() as progress:
        report = run_distill(
            DistillOptions(preset, out, steps, seed, device),
            run=found,
            manifest=own,
            masks=None if dataset is None else Manifest.find(workspace(), dataset),
            progress=progress,
        )
    rows = [
        ("parameters", f"{report.parameters:,}"),
        ("GFLOP per slice", f"{report.gflop:.3f}, the exact decoder {report.exact_gflop:.3f}"),
        ("Dice with the exact decoder", number(report.agreement)),
    ]
    if report.check is not None:
        rows.append(("predictions use", report.check.choice))
    output.result(
        report.to_json(),
        title=f"distilled in {report.seconds:.0f} s",
        columns=("", "value"),
        rows=rows,
        files=[report.decoder],
    )
