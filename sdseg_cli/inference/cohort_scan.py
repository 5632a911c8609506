"""One scan of a cohort -> its mask and its row of the ledger, whoever asks for it."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sdseg_cli.core.config import RunConfig
from sdseg_cli.core.config_file import from_dict
from sdseg_cli.core.errors import ConfigError, SdsegError
from sdseg_cli.core.filenames import (
    PACKAGE_FILE,
    as_path,
    as_text,
    is_picture,
    may_hold_dicom,
    storable,
)
from sdseg_cli.core.files import file_sha256
from sdseg_cli.imaging.io.files import read_geometry
from sdseg_cli.imaging.scans import MASK_SUFFIXES, Scan, size_and_time
from sdseg_cli.inference.decoders import decoder_identity
from sdseg_cli.inference.ledger import DONE, FAILED, Ledger, Model, Row
from sdseg_cli.inference.options import (
    OutputPaths,
    PredictOptions,
    PredictorOptions,
    drawn_often,
    require_dtype,
)
from sdseg_cli.inference.predict import predict_file
from sdseg_cli.inference.predictor import Predictor, load_predictor
from sdseg_cli.runs.package import is_package, read_description
from sdseg_cli.runs.run_folder import RunDir


@dataclass(frozen=True)
class Task:
    """What is done to each scan, whoever does it.

    Attributes:
        model: A run folder or a package.
        outputs: The folders of the files.
        predictor: How the model is loaded.
        options: How scans are predicted.
    """

    model: Path
    outputs: OutputPaths
    predictor: PredictorOptions = field(default_factory=PredictorOptions)
    options: PredictOptions = field(default_factory=PredictOptions)

    def identity(self) -> str:
        """A hash of all that a mask depends on besides its scan: the model and the options.

        Folders that were begun by older versions hold it, so its bytes have to stay.
        """
        plain = {
            "model": recorded(self.model).sha256,
            "predictor": self.predictor.key(),
            "options": {**self.options.key(), "probability_dtype": self.outputs.probability_dtype},
            "beside": sorted(self.outputs.beside),
            "decoder": decoder_identity(self.predictor.decoder, self.model),
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
                    "Of many scans -o, --prob, --uncertainty and --preview name folders.",
                )


def recorded(model: Path) -> Model:
    """A run or package as a ledger records it.

    Raises:
        OSError: It is not there.
    """
    told = model / PACKAGE_FILE if is_package(model) else RunDir(model).best
    return Model(as_text(model.absolute()), file_sha256(told))


def model_of_before(output: Path) -> Path:
    """What the masks of a folder are made with, which its ledger has recorded.

    Raises:
        ConfigError: It is gone or has changed, so that the masks would be of two kinds; or nothing
            is recorded any more.
    """
    before = Ledger(output).model()
    if before is None:
        raise ConfigError(f"{output}: its ledger was removed.", "Run the same command again.")
    model = as_path(before.model)
    try:
        now = recorded(model)
    except (OSError, ValueError):
        raise ConfigError(
            f"{output}: its masks are made with {before.model}, which is not there any more.",
            "Put it back, or name another with --run or --model: all masks are then made with "
            "that; or give -o another folder.",
        ) from None
    if now.sha256 != before.sha256:
        raise ConfigError(
            f"{output}: its masks are made with {before.model}, whose weights have changed since.",
            "Name it with --run or --model: all masks are then made again; or give -o another "
            "folder.",
        )
    return model


def trained_config(model: Path) -> RunConfig:
    """The settings a model was trained with, without its weights.

    Raises:
        WeightsError: The package is damaged.
        ConfigError: The settings are.
    """
    if is_package(model):
        return from_dict(read_description(model)["config"], RunConfig(), source=str(model))
    return RunDir(model).config()


@dataclass(frozen=True)
class Outcome:
    """A scan's row, and whether it was done before."""

    scan: Scan
    row: Row
    skipped: bool = False


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
        names, origin = row_names(self.task, scan), self._made_from(scan)
        if before is not None and self._holds(before, origin, scan):
            row = replace(before, **names)
            if row != before:  # the folder was moved, or the scans were
                self.ledger.write(scan.mask, row)
            return Outcome(scan, row, skipped=True)
        if self._predictor is None:
            self._predictor = load_predictor(self.task.model, self.task.predictor)
        row = predict_one(self.task, scan, self._predictor, origin)
        self.ledger.write(scan.mask, row)
        return Outcome(scan, row)

    def _made_from(self, scan: Scan) -> dict[str, Any]:
        try:
            size, changed_ns = size_and_time(scan.path)
        except Exception:  # noqa: BLE001, it is gone or odd; predicting it will say so
            size, changed_ns = -1, -1
        return {"task": self.identity, "scan_bytes": size, "scan_modified_ns": changed_ns}

    def _holds(self, row: Row, origin: Mapping[str, Any], scan: Scan) -> bool:
        """Whether predicting would give what is there: same origin, and files as recorded."""
        if row.status != DONE or row.made_from != origin:
            return False
        try:
            outputs = self.task.outputs.of(scan)
            beside, mask = _sizes(outputs), outputs.mask
            if beside != row.beside or file_sha256(mask) != row.sha256:
                return False
            # A series' grid is spread over all its files, whose sizes and times were compared.
            is_series = may_hold_dicom(scan.path)
            return is_series or read_geometry(scan.path).same_grid(read_geometry(mask))
        except Exception:  # noqa: BLE001, then it is done again, and that says what is wrong
            return False


def predict_one(task: Task, scan: Scan, predictor: Predictor, made_from: Mapping[str, Any]) -> Row:
    """Predict a scan, whatever happens: the row says what did.

    Args:
        task: What to do.
        scan: The scan.
        predictor: The task's model.
        made_from: Kept in the row.
    """
    started, outputs, names = time.monotonic(), task.outputs.of(scan), row_names(task, scan)
    try:
        report = predict_file(scan.path, outputs, predictor, task.options)
        sizes, sha256 = _sizes(outputs), file_sha256(outputs.mask)
        warnings = [finding.to_json() for finding in report.warnings]
    except Exception as error:  # noqa: BLE001, the other scans still have to be done
        return failed_row(names, said(error), time.monotonic() - started, made_from)
    return Row(
        **names,
        status=DONE,
        seconds=round(time.monotonic() - started, 3),
        slices=report.slices,
        foreground_voxels=report.foreground_voxels,
        sha256=sha256,
        made_from=made_from,
        beside=sizes,
        warnings=warnings,
        decoder=report.decoder,
    )


def _sizes(outputs: OutputPaths) -> dict[str, int]:
    """Bytes of what lies beside the mask, by option."""
    return {option: path.stat().st_size for option, path in outputs.beside.items()}


def failed_row(
    names: Mapping[str, Any], error: str, seconds: float, made_from: Mapping[str, Any]
) -> Row:
    """The row of a scan that has no mask."""
    return Row(
        **names,
        status=FAILED,
        seconds=round(seconds, 3),
        error=error,
        made_from=made_from,
    )


def said(error: Exception) -> str:
    """An error in one line: ours with its hint, any other with its type."""
    if isinstance(error, SdsegError):
        text = f"{error.message} {error.hint}"
    elif isinstance(error, MemoryError):
        text = f"MemoryError: the memory that is free did not suffice. {error}"
    else:
        text = f"{type(error).__name__}: {error}"
    return storable(" ".join(text.split()))


def row_names(task: Task, scan: Scan) -> dict[str, Any]:
    """What a row is called: case, input and output."""
    paths = scan.case, scan.path.absolute(), task.outputs.of(scan).mask.absolute()
    texts = (as_text(path) for path in paths)
    return dict(zip(("case", "input", "output"), texts, strict=True))
