"""`sdseg train`."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdseg_cli.cli import options as opt
from sdseg_cli.cli.console import Output
from sdseg_cli.cli.options import number as number_text
from sdseg_cli.cli.options import refuse_pipes, say_next, typed, workspace
from sdseg_cli.core.config import NO_AUGMENTATION, NO_FOLD, SDSEG, RunConfig, models
from sdseg_cli.core.errors import ConfigError
from sdseg_cli.core.presets import PRESETS, for_classes, for_network, preset

STOPPING = (
    "stopping after this step, then saving; Ctrl-C again ends at once and loses what is not saved"
)

SKIPPING = (
    "skipped: the run is finished and predicts with the exact decoder; "
    "the same command calibrates the fast one later"
)
SKIPPING_TRAINED = (
    "skipped: the run is finished and predicts with the fast decoder it was trained through; "
    "the same command measures its cost later"
)
"""Of a run whose loss has a term of the mask: it keeps its decoder, whatever that costs."""

if TYPE_CHECKING:
    from sdseg_cli.core.progress import OnStep, TrainProgress
    from sdseg_cli.data.manifest import Manifest
    from sdseg_cli.data.spec import ClassRule
    from sdseg_cli.inference.decoders import DecoderCheck
    from sdseg_cli.runs.run_folder import RunDir
    from sdseg_cli.training.train import TrainOptions, TrainReport


def train(
    dataset: Annotated[
        str | None, typer.Option(help="Name of a prepared set, or path to its folder.")
    ] = None,
    preset_name: Annotated[
        str | None, typer.Option("--preset", help=f"{', '.join(PRESETS)}; default: tiny.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help=f"{', '.join(models())}; default: {SDSEG}.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings.")] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One setting, e.g. train.batch_size=4."),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the run.")] = None,
    run: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Run folder, or a name for one in runs/DATASET/."),
    ] = None,
    fold: Annotated[
        str | None,
        typer.Option(
            metavar="I|all",
            help="Fold that validates, from 0; all: every fold, one after the other.",
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(help="pretrained (default), autoencoder, scratch; a run, package or model."),
    ] = None,
    batch_size: Annotated[
        str | None,
        typer.Option(help="Slices per step over all processes, or auto: what the GPU can hold."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Threads that prefetch slices; default: by the number of cores."),
    ] = None,
    compiled: opt.Compiled = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also log for TensorBoard, to RUN/tensorboard.")
    ] = False,
    show_config: Annotated[
        bool,
        typer.Option("--show-config", help="Only show all settings, with explanations, as TOML."),
    ] = False,
    show_augmentation: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT.png",
            help="Only draw training slices as train.augment changes them, on a contact sheet.",
        ),
    ] = None,
    add: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Go on from --run with these corrected masks among the training cases.",
        ),
    ] = None,
    device: opt.Device = "auto",
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Train SDSeg, or a network to compare it with. To resume, run the same command again."""
    from sdseg_cli.data.manifest import Manifest

    refuse_pipes(config)
    if add is not None:
        _refuse_with_add(
            {
                "--dataset": dataset,
                "--preset": preset_name,
                "--model": model,
                "--config": config,
                "--init": init,
                "--fold": fold,
                "--show-config": show_config or None,
                "--show-augmentation": show_augmentation,
                "--batch-size auto": "auto" if batch_size == "auto" else None,
            }
        )
        _go_on_with_added(
            add,
            run,
            assign or [],
            steps,
            {"train.batch_size": _batch_size(batch_size), "seed": seed},
            device,
            (workers, compiled, tensorboard),
            Output(as_json=as_json, quiet=quiet),
        )
        return
    own_options = {"steps": steps, "init": init, "batch_size": _batch_size(batch_size)}
    settings = _settings(preset_name, model, config, assign or [], dataset, seed, own_options)
    manifest = None
    if settings.dataset and not (show_config and dataset is None):
        manifest = Manifest.find(workspace(), settings.dataset)
        settings = _settings(
            preset_name, model, config, assign or [], dataset, seed, own_options, manifest.classes
        )
    if show_config:
        _show_config(settings, as_json=as_json)
        return
    if manifest is None:
        raise ConfigError("Missing option '--dataset'.", "See sdseg train --help.")
    # The name where it will do, so that "scans" and "scans/" are one data set.
    own = manifest.root == (workspace() / "prepared" / manifest.name).absolute()
    settings = replace(settings, dataset=manifest.name if own else str(manifest.root))
    folds = _folds(fold, settings, manifest)

    if show_augmentation is not None:
        _show_augmentation(
            show_augmentation, settings, manifest, Output(as_json=as_json, quiet=quiet)
        )
        return

    from sdseg_cli.model.distributed import ranks_of
    from sdseg_cli.model.weights import WeightStore
    from sdseg_cli.training.initialise import resolved_start
    from sdseg_cli.training.train import TrainOptions

    start = resolved_start(settings.train.init, workspace(), WeightStore.default())
    settings = replace(settings, train=replace(settings.train, init=start))

    first = ranks_of(os.environ).writes  # of several processes, one reports
    output = Output(as_json=as_json and first, quiet=quiet or not first)
    base = _run_folder(run, manifest.name, settings)
    if base.name in ("", ".."):
        base = base.resolve()  # `.` has no name to put the fold behind
    options = TrainOptions(workers, compiled, batch_size == "auto", tensorboard)
    found, stopped = _train_folds(settings, manifest, folds, base, device, options, output)
    report = found[-1][0]
    if fold == "all":
        _show_folds(output, found, folds, base)
    elif output.as_json:
        output.object(found[0][1])
    say_next(
        output,
        typed() if stopped else _next_command(report, manifest, base if fold == "all" else None),
    )


def _refuse_with_add(others: dict[str, Any]) -> None:
    """What a run that goes on with added cases takes from the run before."""
    wrong = [name for name, value in others.items() if value is not None]
    if wrong:
        raise ConfigError(
            f"{', '.join(wrong)} does not go with --add.",
            "A run that goes on has the settings of --run; --steps and --set change some.",
        )
    from sdseg_cli.model.distributed import ranks_of

    if ranks_of(os.environ).world > 1:
        raise ConfigError(
            "--add is for one process.",
            "Stop it after its first step; several processes then train the new set with --init.",
        )


def _go_on_with_added(
    added: Path,
    run: str | None,
    assigned: Sequence[str],
    steps: int | None,
    own: dict[str, int | None],
    device: str,
    how: tuple[int | None, bool, bool],
    output: Output,
) -> None:
    """`--add`: a set with the added cases, and a run on it from the best weights of another."""
    from sdseg_cli.data.extend import extended
    from sdseg_cli.data.manifest import set_of
    from sdseg_cli.runs.run_folder import find_run
    from sdseg_cli.training.correct import continued, corrected_cases
    from sdseg_cli.training.train import TrainOptions

    if run is None:
        raise ConfigError("--add goes on from a run.", "Name it: sdseg train --run R --add FOLDER.")
    before = find_run(workspace(), run)
    config = before.config()
    if config.fold != NO_FOLD:
        raise ConfigError(
            f"{before.path} is the run of a fold.",
            "Add the cases to the data set, and prepare and train it again with folds.",
        )
    chosen = [f"{key}={value}" for key, value in own.items() if value is not None]
    config = _assigned(config, [*assigned, *chosen])  # what is wrong is refused first
    cases = corrected_cases(added)
    with output.progress() as progress:
        found = extended(set_of(workspace(), config), cases, progress)
    manifest = found.manifest
    for what, ids in (("new", found.added), ("corrected", found.corrected)):
        if ids:
            output.say(f"{len(ids)} {what} training cases: {', '.join(ids)}")
    before_that = ", made before" if found.found else ""
    output.say(
        f"data set {manifest.name}{before_that}: {len(manifest.cases('train'))} training cases"
    )
    settings = continued(config, before.path.absolute(), manifest.name, steps)
    settings = _assigned(settings, [*assigned, *chosen])
    path = workspace() / "runs" / manifest.name / before.path.name
    options = TrainOptions(how[0], how[1], False, how[2])
    report, values, _ = _train_one(settings, manifest, path, device, options, output)
    was, now = before.best_validation()[0], report.best.get("val_dice")
    output.say(f"validation Dice before {number_text(was)}, after {number_text(now)}")
    if output.as_json:
        output.object(
            values
            | {
                "dataset": manifest.name,
                "added": list(found.added),
                "corrected": list(found.corrected),
                "before": {"run": str(before.path), "val_dice": was},
            }
        )
    say_next(output, _next_command(report, manifest, None))


def _show_config(settings: RunConfig, *, as_json: bool) -> None:
    from sdseg_cli.core.config_file import settings_of, to_toml

    output = Output()
    if as_json:
        output.object({"settings": [asdict(setting) for setting in settings_of(settings)]})
    else:
        output.document(to_toml(settings, explained=True))


def _folds(fold: str | None, settings: RunConfig, manifest: Manifest) -> Sequence[int]:
    """The folds to train, -1 for the set's own split. Raises ConfigError."""
    if fold is None:
        chosen: Sequence[int] = [settings.fold]  # a file of settings may name one
    elif fold == "all":
        manifest.of_fold(0)
        return range(manifest.folds)
    elif fold.isdecimal():
        chosen = [int(fold)]
    else:
        raise ConfigError(f'--fold is "{fold}".', "Give the number of a fold, from 0, or all.")
    manifest.of_fold(chosen[0])
    return chosen


def _train_folds(
    settings: RunConfig,
    manifest: Manifest,
    folds: Sequence[int],
    base: Path,
    device: str,
    options: TrainOptions,
    output: Output,
) -> tuple[list[tuple[TrainReport, dict[str, Any]]], bool]:
    """Train one fold after the other; of each, how it ended and its JSON; and whether a signal
    stopped them.
    """
    from sdseg_cli.runs.run_folder import fold_name

    found: list[tuple[TrainReport, dict[str, Any]]] = []
    for number in folds:
        folder = base if number == NO_FOLD else base.with_name(fold_name(base.name, number))
        own_settings = replace(settings, fold=number)
        report, values, skipped = _train_one(
            own_settings, manifest.of_fold(number), folder, device, options, output
        )
        found.append((report, values))
        if report.state == "stopped" or (skipped and number != folds[-1]):
            return found, True
    return found, False


def _train_one(
    settings: RunConfig,
    manifest: Manifest,
    path: Path,
    device: str,
    options: TrainOptions,
    output: Output,
) -> tuple[TrainReport, dict[str, Any], bool]:
    """Train one run and show how it ended.

    Returns:
        How it ended, the values of its JSON, and whether its calibration was skipped by a signal.
    """
    started = time.monotonic()
    from sdseg_cli.core.config_file import as_begun
    from sdseg_cli.model.distributed import ranks_of
    from sdseg_cli.runs.run_folder import RunDir
    from sdseg_cli.training.calibration import work_in_validations
    from sdseg_cli.training.fit_batch import fitted
    from sdseg_cli.training.train import train as run_train

    folder = RunDir(path)
    settings = as_begun(settings, folder.config_file)
    if options.adapts:
        settings = fitted(settings, manifest, folder, device)
        output.say(f"batch size {settings.train.batch_size}; the learning rate stays as it is.")
    what = f"{settings.model.network}, preset {settings.preset}"
    output.say(f"run {folder.path}: {what}, {settings.train.steps} steps")
    with (
        output.training(f"{folder.path}, {what}", work_in_validations(settings)) as on_step,
        output.at_once(STOPPING) as on_stop,
    ):
        report = run_train(
            settings,
            manifest,
            folder,
            device=device,
            options=options,
            on_step=_saying_first_step(output, on_step),
            on_warning=lambda finding: output.warn([finding]),
            on_stop=on_stop,
        )
    first = ranks_of(os.environ).writes
    check, skipped = None, False
    if first:
        check, skipped = _calibrated(output, report, folder, manifest, device)
    return report, _show(output, report, check, folder, time.monotonic() - started), skipped


def _show_folds(
    output: Output,
    found: Sequence[tuple[TrainReport, dict[str, Any]]],
    folds: Sequence[int],
    base: Path,
) -> None:
    """The table of all folds, and where it stopped."""
    reports = [report for report, _ in found]
    left = len(folds) - sum(report.state == "finished" for report in reports)
    if left:
        output.say(f"{left} of {len(folds)} folds are left; to go on, run the same command again.")
    output.result(
        {"folds": [values for _, values in found]},
        title=f"folds of {base}",
        columns=("fold", "state", "step", "best validation Dice"),
        rows=[
            (str(number), report.state, str(report.step), number_text(report.best.get("val_dice")))
            for number, report in zip(folds, reports, strict=False)
        ],
    )


def _show_augmentation(path: Path, settings: RunConfig, manifest: Manifest, output: Output) -> None:
    """The contact sheet, with what a training would draw."""
    from sdseg_cli.training.augmentation_sheet import augmentation_sheet
    from sdseg_cli.training.batches import open_split
    from sdseg_cli.training.train import without_side_mirror

    if path.suffix.lower() != ".png" or path.is_dir():
        raise ConfigError(
            f"--show-augmentation {path}: is not the name of a PNG file.",
            "Give a name that ends in .png.",
        )
    settings, findings = without_side_mirror(settings, manifest.classes)
    output.warn(list(findings))
    augmentation_sheet(path, open_split(manifest, "train"), settings)
    recipe = settings.train
    if recipe.augment == NO_AUGMENTATION and not recipe.cutmix:
        output.say("train.augment is none: only mirrors are shown. Try --set train.augment=light.")
    values = {
        "sheet": str(path),
        "augment": recipe.augment,
        "cutmix": recipe.cutmix,
        "flips": recipe.flips,
        "seed": settings.seed,
        "warnings": [finding.to_json() for finding in findings],
    }
    rows = [(key, str(values[key]) or "-") for key in ("augment", "cutmix", "flips", "seed")]
    output.result(values, title="augmentation", columns=("", "value"), rows=rows, files=[path])


def _calibrated(
    output: Output, report: TrainReport, folder: RunDir, manifest: Manifest, device: str
) -> tuple[DecoderCheck | None, bool]:
    """The stage after the training, of a finished run; and whether it was skipped by a signal."""
    from sdseg_cli.training.calibration import calibrate

    if report.state != "finished":
        return None, False
    stopped = False

    def stopping() -> None:
        nonlocal stopped
        stopped = True
        on_stop()

    through = folder.config().train.mask_loss_weight > 0
    skipping = SKIPPING_TRAINED if through else SKIPPING
    with output.progress() as progress, output.at_once(skipping) as on_stop:
        check = calibrate(
            folder,
            manifest,
            device=device,
            anew=report.step > report.begun,
            progress=progress,
            on_warning=lambda finding: output.warn([finding]),
            on_stop=stopping,
        )
    return check, stopped


def _next_command(report: TrainReport, manifest: Manifest, folds: Path | None = None) -> str:
    """To resume a stopped run; of a finished one to evaluate it, if there are test cases; of all
    folds, whose runs begin with the name `folds`, to evaluate these.
    """
    if report.state == "stopped":
        return typed()
    path = folds or report.run
    below, runs = path.absolute(), (workspace() / "runs").absolute()
    name = quote(str(below.relative_to(runs) if below.is_relative_to(runs) else path))
    if folds is not None:
        return f"sdseg evaluate --folds --run {name}"
    if manifest.cases("test"):
        return f"sdseg evaluate --run {name}"
    return f"sdseg predict SCAN -o mask.nii.gz --run {name}"


def _saying_first_step(output: Output, on_step: OnStep) -> OnStep:
    """`on_step` that first says where a run resumes, once nothing can refuse to resume it."""
    begun = False

    def report(now: TrainProgress) -> None:
        nonlocal begun
        if not begun and now.step > 0:
            output.say(f"going on from step {now.step}")
        begun = True
        on_step(now)

    return report


def _show(
    output: Output,
    report: TrainReport,
    check: DecoderCheck | None,
    folder: RunDir,
    seconds: float,
) -> dict[str, Any]:
    """The table of a run; gives the values of its JSON, which are shown once all is done. `seconds`
    are those of the whole command, or of a fold.
    """
    if report.begun == report.step and report.state == "finished":
        output.say("it was finished already; to train on, give more --steps.")
    if report.state == "stopped":
        output.say(f"stopped at step {report.step}; to go on, run the same command again.")
    values = report.to_json() | {
        "seconds_total": round(seconds, 3),
        "fast_decoder": check and check.to_json(),
    }
    best, origin = values["best"], report.origin
    rows = [
        ("step", str(report.step)),
        ("seconds of training and validation", f"{report.seconds:.0f}"),
        ("seconds in all, with start and decoder check", f"{seconds:.0f}"),
        ("best validation Dice", number_text(best["val_dice"])),
        ("at step", "-" if best["step"] is None else str(best["step"])),
    ]
    if "threshold" in best:
        shifted = "predictions are shifted so that it is 0.5"
        rows.append(("threshold", f"{best['threshold']:.2f}; {shifted}"))
    if check is not None:
        rows.append(("decoder of predictions", check.choice))
    # A whole model says itself where its parts come from.
    starts = [("model", origin["model"])] if "model" in origin else sorted(origin.items())
    rows += [(f"{part} started from", where) for part, where in starts]
    pictures = (folder.curve, folder.validation_picture)
    files = (folder.best, folder.last, folder.log_file, *pictures)
    if output.as_json:
        return values
    output.result(
        values,
        title=f"{report.state} {report.run}",
        columns=("", "value"),
        rows=rows,
        files=[path for path in files if path.exists()],
    )
    return values


def _settings(
    preset_name: str | None,
    model: str | None,
    config: Path | None,
    assign: list[str],
    dataset: str | None,
    seed: int | None,
    recipe: dict[str, Any],
    classes: ClassRule | None = None,
) -> RunConfig:
    """Defaults < preset, for the model < file < --set < options of their own."""
    from sdseg_cli.core.config_file import from_dict, read_toml

    values = read_toml(config) if config else {}
    chosen = preset(preset_name or str(values.get("preset", "tiny")))
    section = values.get("model")
    network = model or (section.get("network") if isinstance(section, dict) else None) or SDSEG
    if isinstance(section, dict):
        values = {**values, "model": {**section, "network": network}}
    chosen = for_network(chosen, str(network))
    if classes is not None:
        chosen = for_classes(chosen, len(classes), overlapping=classes.overlapping)
    settings = from_dict({**values, "preset": chosen.preset}, chosen, source=str(config))
    settings = _assigned(settings, assign)
    own: dict[str, Any] = {} if dataset is None else {"dataset": dataset}
    own["train"] = {key: value for key, value in recipe.items() if value is not None}
    if seed is not None:
        own["seed"] = seed
    return from_dict(own, settings, source="options")


def _assigned(settings: RunConfig, assign: Sequence[str]) -> RunConfig:
    """With what `--set` changes."""
    from sdseg_cli.core.config_file import from_dict, parse_assignment

    for text in assign:
        given = parse_assignment(text)
        for key in given.keys() & {"preset", "dataset", "fold"}:
            # The name alone would be recorded without the preset's settings.
            raise ConfigError(
                f"--set {text}: {key} has an option of its own.", f"Write --{key} {given[key]}."
            )
        settings = from_dict(given, settings, source="--set")
    return settings


def _batch_size(text: str | None) -> int | None:
    """The number given; None for "auto" or nothing."""
    if text is None or text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f'--batch-size is "{text}".', "Give a number from 1 up, or auto.")
    return int(text)


def _run_folder(run: str | None, dataset: str, settings: RunConfig) -> Path:
    """The path given by `--run`, or the folder of a name, below `runs/`."""
    from sdseg_cli.runs.run_folder import words_of

    network = settings.model.network
    default = settings.preset if network == SDSEG else f"{network}-{settings.preset}"
    default += f"-seed{settings.seed}" if settings.seed else ""
    name = default if run is None else run
    if len(words_of(name)) == 1:
        return workspace() / "runs" / dataset / name
    return Path(name)
