"""`sdseg evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from sdseg_cli.commands.options import (
    BatchSize,
    Debug,
    Decoder,
    Device,
    Eta,
    Json,
    Quiet,
    Run,
    Samples,
    Seed,
    Split,
    Steps,
    number,
    open_run,
    sampling,
    whole_numbers,
    workspace,
)
from sdseg_cli.console import Output
from sdseg_cli.errors import ConfigError


def evaluate(
    run: Run = None,
    pred: Annotated[Path | None, typer.Option(help="Folder of masks to score instead.")] = None,
    ref: Annotated[Path | None, typer.Option(help="Folder of reference masks, same names.")] = None,
    target: Annotated[
        str | None, typer.Option(help="With --ref: labels that count, e.g. 1,2; default: all.")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="With --ref: adapter whose rules read the references.")
    ] = None,
    report_folder: Annotated[
        Path | None, typer.Option("--report", help="With --ref: folder for CSV and JSON.")
    ] = None,
    split: Split = "test",
    grid: Annotated[str, typer.Option(help="native: the scan's own; model: 256x256.")] = "native",
    protocol: Annotated[
        str, typer.Option(help="standard, or official (the paper's code).")
    ] = "standard",
    seed: Seed = 0,
    steps: Steps = None,
    eta: Eta = None,
    samples: Samples = None,
    batch_size: BatchSize = None,
    decoder: Decoder = "auto",
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Score predictions against references: 3D Dice and IoU per case."""
    of_run: dict[str, object] = {"--run": run, "--steps": steps, "--eta": eta, "--samples": samples}
    of_folders = {"--target": target, "--dataset": dataset, "--report": report_folder}
    _check_pairing(pred, ref, of_run, of_folders)
    output = Output(as_json=as_json, quiet=quiet)
    if pred is not None and ref is not None:
        from sdseg_cli.evaluate_folders import evaluate_folders

        with output.progress() as progress:
            report = evaluate_folders(
                pred,
                ref,
                target=whole_numbers("--target", target),
                dataset=dataset,
                grid=grid,
                protocol=protocol,
                report=report_folder,
                progress=progress,
            )
    else:
        from sdseg_cli.evaluate import evaluate as run_evaluate

        folder = open_run(run, output)
        sample = sampling(folder.config().sample, steps, eta, samples)
        with output.progress() as progress:
            report = run_evaluate(
                folder.path,
                workspace(),
                split=split,
                grid=grid,
                protocol=protocol,
                seed=seed,
                sample=sample,
                device=device,
                batch_size=batch_size,
                decoder=decoder,
                progress=progress,
            )
    values = report.to_json()
    metrics = values["metrics"]
    rows = [
        (str(case["id"]), *(number(case[name]) for name in metrics)) for case in values["cases"]
    ]
    for what in ("mean", "median"):
        rows.append((what, *(number(metric[what]) for metric in metrics.values())))
    rows.append(("95 % interval", *(_interval(metric["ci95"]) for metric in metrics.values())))
    for case in values["excluded"]:
        output.say(f"excluded {case}: reference and prediction are both empty")
    for note in values["notes"]:
        output.say(note)
    output.result(
        values,
        title=f"{values['protocol']} protocol, {values['grid']} grid",
        columns=("case", *metrics),
        rows=rows,
        files=report.files,
    )


def _interval(bounds: list[float | None]) -> str:
    low, high = bounds
    return "-" if low is None or high is None else f"{number(low)} to {number(high)}"


def _check_pairing(
    pred: Path | None,
    ref: Path | None,
    of_run: Mapping[str, object],
    of_folders: Mapping[str, object],
) -> None:
    """Refuse options that would be ignored."""
    if (pred is None) != (ref is None):
        raise ConfigError("--pred and --ref belong together.", "Give both folders, or neither.")
    for option, value in (of_run if pred else of_folders).items():
        if value is not None:
            raise ConfigError(
                f"{option} does not go with {'--pred and --ref' if pred else 'a run'}.",
                "Score either a run, or two folders of masks.",
            )
