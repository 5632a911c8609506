"""Every case predicted with several noise seeds: what `stability` and its sweep both do.

Of a case three things are kept while its runs pass by: how many of them call each voxel foreground
(a byte a voxel), their probabilities on disk, and each run's Dice. Nothing grows with the number of
runs but that file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.config import SampleConfig
from sdseg_cli.core.disk_buffer import DiskBuffer
from sdseg_cli.core.errors import ConfigError, DataError
from sdseg_cli.data.manifest import PreparedCase
from sdseg_cli.evaluation.case_panels import map_panel_of
from sdseg_cli.evaluation.evaluation_split import CaseProgress, EvaluationSplit, open_held_out
from sdseg_cli.evaluation.lpips_weights import FoundLpips, find_lpips
from sdseg_cli.evaluation.stability_picture import StabilityPlane
from sdseg_cli.evaluation.stability_scores import Comparison, StabilityReport
from sdseg_cli.imaging.io.files import write_probability
from sdseg_cli.imaging.io.picture import Picture
from sdseg_cli.imaging.volume import Planes, Volume
from sdseg_cli.metrics.agreement import Flips, disagreement_of_counts
from sdseg_cli.metrics.overlap import dice
from sdseg_cli.metrics.pairwise_similarity import Measured, Pair, compare
from sdseg_cli.model.store import WeightStore
from sdseg_cli.report.panels import CasePanel

if TYPE_CHECKING:
    from sdseg_cli.inference.predictor import Prediction, Predictor

CHUNK_PLANES = 64
"""Planes of all runs together that are compared at a time: 16 MB."""


@dataclass(frozen=True)
class Conditions:
    """What stays the same in all trials: cases, seeds and measures."""

    held: EvaluationSplit
    seeds: tuple[int, ...]
    """One per run."""
    lpips: FoundLpips
    device: str
    """Where torch measures: "cpu" or "cuda"."""

    @property
    def folder(self) -> Path:
        """Where the reports go."""
        return self.held.run.report / self.held.split

    @property
    def dataset(self) -> str:
        """Name of the prepared set."""
        return self.held.manifest.name

    def sampling(self, sample: SampleConfig | None) -> SampleConfig:
        """How to sample; None is the run's setting.

        Raises:
            ConfigError: There would be no noise, so that nothing could vary.
        """
        sample = sample or self.held.run.config().sample
        if sample.noise == "zero":
            raise ConfigError(
                f"{self.held.run.path}: predicts without noise (sample.noise is zero), so nothing "
                "can vary.",
                "Choose a run that draws its noise.",
            )
        return sample


def open_conditions(
    run: Path | None,
    workspace: Path,
    *,
    runs: int,
    split: str,
    seed: int,
    device: str,
    batch_size: int | None,
    decoder: str,
    lpips_backbone: Path | None,
    lpips_linear: Path | None,
    predictor: Predictor | None,
) -> Conditions:
    """Check the options and load the model; see `stability` for the arguments and errors."""
    if runs < 2:
        raise ConfigError(
            f"--runs is {runs}: there is nothing to compare.", "Give at least 2, for example 5."
        )
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
    lpips = find_lpips(lpips_backbone, lpips_linear, WeightStore.default(), device=torch_device)
    return Conditions(held, tuple(range(seed, seed + runs)), lpips, torch_device)


@dataclass
class Trial:
    """One way of sampling, tried on every case; what gathers meanwhile."""

    under: Conditions
    sample: SampleConfig
    pairs: tuple[Pair, ...]
    """Runs that are compared, from 0."""
    maps_folder: Path | None = None
    """Where each voxel's disagreement is written; None writes none."""
    comparisons: list[Comparison] = field(default_factory=list)
    dice: dict[str, tuple[float, ...]] = field(default_factory=dict)
    flips: dict[str, Flips] = field(default_factory=dict)
    maps: list[Path] = field(default_factory=list)
    panels: list[CasePanel] = field(default_factory=list)
    """Of the maps, one slice of each case."""
    timed: list[tuple[float, int]] = field(default_factory=list)
    """Seconds and slices of each prediction, in order."""
    shown: StabilityPlane | None = None
    """The least stable slice of the least stable case so far."""
    shown_share: float = -1.0

    @classmethod
    def of_all_pairs(cls, under: Conditions, sample: SampleConfig, maps_folder: Path) -> Trial:
        """Every run against every other; maps are written."""
        pairs = tuple(combinations(range(len(under.seeds)), 2))
        return cls(under, sample, pairs, maps_folder)

    @classmethod
    def of_first_vs_rest(cls, under: Conditions, sample: SampleConfig) -> Trial:
        """As the paper compares, and no more."""
        return cls(under, sample, tuple((0, other) for other in range(1, len(under.seeds))))

    def add(self, case: PreparedCase, count: CaseProgress) -> None:
        """Predict a case with every seed, and take in what its runs say."""
        held, runs = self.under.held, len(self.under.seeds)
        scan, reference = held.read(case)
        planes = held.reference_planes(case)
        votes = np.zeros(reference.shape, np.min_scalar_type(runs), "F")
        scores: list[float | None] = []
        with DiskBuffer(held.run.path) as kept:
            for seed in self.under.seeds:
                prediction = self._predict(case, scan, planes.shape, seed, count)
                mask = prediction.mask()
                votes += mask
                scores.append(dice(mask != 0, reference))
                kept.add(prediction.probability)
            self._compare(case, kept, np.any(planes, axis=(1, 2)))
            by_slice = self._count(case, prediction.restore.planes, votes)
            k = _slice_to_show(by_slice, planes)
            self._show(case, kept, planes, k)
        if reference.any():
            self.dice[case.id] = tuple(score for score in scores if score is not None)
        if self.maps_folder is not None:
            suffix = ".png" if isinstance(scan, Picture) else ".nii.gz"
            path = self.maps_folder / f"{case.id}{suffix}"
            write_probability(path, disagreement_of_counts(votes, runs), scan)
            self.maps.append(path)
            self.panels.append(map_panel_of(held, case, scan, reference, votes, runs, k))

    def _predict(
        self,
        case: PreparedCase,
        scan: Volume,
        shape: tuple[int, ...],
        seed: int,
        count: CaseProgress,
    ) -> Prediction:
        prediction = self.under.held.predictor.predict(
            scan, case_id=case.id, seed=seed, sample=self.sample, progress=count.of(case)
        )
        count.finish(case)
        found = prediction.probability.shape
        if found != shape:
            raise DataError(
                f"case {case.id}: prepared as {shape}, now {found}.",
                "The scan was changed: run the same `sdseg prepare` command again.",
            )
        self.timed.append((prediction.seconds, len(prediction.probability)))
        return prediction

    def _compare(self, case: PreparedCase, kept: DiskBuffer, filled: NDArray[np.bool_]) -> None:
        """Slice n of a run with slice n of another, a few slices of all runs at a time."""
        parts: dict[Pair, list[Measured]] = {pair: [] for pair in self.pairs}
        size = max(1, CHUNK_PLANES // kept.count)
        for start in range(0, len(filled), size):
            stop = min(start + size, len(filled))
            if self.under.lpips.measure is None and not filled[start:stop].any():
                continue
            found = compare(
                kept.part(start, stop),
                self.pairs,
                filled[start:stop],
                lpips=self.under.lpips.measure,
                device=self.under.device,
            )
            for pair, measured in found.items():
                parts[pair].append(measured)
        for (first, other), measured_parts in parts.items():
            values = {
                key: np.concatenate([part[key] for part in measured_parts])
                for key in (measured_parts[0] if measured_parts else ())
            }
            self.comparisons.append(Comparison(case.id, first + 1, other + 1, values))

    def _count(
        self, case: PreparedCase, planes: Planes, votes: NDArray[np.unsignedinteger]
    ) -> list[Flips]:
        """The voxels that flip, slice by slice; their sum is the case's."""
        runs = len(self.under.seeds)
        by_slice = [Flips.of_counts(plane, runs) for plane in planes.stacked(votes)]
        self.flips[case.id] = sum(by_slice, Flips())
        return by_slice

    def _show(
        self,
        case: PreparedCase,
        kept: DiskBuffer,
        reference: NDArray[np.bool_],
        k: int,
    ) -> None:
        """Keep slice k of this case if it is the least stable case yet."""
        whole = self.flips[case.id]
        share = whole.of_foreground or 0.0
        if share <= self.shown_share or not (whole.ever or reference.any()):
            return
        image = self.under.held.image_plane(case, k)
        views = kept.part(k, k + 1)[:, 0]
        self.shown_share = share
        self.shown = StabilityPlane(case.id, k, image, reference[k], views)

    def run(self, count: CaseProgress) -> StabilityReport:
        """Go through all cases and sum up; no report file is written yet."""
        for case in self.under.held.cases:
            self.add(case, count)
        return StabilityReport(
            run=self.under.held.run.path,
            split=self.under.held.split,
            seeds=self.under.seeds,
            sample=self.sample,
            decoder=self.under.held.predictor.decoder,
            comparisons=tuple(self.comparisons),
            dice=self.dice,
            flips=self.flips,
            missing_lpips=self.under.lpips.missing,
            maps=tuple(self.maps),
        )

    @property
    def seconds_per_slice(self) -> float | None:
        """Of prediction alone, without the very first one, which also warms up."""
        seconds, slices = (sum(part) for part in zip(*self.timed[1:], strict=True))
        return seconds / slices if slices else None


def _slice_to_show(by_slice: list[Flips], reference: NDArray[np.bool_]) -> int:
    """Where most voxels flip; where none does, the largest reference."""
    weights = [flips.flipped for flips in by_slice]
    if not any(weights):
        weights = [int(np.count_nonzero(plane)) for plane in reference]
    return int(np.argmax(weights))
