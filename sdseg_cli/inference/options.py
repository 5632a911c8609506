"""Options of a prediction: how the model is loaded, how scans are predicted, which files are
written; and what a mask depends on. No torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from sdseg_cli.core.config import SampleConfig
from sdseg_cli.core.errors import ConfigError, DataError
from sdseg_cli.core.filenames import is_picture, real_path, safe_id, stem_of, suffix_of
from sdseg_cli.core.files import require_replaceable, require_writable
from sdseg_cli.imaging.io import dicom
from sdseg_cli.imaging.io.files import check_mask_writable, check_writable
from sdseg_cli.imaging.io.metaimage import SEGMENTATION
from sdseg_cli.imaging.io.picture import Picture
from sdseg_cli.imaging.postprocess import PostProcess
from sdseg_cli.imaging.scans import Scan, size_and_time
from sdseg_cli.imaging.volume import Volume

DEFAULT_RUNS, MOST_RUNS = 5, 100
"""Noise draws that are compared; those of one batch are held at once."""

LONGEST_CLASS = 100
"""Bytes of a class's name in a file name."""

Value = TypeVar("Value")


def made_from(scan: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All that a mask depends on, as it is recorded beside it: while this is equal, so is the mask.

    Args:
        scan: The file or series.
        settings: Weights, decoder and options, or a hash of them.

    Raises:
        OSError: The scan is gone, or a folder of it cannot be searched.
    """
    size, changed_ns = size_and_time(scan)
    return {**settings, "scan_bytes": size, "scan_modified_ns": changed_ns}


def _given(values: Mapping[str, Value | None]) -> dict[str, Value]:
    return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class PredictorOptions:
    """Options of a `Predictor`, which documents each."""

    device: str = "auto"
    decoder: str = "auto"
    batch_size: int | None = None
    threads: int | None = None
    crop: str | None = None
    compiled: bool = False

    def key(self) -> dict[str, Any]:
        """The options that decide a mask: all but those that change speed and memory alone."""
        return _given({"decoder": self.decoder, "crop": self.crop, "compiled": self.compiled})


@dataclass(frozen=True)
class PredictOptions:
    """Options of a prediction with a loaded model, the same for all scans of a cohort."""

    series: str | None = None
    """Which DICOM series, where a scan holds several."""
    seed: int = 0
    """Of all noise."""
    sample: SampleConfig | None = None
    """Reverse steps and samples; None is the run's setting."""
    post: PostProcess = field(default_factory=PostProcess)
    """What is done after the network."""
    runs: int | None = None
    """Noise draws that are compared, in place of the samples; the mask is that of their mean. None
    compares nothing, or five where an uncertainty is asked for."""

    def key(self) -> dict[str, Any]:
        """The options that decide a mask: all that are given."""
        return _given(asdict(self))

    def number_of_runs(self, uncertainty: Path | None) -> int | None:
        """Number of noise draws to compare; None where no option asks for it.

        Raises:
            ConfigError: Too few to compare, or too many to hold for one batch.
        """
        if self.runs is None:
            return None if uncertainty is None else DEFAULT_RUNS
        if not 2 <= self.runs <= MOST_RUNS:
            least = ": there is nothing to compare" if self.runs < 2 else ""
            raise ConfigError(
                f"--runs is {self.runs}{least}.", f"Give 2 to {MOST_RUNS}, for example 5."
            )
        return self.runs


def drawn_often(sample: SampleConfig, runs: int) -> SampleConfig:
    """The same way of sampling with so many draws of the noise.

    Raises:
        ConfigError: There is no noise to draw.
    """
    if sample.noise == "zero":
        raise ConfigError(
            "Without noise all runs are one and the same.",
            "Give --runs and --uncertainty, or --deterministic.",
        )
    return replace(sample, samples=runs)


@dataclass(frozen=True)
class OutputPaths:
    """The files of one prediction; of a cohort, the folder of each kind of file."""

    mask: Path
    probability: Path | None = None
    probability_dtype: str = "uint8"
    """"uint8" (steps of 1/255) or "float32"."""
    uncertainty: Path | None = None
    preview: Path | None = None
    per_class: Path | None = None
    """A folder: the mask of each class."""
    legend: Path | None = None
    """A label file of ITK-SNAP."""
    probability_per_class: bool = False
    """`probability` is a folder: one map for each class, in place of that of any class."""

    @property
    def beside(self) -> dict[str, Path]:
        """The files besides the mask, by option."""
        return _given(
            {
                "probability": self.probability,
                "uncertainty": self.uncertainty,
                "preview": self.preview,
                "per_class": self.per_class,
                "legend": self.legend,
            }
        )

    def class_masks(self, names: Sequence[str]) -> list[Path]:
        """The mask of each class, in the format of the mask; [] where none is asked for."""
        suffix = whole_suffix(self.mask)
        return [] if self.per_class is None else class_files(self.per_class, names, suffix)

    def probabilities(self, names: Sequence[str]) -> list[Path]:
        """The probability of each class, in the format of the mask (a DICOM SEG holds none: NIfTI);
        [] where only that of any class is asked for.
        """
        if self.probability is None or not self.probability_per_class:
            return []
        suffix = whole_suffix(self.mask).replace(".seg.nrrd", ".nrrd").replace(".dcm", ".nii.gz")
        return class_files(self.probability, names, suffix)

    @property
    def files(self) -> tuple[Path, ...]:
        """All paths that are written."""
        return (self.mask, *self.beside.values())

    def of(self, scan: Scan) -> OutputPaths:
        """The files of one scan, where these are a cohort's folders; all are called as its mask."""

        def named(option: str, folder: Path) -> Path:
            path = folder / scan.beside(option)
            is_folder = option == "probability" and self.probability_per_class
            return path.with_name(stem_of(path)) if is_folder else path

        return self.each(named)

    def each(self, change: Callable[[str, Path], Path]) -> OutputPaths:
        """The same with each path changed, by its option."""
        beside: dict[str, Any] = {name: change(name, path) for name, path in self.beside.items()}
        return replace(self, mask=change("mask", self.mask), **beside)

    def check_names(self, scan: Path) -> None:
        """Refuse what cannot be written, before the scan is read.

        Raises:
            ConfigError: A name is the scan itself or stands twice, or the type is unknown.
            DataError: A name is a folder, or of a kind that is not written.
            RunError: The disk takes no file of this name.
        """
        require_dtype(self.probability_dtype)
        for option, path in self._maps.items():
            # Only the mask may be DICOM, a SEG.
            check_writable(path, scan if option == "mask" or is_picture(scan) else None)
        if self.preview is not None:
            _check_preview(self.preview)
        if self.legend is not None:
            _check_legend(self.legend)
        taken: dict[Path, str] = {}
        others = {
            "--preview": self.preview,
            "--per-class": self.per_class,
            "--legend": self.legend,
            **({"--prob": self.probability} if self.probability_per_class else {}),
        }
        for option, path in _given({**self._maps, **others}).items():
            if path.exists() and scan.exists() and path.samefile(scan):
                raise ConfigError(f"{path}: is the scan itself.", "Give each output another name.")
            first = taken.setdefault(real_path(path), option)
            if first != option:
                raise ConfigError(
                    f"{path}: is both {first} and {option}.", f"Give {option} another name."
                )
            require_writable(path)

    def check_scan(self, volume: Volume) -> None:
        """Refuse what cannot be written for this scan, before it is predicted.

        Raises:
            ConfigError: A picture's probability would need float32, or an output would replace a
                slice of the scan.
            DataError: The format cannot say where the scan lies.
        """
        for path in self._maps.values():
            check_mask_writable(path, volume)
        if self.preview is not None:
            dicom.require_no_slice(self.preview, volume)
        is_float = self.probability is not None and self.probability_dtype != "uint8"
        if is_float and isinstance(volume, Picture):
            raise ConfigError(
                f"{self.probability}: a PNG holds no {self.probability_dtype}.", "Use uint8."
            )

    @property
    def _maps(self) -> dict[str, Path]:
        """The outputs on the scan's grid."""
        probability = None if self.probability_per_class else self.probability
        return _given({"mask": self.mask, "--prob": probability, "--uncertainty": self.uncertainty})


def require_dtype(name: str) -> None:
    """Refuse a type that probabilities are not written in. Raises ConfigError."""
    if name not in ("uint8", "float32"):
        raise ConfigError(f"--prob-dtype is {name!r}.", "Choose one of uint8, float32.")


def whole_suffix(path: Path) -> str:
    """What the name of a mask ends in: ".nii.gz", ".seg.nrrd", ".png"."""
    name = path.name.lower()
    suffix = suffix_of(path) or path.suffix
    return SEGMENTATION if name.endswith(SEGMENTATION) else suffix.lower()


def class_files(folder: Path, names: Sequence[str], suffix: str) -> list[Path]:
    """A file for each class, called as the class is where that can be a file name. Names that come
    out alike are numbered.
    """
    taken: set[str] = set()
    files = []
    for number, name in enumerate(names, start=1):
        plain = safe_id(name).encode()[:LONGEST_CLASS].decode(errors="ignore") or f"class_{number}"
        own = next(
            one
            for one in itertools.chain([plain], (f"{plain}_{n}" for n in itertools.count(2)))
            if one.casefold() not in taken
        )
        taken.add(own.casefold())
        files.append(folder / f"{own}{suffix}")
    return files


def _check_legend(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path} is a folder.", "Name the file to write, such as labels.txt.")
    require_replaceable(path)
    if path.suffix.lower() not in (".txt", ".label"):
        raise DataError(f"{path}: a label file of ITK-SNAP is a text.", "End the name in .txt.")


def _check_preview(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path} is a folder.", "Name the file to write, such as preview.png.")
    require_replaceable(path)
    if path.suffix.lower() != ".png":
        raise DataError(f"{path}: a preview is a PNG.", "End the name in .png.")
