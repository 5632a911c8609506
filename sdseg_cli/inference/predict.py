"""One scan file -> its mask file, and on request what else is known: what `sdseg predict` does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.config import SampleConfig
from sdseg_cli.core.errors import ConfigError
from sdseg_cli.core.filenames import is_picture
from sdseg_cli.core.findings import WARNING, Finding
from sdseg_cli.core.progress import Progress, no_op
from sdseg_cli.data.checks import check_grid, check_scan
from sdseg_cli.imaging.intensity import Normalisation
from sdseg_cli.imaging.io.files import read_image
from sdseg_cli.imaging.io.picture import Picture
from sdseg_cli.imaging.measure import measure_grid, measure_scan
from sdseg_cli.imaging.postprocess import PostProcess
from sdseg_cli.imaging.volume import Volume
from sdseg_cli.inference.engine import give_memory_back
from sdseg_cli.inference.predict_memory import MemoryGuard
from sdseg_cli.inference.predict_outputs import OutputArrays, OutputPaths
from sdseg_cli.inference.predictor import Predictor
from sdseg_cli.metrics.agreement import Agreement, Tally, disagreement

DEFAULT_RUNS, MOST_RUNS = 5, 100
"""Noise draws that are compared; those of one batch are held at once."""
Batches = Iterator[tuple[int, NDArray[np.float32]]]
"""Number of the first slice, and probabilities (n,256,256), or (n,K,256,256) of K draws."""

_OTHER_SCANS = "If the mask looks wrong: predict with a run that was trained on scans like this."
_FIXES = {
    "image-looks-like-mask": "Give the scan, not its mask.",
    "values-not-finite": "They are taken for air.",
    "values-constant": "There is nothing to see in it: export the scan again.",
    "image-straightened": "Nothing to do: the mask gets the scan's own header.",
    "place-unsaid": "It is read from the feet to the head, and others turn it upside down: look at "
    "the mask on its scan; if it looks wrong, set the scan's codes.",
    "place-twofold": "The sform is read and the mask gets the scan's header; other readers may lay "
    "both elsewhere. Set one form to the other, or a code to 0.",
    "bytes-unread": "They are not predicted: does the header claim too few slices?",
    "unit-unknown": "It is read as millimetres: set xyzt_units if it is another unit.",
    "spacing-implausible": "Sizes in mm and ml, and a crop to the body, follow it: repair the "
    "header's zooms and affine, or its unit.",
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
    decoder: str = "exact"
    post: PostProcess = field(default_factory=PostProcess)
    probability: Path | None = None
    uncertainty: Path | None = None
    preview: Path | None = None
    stability: Agreement | None = None
    """How far the masks of several noise draws agree, where they were compared."""
    warnings: tuple[Finding, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything that was written."""
        every = (self.output, self.probability, self.uncertainty, self.preview)
        return tuple(path for path in every if path is not None)

    def to_json(self) -> dict[str, Any]:
        """The object of `--json`."""
        values: dict[str, Any] = {
            "output": str(self.output),
            "run": str(self.run),
            "seed": self.seed,
            "sample": asdict(self.sample),
            "decoder": self.decoder,
            "post": asdict(self.post),
            "slices": self.slices,
            "foreground_voxels": self.foreground_voxels,
            "foreground_ml": self.foreground_ml and round(self.foreground_ml, 3),
            "seconds": round(self.seconds, 3),
            "warnings": [finding.to_json() for finding in self.warnings],
        }
        for name in ("probability", "uncertainty", "preview"):
            if (path := getattr(self, name)) is not None:
                values[name] = str(path)
        if self.stability is not None:
            values["stability"] = self.stability.to_json()
        return values


def predict_file(
    scan: Path,
    output: Path,
    predictor: Predictor,
    *,
    series: str | None = None,
    seed: int = 0,
    sample: SampleConfig | None = None,
    post: PostProcess | None = None,
    probability: Path | None = None,
    probability_dtype: str = "uint8",
    runs: int | None = None,
    uncertainty: Path | None = None,
    preview: Path | None = None,
    progress: Progress = no_op,
) -> PredictReport:
    """Predict one scan file and write its mask, and on request what else is known of it.

    Args:
        scan: The image file, or a DICOM series: its folder, a zip, or one of its files.
        output: The mask file; folders are made, an old file is replaced only by a complete one.
        predictor: The trained run.
        series: Which DICOM series, where the scan holds several.
        seed: Of all noise.
        sample: Reverse steps and samples; None is the run's setting.
        post: What is done after the network; None only takes what is above one half.
        probability: Where to write the probability on the scan's grid.
        probability_dtype: "uint8" (steps of 1/255) or "float32".
        runs: Noise draws that are compared, in place of the samples; the mask is that of their
            mean. None compares nothing, or five where an uncertainty is asked for.
        uncertainty: Where to write how far they disagree, on the scan's grid.
        preview: Where to draw the mask on its scan, a PNG.
        progress: Told after each batch.

    Raises:
        DataError: The scan cannot be read, or is none of the kind the run was trained on.
        ConfigError: An output's name cannot be written to, or is the scan itself; an option does
            not go with the scan or with another one.
        RunError: It does not fit into the memory that is free, or the disk refused.
    """
    started = time.monotonic()
    outputs = OutputPaths(output, probability, probability_dtype, uncertainty, preview)
    outputs.check_names(scan)
    runs = number_of_runs(runs, uncertainty)
    sample = sample or predictor.config.sample
    if runs is not None:
        sample = drawn_often(sample, runs)
    post = post or PostProcess()
    give_memory_back()  # so that it counts as free
    guard = MemoryGuard(
        scan.name,
        outputs,
        lambda size: predictor.batch_bytes(runs or 1, size),
        draws=runs or 1,
        batch_size=predictor.batch_size,
    )
    post.require_size_known(scan)
    if scan.exists():
        predictor.require_kind(scan.name, picture=is_picture(scan))  # before it is read
    volume = read_image(scan, series, guard)
    outputs.check_scan(volume)
    warnings = check_volume(volume, predictor.normalisation)
    stack = predictor.stack(volume)
    maps = OutputArrays(outputs, stack.restore, post.threshold)
    predicted = predictor.planes if runs is None else predictor.draws
    batches = predicted(stack, seed=seed, sample=sample, progress=progress)
    stability: Agreement | None = None
    if runs is None:
        _fill(maps, batches)
    else:
        stability = _compare(maps, batches, runs)
    post.clean(stack.restore.planes.stacked(maps.mask), volume.spacing_mm)
    maps.write(volume, stack.limits)
    voxels, spacing = int(np.count_nonzero(maps.mask)), volume.spacing_mm
    return PredictReport(
        output=output,
        run=predictor.run,
        seed=seed,
        sample=sample,
        decoder=predictor.decoder,
        post=post,
        slices=len(stack),
        foreground_voxels=voxels,
        foreground_ml=None if spacing is None else voxels * float(np.prod(spacing)) / 1000,
        seconds=time.monotonic() - started,
        probability=probability,
        uncertainty=uncertainty,
        preview=preview,
        stability=stability,
        warnings=warnings,
    )


def number_of_runs(runs: int | None, uncertainty: Path | None) -> int | None:
    """How many noise draws are compared; None where nothing asks for it.

    Raises:
        ConfigError: Too few to compare, or too many to hold for one batch.
    """
    if runs is None:
        return None if uncertainty is None else DEFAULT_RUNS
    if not 2 <= runs <= MOST_RUNS:
        least = ": there is nothing to compare" if runs < 2 else ""
        raise ConfigError(f"--runs is {runs}{least}.", f"Give 2 to {MOST_RUNS}, for example 5.")
    return runs


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


def _fill(maps: OutputArrays, batches: Batches) -> None:
    """Bring each probability to the scan's grid."""
    for start, planes in batches:
        for k, plane in enumerate(planes, start):
            if plane.any():  # the maps are zeros to begin with
                maps.place(k, maps.restore.to_native(plane, k))


def _compare(maps: OutputArrays, batches: Batches, runs: int) -> Agreement:
    """Likewise the mean of the draws, and how far the masks of each by itself disagree."""
    tally = Tally(runs)
    for start, planes in batches:
        for k, drawn in enumerate(planes, start):
            mean = sum(drawn) / np.float32(runs)
            maps.place(k, maps.restore.to_native(mean, k))
            votes = np.stack([maps.restore.to_native(one, k) > maps.threshold for one in drawn])
            maps.place_uncertainty(k, disagreement(votes))
            tally.add(votes)
    return tally.agreement()


def check_volume(volume: Volume, normalisation: Normalisation) -> tuple[Finding, ...]:
    """What is odd about a scan that is to be predicted: nothing here stops the prediction.

    Args:
        volume: The scan.
        normalisation: The run's; a window that begins below 0 means that it was trained on CT.
    """
    if isinstance(volume, Picture):
        return ()
    ct = normalisation.kind.startswith("window") and normalisation.low < 0
    found = (
        *check_grid(volume.name, measure_grid(volume.geometry)),
        *check_scan(volume.name, measure_scan(volume), ct or None),
    )
    return tuple(
        replace(one, level=WARNING, fix=_FIXES.get(one.code, _OTHER_SCANS)) for one in found
    )
