"""Masks a run has already predicted, used again only where predicting would give the same.

    predictions/<split>/<id>.nii.gz        the mask, on the scan's own grid; of a picture <id>.png
    predictions/<split>/planes/<id>.npz    the same on the model's planes, for the other protocol,
                                           and the probability of the slice that is drawn
    predictions/<split>/predictions.json   what each was made from

A mask counts if checkpoint, seed, sampling and scan are those of its record and both files are
those that were recorded, byte for byte; so neither a killed run nor a replaced mask is ever scored
in another's name.
"""

from __future__ import annotations

import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.config import SampleConfig
from sdseg_cli.core.errors import DataError
from sdseg_cli.core.files import file_sha256, replacing
from sdseg_cli.core.json_files import read_object
from sdseg_cli.core.tables import write_json
from sdseg_cli.data.spec import ClassRule
from sdseg_cli.imaging.io.files import read_labels, write_mask
from sdseg_cli.imaging.io.picture import Picture
from sdseg_cli.imaging.volume import Volume
from sdseg_cli.inference.options import made_from

if TYPE_CHECKING:
    from sdseg_cli.inference.predictor import Prediction

FORMAT_VERSION = 3


@dataclass(frozen=True, eq=False)
class CachedMask:
    """A case's mask, twice, and the slice of it that is drawn."""

    mask: NDArray[Any]
    """(I,J,K), on the scan's own grid: bool, of several classes as `ClassRule.hold` says them."""
    planes: NDArray[Any]
    """Likewise (S,256,256), on the model's: decided before the way back."""
    shown: tuple[int, NDArray[np.float32]]
    """Number and probability (256,256), on the model's plane; number -1 if none was kept."""

    @classmethod
    def decided(cls, prediction: Prediction, shown: tuple[int, NDArray[np.float32]]) -> CachedMask:
        """Of what a model answers."""
        held, planes = prediction.held(), prediction.held_planes()
        if len(prediction.classes) == 1:
            return cls(held != 0, planes != 0, shown)
        return cls(held, planes, shown)


@dataclass(frozen=True)
class CachedMasks:
    """The masks of one split, made with one checkpoint, decoder, kind of device, seed and way of
    sampling.

    Attributes:
        folder: `predictions/<split>` of the run.
        checkpoint_sha256: Of the checkpoint file that predicts.
        decoder: Which draws the masks: `chosen_decoder.decoder_identity`.
        device: Kind of device: a GPU computes in another precision than a CPU.
        seed: Of all noise.
        sample: Reverse steps, samples and their noise.
        classes: Of the run.
    """

    folder: Path
    checkpoint_sha256: str
    decoder: str
    device: str
    seed: int
    sample: SampleConfig
    classes: ClassRule = field(default_factory=ClassRule)

    def file(self, case_id: str, scan: Volume) -> Path:
        """Path of a case's mask."""
        suffix = ".png" if isinstance(scan, Picture) else ".nii.gz"
        return self.folder / f"{case_id}{suffix}"

    def planes_file(self, case_id: str) -> Path:
        """Path of a case's planes of the model."""
        return self.folder / "planes" / f"{case_id}.npz"

    def find(self, case_id: str, scan: Volume) -> CachedMask | None:
        """The kept mask of a case.

        Args:
            case_id: The case.
            scan: Its scan, read from a file.

        Returns:
            The mask; None if predicting might give another.
        """
        paths, record = self._files(case_id, scan), self._records().get(case_id)
        if record is None or not all(path.is_file() for path in paths.values()):
            return None
        if record != self._origin(scan) | {key: file_sha256(path) for key, path in paths.items()}:
            return None
        try:
            mask = read_labels(paths["mask_sha256"])
            planes, shown, held = _read_planes(paths["planes_sha256"])
        except (DataError, OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None
        if mask.geometry.shape != scan.geometry.shape:
            return None
        if self.classes.overlapping:
            return None if held is None else CachedMask(held, planes, shown)
        return CachedMask(mask.array != 0 if len(self.classes) == 1 else mask.array, planes, shown)

    def keep(self, case_id: str, found: CachedMask, scan: Volume) -> CachedMask:
        """Write a mask and record what it was made from.

        Args:
            case_id: The case.
            found: Its mask.
            scan: Its scan, read from a file.

        Returns:
            `found`, which `find` will find.

        Raises:
            RunError: The disk refused.
        """
        paths = self._files(case_id, scan)
        single = found.mask.astype(np.uint8) if len(self.classes) == 1 else found.mask
        write_mask(paths["mask_sha256"], self.classes.label_map(single), scan)
        _write_planes(paths["planes_sha256"], found, regions=self.classes.overlapping)
        records = self._records()
        hashes = {key: file_sha256(path) for key, path in paths.items()}
        records[case_id] = self._origin(scan) | hashes
        cases = {name: records[name] for name in sorted(records)}
        write_json(self._index, {"format_version": FORMAT_VERSION, "cases": cases})
        return found

    def _files(self, case_id: str, scan: Volume) -> dict[str, Path]:
        """The files of a case, by the key of their hash in its record."""
        return {
            "mask_sha256": self.file(case_id, scan),
            "planes_sha256": self.planes_file(case_id),
        }

    @property
    def _index(self) -> Path:
        return self.folder / "predictions.json"

    def _records(self) -> dict[str, dict[str, Any]]:
        """The records; empty if the index is missing, damaged or of another version."""
        try:
            index = read_object(self._index)
            if index["format_version"] != FORMAT_VERSION:
                return {}
            return {str(name): dict(record) for name, record in index["cases"].items()}
        except (DataError, ValueError, TypeError, KeyError, AttributeError):
            return {}

    def _origin(self, scan: Volume) -> dict[str, Any]:
        if scan.source is None:
            raise ValueError("a scan without a file cannot be recognised again")
        settings = {
            "checkpoint_sha256": self.checkpoint_sha256,
            "decoder": self.decoder,
            "device": self.device,
            "seed": self.seed,
            "sample": asdict(self.sample),
            "scan": str(scan.source.absolute()),
        }
        return made_from(scan.source, settings)


def _write_planes(path: Path, found: CachedMask, *, regions: bool) -> None:
    k, probability = found.shown
    with replacing(path) as temporary:
        arrays: dict[str, Any] = {"labels": found.planes}
        if found.planes.dtype == np.bool_:
            arrays = {"bits": np.packbits(found.planes), "shape": found.planes.shape}
        if regions:  # the mask's file shows one of the classes of a voxel
            arrays["held"] = found.mask
        np.savez_compressed(temporary, **arrays, shown=k, probability=probability)


def _read_planes(
    path: Path,
) -> tuple[NDArray[Any], tuple[int, NDArray[np.float32]], NDArray[Any] | None]:
    """Planes, what is drawn, and of classes that overlap what is held of the scan's voxels."""
    with np.load(path, allow_pickle=False) as stored:
        labels = "labels" in stored
        planes = stored["labels"] if labels else _unpacked(stored["bits"], stored["shape"])
        shown = -1, np.empty(0, np.float32)
        if "shown" in stored:  # not in those of earlier versions
            shown = int(stored["shown"]), stored["probability"]
        return planes, shown, stored.get("held")


def _unpacked(bits: NDArray[np.uint8], shape: NDArray[Any]) -> NDArray[np.bool_]:
    sizes = tuple(int(n) for n in shape)
    return np.unpackbits(bits, count=int(np.prod(sizes))).reshape(sizes).astype(bool)
