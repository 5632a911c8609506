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
from sdseg_cli.commands.predict_cohort import (
    EngineName,
    RayAddress,
    ShardText,
    Spread,
    Workers,
    predict_cohort,
)
from sdseg_cli.console import Output
from sdseg_cli.errors import ConfigError
from sdseg_cli.filenames import PACKAGE_FILE


def predict(
    scan: Annotated[
        Path,
        typer.Argument(
            help="NIfTI, NRRD, MetaImage, a DICOM series or a picture; or a folder or list of them."
        ),
    ],
    mask: Annotated[
        Path, typer.Option("--output", "-o", help="The mask to write; of many, their folder.")
    ],
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
    shard: ShardText = None,
    engine: EngineName = "local",
    workers: Workers = None,
    ray_address: RayAddress = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Segment a scan, or many; each mask lies on its scan's own grid."""
    _check_model(run, model)
    from sdseg_cli.imaging.files import check_writable, read_geometry
    from sdseg_cli.imaging.scans import is_many

    output = Output(as_json=as_json, quiet=quiet)
    spread = Spread(shard, engine, workers, ray_address)
    if is_many(scan, mask):
        predict_cohort(
            scan,
            mask,
            output,
            model=lambda: open_run(run, output).path if model is None else model,
            spread=spread,
            predictor={"device": device, "batch_size": batch_size},
            options={"series": series, "seed": seed, "probability_dtype": prob_dtype},
            files={"probability": prob},
            sample=lambda settings: sampling(settings, steps, eta, samples),
        )
        return
    spread.refuse_for_one_scan()
    # The names first, then the scan's header, before torch takes its seconds.
    check_writable(mask, scan)
    read_geometry(scan, series)

    from sdseg_cli.predict import Predictor
    from sdseg_cli.predict_file import predict_file

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


def _check_model(run: Path | None, model: Path | None) -> None:
    """One of the two at most, and a package where one is named. Raises ConfigError."""
    if run is not None and model is not None:
        raise ConfigError("--run and --model are both given.", "Give one of them.")
    if model is not None and not (model / PACKAGE_FILE).is_file():
        raise ConfigError(
            f"{model}: no package there.",
            "Make one: sdseg weights export RUN; a run goes to --run.",
        )
