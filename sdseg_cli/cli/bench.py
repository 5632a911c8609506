"""`sdseg bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sdseg_cli.cli import options as opt
from sdseg_cli.cli.console import Output
from sdseg_cli.cli.options import check_model, number, workspace

if TYPE_CHECKING:
    from sdseg_cli.demo.bench import BenchReport, Stage


def bench(
    run: opt.NamedRun = None,
    model: opt.Model = None,
    preset: Annotated[
        str | None, typer.Option(help="Untrained networks instead: tiny or sd.")
    ] = None,
    slices: Annotated[int, typer.Option(min=1, help="Slices predicted in each way.")] = 8,
    device: opt.Device = "auto",
    threads: opt.Threads = None,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Measure how fast this machine predicts, in every way it can."""
    from sdseg_cli.runs.run_folder import find_run

    check_model(run, model)
    trained = find_run(workspace(), run).path if run is not None else model

    from sdseg_cli.demo.bench import bench as run_bench

    output = Output(as_json=as_json, quiet=quiet)
    with output.progress() as progress:
        report = run_bench(
            trained,
            preset_name=preset or "tiny",
            workspace=workspace(),
            slices=slices,
            device=device,
            threads=threads,
            progress=progress,
        )
    output.result(
        report.to_json(),
        title=f"{report.model} on {report.device}, {report.threads} threads, "
        f"matrix products at {report.gflop_per_s:.0f} GFLOP/s",
        columns=("one slice", "ms", "GFLOP", "ms at that rate"),
        rows=[_row(stage, report) for stage in report.stages],
    )
    output.table(
        title=f"whole slices, the mean over {report.slices}",
        columns=("way", "slices/s", "times plain", "slices/s at that rate", "Dice with plain"),
        rows=[
            (
                tier.name,
                f"{tier.slices_per_s:.2f}",
                f"{tier.slices_per_s / report.tiers[0].slices_per_s:.2f}",
                f"{report.gflop_per_s / tier.gflop:.2f}",
                number(tier.dice),
            )
            for tier in report.tiers
        ],
    )


def _row(stage: Stage, report: BenchReport) -> tuple[str, ...]:
    floor = stage.floor_s(report.gflop_per_s)
    return (
        stage.name,
        f"{1000 * stage.seconds:.2f}",
        "-" if stage.gflop is None else f"{stage.gflop:.3f}",
        "-" if floor is None else f"{1000 * floor:.2f}",
    )
