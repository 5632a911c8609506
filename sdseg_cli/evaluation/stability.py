"""How much the result depends on the noise: M seeded runs over the same cases.

Runs are compared on *Seg* (the mask, 0 or 255) and on *Score* (the probability, 0..255), both on
the model's 256 x 256 planes, slice n of a case with slice n of the same case:

    PSNR, SSIM, MS-SSIM   slices with a non-empty reference, averaged over all pairs
    LPIPS                 over all slices, averaged; needs weights that do not come with sdseg

once as the paper does, the first run with each of the others, and once every run with every other.
Beyond the paper, on the scan's own grid:

    Dice                  per run the mean over cases, and its spread over runs; per case likewise
    flipped               the voxels on which not all runs agree, counted and drawn as a map

Of a case three things are kept while its runs pass by: how many of them call each voxel foreground
(a byte a voxel), their probabilities on disk, and each run's Dice. Nothing grows with the number of
runs but that file.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sdseg_cli.core.config import SampleConfig
from sdseg_cli.core.disk_buffer import DiskBuffer
from sdseg_cli.core.errors import ConfigError, WeightsError
from sdseg_cli.core.files import replacing_folder
from sdseg_cli.core.progress import Progress, no_op
from sdseg_cli.data.manifest import PreparedCase
from sdseg_cli.evaluation.evaluation_split import (
    CaseProgress,
    EvaluationSplit,
    SplitOptions,
    drawn_classes,
    open_held_out,
    place,
    prepared_otherwise,
)
from sdseg_cli.evaluation.page import Results, write_report
from sdseg_cli.evaluation.stability_results import (
    Comparison,
    StabilityReport,
    table5_rows,
    write_table5,
)
from sdseg_cli.imaging.io.files import write_probability
from sdseg_cli.imaging.io.picture import Picture
from sdseg_cli.imaging.slices import SliceTransform
from sdseg_cli.imaging.volume import Planes, Volume
from sdseg_cli.metrics.agreement import Flips, disagreement_of_counts, disagreement_of_labels
from sdseg_cli.metrics.lpips import BACKBONE, HEADS, Lpips
from sdseg_cli.metrics.mask_metrics import MaskPair, dice
from sdseg_cli.metrics.similarity import Measured, Pair, compare
from sdseg_cli.model.pretrained import recognise
from sdseg_cli.model.tensor_files import read_tensors
from sdseg_cli.model.weights import WeightStore
from sdseg_cli.report.panels import MAP_FILE, CasePanel, map_panel, save_panels
from sdseg_cli.report.pictures import ClassRuns, StabilityPlane, stability_picture

if TYPE_CHECKING:
    from sdseg_cli.inference.predictor import Prediction


@dataclass(frozen=True)
class StabilityOptions:
    """Number of runs, sampling, and the weights of LPIPS.

    Attributes:
        runs: How often each case is predicted, at least 2; run m starts from seed + m - 1.
        lpips_backbone: ImageNet AlexNet in torchvision's names; None for that of the weight store.
        lpips_linear: LPIPS v0.1 heads for AlexNet; None for those of the weight store.
    """

    runs: int = 5
    lpips_backbone: Path | None = None
    lpips_linear: Path | None = None


def stability(
    run: Path | None,
    workspace: Path,
    *,
    options: StabilityOptions | None = None,
    cases: SplitOptions | None = None,
    sample: SampleConfig | None = None,
    command: str = "",
    progress: Progress = no_op,
) -> StabilityReport:
    """Predict every case of a split several times and measure how far the results part.

    Args:
        run: The run folder; None for the newest finished run of the workspace.
        workspace: Folder that holds `prepared/` and `runs/`.
        options: How many runs, and the weights they are measured with.
        cases: Which split, and how its cases are predicted.
        sample: Reverse steps and samples; None is the run's setting.
        command: What was typed, for the report.
        progress: Called with the slices done.

    Returns:
        The averages and the files: report/<split>/stability.csv, stability_cases.csv,
        stability.json, stability.png, table5.csv, table5.tex, report.html and
        instability/<case>.nii.gz.

    Raises:
        ConfigError: Fewer than 2 runs, one LPIPS file without the other, or no such run or split.
        DataError: A scan, label or prepared array is missing or damaged.
        WeightsError: The checkpoint or a file of LPIPS is missing or damaged.
        RunError: The network answers with NaN, or the disk refused.
    """
    under = open_conditions(run, workspace, options, cases)
    folder = under.folder / "instability"
    with replacing_folder(folder) as maps_folder:
        trial = Trial.of_all_pairs(under, under.sampling(sample), maps_folder)
        report = trial.run(CaseProgress(under.held.cases, progress, repeats=len(under.seeds)))
    report = replace(
        report,
        maps=tuple(folder / path.relative_to(maps_folder) for path in report.maps),
        table5=tuple(row.to_json() for row in table5_rows(report, under.dataset)),
        provenance=under.held.provenance(command),
    )
    files = [*report.write(under.folder), *write_table5(under.folder, report, under.dataset)]
    picture = under.folder / "stability.png"
    if trial.shown is None:  # one of a former call would be shown as of this one
        picture.unlink(missing_ok=True)
    else:
        files.append(picture)
        stability_picture(picture, trial.shown, report.dice)
    save_panels(under.folder, trial.panels, MAP_FILE)
    results = Results(stability=report.to_json(), maps=trial.panels)
    page = write_report(
        under.folder, results, title=under.held.title, config=under.held.config_text
    )
    return replace(report, files=(*files, page, *report.maps))


CHUNK_PLANES = 64
"""Planes of all runs together that are compared at a time: 16 MB."""


@dataclass(frozen=True)
class Conditions:
    """The cases, seeds and measures shared by all trials."""

    held: EvaluationSplit
    seeds: tuple[int, ...]
    """One per run."""
    lpips: FoundLpips
    device: str
    """Where torch measures: "cpu" or "cuda"."""

    @property
    def folder(self) -> Path:
        """Folder of the reports."""
        return self.held.run.report / self.held.split

    @property
    def dataset(self) -> str:
        """Name of the prepared set."""
        return self.held.manifest.name

    def sampling(self, sample: SampleConfig | None) -> SampleConfig:
        """Sampling; None is the run's setting.

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
    options: StabilityOptions | None = None,
    cases: SplitOptions | None = None,
) -> Conditions:
    """Check the options and load the model; see `stability` for the arguments and errors."""
    options, cases = options or StabilityOptions(), cases or SplitOptions()
    if options.runs < 2:
        raise ConfigError(
            f"--runs is {options.runs}: there is nothing to compare.",
            "Give at least 2, for example 5.",
        )
    held = open_held_out(run, workspace, cases)
    device = "cuda" if held.predictor.device.type == "cuda" else "cpu"
    lpips = find_lpips(
        options.lpips_backbone, options.lpips_linear, WeightStore.default(), device=device
    )
    seeds = tuple(range(cases.seed, cases.seed + options.runs))
    return Conditions(held, seeds, lpips, device)


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
    class_dice: dict[str, dict[str, tuple[float, ...]]] = field(default_factory=dict)
    class_flips: dict[str, Flips] = field(default_factory=dict)
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
        """Pairs as the paper compares them: the first run with each other."""
        return cls(under, sample, tuple((0, other) for other in range(1, len(under.seeds))))

    def add(self, case: PreparedCase, count: CaseProgress) -> None:
        """Predict a case with every seed, and take in what its runs say."""
        held, runs = self.under.held, len(self.under.seeds)
        scan, labels = held.read_labels(case)
        reference, rule = held.manifest.is_foreground(labels), held.manifest.classes
        ignored = None if rule.ignore is None else labels == rule.ignore
        planes = held.reference_planes(case)
        votes = np.zeros(reference.shape, np.min_scalar_type(runs), "F")
        scores: list[float | None] = []
        folder = held.run.path
        with (
            DiskBuffer(folder) as kept,
            DiskBuffer(folder, rule.held_type) as classes,
            DiskBuffer(folder, rule.held_type) as class_planes,
        ):
            for seed in self.under.seeds:
                prediction = self._predict(case, scan, planes.shape, seed, count)
                found = prediction.held()
                if ignored is not None:
                    found[ignored] = 0
                mask = found != 0
                votes += mask
                scores.append(dice(MaskPair(mask, reference, None)))
                if len(rule) > 1:
                    self._score_classes(case, found, labels)
                    classes.add(prediction.restore.planes.stacked(found))
                    class_planes.add(prediction.held_planes())
                kept.add(prediction.probability)
            self._compare(case, kept, np.any(planes, axis=(1, 2)))
            grid = prediction.restore.planes
            by_slice = self._count(case, grid, votes)
            if len(rule) > 1:
                disagreement = np.zeros(votes.shape, np.uint8, "F")
                self._count_classes(classes, grid.stacked(disagreement))
            else:
                disagreement = disagreement_of_counts(votes, runs)
            k = _slice_to_show(by_slice, planes)
            self._show(case, kept, planes, prediction.restore, k, class_planes)
            several = classes.part(k, k + 1)[:, 0] if len(rule) > 1 else None
        if reference.any():
            self.dice[case.id] = tuple(score for score in scores if score is not None)
        if self.maps_folder is not None:
            suffix = ".png" if isinstance(scan, Picture) else ".nii.gz"
            path = self.maps_folder / f"{case.id}{suffix}"
            write_probability(path, disagreement, scan)
            self.maps.append(path)
            self.panels.append(self._map_panel(case, scan, labels, votes, k, several))

    def _score_classes(self, case: PreparedCase, found: NDArray[Any], labels: NDArray[Any]) -> None:
        """The Dice of each class in one more run; none where its reference is empty."""
        rule, drawn = self.under.held.manifest.classes, drawn_classes(case)
        for number, each in enumerate(rule.each()):
            (name,) = each.names
            of_cases = self.class_dice.setdefault(name, {})
            reference = each.foreground(labels)
            if reference.any() and (drawn is None or name in drawn):
                score = dice(MaskPair(rule.mask_of(found, number), reference, None)) or 0.0
                of_cases[case.id] = (*of_cases.get(case.id, ()), score)

    def _count_classes(self, classes: DiskBuffer, disagreement: NDArray[np.uint8]) -> None:
        """The voxels of each class that flip, a slice of all runs at a time, and how far these
        differ there, which is written into planes (S,rows,columns).
        """
        rule, runs = self.under.held.manifest.classes, len(self.under.seeds)
        for k, plane in enumerate(disagreement):
            held = classes.part(k, k + 1)[:, 0]
            plane[:] = disagreement_of_labels(held)
            for number, name in enumerate(rule.names):
                counts = np.count_nonzero(rule.mask_of(held, number), axis=0)
                so_far = self.class_flips.get(name, Flips())
                self.class_flips[name] = so_far + Flips.of_counts(counts, runs)

    def _map_panel(
        self,
        case: PreparedCase,
        scan: Volume,
        labels: NDArray[Any],
        votes: NDArray[np.unsignedinteger],
        k: int,
        several: NDArray[Any] | None,
    ) -> CasePanel:
        """Slice k with the disagreement of its runs; labels and votes (I,J,K).

        Of several classes (runs,rows,columns) as `ClassRule.hold` says them: each is outlined, and
        runs disagree also where they say different classes.
        """
        restore, runs = SliceTransform.of(scan.geometry), len(self.under.seeds)
        rule = self.under.held.manifest.classes
        plane = np.asarray(restore.canonical_plane(votes, k))
        shown = np.asarray(restore.canonical_plane(labels, k))
        reference, majority = (
            self.under.held.manifest.is_foreground(shown),
            2 * plane.astype(np.int64) > runs,
        )
        disagreement = disagreement_of_counts(plane, runs)
        if several is not None:
            counts = (np.count_nonzero(rule.mask_of(several, n), axis=0) for n in range(len(rule)))
            reference, majority = rule.masks(shown), np.stack([2 * one > runs for one in counts])
            disagreement = disagreement_of_labels(several)
        where = place(restore, k)
        return map_panel(
            case.id,
            f"{where}, where {runs} runs disagree most" if where else f"where {runs} runs disagree",
            scan.values(restore.canonical_plane(scan.array, k)),
            reference,
            majority,
            disagreement,
            *self.under.held.looks(scan, restore),
        )

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
            raise prepared_otherwise(case, shape, found)
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
        restore: SliceTransform,
        k: int,
        class_planes: DiskBuffer,
    ) -> None:
        """Keep slice k of this case if it is the least stable case yet."""
        whole = self.flips[case.id]
        share = whole.of_foreground or 0.0
        if share <= self.shown_share or not (whole.ever or reference.any()):
            return
        image = self.under.held.image_plane(case, k)
        views = kept.part(k, k + 1)[:, 0]
        self.shown_share = share
        height_mm, width_mm, _ = restore.planes.spacing_mm
        scale = float(restore.boxes[k, 2]) / restore.size
        pixel_mm = None if image.ndim == 3 else (scale * height_mm, scale * width_mm)
        rule, classes = self.under.held.manifest.classes, []
        if len(rule) > 1:
            found = class_planes.part(k, k + 1)[:, 0]
            masks = rule.masks(np.asarray(self.under.held.label_planes(case)[k]))
            classes = [
                ClassRuns(n + 1, name, masks[n], rule.mask_of(found, n))
                for n, name in enumerate(rule.names)
            ]
        self.shown = StabilityPlane(
            case.id, k, image, reference[k], views, pixel_mm, tuple(classes)
        )

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
            run_threshold=self.under.held.predictor.run_threshold,
            comparisons=tuple(self.comparisons),
            dice=self.dice,
            flips=self.flips,
            class_dice=self.class_dice,
            class_flips=self.class_flips,
            missing_lpips=self.under.lpips.missing,
            maps=tuple(self.maps),
        )

    @property
    def seconds_per_slice(self) -> float | None:
        """Seconds of prediction alone, without the first one, which also warms up."""
        seconds, slices = (sum(part) for part in zip(*self.timed[1:], strict=True))
        return seconds / slices if slices else None


def _slice_to_show(by_slice: list[Flips], reference: NDArray[np.bool_]) -> int:
    """The slice with most unstable voxels; without any, of the largest reference."""
    weights = [flips.flipped for flips in by_slice]
    if not any(weights):
        weights = [int(np.count_nonzero(plane)) for plane in reference]
    return int(np.argmax(weights))


_LPIPS_OPTIONS = {BACKBONE: "--lpips-backbone", HEADS: "--lpips-linear"}


@dataclass(frozen=True)
class FoundLpips:
    """The measure, or what it lacks."""

    measure: Lpips | None
    missing: tuple[str, ...] = ()
    """Names that `sdseg weights fetch` knows."""


def find_lpips(
    backbone: Path | None, heads: Path | None, store: WeightStore, *, device: str = "cpu"
) -> FoundLpips:
    """Load LPIPS.

    Args:
        backbone: The ImageNet AlexNet in torchvision's names; None for that of the store.
        heads: The LPIPS v0.1 heads for AlexNet; None for those of the store.
        store: Where weights are kept.
        device: Where torch computes.

    Raises:
        ConfigError: One file is given, and the other is neither given nor in the store.
        WeightsError: Weights are missing, damaged or of another kind.
    """
    given = {BACKBONE: backbone, HEADS: heads}
    found = {kind: _lpips_weights(kind, path, store) for kind, path in given.items()}
    missing = tuple(kind for kind, tensors in found.items() if tensors is None)
    if missing and any(given.values()):
        raise ConfigError(
            "LPIPS needs two files, one is absent.",
            f"Give {_LPIPS_OPTIONS[missing[0]]} as well, or run sdseg weights fetch {missing[0]}.",
        )
    alexnet, linear = found[BACKBONE], found[HEADS]
    if alexnet is None or linear is None:
        return FoundLpips(None, missing)
    return FoundLpips(Lpips.of(alexnet, linear, device=device))


def _lpips_weights(kind: str, path: Path | None, store: WeightStore) -> dict[str, Tensor] | None:
    if path is None:
        entry = store.of_kind(kind)
        return None if entry is None else store.load(entry)
    source = recognise(read_tensors(path), source=str(path))
    if source.kind != kind:
        raise WeightsError(
            f"{path}: weights of kind {source.kind}, not {kind}.",
            f"Check what {_LPIPS_OPTIONS[kind]} names.",
        )
    return source.tensors
