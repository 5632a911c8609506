"""`sdseg predict`, of a scan or of many."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdseg_cli.cli import options as opt
from sdseg_cli.cli.console import Output
from sdseg_cli.cli.options import (
    check_model,
    number,
    one_input,
    open_folds,
    open_run,
    sampling,
    weak_run,
)
from sdseg_cli.core.config import THRESHOLD
from sdseg_cli.core.errors import CohortError, ConfigError
from sdseg_cli.core.filenames import require_there
from sdseg_cli.core.findings import Finding

if TYPE_CHECKING:
    from sdseg_cli.core.config import RunConfig
    from sdseg_cli.inference.cohort import CohortReport, Engine, Shard
    from sdseg_cli.inference.options import OutputPaths, PredictOptions, PredictorOptions
    from sdseg_cli.inference.predict import PredictReport

IN_TURN = "the runs do not fit into memory together: they are loaded one after the other, slowly"
ShardText = Annotated[
    str | None, opt.ClusterOption("--shard", help="Predict part i of n: i/n, i from 0 to n-1.")
]
EngineName = Annotated[
    str, opt.ClusterOption("--engine", help="How the scans are distributed: local or ray.")
]
Workers = Annotated[
    int | None,
    opt.ClusterOption(min=1, help="With --engine ray: models at a time; default: one per GPU."),
]
RayAddress = Annotated[
    str | None, opt.ClusterOption(help="With --engine ray: the cluster; default: this machine.")
]


@dataclass(frozen=True)
class Distribution:
    """The distribution of a cohort over processes, from the options."""

    shard: str | None = None
    engine: str = "local"
    workers: int | None = None
    ray_address: str | None = None

    def make_engine(self) -> Engine:
        """The function that predicts the scans. Raises ConfigError."""
        from sdseg_cli.inference.cohort import one_by_one
        from sdseg_cli.inference.ray import RayEngine, require_ray

        if self.engine not in ("local", "ray"):
            raise ConfigError(f'there is no engine "{self.engine}".', "Choose local or ray.")
        if self.engine == "ray":
            require_ray()
            return RayEngine(self.workers, self.ray_address)
        if self.workers is not None or self.ray_address is not None:
            raise ConfigError(
                "--workers and --ray-address need --engine ray.",
                "Add it, or start several processes with --shard.",
            )
        return one_by_one


def predict(
    mask: Annotated[
        str, opt.FileOption("--output", "-o", help="Mask to write; for many scans, a folder.")
    ],
    scan: Annotated[
        Path | None,
        typer.Argument(
            metavar="SCAN",
            help="NIfTI, NRRD, MetaImage, DICOM series or picture; or a folder or list of them.",
        ),
    ] = None,
    input_path: opt.Input = None,
    series: Annotated[
        str | None, opt.FileOption(help="Which DICOM series: its number, or the end of its UID.")
    ] = None,
    run: opt.Runs = None,
    folds: opt.Folds = False,
    model: opt.Model = None,
    prob: Annotated[
        str | None,
        opt.FileOption(
            help="Also write the probability map; of several classes a folder: a map of each."
        ),
    ] = None,
    prob_dtype: Annotated[str, opt.FileOption(help="uint8 (steps of 1/255) or float32.")] = "uint8",
    preview: Annotated[
        str | None, opt.FileOption(help="Also write a PNG of the mask on its scan.")
    ] = None,
    per_class: Annotated[
        str | None, opt.FileOption(metavar="FOLDER", help="Also write the mask of each class.")
    ] = None,
    legend: Annotated[
        str | None, opt.FileOption(help="Also write an ITK-SNAP label file: values and names.")
    ] = None,
    threshold: Annotated[
        float, opt.MaskOption(help="Voxels with a probability above this are foreground.")
    ] = THRESHOLD,
    fill_holes: Annotated[
        bool,
        opt.MaskOption("--fill-holes", help="Fill holes that foreground encloses on all sides."),
    ] = False,
    min_size: Annotated[
        float | None,
        opt.MaskOption(metavar="ML", help="Drop connected parts smaller than ML millilitres."),
    ] = None,
    keep_largest: Annotated[
        int | None, opt.MaskOption(metavar="N", help="Keep only the N largest connected parts.")
    ] = None,
    seed: opt.Seed = 0,
    steps: opt.Steps = None,
    eta: opt.Eta = None,
    samples: opt.Samples = None,
    tta: Annotated[
        bool,
        opt.SamplingOption("--tta", help="Average over the flips that the run was trained with."),
    ] = False,
    deterministic: Annotated[
        bool, opt.SamplingOption("--deterministic", help="Predict without noise.")
    ] = False,
    runs: Annotated[
        int | None,
        opt.SamplingOption(
            metavar="K", min=2, max=100, help="Compare K noise draws; the mask is their mean."
        ),
    ] = None,
    uncertainty: Annotated[
        str | None, opt.FileOption(help="Also write a map of where the K draws (default 5) differ.")
    ] = None,
    decoder: opt.Decoder = "auto",
    crop: Annotated[
        str | None,
        opt.SamplingOption(help="none, or body: a square around the body; default: as trained."),
    ] = None,
    batch_size: opt.BatchSize = None,
    device: opt.Device = "auto",
    shard: ShardText = None,
    engine: EngineName = "local",
    workers: Workers = None,
    ray_address: RayAddress = None,
    threads: opt.Threads = None,
    compiled: opt.Compiled = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Segment a scan, or many; each mask has its scan's own grid."""
    source = one_input(scan, input_path, "SCAN")
    check_model(run, model, folds=folds)
    if folds and len(run or ()) > 1:
        raise ConfigError(
            "--folds and several --run are given.", "Give --folds with one --run, or none."
        )
    if runs is not None and samples is not None:
        raise ConfigError(
            "--runs and --samples both say how many draws are averaged.", "Give one of them."
        )
    if deterministic and (runs or uncertainty) is not None:
        raise ConfigError(
            "Without noise all runs are one and the same.",
            "Give --runs and --uncertainty, or --deterministic.",
        )
    distribution = Distribution(shard, engine, workers, ray_address)
    named = {"-o": mask, "--prob": prob, "--uncertainty": uncertainty, "--preview": preview}
    many = _is_many(source, named, distribution)
    if per_class is not None:
        _require_folder("--per-class", per_class)
    # All this is refused before SciPy takes its time, and a missing run before torch takes more.
    from sdseg_cli.imaging.postprocess import PostProcess
    from sdseg_cli.inference.options import OutputPaths, PredictOptions, PredictorOptions

    outputs = OutputPaths(
        Path(mask),
        _path(prob),
        prob_dtype,
        _path(uncertainty),
        _path(preview),
        _path(per_class),
        _path(legend),
    )
    post = PostProcess(threshold, fill_holes, min_size, keep_largest)

    def options(config: RunConfig) -> PredictOptions:
        flips = config.train.flips if tta else None
        sample = sampling(
            config.sample, steps, eta, samples, deterministic=deterministic, flips=flips
        )
        return PredictOptions(series, seed, sample, post, runs)

    output = Output(as_json=as_json, quiet=quiet)
    request = Request(
        outputs,
        PredictorOptions(device, decoder, batch_size, threads, crop, compiled),
        options,
        series,
        members=lambda: _members(run or [], model, output, folds=folds),
        named=bool(run or model or folds),
        prob=prob,
    )
    if many:
        _predict_cohort(source, request, distribution, output)
    else:
        _predict_one(source, request, output)


def _members(
    runs: Sequence[str], model: Path | None, output: Output, *, folds: bool
) -> tuple[Path, ...]:
    """The run or package that predicts, or the members of an ensemble."""
    if model is not None:
        return (model,)
    if folds:
        return tuple(one.path for one in open_folds(runs[0] if runs else None, output).finished)
    if not runs:
        return (open_run(None, output).path,)
    return tuple(open_run(run, output).path for run in runs)


def _is_many(source: Path, named: Mapping[str, str | None], distribution: Distribution) -> bool:
    """If many scans are meant; refuses names and options that do not go with one, or with many."""
    from sdseg_cli.imaging.scans import is_many, require_file_name, require_folder_name

    many = is_many(source, str(named["-o"]))
    for option, name in named.items():
        if name is not None:
            if not many and option == "--prob" and _may_be_folder(Path(name)):
                continue  # of several classes; how many there are is known later
            (require_folder_name if many else require_file_name)(option, name)
    if not many:
        if distribution != Distribution():
            raise ConfigError(
                "--shard, --engine, --workers and --ray-address are for many scans.",
                "Give a folder or a list of scans, and -o a folder; or leave them out.",
            )
        require_there(source, "Check the path of the scan.")
    return many


@dataclass(frozen=True)
class Request:
    """A prediction of a scan or of many, as the options request it.

    Attributes:
        outputs: The files, or of many scans their folders.
        predictor: How to load the model.
        options: How to predict, by the settings of a run.
        series: As in the options, which are known only once the run is.
        members: Gives the run or package, or the members of an ensemble; called once the scans are
            known to be there.
        named: The model was named; if not, the one that made the existing masks makes the rest.
        prob: The name of `--prob` as typed.
    """

    outputs: OutputPaths
    predictor: PredictorOptions
    options: Callable[[RunConfig], PredictOptions]
    series: str | None
    members: Callable[[], tuple[Path, ...]]
    named: bool
    prob: str | None = None


def _predict_one(scan: Path, request: Request, output: Output) -> None:
    from sdseg_cli.imaging.io.files import read_geometry
    from sdseg_cli.imaging.scans import require_file_name

    # The names first, then the scan's header, before torch takes its seconds.
    outputs = request.outputs
    if not _may_be_folder(outputs.probability):
        outputs.check_names(scan)
        read_geometry(scan, request.series)

    from sdseg_cli.inference.cohort import trained_config
    from sdseg_cli.inference.predict import predict_file
    from sdseg_cli.inference.predictor import load_predictor
    from sdseg_cli.runs.run_folder import RunDir

    members = request.members()
    if _may_be_folder(outputs.probability):
        several = trained_config(*members).model.classes > 1
        if not several:
            require_file_name("--prob", request.prob or "")
        outputs = replace(outputs, probability_per_class=several)
        outputs.check_names(scan)
    with output.progress() as progress:
        ready = load_predictor(members, request.predictor)
        if ready.in_turn:
            output.say(IN_TURN)
        options = request.options(ready.config)
        report = predict_file(scan, outputs, ready, options, progress=progress)
    output.warn(report.warnings)
    values = report.to_json()
    if report.classes and outputs.probability and not outputs.probability_per_class:
        output.say(
            f"{outputs.probability} holds the probability of any class; --prob FOLDER/: each"
        )
    if not request.named:
        values["warnings"] += [finding.to_json() for finding in weak_run(RunDir(members[0]))]
    output.result(
        values,
        title=f"segmented {scan.name}",
        columns=("", "value"),
        rows=_rows(report),
        files=report.outputs.files,
    )


def _may_be_folder(probability: Path | None) -> bool:
    """Whether the name of `--prob` is none of a map, so that it means a folder of maps."""
    from sdseg_cli.imaging.scans import MASK_SUFFIXES

    return probability is not None and not probability.name.lower().endswith(MASK_SUFFIXES)


def _require_folder(option: str, name: str) -> None:
    """Refuse a name that is no folder's."""
    from sdseg_cli.imaging.scans import MASK_SUFFIXES, require_folder_name

    require_folder_name(option, name)
    path = Path(name)
    if path.name.lower().endswith(MASK_SUFFIXES) or (path.exists() and not path.is_dir()):
        raise ConfigError(
            f"{option} {name}: names a folder, in which each class has a file.",
            f"Give a folder, such as {option} classes/.",
        )


def _path(name: str | None) -> Path | None:
    return None if name is None else Path(name)


def _rows(report: PredictReport) -> list[tuple[str, str]]:
    """The table of a report."""
    rows = [
        *([("mean of runs", str(len(report.runs)))] if report.runs else []),
        ("slices", str(report.slices)),
        ("foreground voxels", f"{report.foreground_voxels:,}"),
    ]
    if report.foreground_ml is not None:
        rows.append(("foreground ml", f"{report.foreground_ml:.1f}"))
    for one in report.classes:
        ml = "" if one["ml"] is None else f", {one['ml']:.1f} ml"
        rows.append((f"{one['name']} ({one['value']})", f"{one['voxels']:,} voxels{ml}"))
    if report.stability is not None:
        rows.append((f"Dice between {report.stability.runs} runs", number(report.stability.dice)))
        rows.append(("share of voxels that flip", number(report.stability.flipped)))
    return [*rows, ("seconds", f"{report.seconds:.1f}")]


def _predict_cohort(
    source: Path, request: Request, distribution: Distribution, output: Output
) -> None:
    """Predict the scans of a folder or a list.

    Raises:
        CohortError: A scan failed, or was not begun because the work was stopped.
        SdsegError: Nothing was begun, or the cohort cannot be resumed.
    """
    from sdseg_cli.imaging.scans import find_scans
    from sdseg_cli.inference.ledger import Ledger

    folder, named = request.outputs.mask, request.named
    found = find_scans(source, folder, replace(request.outputs, legend=None).beside)
    resumes = not named and Ledger(folder).model() is not None
    members = () if resumes else request.members()  # found before torch takes its seconds

    from sdseg_cli.inference.cohort import (
        Shard,
        Task,
        leave_together,
        models_of_before,
        predict_cohort,
        take_own_gpu,
        trained_classes,
        trained_config,
    )
    from sdseg_cli.inference.predict import write_legend
    from sdseg_cli.model.distributed import ranks_of
    from sdseg_cli.runs.run_folder import RunDir

    if resumes:
        members = models_of_before(folder)
        names = ", ".join(map(str, members))
        output.say(f"going on with {names}, which the masks in {folder} are made with")
    for suffix, count in sorted(found.passed_over.items()):
        output.say(f"passed over {count} of {suffix}, which is no kind of scan this tool reads")
    if found.labels:
        output.say(
            f"passed over {len(found.labels)} named as label maps that lie beside a scan, such as "
            f"{found.labels[0]}; a list of files can name them"
        )
    if found.channels == 1:
        output.say("scans are named as nnU-Net names them: masks are called without _0000")
    elif found.channels:
        output.say(
            f"scans are named as {found.channels} channels of nnU-Net's cases; a run reads one "
            "image, so each is predicted by itself. For one channel give a list of its files."
        )
    ranks = ranks_of(os.environ)
    shard = (Shard() if distribution.shard is None else Shard.parse(distribution.shard)).among(
        ranks
    )
    engine = distribution.make_engine()
    take_own_gpu(ranks)
    config = trained_config(*members)
    options, rule = request.options(config), trained_classes(members[0], config)
    several = len(rule) > 1
    outputs = replace(request.outputs, legend=None, probability_per_class=several)
    classes = rule.names if several else ()
    task = Task(members[0], outputs, request.predictor, options, classes, members[1:])
    try:
        # Ray's own messages go to stdout, which is for the result.
        with output.progress() as progress, redirect_stdout(sys.stderr):
            report = predict_cohort(
                found.scans, task, shard=shard, engine=engine, progress=progress, named=named
            )
    finally:
        leave_together(os.environ)
    if request.outputs.legend is not None:
        write_legend(request.outputs.legend, rule)
    weak = () if named else weak_run(RunDir(members[0]))
    _show_cohort(report, shard, output, weak)


def _show_cohort(
    report: CohortReport, shard: Shard, output: Output, weak: Sequence[Finding]
) -> None:
    output.warn([Finding(**warning) for warning in report.warnings])
    for row in report.failed:
        output.say(f"failed {row.case}: {row.error}")
    per_scan = report.seconds_per_scan
    part = f", shard {shard.index}/{shard.count}" if shard.count > 1 else ""
    values = report.to_json()
    values["warnings"] += [finding.to_json() for finding in weak]
    output.result(
        values,
        title=f"segmented {report.done} scans{part}",
        columns=("scans", ""),
        rows=[
            ("done", str(report.done)),
            ("failed", str(len(report.failed))),
            ("skipped, done before", str(report.skipped)),
            *([("not begun", str(report.left))] if report.left else []),
            ("seconds per scan", "-" if per_scan is None else f"{per_scan:.1f}"),
            ("seconds", f"{report.seconds:.1f}"),
        ],
        files=[report.ledger],
    )
    total = report.done + len(report.failed) + report.skipped + report.left
    if report.failed:
        left = f"; {report.left} were not begun" if report.left else ""
        names = ", ".join(row.case for row in report.failed[:5])
        more = f" and {len(report.failed) - 5} more" if len(report.failed) > 5 else ""
        raise CohortError(
            f"{len(report.failed)} of {total} scans failed: {names}{more}{left}.",
            f"{report.ledger} says why; the same command tries them again.",
        )
    if report.left:
        raise CohortError(
            f"stopped with {report.left} of {total} scans not begun.",
            "The same command goes on.",
        )
