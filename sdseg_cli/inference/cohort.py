"""Many scans -> their masks and a ledger: one model, one bad scan is one row, and a second run does
what the first did not.

An engine calls `Worker` scan by scan, here (`one_by_one`) or on a Ray cluster (`ray`); a shard is
the same command on every n-th scan.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch

from sdseg_cli.core.config import RunConfig
from sdseg_cli.core.config_file import from_dict
from sdseg_cli.core.errors import ConfigError, SdsegError, WeightsError
from sdseg_cli.core.filenames import (
    PACKAGE_FILE,
    as_path,
    as_text,
    is_picture,
    may_hold_dicom,
    storable,
)
from sdseg_cli.core.files import file_sha256
from sdseg_cli.core.progress import Progress, no_op
from sdseg_cli.data.spec import ClassRule
from sdseg_cli.imaging.io.files import read_geometry
from sdseg_cli.imaging.scans import MASK_SUFFIXES, Scan
from sdseg_cli.inference.decoders import decoder_identity
from sdseg_cli.inference.ledger import DONE, FAILED, Ledger, Model, Row
from sdseg_cli.inference.options import (
    OutputPaths,
    PredictOptions,
    PredictorOptions,
    drawn_often,
    made_from,
    require_dtype,
)
from sdseg_cli.inference.predict import predict_file
from sdseg_cli.inference.predictor import Predictor, load_predictor, shared_config
from sdseg_cli.model.distributed import Ranks
from sdseg_cli.model.runtime import stop_signals
from sdseg_cli.runs.package import is_package, read_description, read_trained
from sdseg_cli.runs.run_folder import RunDir

Item = TypeVar("Item")


@dataclass(frozen=True)
class Task:
    """The work on each scan, for every engine.

    Attributes:
        model: A run folder or a package; of an ensemble the first member.
        outputs: The folders of the files.
        predictor: How the model is loaded.
        options: How scans are predicted.
        classes: Names of the model's classes, where there are several.
        others: The other members of an ensemble.
    """

    model: Path
    outputs: OutputPaths
    predictor: PredictorOptions = field(default_factory=PredictorOptions)
    options: PredictOptions = field(default_factory=PredictOptions)
    classes: tuple[str, ...] = ()
    others: tuple[Path, ...] = ()

    @property
    def members(self) -> tuple[Path, ...]:
        """All runs and packages whose mean probability makes the masks."""
        return (self.model, *self.others)

    def identity(self) -> str:
        """A hash of all that a mask depends on besides its scan: the model and the options.

        Folders that were begun by older versions hold it, so its bytes have to stay.
        """
        plain = {
            "model": recorded(*self.members).sha256,
            "predictor": self.predictor.key(),
            "options": {**self.options.key(), "probability_dtype": self.outputs.probability_dtype},
            "beside": sorted(self.outputs.beside),
            "decoder": " ".join(
                decoder_identity(self.predictor.decoder, one) for one in self.members
            ),
        }
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()

    def check(self, scans: Iterable[Scan]) -> None:
        """Refuse what none of the scans could be done with, before anything is recorded of any.

        Raises:
            ConfigError: An option is wrong, or the name of a folder cannot be one.
        """
        outputs, dtype = self.outputs, self.outputs.probability_dtype
        require_dtype(dtype)
        pictures = all(is_picture(scan.mask) for scan in scans)
        if outputs.probability is not None and dtype != "uint8" and pictures:
            raise ConfigError(f"a PNG holds no {dtype}.", "Use --prob-dtype uint8.")
        runs = self.options.number_of_runs(outputs.uncertainty)
        if runs is not None and self.options.sample is not None:
            drawn_often(self.options.sample, runs)
        table = Ledger(outputs.mask).table
        if table.is_dir():
            raise ConfigError(f"{table}: is a folder.", "Remove it, or give -o another folder.")
        for folder in outputs.files:
            there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
            if not there.is_dir() or folder.name.lower().endswith(MASK_SUFFIXES):
                raise ConfigError(
                    f"{folder}: cannot be a folder.",
                    "Of many scans -o, --prob, --uncertainty, --preview and --per-class name "
                    "folders.",
                )


@dataclass(frozen=True)
class Outcome:
    """A scan's row, and whether it was done before."""

    scan: Scan
    row: Row
    skipped: bool = False


Engine = Callable[[Task, Sequence[Scan], threading.Event], Iterator[Outcome]]
"""Does a task on scans until the event is set, giving outcomes in any order."""


@dataclass(frozen=True)
class Shard:
    """Every `count`-th scan, beginning with number `index`."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`2/8`: the third of eight. Raises ConfigError."""
        index, slash, count = text.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise ConfigError(
                f'--shard "{text}" is no i/n with i from 0 to n-1.',
                "With a SLURM array of 8: --array=0-7 and --shard $SLURM_ARRAY_TASK_ID/8.",
            )
        return cls(int(index), int(count))

    def among(self, ranks: Ranks) -> Shard:
        """This process's part, where torchrun or srun started several on the shard."""
        return Shard(self.index * ranks.world + ranks.rank, self.count * ranks.world)

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Interleaved, so that neighbours, which are often alike, are spread."""
        return items[self.index :: self.count]


@dataclass(frozen=True)
class CohortReport:
    """The result of a cohort, or of one shard of it.

    Attributes:
        ledger: `ledger.csv`.
        done: Predicted now.
        failed: Rows of those that failed.
        skipped: Done before, and found as they were left.
        left: Not begun, because the work was stopped.
        seconds: In all.
        scan_seconds: Of those predicted now, together.
        warnings: Of all scans.
        decoder: Which drew the masks, "exact" or "fast"; None without a mask.
    """

    ledger: Path
    done: int
    failed: tuple[Row, ...]
    skipped: int
    left: int
    seconds: float
    scan_seconds: float
    warnings: tuple[Mapping[str, str], ...]
    decoder: str | None = None

    @property
    def seconds_per_scan(self) -> float | None:
        """Mean over those predicted now; None where there were none."""
        return self.scan_seconds / self.done if self.done else None

    def to_json(self) -> dict[str, Any]:
        """The object of `--json`."""
        per_scan = self.seconds_per_scan
        return {
            "ledger": str(self.ledger),
            "done": self.done,
            "failed": len(self.failed),
            "skipped": self.skipped,
            "left": self.left,
            "seconds": round(self.seconds, 3),
            "seconds_per_scan": None if per_scan is None else round(per_scan, 3),
            "failures": [
                {"case": row.case, "input": row.input, "error": row.error} for row in self.failed
            ],
            "warnings": list(self.warnings),
            "decoder": self.decoder,
        }


def one_by_one(task: Task, scans: Sequence[Scan], stop: threading.Event) -> Iterator[Outcome]:
    """The engine of one process: scan after scan, with one model."""
    worker = Worker(task, task.identity())
    for scan in scans:
        if stop.is_set():
            return
        yield worker(scan)


def predict_cohort(
    scans: Sequence[Scan],
    task: Task,
    *,
    shard: Shard | None = None,
    engine: Engine = one_by_one,
    progress: Progress = no_op,
    named: bool = True,
) -> CohortReport:
    """Predict many scans.

    SIGINT, SIGTERM and SIGUSR1 let the scans in work end; whatever ends it, the ledger is written.

    Args:
        scans: All scans of the cohort, in the order in which all its shards know them.
        task: What to do to each.
        shard: Which of them; all by default.
        engine: What does it.
        progress: Called after each scan.
        named: The model was named by the user. Else another process may have begun with another.

    Raises:
        WeightsError: The model cannot be loaded.
        ConfigError: There is no such device, an option is wrong for all scans, or the masks are
            made with another model.
        RunError: The disk refused.
    """
    task.check(scans)
    started, mine = time.monotonic(), (shard or Shard()).of(scans)
    ledger = Ledger(task.outputs.mask)
    outcomes: list[Outcome] = []
    bad = 0
    everything = {path for scan in scans for path in task.outputs.of(scan).files}
    with ledger.in_use(everything), stop_signals() as stop:
        model = replace(recorded(*task.members), classes=task.classes)
        first = ledger.keep_model(model, named=named)
        ledger.forget_lost([scan.mask for scan in scans])
        try:
            for outcome in engine(task, mine, stop):
                outcomes.append(outcome)
                ledger.publish(at_once=False)
                bad += outcome.row.status == FAILED
                progress(len(outcomes), len(mine), f"scans, {bad} failed" if bad else "scans")
        except BaseException:
            if first and not outcomes:  # it could not be loaded
                ledger.forget_model()
            raise
        finally:
            if outcomes:
                ledger.publish()
    done = [one.row for one in outcomes if not one.skipped and one.row.status == DONE]
    return CohortReport(
        ledger=ledger.table,
        done=len(done),
        failed=tuple(one.row for one in outcomes if one.row.status == FAILED),
        skipped=sum(one.skipped for one in outcomes),
        left=len(mine) - len(outcomes),
        seconds=time.monotonic() - started,
        scan_seconds=sum(row.seconds for row in done),
        warnings=tuple(warning for one in outcomes for warning in one.row.warnings),
        # One for all: another decoder is another task, and all is done again.
        decoder=next((one.row.decoder for one in outcomes if one.row.decoder), None),
    )


class Worker:
    """Does scans one after the other with one model, which the first that needs it loads.

    Args:
        task: What to do.
        identity: Of the task.
    """

    def __init__(self, task: Task, identity: str) -> None:
        self.task, self.identity = task, identity
        self.ledger = Ledger(task.outputs.mask)
        self._predictor: Predictor | None = None

    def __call__(self, scan: Scan) -> Outcome:
        """Predict a scan and record it, unless that was done and still holds.

        Raises:
            WeightsError: The model cannot be loaded.
            ConfigError: There is no such device.
            RunError: The record cannot be written.
        """
        before = self.ledger.find(scan.mask)
        try:
            origin = made_from(scan.path, {"task": self.identity})
        except Exception:  # noqa: BLE001, it is gone or odd; predicting it will say so
            origin = {"task": self.identity, "scan_bytes": -1, "scan_modified_ns": -1}
        if before is not None and self._holds(before, origin, scan):
            row = replace(before, **row_names(self.task, scan))
            if row != before:  # the folder was moved, or the scans were
                self.ledger.write(scan.mask, row)
            return Outcome(scan, row, skipped=True)
        if self._predictor is None:
            self._predictor = load_predictor(self.task.members, self.task.predictor)
        row = predict_one(self.task, scan, self._predictor, origin)
        self.ledger.write(scan.mask, row)
        return Outcome(scan, row)

    def _holds(self, row: Row, origin: Mapping[str, Any], scan: Scan) -> bool:
        """True if predicting would give the existing files: same origin, recorded hashes."""
        if row.status != DONE or row.made_from != origin:
            return False
        try:
            outputs = self.task.outputs.of(scan)
            if _sizes(outputs) != row.beside or file_sha256(outputs.mask) != row.sha256:
                return False
            # A series' grid is spread over all its files, whose sizes and times were compared.
            is_series = may_hold_dicom(scan.path)
            return is_series or read_geometry(scan.path).same_grid(read_geometry(outputs.mask))
        except Exception:  # noqa: BLE001, then it is done again, and that says what is wrong
            return False


def predict_one(task: Task, scan: Scan, predictor: Predictor, origin: Mapping[str, Any]) -> Row:
    """Predict a scan, whatever happens: the row says what did.

    Args:
        task: What to do.
        scan: The scan.
        predictor: The task's model.
        origin: `made_from` of the row.
    """
    started, outputs, names = time.monotonic(), task.outputs.of(scan), row_names(task, scan)
    try:
        report = predict_file(scan.path, outputs, predictor, task.options)
        sizes, sha256 = _sizes(outputs), file_sha256(outputs.mask)
    except Exception as error:  # noqa: BLE001, the other scans still have to be done
        return failed_row(names, said(error), time.monotonic() - started, origin)
    return Row(
        **names,
        status=DONE,
        seconds=round(time.monotonic() - started, 3),
        slices=report.slices,
        foreground_voxels=report.foreground_voxels,
        sha256=sha256,
        made_from=origin,
        beside=sizes,
        warnings=[finding.to_json() for finding in report.warnings],
        decoder=report.decoder,
        classes=list(report.classes),
        stability={} if report.stability is None else report.stability.to_json(),
    )


def _sizes(outputs: OutputPaths) -> dict[str, int]:
    """Bytes of the other outputs than the mask, by option."""
    return {option: _size(path) for option, path in outputs.beside.items()}


def _size(path: Path) -> int:
    """Of a file, or of the files in a folder of one for each class."""
    files = [path] if not path.is_dir() else [one for one in path.iterdir() if one.is_file()]
    return sum(file.stat().st_size for file in files)


def failed_row(
    names: Mapping[str, Any], error: str, seconds: float, origin: Mapping[str, Any]
) -> Row:
    """The row of a scan that has no mask."""
    return Row(**names, status=FAILED, seconds=round(seconds, 3), error=error, made_from=origin)


def row_names(task: Task, scan: Scan) -> dict[str, Any]:
    """Case, input and output of a row."""
    return {
        "case": as_text(scan.case),
        "input": as_text(scan.path.absolute()),
        "output": as_text(task.outputs.of(scan).mask.absolute()),
    }


def said(error: Exception) -> str:
    """An error in one line: ours with its hint, any other with its type."""
    if isinstance(error, SdsegError):
        text = f"{error.message} {error.hint}"
    elif isinstance(error, MemoryError):
        text = f"MemoryError: the memory that is free did not suffice. {error}"
    else:
        text = f"{type(error).__name__}: {error}"
    return storable(" ".join(text.split()))


def recorded(*members: Path) -> Model:
    """A run or package as a ledger records it, or the members of an ensemble.

    Raises:
        OSError: One is not there.
    """
    names = tuple(as_text(member.absolute()) for member in members)
    hashes = [
        file_sha256(member / PACKAGE_FILE if is_package(member) else RunDir(member).best)
        for member in members
    ]
    if len(members) == 1:
        return Model(names[0], hashes[0])
    return Model(names[0], hashlib.sha256("".join(hashes).encode()).hexdigest(), members=names)


def models_of_before(output: Path) -> tuple[Path, ...]:
    """What the masks of a folder are made with, as its ledger has recorded: a run or package, or
    the members of an ensemble.

    Raises:
        ConfigError: It is gone or has changed, so that the masks would be of two kinds; or nothing
            is recorded any more.
    """
    before = Ledger(output).model()
    if before is None:
        raise ConfigError(f"{output}: its ledger was removed.", "Run the same command again.")
    members = tuple(map(as_path, before.members or (before.model,)))
    try:
        now = recorded(*members)
    except (OSError, ValueError):
        raise ConfigError(
            f"{output}: its masks are made with {before.named}, which is not there any more.",
            "Put it back, or name another with --run or --model: all masks are then made with "
            "that; or give -o another folder.",
        ) from None
    if now.sha256 != before.sha256:
        raise ConfigError(
            f"{output}: its masks are made with {before.named}, whose weights have changed since.",
            "Name it with --run or --model: all masks are then made again; or give -o another "
            "folder.",
        )
    return members


def trained_config(*members: Path) -> RunConfig:
    """The settings a model was trained with, without its weights; of an ensemble, `shared_config`.

    Raises:
        WeightsError: A package is damaged.
        ConfigError: The settings are, or members do not go together.
    """
    return shared_config(
        {
            one: from_dict(read_description(one)["config"], RunConfig(), source=str(one))
            if is_package(one)
            else RunDir(one).config()
            for one in members
        }
    )


def trained_classes(model: Path, config: RunConfig) -> ClassRule:
    """The classes of a model whose settings are known.

    Raises:
        WeightsError: It is damaged, or does not say them.
    """
    if config.model.classes == 1:
        return ClassRule()
    try:
        return ClassRule.of_settings(read_trained(model).data)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{model}: does not say its classes ({error!r}).", "Export it again from its run."
        ) from error


def take_own_gpu(ranks: Ranks) -> None:
    """Of several processes on one machine, each computes on its own GPU, as far as they go."""
    if ranks.world > 1 and torch.cuda.is_available():
        torch.cuda.set_device(ranks.local % torch.cuda.device_count())


def leave_together(environment: Mapping[str, str]) -> None:
    """Wait for the other processes of torchrun, which ends all as soon as one ends with an error.

    Those of srun go on without each other, so they do not wait.
    """
    if "TORCHELASTIC_RUN_ID" in environment and int(environment.get("WORLD_SIZE", "1")) > 1:
        torch.distributed.init_process_group("gloo", timeout=timedelta(days=30))
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
