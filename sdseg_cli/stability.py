"""How much the result depends on the noise: M seeded runs over the same cases.

The first run is compared with each of the others, on *Seg* (the mask, 0 or 255) and on *Score* (the
probability, 0..255), both on the model's 256 x 256 planes:

    PSNR, SSIM, MS-SSIM   slice by slice, slices with a non-empty reference, averaged over all pairs
    LPIPS                 over all slices, averaged; needs weights that do not come with sdseg
    Dice                  per run the mean over cases on the scan's own grid; its spread over runs
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.config import THRESHOLD, SampleConfig
from sdseg_cli.datasets.manifest import PreparedCase
from sdseg_cli.errors import ConfigError, DataError
from sdseg_cli.held_out import CaseProgress, HeldOut, open_held_out
from sdseg_cli.metrics.lpips import Lpips
from sdseg_cli.metrics.segmentation import dice
from sdseg_cli.metrics.similarity import DATA_RANGE, ms_ssim, psnr, ssim
from sdseg_cli.progress import Progress, silent
from sdseg_cli.report.stability_picture import StabilityPlane, stability_picture
from sdseg_cli.report.stability_scores import (
    MAPS,
    Comparison,
    Map,
    StabilityReport,
    Values,
    finite_mean,
)

if TYPE_CHECKING:
    from sdseg_cli.predict import Predictor

_CHUNK = 32  # slices compared at once

Planes = NDArray[np.float32]
Measure = Callable[[NDArray[np.generic], NDArray[np.generic]], Values]


def stability(
    run: Path | None,
    workspace: Path,
    *,
    runs: int = 5,
    split: str = "test",
    seed: int = 0,
    sample: SampleConfig | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    decoder: str = "auto",
    lpips_backbone: Path | None = None,
    lpips_linear: Path | None = None,
    predictor: Predictor | None = None,
    progress: Progress = silent,
) -> StabilityReport:
    """Predict every case of a split several times and measure how far the results part.

    Args:
        run: The run folder; None for the newest finished run of the workspace.
        workspace: Folder that holds `prepared/` and `runs/`.
        runs: How often each case is predicted, at least 2; run m starts from seed + m - 1.
        split: "train", "val" or "test".
        seed: Of the first run's noise.
        sample: Reverse steps and samples; None is the run's setting.
        device: "auto", "cpu", "cuda" or "mps".
        batch_size: Slices at a time; None for what suits the device.
        decoder: As `Predictor`.
        lpips_backbone: ImageNet AlexNet in torchvision's names, .pth or .safetensors.
        lpips_linear: LPIPS v0.1 heads for AlexNet, likewise.
        predictor: The run's model if it is loaded already.
        progress: Told in slices.

    Returns:
        The averages and the files: report/stability.csv, stability.json and stability.png.

    Raises:
        ConfigError: Fewer than 2 runs, one LPIPS file without the other, or no such run or split.
        DataError: A scan, label or prepared array is missing or damaged.
        WeightsError: The checkpoint or a file of LPIPS is missing or damaged.
        RunError: The disk refused.
    """
    if runs < 2:
        raise ConfigError(
            f"--runs is {runs}: there is nothing to compare.", "Give at least 2, for example 5."
        )
    if (lpips_backbone is None) != (lpips_linear is None):
        raise ConfigError("LPIPS needs two files, one is absent.", "Give both, or neither.")
    held = open_held_out(
        run,
        workspace,
        split,
        device=device,
        batch_size=batch_size,
        decoder=decoder,
        predictor=predictor,
    )
    torch_device = "cuda" if held.predictor.device.type == "cuda" else "cpu"
    lpips = None
    if lpips_backbone is not None and lpips_linear is not None:
        lpips = Lpips.load(lpips_backbone, lpips_linear, device=torch_device)
    seeds = tuple(range(seed, seed + runs))
    sample = sample or held.run.config().sample
    if sample.noise == "zero":
        raise ConfigError(
            f"{held.run.path}: predicts without noise (sample.noise is zero), so nothing can vary.",
            "Choose a run that draws its noise.",
        )
    trial = _Trial(held, seeds, sample, torch_device, lpips)
    count = CaseProgress(held.cases, progress, repeats=runs)
    for case in held.cases:
        trial.add(case, count)
    return trial.finish()


@dataclass
class _Trial:
    """What gathers while the cases pass by, one at a time: numbers, and one slice to show."""

    held: HeldOut
    seeds: tuple[int, ...]
    sample: SampleConfig
    device: str
    lpips: Lpips | None
    comparisons: list[Comparison] = field(default_factory=list)
    dice: dict[str, tuple[float, ...]] = field(default_factory=dict)
    shown: StabilityPlane | None = None
    """The slice of the case that is least stable so far."""
    shown_ssim: float = np.inf

    def add(self, case: PreparedCase, count: CaseProgress) -> None:
        """Predict a case with every seed; no more than two of its results are held at once."""
        scan, reference = self.held.read(case)
        planes = self.held.reference_planes(case)
        areas = np.count_nonzero(planes, axis=(1, 2))
        slices, shown = np.flatnonzero(areas), int(np.argmax(areas))
        first: Planes | None = None
        scores: list[float | None] = []
        views: list[Planes] = []
        compared: list[Comparison] = []
        for number, seed in enumerate(self.seeds, start=1):
            prediction = self.held.predictor.predict(
                scan, case_id=case.id, seed=seed, sample=self.sample, progress=count.of(case)
            )
            count.finish(case)
            probability = prediction.probability
            if probability.shape != planes.shape:
                raise DataError(
                    f"case {case.id}: prepared as {planes.shape}, now {probability.shape}.",
                    "The scan was changed: run the same `sdseg prepare` command again.",
                )
            scores.append(dice(prediction.mask() != 0, reference))
            views.append(probability[shown].copy())
            if first is None:
                first = probability
            else:
                values = self._compare(first, probability, slices)
                compared.append(Comparison(case.id, number, values))
        if reference.any():
            self.dice[case.id] = tuple(score for score in scores if score is not None)
        self.comparisons += compared
        likeness = finite_mean([c.values["seg", "ssim"] for c in compared])
        if likeness is not None and likeness < self.shown_ssim:
            self.shown_ssim = likeness
            image = self.held.image_plane(case, shown)
            self.shown = StabilityPlane(case.id, shown, image, planes[shown], np.stack(views))

    def _compare(
        self, first: Planes, other: Planes, slices: NDArray[np.intp]
    ) -> dict[tuple[Map, str], Values]:
        """Every metric of both maps; `slices` are those with a reference, LPIPS takes them all."""
        instance: dict[str, Measure] = {
            "psnr": psnr,
            "ssim": partial(ssim, device=self.device),
            "ms_ssim": partial(ms_ssim, device=self.device),
        }
        dataset: dict[str, Measure] = {} if self.lpips is None else {"lpips": self.lpips}
        every = np.arange(len(first))
        values: dict[tuple[Map, str], Values] = {}
        for name in MAPS:
            for chosen, metrics in ((slices, instance), (every, dataset)):
                measured = _measure(name, first, other, chosen, metrics)
                values |= {(name, metric): found for metric, found in measured.items()}
        return values

    def finish(self) -> StabilityReport:
        """Sum up, write the files."""
        folder = self.held.run.report / self.held.split
        report = StabilityReport(
            run=self.held.run.path,
            split=self.held.split,
            seeds=self.seeds,
            sample=self.sample,
            comparisons=tuple(self.comparisons),
            dice=self.dice,
        )
        files = [*report.write(folder)]
        if self.shown is not None:
            files.append(folder / "stability.png")
            stability_picture(files[-1], self.shown, self.dice)
        return replace(report, files=tuple(files))


def _measure(
    name: Map,
    first: Planes,
    other: Planes,
    chosen: NDArray[np.intp],
    metrics: Mapping[str, Measure],
) -> dict[str, Values]:
    """Metric -> one value for each chosen slice; a chunk of grey planes at a time."""
    parts: dict[str, list[Values]] = {metric: [np.empty(0)] for metric in metrics}
    for start in range(0, len(chosen), _CHUNK):
        part = chosen[start : start + _CHUNK]
        pair = grey(name, first[part]), grey(name, other[part])
        for metric, measure in metrics.items():
            parts[metric].append(measure(*pair))
    return {metric: np.concatenate(found) for metric, found in parts.items()}


def grey(name: Map, probability: Planes) -> Planes:
    """A map as grey values: "seg" 0 or 255, "score" 0..255; shape as given, float32."""
    values = probability > THRESHOLD if name == "seg" else probability
    return values.astype(np.float32) * np.float32(DATA_RANGE)
