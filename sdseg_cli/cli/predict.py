"""`sdseg predict`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdseg_cli.cli.console import Output
from sdseg_cli.cli.options import (
    BatchSize,
    Compiled,
    Debug,
    Decoder,
    Device,
    Eta,
    FileOption,
    Input,
    Json,
    MaskOption,
    Quiet,
    Run,
    Samples,
    SamplingOption,
    Seed,
    Steps,
    Threads,
    check_model,
    number,
    one_input,
    open_run,
    sampling,
    weak_run,
)
from sdseg_cli.cli.predict_cohort import (
    EngineName,
    RayAddress,
    ShardText,
    Spread,
    Workers,
    predict_cohort,
)
from sdseg_cli.core.config import THRESHOLD, RunConfig, SampleConfig
from sdseg_cli.core.errors import ConfigError

if TYPE_CHECKING:
    from sdseg_cli.inference.predict import PredictReport


def predict(
    mask: Annotated[
        str, FileOption("--output", "-o", help="The mask to write; of many, their folder.")
    ],
    scan: Annotated[
        Path | None,
        typer.Argument(
            help="NIfTI, NRRD, MetaImage, a DICOM series or a picture; or a folder or list of them."
        ),
    ] = None,
    input_path: Input = None,
    series: Annotated[
        str | None, FileOption(help="Which DICOM series: its number, or the end of its UID.")
    ] = None,
    run: Run = None,
    model: Annotated[
        Path | None, FileOption(help="A package of `sdseg weights export`, instead of a run.")
    ] = None,
    prob: Annotated[str | None, FileOption(help="Also write the probability map.")] = None,
    prob_dtype: Annotated[str, FileOption(help="uint8 (steps of 1/255) or float32.")] = "uint8",
    preview: Annotated[
        str | None, FileOption(help="Also draw the mask on its scan, a PNG.")
    ] = None,
    threshold: Annotated[
        float, MaskOption(help="Foreground is what has a probability above this.")
    ] = THRESHOLD,
    fill_holes: Annotated[
        bool, MaskOption("--fill-holes", help="Fill what foreground encloses on all sides.")
    ] = False,
    min_size: Annotated[
        float | None, MaskOption(metavar="ML", help="Drop parts smaller than so many ml.")
    ] = None,
    keep_largest: Annotated[
        int | None, MaskOption(metavar="N", help="Keep only the N largest parts.")
    ] = None,
    seed: Seed = 0,
    steps: Steps = None,
    eta: Eta = None,
    samples: Samples = None,
    tta: Annotated[
        bool, SamplingOption("--tta", help="Average over the flips that the run was trained with.")
    ] = False,
    deterministic: Annotated[
        bool, SamplingOption("--deterministic", help="Predict from no noise at all.")
    ] = False,
    runs: Annotated[
        int | None,
        SamplingOption(
            metavar="K", min=2, max=100, help="Compare K noise draws; the mask is their mean."
        ),
    ] = None,
    uncertainty: Annotated[
        str | None, FileOption(help="Also write where K draws (default 5) disagree.")
    ] = None,
    decoder: Decoder = "auto",
    crop: Annotated[
        str | None,
        SamplingOption(help="none, or body: a square around the body; default: the run's own."),
    ] = None,
    batch_size: BatchSize = None,
    device: Device = "auto",
    shard: ShardText = None,
    engine: EngineName = "local",
    workers: Workers = None,
    ray_address: RayAddress = None,
    threads: Threads = None,
    compiled: Compiled = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Segment a scan, or many; each mask lies on its scan's own grid."""
    source = one_input(scan, input_path, "SCAN")
    _check_options(run, model, samples, runs, deterministic and (runs or uncertainty) is not None)
    from sdseg_cli.imaging.postprocess import PostProcess
    from sdseg_cli.imaging.scans import is_many, require_file_name, require_folder_name

    output = Output(as_json=as_json, quiet=quiet)
    spread = Spread(shard, engine, workers, ray_address)
    many = is_many(source, mask)
    named = {"-o": mask, "--prob": prob, "--uncertainty": uncertainty, "--preview": preview}
    for option, name in named.items():
        if name is not None:
            (require_folder_name if many else require_file_name)(option, name)
    if not many:
        spread.refuse_for_one_scan()
    do = predict_cohort if many else _predict_one

    def sample(config: RunConfig) -> SampleConfig:
        flips = config.train.flips if tta else None
        return sampling(
            config.sample, steps, eta, samples, deterministic=deterministic, flips=flips
        )

    do(
        source,
        Path(mask),
        output,
        model=lambda: open_run(run, output).path if model is None else model,
        named=(run, model) != (None, None),
        predictor={
            "device": device,
            "decoder": decoder,
            "batch_size": batch_size,
            "threads": threads,
            "crop": crop,
            "compiled": compiled,
        },
        options={
            "series": series,
            "seed": seed,
            "post": PostProcess(threshold, fill_holes, min_size, keep_largest),
            "runs": runs,
            "probability_dtype": prob_dtype,
        },
        files={
            "probability": _path(prob),
            "uncertainty": _path(uncertainty),
            "preview": _path(preview),
        },
        sample=sample,
        spread=spread,
    )


def _predict_one(
    scan: Path,
    mask: Path,
    output: Output,
    *,
    model: Callable[[], Path],
    named: bool,
    predictor: Mapping[str, Any],
    options: Mapping[str, Any],
    files: Mapping[str, Any],
    sample: Callable[[RunConfig], SampleConfig],
    spread: Spread,
) -> None:
    """Predict one scan; the arguments are those of `predict_cohort`."""
    from sdseg_cli.imaging.io.files import read_geometry
    from sdseg_cli.inference.predict_outputs import OutputPaths

    # The names first, then the scan's header, before torch takes its seconds.
    OutputPaths(mask, **files, probability_dtype=options["probability_dtype"]).check_names(scan)
    read_geometry(scan, options["series"])

    from sdseg_cli.inference.predict import predict_file
    from sdseg_cli.inference.predictor import Predictor
    from sdseg_cli.runs.run_folder import RunDir

    trained = model()
    with output.progress() as progress:
        ready = Predictor(trained, **predictor)
        report = predict_file(
            scan,
            mask,
            ready,
            **options,
            **files,
            sample=sample(ready.config),
            progress=progress,
        )
    output.warn(report.warnings)
    values = report.to_json()
    if not named:
        values["warnings"] += [finding.to_json() for finding in weak_run(RunDir(trained))]
    output.result(
        values,
        title=f"segmented {scan.name}",
        columns=("", "value"),
        rows=_rows(report),
        files=report.files,
    )


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)


def _check_options(
    run: str | None,
    model: Path | None,
    samples: int | None,
    runs: int | None,
    compares_nothing: bool,
) -> None:
    """Refuse options that exclude each other, and what is no package. Raises ConfigError."""
    check_model(run, model)
    if runs is not None and samples is not None:
        raise ConfigError(
            "--runs and --samples both say how many draws are averaged.", "Give one of them."
        )
    if compares_nothing:
        raise ConfigError(
            "Without noise all runs are one and the same.",
            "Give --runs and --uncertainty, or --deterministic.",
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
