"""`sdseg distill`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdseg_cli.cli import options as opt
from sdseg_cli.cli.console import Output
from sdseg_cli.cli.options import number, workspace


def distill(
    run: opt.NamedRun = None,
    preset: Annotated[
        str, typer.Option(help="Without --run: the preset of the autoencoder, tiny or sd.")
    ] = "tiny",
    dataset: Annotated[
        str | None,
        typer.Option(help="Prepared set whose training masks make half of the examples."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Seed of the examples.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write; default: in the weight store."),
    ] = None,
    device: opt.Device = "auto",
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Train an autoencoder's fast mask decoder.

    With --run, also measure how much Dice it costs that run.
    """
    from sdseg_cli.data.manifest import Manifest, set_of
    from sdseg_cli.runs.run_folder import find_run
    from sdseg_cli.training.distill import DistillOptions
    from sdseg_cli.training.distill import distill as run_distill

    output = Output(as_json=as_json, quiet=quiet)
    found = None if run is None else find_run(workspace(), run)
    own = None if found is None else set_of(workspace(), found.config())
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
