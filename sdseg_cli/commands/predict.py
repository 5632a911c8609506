"""`sdseg predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    open_run,
    sampling,
)
from sdseg_cli.console import Output
from sdseg_cli.errors import ConfigError
from sdseg_cli.filenames import PACKAGE_FILE


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
    seed: Seed = 0,
    steps: Steps = None,
    eta: Eta = None,
    samples: Samples = None,
    batch_size: BatchSize = None,
    device: Device = "auto",
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
    from sdseg_cli.imaging.files import check_writable, read_geometry

    # The names first, then the scan's header, before torch takes its seconds.
    check_writable(mask, scan)
    read_geometry(scan, series)

    from sdseg_cli.predict import Predictor
    from sdseg_cli.predict_file import predict_file

    output = Output(as_json=as_json, quiet=quiet)
    trained = open_run(run, output).path if model is None else model
    with output.progress() as progress:
        predictor = Predictor(trained, device=device, batch_size=batch_size)
        report = predict_file(
            scan,
            mask,
            predictor,
            series=series,
            seed=seed,
            sample=sampling(predictor.config.sample, steps, eta, samples),
            probability=prob,
            probability_dtype=prob_dtype,
            progress=progress,
        )
    output.warn(report.warnings)
    millilitres = report.foreground_ml
    output.result(
        report.to_json(),
        title=f"segmented {scan.name}",
        columns=("", "value"),
        rows=[
            ("slices", str(report.slices)),
            ("foreground voxels", f"{report.foreground_voxels:,}"),
            *([] if millilitres is None else [("foreground ml", f"{millilitres:.1f}")]),
            ("seconds", f"{report.seconds:.1f}"),
        ],
        files=[path for path in (report.output, report.probability) if path is not None],
    )
