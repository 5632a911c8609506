"""One scan file -> its mask file, and on request its probability: what `sdseg predict` does."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sdseg_cli.atomic import replacing
from sdseg_cli.config import SampleConfig
from sdseg_cli.datasets.checks import check_grid, check_scan
from sdseg_cli.errors import ConfigError
from sdseg_cli.filenames import is_picture
from sdseg_cli.findings import WARNING, Finding
from sdseg_cli.imaging.files import (
    check_mask_writable,
    check_writable,
    read_image,
    write_mask,
    write_probability,
)
from sdseg_cli.imaging.intensity import Normalisation
from sdseg_cli.imaging.measure import measure_grid, measure_scan
from sdseg_cli.imaging.picture import Picture
from sdseg_cli.imaging.volume import Volume
from sdseg_cli.predict import Predictor, place_mask
from sdseg_cli.progress import Progress, silent

_OTHER_SCANS = "If the mask looks wrong: predict with a run that was trained on scans like this."
_FIXES = {
    "image-looks-like-mask": "Give the scan, not its mask.",
    "values-not-finite": "They are taken for air.",
    "values-constant": "There is nothing to see in it: export the scan again.",
    "image-straightened": "Nothing to do: the mask gets the scan's own header.",
}
"""What to do about an odd scan that is predicted all the same."""


@dataclass(frozen=True)
class PredictReport:
    """What `predict_file` wrote."""

    output: Path
    run: Path
    seed: int
    slices: int
    foreground_voxels: int
    foreground_ml: float | None
    """None for a picture, which knows no millimetres."""
    seconds: float
    sample: SampleConfig
    probability: Path | None = None
    warnings: tuple[Finding, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The object of `--json`."""
        values: dict[str, Any] = {
            "output": str(self.output),
            "run": str(self.run),
            "seed": self.seed,
            "sample": asdict(self.sample),
            "slices": self.slices,
            "foreground_voxels": self.foreground_voxels,
            "foreground_ml": self.foreground_ml and round(self.foreground_ml, 3),
            "seconds": round(self.seconds, 3),
            "warnings": [finding.to_json() for finding in self.warnings],
        }
        if self.probability is not None:
            values["probability"] = str(self.probability)
        return values


def predict_file(
    scan: Path,
    output: Path,
    predictor: Predictor,
    *,
    series: str | None = None,
    seed: int = 0,
    sample: SampleConfig | None = None,
    probability: Path | None = None,
    probability_dtype: str = "uint8",
    progress: Progress = silent,
) -> PredictReport:
    """Predict one scan file and write its mask, and on request its probability.

    Args:
        scan: The image file, or a DICOM series: its folder, a zip, or one of its files.
        output: The mask file; folders are made, an old file is replaced only by a complete one.
        predictor: The trained run.
        series: Which DICOM series, where the scan holds several.
        seed: Of all noise.
        sample: Reverse steps and samples; None is the run's setting.
        probability: Where to write the probability on the scan's grid.
        probability_dtype: "uint8" (steps of 1/255) or "float32".
        progress: Told after each batch.

    Raises:
        DataError: The scan cannot be read, or is none of the kind the run was trained on.
        ConfigError: The output's name cannot be written to, or is the scan itself.
    """
    started = time.monotonic()
    if probability_dtype not in ("uint8", "float32"):
        raise ConfigError(
            f"--prob-dtype is {probability_dtype!r}.", "Choose one of uint8, float32."
        )
    outputs = [path for path in (output, probability) if path is not None]
    for path in outputs:
        # Only the mask may be DICOM, a SEG.
        check_writable(path, scan if path == output or is_picture(scan) else None)
        if path.exists() and scan.exists() and path.samefile(scan):
            raise ConfigError(f"{path}: is the scan itself.", "Give -o and --prob other names.")
    if len({path.absolute() for path in outputs}) < len(outputs):
        raise ConfigError(f"{output}: is both mask and --prob.", "Give --prob another name.")
    sample = sample or predictor.config.sample
    volume = read_image(scan, series)
    for path in outputs:
        check_mask_writable(path, volume)
    warnings = check_volume(volume, predictor.normalisation)
    if probability is not None and isinstance(volume, Picture) and probability_dtype != "uint8":
        raise ConfigError(f"{probability}: a PNG holds no {probability_dtype}.", "Use uint8.")
    stack = predictor.stack(volume)
    shape = volume.geometry.shape
    mask = np.zeros(shape, np.uint8)
    shares = probability_dtype == "uint8"
    kept = None if probability is None else np.zeros(shape, np.uint8 if shares else np.float32)
    for start, planes in predictor.planes(stack, seed=seed, sample=sample, progress=progress):
        for k, plane in enumerate(planes, start):
            native = stack.restore.to_native(plane, k)
            place_mask(mask, stack.restore, native, k)
            if kept is not None:
                # Halves round down, so that 0.5 itself stays below it: the mask is the map > 0.5.
                stack.restore.place(kept, np.ceil(native * 255 - 0.5) if shares else native, k)
    with ExitStack() as both:  # neither file appears without the other
        if probability is not None and kept is not None:
            write_probability(both.enter_context(replacing(probability)), kept, volume)
        write_mask(both.enter_context(replacing(output)), mask, volume)
    voxels, spacing = int(np.count_nonzero(mask)), volume.spacing_mm
    return PredictReport(
        output=output,
        run=predictor.run,
        seed=seed,
        sample=sample,
        slices=len(stack),
        foreground_voxels=voxels,
        foreground_ml=None if spacing is None else voxels * float(np.prod(spacing)) / 1000,
        seconds=time.monotonic() - started,
        probability=probability,
        warnings=warnings,
    )


def check_volume(volume: Volume, normalisation: Normalisation) -> tuple[Finding, ...]:
    """What is odd about a scan that is to be predicted: nothing here stops the prediction.

    Args:
        volume: The scan.
        normalisation: The run's; a window means that it was trained on CT.
    """
    if isinstance(volume, Picture):
        return ()
    ct = normalisation.kind.startswith("window")
    found = (
        *check_grid(volume.name, measure_grid(volume.geometry)),
        *check_scan(volume.name, measure_scan(volume), ct or None),
    )
    return tuple(
        replace(one, level=WARNING, fix=_FIXES.get(one.code, _OTHER_SCANS)) for one in found
    )
