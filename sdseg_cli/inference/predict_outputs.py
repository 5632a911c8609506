"""What one prediction leaves behind: which files, whether they may be written, and their arrays."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.errors import ConfigError, DataError
from sdseg_cli.core.filenames import is_picture, real_path
from sdseg_cli.core.files import replacing, require_replaceable, require_writable
from sdseg_cli.imaging.intensity import Limits
from sdseg_cli.imaging.io import dicom
from sdseg_cli.imaging.io.files import (
    check_mask_writable,
    check_writable,
    write_mask,
    write_probability,
)
from sdseg_cli.imaging.io.picture import Picture
from sdseg_cli.imaging.slices import SliceTransform
from sdseg_cli.imaging.volume import Volume


@dataclass(frozen=True)
class OutputPaths:
    """The files of one prediction."""

    mask: Path
    probability: Path | None = None
    probability_dtype: str = "uint8"
    """"uint8" (steps of 1/255) or "float32"."""
    uncertainty: Path | None = None
    preview: Path | None = None

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
        taken: dict[Path, str] = {}
        for option, path in self.named.items():
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
    def named(self) -> dict[str, Path]:
        """Every file that is asked for, by its option."""
        wanted = {**self._maps, "--preview": self.preview}
        return {option: path for option, path in wanted.items() if path is not None}

    @property
    def _maps(self) -> dict[str, Path]:
        """Those that lie on the scan's grid."""
        wanted = {
            "mask": self.mask,
            "--prob": self.probability,
            "--uncertainty": self.uncertainty,
        }
        return {option: path for option, path in wanted.items() if path is not None}


class OutputArrays:
    """The arrays of the outputs on the scan's grid, filled slice by slice.

    Args:
        outputs: Which arrays there are: one byte a voxel each, four for a float32 probability.
        restore: The way from the model's planes.
        threshold: A voxel is foreground where its probability is above it.
    """

    def __init__(self, outputs: OutputPaths, restore: SliceTransform, threshold: float) -> None:
        self.outputs, self.restore, self.threshold = outputs, restore, threshold
        shape, dtype = restore.planes.stored_shape, np.dtype(outputs.probability_dtype)
        # In the order in which files store voxels, so that writing one makes no turned copy.
        self.mask = np.zeros(shape, np.uint8, "F")
        self.probability = None if outputs.probability is None else np.zeros(shape, dtype, "F")
        self.uncertainty = None if outputs.uncertainty is None else np.zeros(shape, np.uint8, "F")

    def place(self, k: int, native: NDArray[np.float32]) -> None:
        """Take in slice k: probabilities (rows,columns) in [0,1] on the scan's own plane."""
        self.restore.place(self.mask, native > self.threshold, k)
        if self.probability is not None:
            # Halves round down, so that 0.5 itself stays below it: the mask is the map > 0.5.
            shares = self.probability.dtype == np.uint8
            self.restore.place(
                self.probability, np.ceil(native * 255 - 0.5) if shares else native, k
            )

    def place_uncertainty(self, k: int, plane: NDArray[np.uint8]) -> None:
        """Take in slice k of the uncertainty, 255 being 1."""
        if self.uncertainty is not None:
            self.restore.place(self.uncertainty, plane, k)

    def write(self, volume: Volume, limits: Limits) -> None:
        """Write all files; none appears before every one of them is complete.

        Raises:
            RunError: The disk refused.
        """
        out = self.outputs
        with ExitStack() as together:
            for path, array in (
                (out.probability, self.probability),
                (out.uncertainty, self.uncertainty),
            ):
                if path is not None and array is not None:
                    write_probability(together.enter_context(replacing(path)), array, volume)
            if out.preview is not None:
                from sdseg_cli.report.preview import save_preview

                drawn = together.enter_context(replacing(out.preview))
                save_preview(drawn, volume, self.mask, limits)
            write_mask(together.enter_context(replacing(out.mask)), self.mask, volume)


def require_dtype(name: str) -> None:
    """Refuse a type that probabilities are not written in. Raises ConfigError."""
    if name not in ("uint8", "float32"):
        raise ConfigError(f"--prob-dtype is {name!r}.", "Choose one of uint8, float32.")


def _check_preview(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path} is a folder.", "Name the file to write, such as preview.png.")
    require_replaceable(path)
    if path.suffix.lower() != ".png":
        raise DataError(f"{path}: a preview is a PNG.", "End the name in .png.")
