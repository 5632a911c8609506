"""`sdseg stability`."""

from __future__ import annotations

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
    workspace,
)
from sdseg_cli.console import Output


def stability(
    runs: Annotated[int, typer.Option(help="Number of seeded runs, at least 2.")] = 5,
    run: Run = None,
    split: Split = "test",
    seed: Seed = 0,
    steps: Steps = None,
    eta: Eta = None,
    samples: Samples = None,
    lpips_backbone: Annotated[
        Path | None, typer.Option(help="AlexNet weights (features.N.weight) for LPIPS.")
    ] = None,
    lpips_linear: Annotated[Path | None, typer.Option(help="LPIPS v0.1 linear heads.")] = None,
    batch_size: BatchSize = None,
    decoder: Decoder = "auto",
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Predict the test cases with several noise seeds and measure how far the results part."""
    from sdseg_cli.stability import stability as run_stability

    output = Output(as_json=as_json, quiet=quiet)
    folder = open_run(run, output)
    sample = sampling(folder.config().sample, steps, eta, samples)
    with output.progress() as progress:
        report = run_stability(
            folder.path,
            workspace(),
            runs=runs,
            split=split,
            seed=seed,
            sample=sample,
            device=device,
            batch_size=batch_size,
            decoder=decoder,
            lpips_backbone=lpips_backbone,
            lpips_linear=lpips_linear,
            progress=progress,
        )
    values = report.to_json()
    names = ("psnr", "ssim", "ms_ssim", "lpips")
    rows = [(kind, *(number(values[kind][name]) for name in names)) for kind in ("seg", "score")]
    dice = values["dice"]
    output.result(
        values,
        title=f"{runs} runs: Dice {number(dice['mean'])} (sd {number(dice['sd'])})",
        columns=("", *names),
        rows=rows,
        files=report.files,
    )
    for note in values["notes"]:
        output.say(note)
