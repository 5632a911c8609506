"""Masks a run has already predicted, used again only where predicting would give the same.

    predictions/<split>/<id>.nii.gz        the mask, on the scan's own grid; of a picture <id>.png
    predictions/<split>/predictions.json   what each was made from

A mask counts if checkpoint, seed, sampling and scan are those of its record and the file is
the one that was recorded, byte for byte; so neither a killed run nor a replaced mask is ever scored
in another's name.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.config import SampleConfig
from sdseg_cli.errors import DataError
from sdseg_cli.imaging.files import read_labels, write_mask
from sdseg_cli.imaging.picture import Picture
from sdseg_cli.imaging.scan_state import size_and_time
from sdseg_cli.imaging.volume import Volume
from sdseg_cli.report.tables import write_json

FORMAT_VERSION = 2


def sha256_of(path: Path) -> str:
    """The file's sha256, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class KeptMasks:
    """The masks of one split, made with one checkpoint, decoder, kind of device, seed and way of
    sampling.

    Attributes:
        folder: `predictions/<split>` of the run.
        checkpoint_sha256: Of the checkpoint file that predicts.
        decoder: Which draws the masks: `fast_decoder.decoder_identity`.
        device: Kind of device: a GPU computes in another precision than a CPU.
        seed: Of all noise.
        sample: Reverse steps, samples and their noise.
    """

    folder: Path
    checkpoint_sha256: str
    decoder: str
    device: str
    seed: int
    sample: SampleConfig

    def file(self, case_id: str, scan: Volume) -> Path:
        """Where the mask of a case lies."""
        suffix = ".png" if isinstance(scan, Picture) else ".nii.gz"
        return self.folder / f"{case_id}{suffix}"

    def find(self, case_id: str, scan: Volume) -> NDArray[np.bool_] | None:
        """The kept mask of a case.

        Args:
            case_id: The case.
            scan: Its scan, read from a file.

        Returns:
            (I,J,K) bool on the scan's grid; None if predicting might give another.
        """
        path, record = self.file(case_id, scan), self._records().get(case_id)
        if record is None or not path.is_file():
            return None
        if record != {**self._origin(scan), "mask_sha256": sha256_of(path)}:
            return None
        try:
            kept = read_labels(path)
        except DataError:
            return None
        return kept.array != 0 if kept.geometry.shape == scan.geometry.shape else None

    def keep(self, case_id: str, mask: NDArray[np.uint8], scan: Volume) -> None:
        """Write a mask and record what it was made from.

        Args:
            case_id: The case.
            mask: (I,J,K) uint8, 0 or 1, on the scan's grid.
            scan: Its scan, read from a file.

        Raises:
            RunError: The disk refused.
        """
        path = self.file(case_id, scan)
        write_mask(path, mask, scan)
        records = self._records()
        records[case_id] = {**self._origin(scan), "mask_sha256": sha256_of(path)}
        cases = {name: records[name] for name in sorted(records)}
        write_json(self._index, {"format_version": FORMAT_VERSION, "cases": cases})

    @property
    def _index(self) -> Path:
        return self.folder / "predictions.json"

    def _records(self) -> dict[str, dict[str, Any]]:
        """What is recorded; nothing if the index is missing, damaged or of another version."""
        try:
            index = json.loads(self._index.read_text(encoding="utf-8"))
            if index["format_version"] != FORMAT_VERSION:
                return {}
            return {str(name): dict(record) for name, record in index["cases"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}

    def _origin(self, scan: Volume) -> dict[str, Any]:
        if scan.source is None:
            raise ValueError("a scan without a file cannot be recognised again")
        size, changed = size_and_time(scan.source)
        return {
            "checkpoint_sha256": self.checkpoint_sha256,
            "decoder": self.decoder,
            "device": self.device,
            "seed": self.seed,
            "sample": asdict(self.sample),
            "scan": str(scan.source.absolute()),
            "scan_bytes": size,
            "scan_modified_ns": changed,
        }
