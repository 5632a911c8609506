"""Options that several commands share, and how their text becomes values."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer
from typer.core import TyperCommand

from sdseg_cli.cli.console import Output
from sdseg_cli.core.config import SampleConfig
from sdseg_cli.core.errors import ConfigError, DataError
from sdseg_cli.core.filenames import PACKAGE_FILE, is_folder, is_there
from sdseg_cli.core.findings import WARNING, Finding
from sdseg_cli.data.layouts import DATASETS

if TYPE_CHECKING:
    from sdseg_cli.metrics import Grid, Protocol, ScoringOptions
    from sdseg_cli.runs.run_folder import FoldRuns, RunDir

Given = TypeVar("Given", str, Path)

WEAK_DICE = 0.3
"""A validation Dice below which a run is not used without a warning."""
MESSAGES = "Messages and help"
"""The panel of `--help` that lists `--help` itself."""
FileOption = partial(typer.Option, rich_help_panel="Input and output")
ReferenceOption = partial(typer.Option, rich_help_panel="Folders of masks")
ScoringOption = partial(typer.Option, rich_help_panel="Scoring")
MaskOption = partial(typer.Option, rich_help_panel="Post-processing")
SamplingOption = partial(typer.Option, rich_help_panel="Sampling")
HardwareOption = partial(typer.Option, rich_help_panel="Hardware and speed")
ClusterOption = partial(typer.Option, rich_help_panel="Many scans and clusters")
MessageOption = partial(typer.Option, rich_help_panel=MESSAGES)


class PanelCommand(TyperCommand):
    """A command whose help shows its options in panels: plain headings, for rich's boxes cost 0.1 s
    at each start and read markup in the texts.
    """

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the panels in the order of their first options, after those in no panel."""
        panels: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            heading = getattr(parameter, "rich_help_panel", None)
            if heading is None and "--help" in parameter.opts:
                heading = MESSAGES
            elif heading is None:
                heading = "Arguments" if parameter.param_type_name == "argument" else "Options"
            if (record := parameter.get_help_record(ctx)) is not None:
                panels.setdefault(heading, []).append(record)
        for heading, records in panels.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


Json = Annotated[bool, MessageOption("--json", help="One JSON object on stdout, nothing else.")]
Quiet = Annotated[bool, MessageOption("--quiet", "-q", help="No progress, no table.")]
Debug = Annotated[bool, MessageOption("--debug", help="Show the traceback of an error.")]
Input = Annotated[Path | None, FileOption("--input", "-i", help="The same as the argument.")]
"""See `one_input`."""

Layout = Annotated[
    str | None, typer.Option(help=f"Layout: {', '.join(DATASETS)}; default: recognised.")
]
ImageGlob = Annotated[
    str | None, typer.Option(help="Pattern of the images, e.g. '*/CT_image.nii.gz'.")
]
LabelGlob = Annotated[
    str | None, typer.Option(help="Pattern of the masks, e.g. '*/CT_mask.nii.gz'.")
]
ClassNames = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help='Names of labels: JSON {"1": "liver"}, or lines 1,liver.'),
]
Processes = Annotated[
    int | None, typer.Option("--workers", help="Processes; default: one per core.")
]

Run = Annotated[
    str | None,
    FileOption(metavar="PATH", help="Run folder, or its name; default: the newest finished run."),
]
"""As typed: only the text tells the path `./x` from the name `x`."""
Runs = Annotated[
    list[str] | None,
    FileOption(
        "--run",
        metavar="PATH",
        help="Run folder, or its name; default: the newest finished run. Several: their mean.",
    ),
]
Folds = Annotated[
    bool, FileOption("--folds", help="All finished folds of a set: of --run, else the newest.")
]
NamedRun = Annotated[str | None, FileOption("--run", metavar="PATH", help="Run folder or name.")]
Model = Annotated[
    Path | None, FileOption(help="A package of `sdseg weights export`, instead of a run.")
]
Split = Annotated[str, typer.Option(help="train, val or test.")]

Seed = Annotated[int, SamplingOption(help="Seed of the noise.")]
Steps = Annotated[
    int | None, SamplingOption(min=1, max=1000, help="Reverse steps: 1 = the paper, more = DDIM.")
]
Eta = Annotated[
    float | None,
    SamplingOption(min=0, max=1, help="Fresh noise between steps: 0 = none, 1 = ancestral."),
]
Samples = Annotated[int | None, SamplingOption(min=1, max=1000, help="Noise draws to average.")]
Decoder = Annotated[
    str,
    SamplingOption(help="exact, fast, or auto: fast where training or a check found it as good."),
]

Device = Annotated[str, HardwareOption(help="auto, cpu, cuda, cuda:1 (the second GPU) or mps.")]
BatchSize = Annotated[int | None, HardwareOption(help="Slices per batch; the mask stays the same.")]
Threads = Annotated[
    int | None, HardwareOption(help="CPU threads per operation; default: torch's choice.")
]
Compiled = Annotated[
    bool, HardwareOption("--compile", help="Compile the networks: a slower start, then faster.")
]

Target = Annotated[
    str | None, ReferenceOption(help="With --ref: labels that count, e.g. 1,2; default: all.")
]
Classes = Annotated[
    str | None, ReferenceOption(help="With --ref: labels to score one by one, e.g. 1,2,5.")
]
ReferenceLayout = Annotated[
    str | None,
    ReferenceOption("--dataset", help="With --ref: layout by whose rules references are read."),
]
Resample = Annotated[
    bool, ReferenceOption("--resample", help="With --ref: masks may lie on other grids.")
]
Workers = Annotated[
    int | None, HardwareOption(min=1, help="With --ref: processes; default: one per core.")
]

GridName = Annotated[str, ScoringOption(help="native: the scan's own; model: 256x256.")]
ProtocolName = Annotated[str, ScoringOption(help="standard, or official (the paper's code).")]
Tolerance = Annotated[
    float, ScoringOption(metavar="MM", help="Tolerance of surface Dice; for pictures in pixels.")
]
Lesions = Annotated[
    bool,
    ScoringOption("--lesions", help="Also score connected parts: lesions found, lesion F1."),
]
DetectionIou = Annotated[
    float | None,
    ScoringOption(
        metavar="SHARE", help="IoU from which a lesion counts as found (0.1); implies --lesions."
    ),
]


def typed() -> str:
    """The command as it was typed, for reports; a shell would read it back."""
    program = Path(sys.argv[0]).name
    return shlex.join(["sdseg" if program in ("sdseg", "__main__.py") else program, *sys.argv[1:]])


def workspace() -> Path:
    """The folder of `prepared/` and `runs/`: SDSEG_HOME, or the current folder."""
    return Path(os.environ.get("SDSEG_HOME") or ".")


def one_input(
    argument: Given | None, option: Given | None, name: str, flag: str = "--input"
) -> Given:
    """What a command works on: its argument, called `name` in help, or the same given by `flag`.

    Raises:
        ConfigError: Both are given, or none.
    """
    if argument is not None and option is not None:
        raise ConfigError(
            f"{argument} and {flag} {option} are both given.", f"Give {name} once, either way."
        )
    if (given := argument or option) is None:
        raise ConfigError(f"Missing argument '{name}'.", f"Give {name}, or {flag} {name}.")
    return given


def say_next(output: Output, command: str) -> None:
    """Say which command comes next, as a shell reads it."""
    home = os.environ.get("SDSEG_HOME")
    output.say(f"next: {f'SDSEG_HOME={shlex.quote(home)} ' if home else ''}{command}")


def open_run(run: str | None, output: Output) -> RunDir:
    """The run to predict with; for a default one, says which it is, why, and how good it was.

    Raises:
        ConfigError: There is no such run, or none yet.
    """
    from sdseg_cli.runs.run_folder import default_runs, find_run

    found = find_run(workspace(), run)
    dice, step = found.best_validation()
    if run is None:
        why = _why_default(found, default_runs(workspace()))
        reached = "not validated yet"
        if dice is not None:
            reached = f"validation Dice {number(dice)} at step {step}"
        output.say(f"using run {found.path}{why}: {reached}")
        output.warn(weak_run(found))
    if dice == 0:
        output.say("this run found nothing on its validation cases: expect nothing of it")
    return found


def open_folds(run: str | None, output: Output) -> FoldRuns:
    """The runs of all folds; says which they are.

    Args:
        run: Their common name, or one of them; None for those of the newest.
        output: Of the command.

    Raises:
        ConfigError: There are none, or none is finished.
    """
    from sdseg_cli.runs.run_folder import find_folds

    found = find_folds(workspace(), run)
    if not found.finished:
        raise ConfigError(
            f"no fold of {found.folder.path} is finished.",
            "Run the same `sdseg train --fold all` command again.",
        )
    output.say(f"using {len(found.finished)} folds: {_paths(found.finished)}")
    if found.unfinished:
        output.say(f"not finished, and left out: {_paths(found.unfinished)}")
    return found


def _paths(runs: Sequence[RunDir]) -> str:
    return ", ".join(str(run.path) for run in runs)


def _why_default(taken: RunDir, runs: Sequence[RunDir]) -> str:
    """The reason for this one of several data sets' runs; of one data set, if it is unfinished."""
    sets = sorted({run.path.parent.name for run in runs})
    if len(sets) < 2:
        return "" if taken.is_finished else ", the newest, for none is finished"
    what = "newest finished" if taken.is_finished else "newest, for none is finished,"
    return f", the {what} of {len(runs)} runs of {len(sets)} data sets ({', '.join(sets)}; --run)"


def weak_run(run: RunDir) -> tuple[Finding, ...]:
    """A warning about a run taken by default whose masks are hardly worth having."""
    dice, _ = run.best_validation()
    if dice is not None and dice >= WEAK_DICE:
        return ()
    name = f"{run.path.parent.name}/{run.path.name}"
    how = f"validation Dice {number(dice)}, below {WEAK_DICE:g}"
    measured = f"{'not validated yet' if dice is None else how}, and it is taken by default"
    fix = "Name a better one with --run (sdseg runs lists them), or train longer."
    return (Finding("run-weak", WARNING, name, measured, fix),)


def refuse_pipes(*paths: Path | None) -> None:
    """Refuse pipes and devices, whose end might never come. Raises DataError."""
    for path in paths:
        if path is not None and is_there(path) and not (path.is_file() or is_folder(path)):
            raise DataError(
                f"{path}: is a pipe or a device, not a file.",
                "Write its content to a file, and give that.",
            )


def refuse_given(options: Mapping[str, object], why: str, hint: str) -> None:
    """Refuse options that would be ignored: any that is not None. Raises ConfigError."""
    for option, value in options.items():
        if value is not None:
            raise ConfigError(f"{option} {why}.", hint)


def check_model(
    run: str | Sequence[str] | None, model: Path | None, *, folds: bool = False
) -> None:
    """Refuse --run or --folds with --model, and a --model that is no package.

    Raises:
        ConfigError: It is so.
    """
    if model is not None and (run or folds):
        raise ConfigError(
            f"--{'run' if run else 'folds'} and --model are both given.", "Give one of them."
        )
    if model is not None and not (model / PACKAGE_FILE).is_file():
        raise ConfigError(
            f"{model}: no package there.",
            "Make one: sdseg weights export RUN; a run goes to --run.",
        )


def sampling(
    settings: SampleConfig,
    steps: int | None,
    eta: float | None,
    samples: int | None,
    *,
    deterministic: bool = False,
    flips: str | None = None,
) -> SampleConfig:
    """A run's `[sample]` settings with the options that were given laid over them.

    Args:
        settings: Of the run.
        steps: `--steps`.
        eta: `--eta`.
        samples: `--samples`.
        deterministic: `--deterministic`: without noise the run's own samples and eta do not apply.
        flips: Those of the run's training, with `--tta`; None leaves the run's setting.

    Raises:
        ConfigError: --eta would be ignored, for there is nothing between the steps of one step; or
            an option needs the noise that --deterministic takes away.
    """
    given: dict[str, Any] = {"steps": steps, "eta": eta, "samples": samples, "flips": flips}
    if deterministic:
        noise = {"--eta": bool(eta), "--samples": (samples or 1) > 1}
        for option, needs_noise in noise.items():
            if needs_noise:
                raise ConfigError(
                    f"{option} has no effect without noise.", f"Give {option} or --deterministic."
                )
        given |= {"noise": "zero", "eta": 0.0, "samples": 1}
    if flips == "":
        raise ConfigError(
            "--tta: this run was trained without flips, so it knows no flipped slices.",
            "Leave --tta out; --samples averages noise draws instead.",
        )
    sample = replace(settings, **{key: value for key, value in given.items() if value is not None})
    if eta and sample.steps == 1:
        raise ConfigError(
            "--eta has no effect with one reverse step.", "Give --steps 2 or more, or no --eta."
        )
    return sample


def scoring(
    tolerance: float,
    detection_iou: float | None,
    *,
    lesions: bool,
    grid: str,
    protocol: str,
    allow_missing: bool = False,
) -> ScoringOptions:
    """The scoring options; lesions are scored where one of their two options is given."""
    from sdseg_cli.metrics import DETECTION_IOU, ScoringOptions

    if lesions and detection_iou is None:
        detection_iou = DETECTION_IOU
    return ScoringOptions(
        tolerance,
        detection_iou,
        cast("Protocol", protocol),  # both are checked there
        cast("Grid", grid),
        allow_missing,
    )


def number(value: float | None) -> str:
    """Three decimals, or a dash."""
    return "-" if value is None else f"{value:.3f}"


def whole_numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    """`1,2,5` as numbers; None stays None. Raises ConfigError."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as wrong:
        raise ConfigError(
            f'{option} "{text}" is no list of whole numbers.', f"Write {option} 1,2,5."
        ) from wrong


def pair(option: str, text: str | None) -> tuple[float, float] | None:
    """`-175,250` as numbers; None stays None. Raises ConfigError."""
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError as wrong:
        raise ConfigError(
            f'{option} "{text}" is no pair of numbers.', f"Write {option} -175,250."
        ) from wrong
    return low, high
