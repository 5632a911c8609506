"""`sdseg stability`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from sdseg_cli.cli import options as opt
from sdseg_cli.cli.console import Output
from sdseg_cli.cli.options import number, open_run, refuse_pipes, typed, workspace
from sdseg_cli.core.errors import ConfigError

if TYPE_CHECKING:
    from sdseg_cli.evaluation.stability_results import StabilityReport
    from sdseg_cli.evaluation.sweep import SweepReport

_N = TypeVar("_N", int, float)
METRICS = ("psnr", "ssim", "ms_ssim", "lpips")
HEADS = ("PSNR, dB", "SSIM", "MS-SSIM", "LPIPS")


def stability(
    runs: Annotated[int, typer.Option(help="Number of seeded runs, at least 2.")] = 5,
    run: opt.Run = None,
    split: opt.Split = "test",
    seed: opt.Seed = 0,
    steps: Annotated[
        str | None, typer.Option(help="Reverse steps; several, such as 1,2,5,10, are compared.")
    ] = None,
    eta: Annotated[
        str | None, typer.Option(help="Fresh noise between steps, 0 to 1; or several, 0,1.")
    ] = None,
    samples: Annotated[
        str | None, typer.Option(help="Noise draws to average; or several, 1,5.")
    ] = None,
    table5: Annotated[
        bool, typer.Option("--table5", help="Show the result next to the paper's Table 5.")
    ] = False,
    lpips_backbone: Annotated[
        Path | None, typer.Option(help="AlexNet weights for LPIPS; default: the weight store's.")
    ] = None,
    lpips_linear: Annotated[
        Path | None, typer.Option(help="LPIPS v0.1 heads; default: the weight store's.")
    ] = None,
    batch_size: opt.BatchSize = None,
    decoder: opt.Decoder = "auto",
    device: opt.Device = "auto",
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Measure how far predictions differ between noise seeds."""
    from sdseg_cli.evaluation.evaluation_split import SplitOptions
    from sdseg_cli.evaluation.stability import StabilityOptions
    from sdseg_cli.evaluation.stability import stability as run_stability
    from sdseg_cli.evaluation.sweep import every_sampling, sweep

    refuse_pipes(lpips_backbone, lpips_linear)
    step_list = listed("--steps", steps, int, 1, 1000)
    eta_list = listed("--eta", eta, float, 0.0, 1.0)
    sample_list = listed("--samples", samples, int, 1, 1000)
    output = Output(as_json=as_json, quiet=quiet)
    folder = open_run(run, output)
    settings = folder.config().sample
    samplings, skipped_eta = every_sampling(settings, step_list, eta_list, sample_list)
    if table5 and len(samplings) > 1:
        raise ConfigError(
            "--table5 shows one way of sampling, and several are given.",
            "Give --steps, --eta and --samples one value each.",
        )
    options = StabilityOptions(runs, lpips_backbone, lpips_linear)
    cases = SplitOptions(split, seed, device, batch_size, decoder)
    with output.progress() as progress:
        if len(samplings) > 1:
            found = sweep(
                folder.path,
                workspace(),
                samplings,
                skipped_eta=skipped_eta,
                options=options,
                cases=cases,
                command=typed(),
                progress=progress,
            )
        else:
            report = run_stability(
                folder.path,
                workspace(),
                options=options,
                cases=cases,
                sample=samplings[0],
                command=typed(),
                progress=progress,
            )
    if len(samplings) > 1:
        _show_sweep(found, output)
    else:
        _show(report, folder.config().dataset, output, table5=table5)


def listed(
    option: str, text: str | None, kind: Callable[[str], _N], least: _N, most: _N
) -> tuple[_N, ...] | None:
    """`1,2,5` as numbers in a range, each once; None stays None. Raises ConfigError."""
    if text is None:
        return None
    try:
        values = tuple(dict.fromkeys(kind(part) for part in text.split(",")))
    except ValueError as wrong:
        noun = "whole numbers" if kind is int else "numbers"
        raise ConfigError(
            f'{option} "{text}" is no list of {noun}.',
            f"Write them with commas: {option} {least:g},{least + 1:g}.",
        ) from wrong
    for value in values:
        if not least <= value <= most:
            raise ConfigError(
                f"{option} {value:g} is not in the range {least:g} to {most:g}.",
                f"Give {option} values from {least:g} to {most:g}.",
            )
    return values


def _show(report: StabilityReport, dataset: str, output: Output, *, table5: bool) -> None:
    from sdseg_cli.evaluation.stability_results import COLUMNS, table5_caption, table5_rows

    values = report.to_json()
    dice = values["dice"]
    rows = []
    kinds = {"": values}
    if len(report.seeds) > 2:
        kinds[", all pairs"] = values["all_pairs"]
    for which, found in kinds.items():
        for kind in ("seg", "score"):
            similarity = [number(found[kind][metric]) for metric in METRICS]
            same = f"{found['identical'][kind]} of {found['pairs']}"
            rows.append((f"{kind}{which}", *similarity, same))
    if report.missing_lpips:
        needs = f"needs weights: sdseg weights fetch {', '.join(report.missing_lpips)}"
        rows[0] = (*rows[0][:4], needs, rows[0][5])
    name = "Dice of all classes as one" if report.class_dice else "Dice"
    output.result(
        values,
        title=f"{len(report.seeds)} runs: {name} {number(dice['mean'])} (sd {_short(dice['sd'])})",
        columns=("", *HEADS, "identical"),
        rows=rows,
        files=report.files,
    )
    if report.class_dice:
        output.table(
            title="Dice by class, and its voxels that flip of those any run calls so",
            columns=("class", "Dice", "sd", "flip"),
            rows=[
                (
                    one["name"],
                    number(one["dice"]["mean"]),
                    _short(one["dice"]["sd"]),
                    _percent(one["flipped"]["of_foreground"]),
                )
                for one in values["classes"]
            ],
            unbroken=True,
        )
    flipped = values["flipped"]
    output.say(
        f"voxels that flip: {_percent(flipped['fraction'])} of all, "
        f"{_percent(flipped['of_foreground'])} of those any run calls foreground"
    )
    if report.most_unstable:
        output.say(f"most unstable, worst first: {', '.join(report.most_unstable)}")
    if table5:
        cells = [row.cells for row in table5_rows(report, dataset)]
        caption = table5_caption(report, dataset)
        output.table(title=caption, columns=COLUMNS, rows=cells, unbroken=True)
    for note in values["notes"]:
        output.say(note)


def _show_sweep(report: SweepReport, output: Output) -> None:
    values = report.to_json()
    output.result(
        values,
        title=f"{values['runs']} runs with each way of sampling",
        columns=("steps", "eta", "samples", "dice", "sd", "s/slice", "slices/s", "seg psnr"),
        rows=[
            (
                str(row["steps"]),
                f"{row['eta']:g}",
                str(row["samples"]),
                number(row["dice"]["mean"]),
                _short(row["dice"]["sd"]),
                *(number(row[name]) for name in ("seconds_per_slice", "slices_per_second")),
                number(row["seg"]["psnr"]),
            )
            for row in values["sweep"]
        ],
        files=report.files,
    )
    for note in values["notes"]:
        output.say(note)


def _short(value: float | None) -> str:
    """Two significant digits: a deviation is often far below a thousandth."""
    return "-" if value is None else f"{value:.2g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.3g} %"
