"""`sdseg predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdseg_cli.commands.options import (
    BatchSize,
    Debug,
    Device,
    Eta,
    Json,
    Quiet,
    Run,
    Samples,
    Seed,
    Steps,
    Threads,
    number,
    open_run,
    sampling,
)
from sdseg_cli.config import THRESHOLD
from sdseg_cli.console import Output
from sdseg_cli.errors import ConfigError
from sdseg_cli.filenames import PACKAGE_FILE

if TYPE_CHECKING:
    from sdseg_cli.predict_file import PredictReport


def predict(
    scan: Annotated[
        Path, typer.Argument(help="NIfTI, NRRD, MetaImage, a DICOM series or a picture.")
    ],
    mask: Annotated[Path, typer.Option("--output", "-o", help="The mask to write.")],
    series: Annotated[
        str | None, typer.Option(help="Which DICOM series: its number, or the end of its UID.")
    ] = None,
    run: Run = None,
    model: Annotated[
        Path | None, typer.Option(help="A package of `sdseg weights export`, instead of a run.")
    ] = None,
    prob: Annotated[Path | None, typer.Option(help="Also write the probability map.")] = None,
    prob_dtype: Annotated[str, typer.Option(help="uint8 (steps of 1/255) or float32.")] = "uint8",
    preview: Annotated[
        Path | None, typer.Option(help="Also draw the mask on its scan, a PNG.")
    ] = None,
    threshold: Annotated[
        float, typer.Option(help="Foreground is what has a probability above this.")
    ] = THRESHOLD,
    fill_holes: Annotated[
        bool, typer.Option("--fill-holes", help="Fill what foreground encloses on all sides.")
    ] = False,
    min_size: Annotated[
        float | None, typer.Option(metavar="ML", help="Drop parts smaller than so many ml.")
    ] = None,
    keep_largest: Annotated[
        int | None, typer.Option(metavar="N", help="Keep only the N largest parts.")
    ] = None,
    seed: Seed = 0,
    steps: Steps = None,
    eta: Eta = None,
    samples: Samples = None,
    tta: Annotated[
        bool, typer.Option("--tta", help="Average over the flips that the run was trained with.")
    ] = False,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Predict from no noise at all.")
    ] = False,
    runs: Annotated[
        int | None, typer.Option(metavar="K", help="Compare K noise draws; the mask is their mean.")
    ] = None,
    uncertainty: Annotated[
        Path | None, typer.Option(help="Also write where K draws (default 5) disagree.")
    ] = None,
    batch_size: BatchSize = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Segment one scan; the mask lies on the scan's own grid."""
    if run is not None and model is not None:
        raise ConfigError("--run and --model are both given.", "Give one of them.")
    if model is not None and not (model / PACKAGE_FILE).is_file():
        raise ConfigError(
            f"{model}: no package there.",
            "Make one: sdseg weights export RUN; a run goes to --run.",
        )
    if runs is not None and samples is not None:
        raise ConfigError(
            "--runs and --samples both say how many draws are averaged.", "Give one of them."
        )
    from sdseg_cli.imaging.files import read_geometry
    from sdseg_cli.imaging.postprocess import PostProcess
    from sdseg_cli.predict_outputs import Outputs

    # The options and names first, then the scan's header, before torch takes its seconds.
    post = PostProcess(threshold, fill_holes, min_size, keep_largest)
    Outputs(mask, prob, prob_dtype, uncertainty, preview).check_names(scan)
    read_geometry(scan, series)

    from sdseg_cli.predict import Predictor
    from sdseg_cli.predict_file import number_of_runs, predict_file
    from sdseg_cli.training.runtime import use_threads

    number_of_runs(runs, uncertainty)
    use_threads(threads)

    output = Output(as_json=as_json, quiet=quiet)
    trained = open_run(run, output).path if model is None else model
    with output.progress() as progress:
        predictor = Predictor(trained, device=device, batch_size=batch_size)
        config = predictor.config
        flips = config.train.flips if tta else None
        report = predict_file(
            scan,
            mask,
            predictor,
            series=series,
            seed=seed,
            sample=sampling(
                config.sample, steps, eta, samples, deterministic=deterministic, flips=flips
            ),
            post=post,
            probability=prob,
            probability_dtype=prob_dtype,
            runs=runs,
            uncertainty=uncertainty,
            preview=preview,
            progress=progress,
        )
    output.warn(report.warnings)
    output.result(
        report.to_json(),
        title=f"segmented {scan.name}",
        columns=("", "value"),
        rows=_rows(report),
        files=report.files,
    )


def _rows(report: PredictReport) -> list[tuple[str, str]]:
    """The table of a report."""
    rows = [
        ("slices", str(report.slices)),
        ("foreground voxels", f"{report.foreground_voxels:,}"),
    ]
    if report.foreground_ml is not None:
        rows.append(("foreground ml", f"{report.foreground_ml:.1f}"))
    if report.stability is not None:
        rows.append((f"Dice between {report.stability.runs} runs", number(report.stability.dice)))
        rows.append(("share of voxels that flip", number(report.stability.flipped)))
    return [*rows, ("seconds", f"{report.seconds:.1f}")]
