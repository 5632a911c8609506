"""The record of each scan of a cohort, safe from kills and among several processes.

    OUT/ledger.csv          every scan with its mask, or with what went wrong
    OUT/.ledger/*.json      the same, one file per scan, written as soon as the scan is done
    OUT/.ledger/model       which run or package makes the masks

A process writes the files of its own scans only, each whole or not at all, and reads all of them
for the table. So there is nothing to merge and nothing that grows with the number of runs.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any

from sdseg_cli.core.errors import ConfigError, DataError, RunError
from sdseg_cli.core.filenames import LEDGER_FOLDER, as_path, is_there, natural_key
from sdseg_cli.core.files import LEFT_AFTER_S, is_leftover_of, stands_for
from sdseg_cli.core.findings import Finding
from sdseg_cli.core.json_files import read_object
from sdseg_cli.core.locks import take
from sdseg_cli.core.tables import write_csv, write_json

COLUMNS = (
    "case", "input", "output", "status", "seconds", "slices", "foreground_voxels", "sha256",
    "error",
)  # fmt: skip
DONE, FAILED = "done", "failed"
_OF_RUNS = {"runs_dice": "dice", "runs_flipped": "flipped"}
"""Columns, where masks were drawn several times, of what `Row.stability` has."""
_OF_A_CLASS = ("voxels", "ml")
"""Columns of each class, where there are several: `voxels_liver`, `ml_liver`."""
_NEWER = ("classes", "members", "stability")
"""Keys that stand only where there are several."""
TABLE_SHARE = 0.02
"""Of the time may go into the table while the work goes on; at the end it is always written."""
_LARGEST = 2**100
"""A series' time is the sum of its files', in nanoseconds: a dozen are above 2**64 already."""


@dataclass(frozen=True)
class Row:
    """One scan.

    Attributes:
        case: Its name in reports, as `filenames.as_text` writes it.
        input: The scan, an absolute path, likewise.
        output: Its mask, an absolute path, likewise.
        status: `DONE` or `FAILED`.
        seconds: From opening the scan to the written mask, or to the failure.
        slices: Of the scan; None where it failed.
        foreground_voxels: Of the mask; None where it failed.
        sha256: Of the mask's file; empty where it failed.
        error: What went wrong and what to do, in one line.
        made_from: What the mask depends on: model, options, the scan's size and time.
        beside: Files written with the mask, by option, and their bytes.
        warnings: What is odd about the scan, as `Finding.to_json`.
        decoder: Which drew the mask, "exact" or "fast"; empty where it failed.
        classes: Name, value, voxels and ml of each class, where there are several.
        stability: Of a mask that was drawn several times, `Agreement.to_json` of the draws.
    """

    case: str
    input: str
    output: str
    status: str
    seconds: float = 0.0
    slices: int | None = None
    foreground_voxels: int | None = None
    sha256: str = ""
    error: str = ""
    made_from: Mapping[str, Any] = field(default_factory=dict)
    beside: Mapping[str, int] = field(default_factory=dict)
    warnings: Sequence[Mapping[str, str]] = field(default_factory=list)
    decoder: str = ""
    classes: Sequence[Mapping[str, Any]] = field(default_factory=list)
    stability: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """The model that makes the masks of a folder.

    Attributes:
        model: A run folder or a package, an absolute path as `filenames.as_text` writes it.
        sha256: Of its weights' file, or of the package's description, which has theirs.
        classes: Names of its classes, where there are several.
        members: Of an ensemble all members; `model` is the first, `sha256` of all.
    """

    model: str
    sha256: str
    classes: tuple[str, ...] = ()
    members: tuple[str, ...] = ()

    @property
    def named(self) -> str:
        """For messages: all members."""
        return ", ".join(self.members or (self.model,))


class Ledger:
    """The records of one folder of masks.

    Args:
        output: The folder; made when something is written.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.table = output / "ledger.csv"
        self._records = output / LEDGER_FOLDER
        self._model = self._records / "model"
        self._known: dict[Path, tuple[int, int, Row | None]] = {}
        self._cost_s, self._written_s = 0.0, float("-inf")

    def find(self, mask: Path) -> Row | None:
        """The record of a mask, named relative to the folder."""
        return _read(self._record(mask))

    def write(self, mask: Path, row: Row) -> None:
        """Record a scan, replacing what was known of it.

        Raises:
            RunError: The disk refused.
        """
        write_json(self._record(mask), _without_empty(asdict(row)))

    def model(self) -> Model | None:
        """The model of the masks; None where none is recorded.

        Raises:
            ConfigError: The record is damaged.
        """
        if not self._model.exists():
            return None
        try:
            values = read_object(self._model)
            path, sha256 = values["model"], values["sha256"]
            classes, members = (
                tuple(str(name) for name in values.get(key, ())) for key in ("classes", "members")
            )
        except (DataError, LookupError, TypeError):
            path = sha256 = None
            classes = members = ()
        if not (isinstance(path, str) and isinstance(sha256, str)):
            raise ConfigError(
                f"{self._model}: does not say which run the masks in {self.output} are made with.",
                "Name it with --run or --model; masks of another are then made again.",
            )
        return Model(path, sha256, classes, members)

    def keep_model(self, model: Model, *, named: bool) -> bool:
        """Record the model of the masks, for the process that resumes.

        Args:
            model: This.
            named: Somebody asked for it; else it gives way to what another process recorded first.

        Returns:
            Whether nothing was recorded before.

        Raises:
            ConfigError: It gave way, or what is there shows other classes.
            RunError: The disk refused.
        """
        with self._table_locked():
            try:
                before = self.model()
            except ConfigError:
                if not named:
                    raise
                before = None
            if before is not None and before != model and not named:
                raise ConfigError(
                    f"{self.output}: another process began it with {before.named}.",
                    "The same command goes on with that; --run or --model names another.",
                )
            if before is not None and before.classes != model.classes:
                raise ConfigError(
                    f"{self.output}: its masks show {_listed(before.classes)}, and {model.model} "
                    f"finds {_listed(model.classes)}.",
                    "Give -o another folder, or name a run of the same classes with --run.",
                )
            if before != model:
                write_json(self._model, _without_empty(asdict(model)))
            return before is None

    def forget_model(self) -> None:
        """Drop the record of a model that could do nothing."""
        self._model.unlink(missing_ok=True)

    def rows(self) -> list[Row]:
        """All that is recorded, in natural order; what did not change is not read again."""
        names = (path for path in self._records.glob("*.json") if path.name[0] != ".")
        there = {path: state for path in names if (state := _state(path)) is not None}
        for path, state in there.items():
            seen = (state.st_ino, state.st_mtime_ns)
            if self._known.get(path, (0, 0, None))[:2] != seen:
                self._known[path] = (*seen, _read(path))
        found = (self._known[path][2] for path in there)
        return sorted((row for row in found if row), key=lambda row: natural_key(row.case))

    def forget_lost(self, masks: Collection[Path]) -> None:
        """Drop failures of scans that are no longer there and no longer asked for.

        Args:
            masks: Those that are asked for, relative to the folder.
        """
        asked = {self._record(mask) for mask in masks}
        self.rows()
        for path, (*_, row) in self._known.items():
            gone = row and row.status == FAILED and not is_there(as_path(row.input))
            if gone and path not in asked:
                path.unlink(missing_ok=True)

    def publish(self, *, at_once: bool = True) -> None:
        """Write the table.

        Args:
            at_once: False: only if the table has taken no more than `TABLE_SHARE` of the time.

        Raises:
            RunError: The disk refused.
        """
        started = time.monotonic()
        if not at_once and started - self._written_s < self._cost_s / TABLE_SHARE:
            return
        with self._table_locked():
            found = self.rows()
            names = dict.fromkeys(one["name"] for row in found for one in row.classes)
            columns = (*COLUMNS, *(f"{kind}_{name}" for name in names for kind in _OF_A_CLASS))
            columns += tuple(_OF_RUNS) if any(row.stability for row in found) else ()
            write_csv(self.table, columns, map(_cells, found))
        self._written_s = time.monotonic()
        self._cost_s = self._written_s - started

    @contextmanager
    def in_use(self, outputs: Collection[Path]) -> Iterator[None]:
        """Within the block others can tell that this process works here.

        Before and after, if it is alone, what killed processes left half-written more than an hour
        ago is removed.

        Args:
            outputs: All files that anyone of this cohort writes.

        Raises:
            RunError: The disk refused.
        """
        with self._opened("in-use.lock") as lock:
            self._tidy(lock, outputs)
            take(lock.fileno(), shared=True, wait=True)
            try:
                yield
            finally:
                self._tidy(lock, outputs)

    @contextmanager
    def _table_locked(self) -> Iterator[None]:
        with self._opened("table.lock") as lock:
            take(lock.fileno(), wait=True)
            yield

    def _opened(self, name: str) -> IO[str]:
        try:
            self._records.mkdir(parents=True, exist_ok=True)
            return (self._records / name).open("a")
        except OSError as error:
            raise RunError(
                f"{self.output}: cannot be written ({error.strerror or error}).",
                "Check the folder's permissions and the space left on the disk.",
            ) from error

    def _tidy(self, lock: IO[str], outputs: Collection[Path]) -> None:
        if not take(lock.fileno()):  # others work here, or nothing can tell
            return
        os.utime(lock.fileno())  # now, by the clock that dates the files
        old = os.fstat(lock.fileno()).st_mtime - LEFT_AFTER_S
        names: dict[Path, set[str]] = {self._records: set()}
        for path in (self.table, *outputs):
            names.setdefault(path.parent, set()).add(path.name)
        for folder, ours in names.items():
            for path in folder.glob(".*.part.*"):
                any_is = folder == self._records and stands_for(path.name) is not None
                if any_is or is_leftover_of(path.name, ours):
                    state = _state(path)
                    if state is not None and state.st_mtime < old:
                        path.unlink(missing_ok=True)

    def _record(self, mask: Path) -> Path:
        # A path may be longer than a name can be, so its hash names the file.
        return self._records / f"{hashlib.sha256(os.fsencode(mask)).hexdigest()[:32]}.json"


def _read(path: Path) -> Row | None:
    """A row; None where there is none, or it is damaged or of another version."""
    try:
        row = Row(**read_object(path, largest=_LARGEST))
        return row if _is_whole(row) else None
    except (DataError, TypeError, OverflowError):
        return None


def _without_empty(values: dict[str, Any]) -> dict[str, Any]:
    """Without those of one class and one model, which older versions do not know."""
    return {key: value for key, value in values.items() if key not in _NEWER or value}


def _listed(classes: Sequence[str]) -> str:
    """Names of classes for a message."""
    return f"the classes {', '.join(classes)}" if classes else "one class"


def _cells(row: Row) -> dict[str, Any]:
    """A row of the table."""
    classes = {f"{kind}_{one['name']}": one[kind] for one in row.classes for kind in _OF_A_CLASS}
    shown = _OF_RUNS.items() if row.stability else ()
    runs = {column: row.stability.get(key) for column, key in shown}
    return {**{name: getattr(row, name) for name in COLUMNS}, **classes, **runs}


def _is_whole(row: Row) -> bool:
    """Whether all values of a row that was read are of its types: what follows relies on it."""
    texts = (row.case, row.input, row.output, row.sha256, row.error, row.decoder)
    counts = (one for one in (row.slices, row.foreground_voxels) if one is not None)
    return (
        all(isinstance(text, str) for text in texts)
        and row.status in (DONE, FAILED)
        and isinstance(row.seconds, int | float)
        and math.isfinite(row.seconds)
        and all(map(_is_count, counts))
        and isinstance(row.made_from, dict)
        and isinstance(row.beside, dict)
        and all(map(_is_count, row.beside.values()))
        and isinstance(row.warnings, list)
        and all(map(_is_finding, row.warnings))
        and isinstance(row.classes, list)
        and all(map(_is_class, row.classes))
        and isinstance(row.stability, dict)
        and all(map(_is_share, map(row.stability.get, _OF_RUNS.values())))
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_share(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and 0 <= value <= 1)


def _is_class(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"name", "value", "voxels", "ml"}
        and isinstance(value["name"], str)
        and _is_count(value["value"])
        and _is_count(value["voxels"])
        and (value["ml"] is None or isinstance(value["ml"], int | float))
    )


def _is_finding(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {one.name for one in fields(Finding)}
        and all(isinstance(text, str) for text in value.values())
    )


def _state(path: Path) -> os.stat_result | None:
    """None where another process has removed the file meanwhile."""
    try:
        return path.stat()
    except OSError:
        return None
