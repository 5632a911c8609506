"""A run on disk: its files, how it is found and listed, and what becomes of it when its set is
replaced. No torch.

RunDir/
  config.toml        every setting
  log.jsonl          one line per optimiser step, and one per validation
  status.json        state (running, stopped, finished, failed), step, best
  checkpoints/       step-N.pt (everything, to resume; the last two), best.pt (what prediction
                     needs), each with its .sha256
  predictions/  report/
  .lock              while a process trains here
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sdseg_cli.core.config import NO_FOLD, RunConfig
from sdseg_cli.core.config_file import load_toml, read_toml
from sdseg_cli.core.errors import ConfigError, DataError, RunError, SdsegError
from sdseg_cli.core.filenames import PACKAGE_FILE
from sdseg_cli.core.findings import EVERY_CASE, WARNING, Finding
from sdseg_cli.core.json_files import read_object
from sdseg_cli.core.locks import holder, is_locked
from sdseg_cli.data.manifest import Manifest, lock_of
from sdseg_cli.data.spec import ClassRule
from sdseg_cli.runs.log import last_step

STATES = ("running", "stopped", "finished", "failed")
STEP_FILE = re.compile(r"step-\d+\.pt")
FOLD = re.compile(r"-fold(\d+)$")
"""The end of the name of a fold's run."""
MOST_NAMED = 4
"""Classes that are named where two sets are told apart."""


@dataclass(frozen=True)
class RunDir:
    """Paths of a run's files."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.toml"

    @property
    def log_file(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def status_file(self) -> Path:
        return self.path / "status.json"

    @property
    def lock_file(self) -> Path:
        return self.path / ".lock"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def step_file(self, step: int) -> Path:
        """The checkpoint of a step, from which training goes on."""
        return self.checkpoints / f"step-{step:08d}.pt"

    def step_files(self) -> list[Path]:
        """All checkpoints to go on from that are there, newest first."""
        found = [p for p in self.checkpoints.glob("step-*.pt") if STEP_FILE.fullmatch(p.name)]
        found.sort(key=lambda path: int(path.stem.removeprefix("step-")), reverse=True)
        before = self.checkpoints / "last.pt"  # of the format before, which kept one
        return [*found, *([before] if before.is_file() else [])]

    @property
    def last(self) -> Path:
        """The newest checkpoint to go on from; before there is one, that of step 0."""
        return next(iter(self.step_files()), self.step_file(0))

    @property
    def best(self) -> Path:
        return self.checkpoints / "best.pt"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions"

    @property
    def report(self) -> Path:
        return self.path / "report"

    @property
    def curve(self) -> Path:
        return self.report / "training.png"

    @property
    def validation_picture(self) -> Path:
        return self.report / "validation.png"

    @property
    def history(self) -> Path:
        return self.report / "validation.npz"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    def is_locked(self) -> bool:
        """Whether a living process trains here: a run whose status says "running" while this is
        False was interrupted.
        """
        return is_locked(self.lock_file)

    def config(self) -> RunConfig:
        """The settings this run was started with."""
        return load_toml(self.config_file, RunConfig())

    def status(self) -> dict[str, Any]:
        """`{"state": ..., "step": ..., "best": {...}}`, of these types where they are there; empty
        if the run has not saved yet, or the file is damaged.

        `best` is empty, or has `step` and a finite `val_dice`, as far as the file says them.
        """
        try:
            status = read_object(self.status_file)
        except DataError:
            return {}
        return status if _is_status(status) else {}

    @property
    def is_finished(self) -> bool:
        """True if it was trained to its end."""
        return self.status().get("state") == "finished"

    def best_validation(self) -> tuple[float | None, int | None]:
        """Best validation Dice and its step; None where the status does not say."""
        best = self.status().get("best", {})
        dice = best.get("val_dice")
        known = dice is not None and 0 <= dice <= 1
        return float(dice) if known else None, best.get("step")


def _is_status(status: dict[str, Any]) -> bool:
    best = status.get("best", {})
    if status.get("state", STATES[0]) not in STATES or not isinstance(best, dict):
        return False
    if any(type(each.get("step", 0)) is not int for each in (status, best)):
        return False
    return all(type(best[key]) in (int, float) for key in best.keys() & {"val_dice", "threshold"})


def words_of(text: str) -> list[str]:
    """The parts of `--run`, where it may be a name: `WORD` or `DATASET/WORD`.

    Empty for `./x`, `../x`, `x/` and `/x`, which can only be paths. Needs the text as typed: a Path
    has lost that.
    """
    words = re.split(r"[/\\]", text)
    return [] if {"", ".", ".."} & set(words) else words


def find_run(workspace: Path, run: Path | str | None) -> RunDir:
    """The run asked for, or the newest finished one, or the newest stopped one.

    Args:
        workspace: Folder that holds `runs/`.
        run: A run folder, a path below `runs/`, or None; as text, `./x` is a path only.

    Raises:
        ConfigError: There is no such run, or none yet.
    """
    runs = workspace / "runs"
    if run is not None:
        return _named_run(workspace, run)
    if found := default_runs(workspace):
        return found[0]
    if begun := sorted(runs.glob("*/*/config.toml")):
        raise ConfigError(
            f"no run yet with a checkpoint to predict with; begun: {begun[0].parent}.",
            "Run the same `sdseg train` command again, to its first validation.",
        )
    raise ConfigError(
        f"no run yet in {runs.absolute()}.",
        "Train one (sdseg train --dataset NAME), or set SDSEG_HOME to your workspace.",
    )


def default_runs(workspace: Path) -> list[RunDir]:
    """The runs that can predict, first the one that is taken where none is named: finished ones
    before others, and of these the newest first.
    """
    best = (workspace / "runs").glob("*/*/checkpoints/best.pt")

    def rank(candidate: RunDir) -> tuple[bool, float, str]:
        try:
            written = candidate.best.stat().st_mtime
        except OSError:  # a training replaces it just now
            written = float("inf")
        return candidate.is_finished, written, str(candidate.path)

    return sorted((RunDir(path.parent.parent) for path in best), key=rank, reverse=True)


def run_folder(workspace: Path, run: Path | str) -> Path | None:
    """The run at a path, or of a name: at a path below `runs`, or a bare word in any set.

    Raises:
        ConfigError: Several runs have that name.
    """
    runs, words = workspace / "runs", words_of(str(run))
    places = [Path(run), *([runs / run] if words else [])]
    there = [path for path in places if RunDir(path).config_file.is_file()]
    if not there and len(words) == 1:
        there = sorted(p for p in runs.glob(f"*/{run}") if RunDir(p).config_file.is_file())
        if len(there) > 1:
            names = ", ".join(str(path.relative_to(runs)) for path in there)
            raise ConfigError(
                f"several runs are called {run}: {names}.", "Give --run one of these."
            )
    return there[0] if there else None


def _named_run(workspace: Path, run: Path | str) -> RunDir:
    found, runs = run_folder(workspace, run), workspace / "runs"
    if found is None:
        if (Path(run) / PACKAGE_FILE).is_file():
            raise ConfigError(f"{run}: a package, no run.", "Give it to predict with --model.")
        made = ", ".join(
            sorted(str(p.parent.relative_to(runs)) for p in runs.glob("*/*/config.toml"))
        )
        raise ConfigError(
            f"{run}: no run there.",
            f"Runs here: {made}." if made else "Give --run a folder that `sdseg train` made.",
        )
    if not RunDir(found).best.is_file():
        raise ConfigError(
            f"run {found} has no checkpoint to predict with yet.",
            "Let it reach its first validation, or run the same `sdseg train` command again.",
        )
    return RunDir(found)


def fold_name(name: str, fold: int) -> str:
    """Name of the run of a fold."""
    return f"{name}-fold{fold}"


@dataclass(frozen=True)
class FoldRuns:
    """The runs of the folds of one set, trained under one name.

    Attributes:
        folder: Where reports on all of them go: `runs/DATASET/NAME-folds`.
        finished: In the order of their folds.
        unfinished: Begun and not at their end.
    """

    folder: RunDir
    finished: tuple[RunDir, ...]
    unfinished: tuple[RunDir, ...]


def find_folds(workspace: Path, run: Path | str | None) -> FoldRuns:
    """The runs of all folds of a set.

    Args:
        workspace: Folder that holds `runs/`.
        run: Their common name (`DATASET/NAME` or `NAME`) or path, or any of them; None for those
            of the newest run of a fold.

    Raises:
        ConfigError: There are none, or several sets have some of that name.
    """
    runs = workspace / "runs"
    if run is None:
        newest = [one.path for one in default_runs(workspace) if FOLD.search(one.path.name)]
        bases = newest[:1]
    else:
        words = words_of(str(run))
        bases = [Path(run), *([runs / run] if words else [])]
        if len(words) == 1:
            bases += [folder / words[0] for folder in sorted(runs.glob("*"))]
    for base in bases:
        name = FOLD.sub("", base.name)
        found = {
            int(match[1]): RunDir(path)
            for path in base.parent.glob(f"{glob.escape(name)}-fold*")
            if (match := FOLD.search(path.name)) and RunDir(path).config_file.is_file()
        }
        ready = [found[n] for n in sorted(found) if found[n].is_finished and found[n].best.exists()]
        if found:
            rest = tuple(found[n] for n in sorted(found) if found[n] not in ready)
            return FoldRuns(RunDir(base.with_name(f"{name}-folds")), tuple(ready), rest)
    raise ConfigError(
        f"{'no folds' if run is None else f'{run}: no run of a fold'} in {runs.absolute()}.",
        "Train them: sdseg train --dataset NAME --fold all.",
    )


@dataclass(frozen=True)
class RunSummary:
    """One run; None where its files do not say."""

    path: Path
    dataset: str
    """Folder below `runs/`."""
    preset: str | None
    step: int | None
    """Of the last checkpoint; while it trains, of the last line in the log."""
    steps: int | None
    best_dice: float | None
    """Best validation Dice."""
    best_step: int | None
    state: str
    """"running", "interrupted" (killed: no one works on it), "stopped", "finished", "failed" or
    "damaged"."""
    bytes: int
    """On disk."""
    written: datetime
    """When training last wrote to it."""
    default: bool = False
    """Whether `predict` takes it where no run is named."""

    def to_json(self) -> dict[str, Any]:
        """An entry of `sdseg runs --json`."""
        return {
            "run": str(self.path),
            "dataset": self.dataset,
            "preset": self.preset,
            "step": self.step,
            "steps": self.steps,
            "best": {"step": self.best_step, "val_dice": self.best_dice},
            "state": self.state,
            "bytes": self.bytes,
            "written": self.written.isoformat(timespec="seconds"),
            "default": self.default,
        }


def list_runs(workspace: Path) -> list[RunSummary]:
    """Every run in `workspace/runs`, the newest first.

    A folder counts where it holds a file of settings or of state; what is damaged is listed as
    such, and anything else passed by.
    """
    folders = [path for path in (workspace / "runs").glob("*/*") if path.is_dir()]
    runs = [run for run in map(RunDir, folders) if _is_run(run)]
    chosen: Path | None = None
    with suppress(SdsegError, OSError):  # none can predict yet
        chosen = find_run(workspace, None).path
    found = [_listed(run, default=run.path == chosen) for run in runs]
    return sorted(found, key=lambda one: (one.written, str(one.path)), reverse=True)


def _is_run(run: RunDir) -> bool:
    try:
        return run.config_file.exists() or run.status_file.exists()
    except OSError:  # a folder that may not be read may well be one
        return True


def _listed(run: RunDir, *, default: bool) -> RunSummary:
    """The run by its files; one whose files may not even be looked at is "damaged" as well."""
    try:
        return _summary(run, default=default)
    except OSError:
        name, never = run.path.parent.name, datetime.fromtimestamp(0, UTC)
        return RunSummary(run.path, name, None, None, None, None, None, "damaged", 0, never)


def _summary(run: RunDir, *, default: bool) -> RunSummary:
    status = run.status()
    best = status.get("best", {})
    try:  # as the file has them, so that a run of another version is listed too
        settings = read_toml(run.config_file)
    except ConfigError:
        settings = {}
    preset, train, dice = settings.get("preset"), settings.get("train"), best.get("val_dice")
    state = _state(run, settings, status)
    step = _count(status.get("step", None if state == "damaged" else 0))
    if state == "running" and (now := last_step(run.log_file)) is not None:
        step = now
    return RunSummary(
        path=run.path,
        dataset=run.path.parent.name,
        preset=preset if isinstance(preset, str) else None,
        step=step,
        steps=_count(train.get("steps") if isinstance(train, dict) else None),
        best_dice=None if dice is None else float(dice),
        best_step=_count(best.get("step")),
        state=state,
        bytes=sum(_size(path) for path in run.path.rglob("*")),
        written=_written(run),
        default=default,
    )


def _state(run: RunDir, settings: dict[str, Any], status: dict[str, Any]) -> str:
    if not settings or (run.status_file.exists() and not status):
        return "damaged"
    said = str(status.get("state", "running"))
    if run.is_locked() and said != "finished":  # a finished one may be calibrating its decoder
        return "running"
    return "interrupted" if said == "running" else said


def _written(run: RunDir) -> datetime:
    """Evaluating a run does not make it newer."""
    times = []
    for path in (run.config_file, run.log_file, run.status_file, run.last, run.best):
        with suppress(OSError):  # not there, or replaced just now
            times.append(path.stat().st_mtime)
    return datetime.fromtimestamp(max(times, default=0.0), UTC)


def _size(path: Path) -> int:
    try:  # a running training replaces files meanwhile
        return path.lstat().st_size if path.is_file() else 0
    except OSError:
        return 0


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def replaced(root: Path, settings: Mapping[str, Any]) -> Finding | None:
    """The runs that lose their set if the one in place is replaced by one with these settings.

    Args:
        root: `<workspace>/prepared/<name>`.
        settings: `Manifest.inference_settings` of the new set, or those that are known yet.

    Returns:
        A warning where the set in place has other settings and a run was trained on it.

    Raises:
        ConfigError: Such a run is being trained right now.
    """
    try:
        before = Manifest.load(root)
    except DataError:
        return None  # there is none, or it is damaged and no run can use it
    after = dict(settings)
    folds = after.pop("folds", None)
    changes = list(_changes(before.inference_settings(), after))
    runs = _trained_on(before) if changes else []
    if folds is not None and folds != before.folds_listed():
        runs += [run for run in _trained_on(before) if not changes and run.config().fold != NO_FOLD]
        changes.append("other folds")
    what = ", ".join(changes)
    for run in runs:
        if run.is_locked():
            raise ConfigError(
                f"{before.name} would change ({what}), and {run.path} is being trained on it.",
                "Wait for that run or stop it; or prepare the new set under another --name.",
            )
    # One with another number of classes did not fit before either.
    fitting = [run for run in runs if run.config().model.classes == len(before.classes)]
    if not fitting:
        return None
    names = ", ".join(f"{run.path.parent.name}/{run.path.name}" for run in fitting)
    return Finding(
        code="set-replaced",
        level=WARNING,
        case=EVERY_CASE,
        measured=f"{before.name} is about to be replaced by another set of this name: {what}; "
        f"runs trained on it as it was no longer fit: {names}",
        fix="They still predict, but cannot be evaluated or resumed. To keep both sets, give the "
        f"new one its own name, such as --name {before.name}_2; to go back, prepare as before.",
    )


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """What differs between the settings of two sets, in words; of `after` not all may be known."""
    changed = {key for key, value in after.items() if before.get(key) != value}
    if changed & {"target", "classes", "ignore"}:
        yield f"classes from {_classes_in_words(before)} to {_classes_in_words(after)}"
    elif "mirror_pairs" in changed:
        yield "other classes change places in a mirror"
    if "normalisation" in changed:
        low_high = "{kind} {low:g} to {high:g}".format_map
        yield f"{low_high(before['normalisation'])} becomes {low_high(after['normalisation'])}"
    for key in sorted(changed & {"crop", "size", "modality", "dataset"}):
        yield f"{key} from {before.get(key, '-')} to {after[key] or '-'}"
    if "split_sha256" in changed:
        yield "another split"
    elif changed == {"data_sha256"}:  # with other settings the slices are others too
        yield "other scans or label maps"


def _classes_in_words(settings: Mapping[str, Any]) -> str:
    """`one foreground of labels 1, 2` or `7 (liver, spleen, ...)`, with the label to ignore."""
    rule = ClassRule.of_settings({k: v for k, v in settings.items() if v is not None})
    ignored = "" if rule.ignore is None else f" without label {rule.ignore}"
    if len(rule) > 1:
        more = ", ..." if len(rule) > MOST_NAMED else ""
        return f"{len(rule)} ({', '.join(rule.names[:MOST_NAMED])}{more}){ignored}"
    labels = "all labels" if rule.labels is None else f"labels {', '.join(map(str, rule.labels))}"
    return f"one foreground of {labels}{ignored}"


def require_settled(manifest: Manifest) -> None:
    """For a training that holds its run's lock, which `replaced` in turn looks for.

    Args:
        manifest: The set to train on, as it was read before.

    Raises:
        RunError: The set is being prepared right now.
        ConfigError: It was prepared anew since it was read.
    """
    lock = lock_of(manifest.root)
    if is_locked(lock):
        raise RunError(
            f"{manifest.root}: {holder(lock)} is preparing this set.", "Train when it has ended."
        )
    if manifest.path.is_file():
        now = Manifest.load(manifest.root).of_fold(manifest.fold).inference_settings()
        if now != manifest.inference_settings():
            raise ConfigError(
                f"{manifest.root}: was prepared anew just now.", "Run the same command again."
            )


def _trained_on(manifest: Manifest) -> list[RunDir]:
    """Runs of the set's workspace that were trained on it, or are."""
    found = []
    for file in sorted((manifest.root.parents[1] / "runs").glob("*/*/config.toml")):
        run = RunDir(file.parent)
        with suppress(ConfigError):  # no run of this version
            if run.config().dataset in (manifest.name, str(manifest.root)):
                found.append(run)
    return [run for run in found if run.is_locked() or run.best.exists() or run.step_files()]
