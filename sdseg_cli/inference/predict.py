"""One scan file -> its mask file, and on request what else is known: what `sdseg predict` does.

The scan is held at its stored type, with one byte per voxel for each map that is asked for;
besides, as much as a batch takes, and what some formats' writers copy. Nothing else grows with the
scan, so its header says whether it fits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.config import SampleConfig
from sdseg_cli.core.errors import RunError
from sdseg_cli.core.filenames import NIFTI_SUFFIXES, is_picture, printable, suffix_of
from sdseg_cli.core.files import replacing
from sdseg_cli.core.findings import WARNING, Finding
from sdseg_cli.core.processes import available_bytes, largest_that_fits
from sdseg_cli.core.progress import Progress, no_op
from sdseg_cli.data.checks import check_grid, check_scan
from sdseg_cli.data.spec import ClassRule
from sdseg_cli.imaging.intensity import Limits, Normalisation
from sdseg_cli.imaging.io.files import read_image, write_mask, write_probability
from sdseg_cli.imaging.io.picture import Picture
from sdseg_cli.imaging.measure import measure_grid, measure_scan
from sdseg_cli.imaging.postprocess import PostProcess
from sdseg_cli.imaging.slices import SliceTransform
from sdseg_cli.imaging.volume import Array, Geometry, Planes, Segment, Volume
from sdseg_cli.inference.engine import give_memory_back
from sdseg_cli.inference.options import OutputPaths, PredictOptions, drawn_often
from sdseg_cli.inference.predictor import Predictor, decided_plane, segments_of
from sdseg_cli.metrics.agreement import (
    Agreement,
    LabelTally,
    Tally,
    disagreement,
    disagreement_of_labels,
)

Batches = Iterator[tuple[int, NDArray[np.float32]]]
"""Number of the first slice, and probabilities (n,K,256,256), or (n,draws,K,256,256)."""

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

PREVIEW_BYTES = 150_000_000
"""Drawing: its library, and twelve slices of a large scan."""
SLICE_BYTES_PER_PIXEL = 24
"""A slice on its way to the model's plane and back, most of it float32."""
GB = 1e9


@dataclass(frozen=True)
class PredictReport:
    """The files that `predict_file` wrote, and what is in them."""

    outputs: OutputPaths
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
    stability: Agreement | None = None
    """How far the masks of several noise draws agree, where they were compared."""
    warnings: tuple[Finding, ...] = ()
    run_threshold: float | None = None
    """The threshold that the run's validation chose, which 0.5 in what is written stands for."""
    classes: tuple[dict[str, Any], ...] = ()
    """Name, value, voxels and ml of each class, where there are several. Where classes overlap, the
    voxels of each by itself, also those that show another class in the label map."""
    runs: tuple[Path, ...] = ()
    """Of an ensemble all its members."""

    def to_json(self) -> dict[str, Any]:
        """The object of `--json`."""
        values: dict[str, Any] = {
            "output": str(self.outputs.mask),
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
        values |= {option: str(path) for option, path in self.outputs.beside.items()}
        if self.stability is not None:
            values["stability"] = self.stability.to_json()
        if self.run_threshold is not None:
            values["run_threshold"] = self.run_threshold
        if self.classes:
            values["classes"] = list(self.classes)
        if self.runs:
            values["runs"] = [str(run) for run in self.runs]
        return values


def predict_file(
    scan: Path,
    outputs: OutputPaths,
    predictor: Predictor,
    options: PredictOptions | None = None,
    *,
    progress: Progress = no_op,
) -> PredictReport:
    """Predict one scan file and write its mask, and on request what else is known of it.

    Args:
        scan: The image file, or a DICOM series: its folder, a zip, or one of its files.
        outputs: What to write, on the scan's grid; folders are made, an old file is replaced only
            by a complete one.
        predictor: The trained run.
        options: How it is predicted.
        progress: Called after each batch.

    Raises:
        DataError: The scan cannot be read, or is none of the kind the run was trained on.
        ConfigError: An output's name cannot be written to, or is the scan itself; an option does
            not go with the scan or with another one.
        RunError: It does not fit into the memory that is free, or the disk refused.
    """
    started = time.monotonic()
    options = options or PredictOptions()
    outputs.check_names(scan)
    runs, post = options.number_of_runs(outputs.uncertainty), options.post
    rule = predictor.classes
    sample = options.sample or predictor.config.sample
    if len(rule) > 1:
        sample = predictor.mirror_safe(sample)
    if runs is not None:
        sample = drawn_often(sample, runs)
    give_memory_back()  # so that it counts as free
    guard = MemoryGuard(
        scan.name,
        outputs,
        lambda size: predictor.batch_bytes(runs or 1, size),
        draws=runs or 1,
        batch_size=predictor.batch_size,
        classes=rule,
    )
    post.require_size_known(scan)
    if scan.exists():
        predictor.require_kind(scan.name, picture=is_picture(scan))  # before it is read
    volume = read_image(scan, options.series, guard)
    outputs.check_scan(volume)
    warnings = check_volume(volume, predictor.normalisation)
    stack = predictor.stack(volume)
    maps = OutputArrays(outputs, stack.restore, rule, post.threshold)
    predicted = predictor.planes if runs is None else predictor.draws
    batches = predicted(stack, seed=options.seed, sample=sample, progress=progress)
    stability: Agreement | None = None
    if runs is None:
        _fill(maps, batches)
    else:
        stability = _compare(maps, batches, runs)
    maps.clean(post, volume.spacing_mm)
    maps.write(volume, stack.limits)
    voxels, spacing = int(np.count_nonzero(maps.held)), volume.spacing_mm
    ml = None if spacing is None else float(np.prod(spacing)) / 1000
    return PredictReport(
        outputs=outputs,
        run=predictor.run,
        seed=options.seed,
        slices=len(stack),
        foreground_voxels=voxels,
        foreground_ml=None if spacing is None else voxels * float(np.prod(spacing)) / 1000,
        seconds=time.monotonic() - started,
        sample=sample,
        decoder=predictor.decoder,
        post=post,
        stability=stability,
        warnings=warnings,
        run_threshold=predictor.run_threshold,
        runs=predictor.runs if len(predictor.runs) > 1 else (),
        classes=tuple(
            {
                "name": segment.name,
                "value": segment.value,
                "voxels": count,
                "ml": None if ml is None else round(count * ml, 3),
            }
            for segment, count in zip(segments_of(rule), maps.voxels(), strict=True)
        ),
    )


class OutputArrays:
    """The arrays of the outputs on the scan's grid, filled slice by slice.

    Args:
        outputs: Which arrays there are: one byte a voxel each, four for a float32 probability.
        restore: The way from the model's planes.
        classes: How probabilities become classes, and classes values.
        threshold: A voxel is foreground where its probability is above it.
    """

    def __init__(
        self, outputs: OutputPaths, restore: SliceTransform, classes: ClassRule, threshold: float
    ) -> None:
        self.outputs, self.restore = outputs, restore
        self.classes, self.threshold = classes, threshold
        shape, dtype = restore.planes.stored_shape, np.dtype(outputs.probability_dtype)
        # In the order in which files store voxels, so that writing one makes no turned copy.
        self.held = np.zeros(shape, classes.held_type, "F")
        """The label map; of classes that overlap a bit for each."""
        files = outputs.probabilities(classes.names)
        if outputs.probability is not None and not files:
            files = [outputs.probability]
        self.probabilities = {path: np.zeros(shape, dtype, "F") for path in files}
        self.uncertainty = None if outputs.uncertainty is None else np.zeros(shape, np.uint8, "F")

    def decided(self, planes: NDArray[np.float32], k: int) -> Array:
        """Probabilities of slice k (K,256,256) -> what is held of it, (rows,columns)."""
        return decided_plane(self.classes, planes, self.restore, k, self.threshold)[1]

    def place(self, k: int, planes: NDArray[np.float32]) -> None:
        """Take in slice k: probabilities (K,256,256) in [0,1]."""
        union, held = decided_plane(self.classes, planes, self.restore, k, self.threshold)
        self.restore.place(self.held, held, k)
        shown = [union]
        if self.outputs.probability_per_class:
            shown = [self.restore.to_native(plane, k) for plane in planes]
        for array, share in zip(self.probabilities.values(), shown, strict=False):
            # Halves round down, so that 0.5 itself stays below it: the mask is the map > 0.5.
            shares = array.dtype == np.uint8
            self.restore.place(array, np.ceil(share * 255 - 0.5) if shares else share, k)

    def place_uncertainty(self, k: int, plane: NDArray[np.uint8]) -> None:
        """Take in slice k of the uncertainty, 255 being 1."""
        if self.uncertainty is not None:
            self.restore.place(self.uncertainty, plane, k)

    def clean(self, post: PostProcess, spacing_mm: tuple[float, float, float] | None) -> None:
        """What comes after the threshold, of each class by itself."""
        stacked, count = self.restore.planes.stacked(self.held), len(self.classes)
        if count == 1:
            post.clean(stacked, spacing_mm)
        elif self.classes.overlapping:
            post.clean_regions(stacked, count, spacing_mm)
        else:
            post.clean_classes(stacked, spacing_mm)

    def voxels(self) -> list[int]:
        """The voxels of each class, where there are several; else []."""
        count = len(self.classes)
        if count == 1:
            return []
        found = np.zeros(count, np.int64)
        for k in range(self.held.shape[2]):
            plane = self.held[:, :, k]
            if plane.any():
                masks = (self.classes.mask_of(plane, number) for number in range(count))
                found += [np.count_nonzero(mask) for mask in masks]
        return [int(one) for one in found]

    def write(self, volume: Volume, limits: Limits) -> None:
        """Write all files; none appears before every one of them is complete.

        Raises:
            RunError: The disk refused.
        """
        out, segments = self.outputs, segments_of(self.classes)
        shares = dict(self.probabilities)
        if out.uncertainty is not None and self.uncertainty is not None:
            shares[out.uncertainty] = self.uncertainty
        mask = self.classes.label_map(self.held)
        with ExitStack() as together:
            for path, array in shares.items():
                write_probability(together.enter_context(replacing(path)), array, volume)
            for number, path in enumerate(out.class_masks(self.classes.names)):
                own = self.classes.mask_of(self.held, number).view(np.uint8)
                named = [replace(segments[number], value=1)] if segments else []
                write_mask(together.enter_context(replacing(path)), own, volume, named)
            if out.legend is not None:
                write_legend(together.enter_context(replacing(out.legend)), self.classes)
            if out.preview is not None:
                from sdseg_cli.report.preview import save_preview

                drawn = together.enter_context(replacing(out.preview))
                pairs = zip(self.classes.values, self.classes.names, strict=True)
                names = dict(pairs) if len(self.classes) > 1 else None
                save_preview(drawn, volume, mask, limits, names=names)
            write_mask(together.enter_context(replacing(out.mask)), mask, volume, segments)


def write_legend(path: Path, classes: ClassRule) -> None:
    """Write the label file that ITK-SNAP opens beside a label map: value, colour, name.

    Raises:
        RunError: The disk refused.
    """
    lines = [
        "################################################",
        "# ITK-SnAP Label Description File",
        "# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL",
        "################################################",
        '    0     0    0    0        0  0  0    "Clear Label"',
    ]
    white = Segment(classes.names[0], classes.values[0])
    for one in segments_of(classes) or (white,):
        red, green, blue = one.colour
        name = " ".join(printable(one.name).replace('"', "'").split())
        lines.append(f'{one.value:5d} {red:5d} {green:4d} {blue:4d}        1  1  1    "{name}"')
    with replacing(path) as temporary:
        temporary.write_text("\n".join([*lines, ""]), encoding="utf-8")


def _fill(maps: OutputArrays, batches: Batches) -> None:
    """Bring each probability to the scan's grid."""
    for start, planes in batches:
        for k, plane in enumerate(planes, start):
            if plane.any():  # the maps are zeros to begin with
                maps.place(k, plane)


def _compare(maps: OutputArrays, batches: Batches, runs: int) -> Agreement:
    """Likewise the mean of the draws, and how far the masks of each by itself disagree."""
    rule = maps.classes
    single, several = Tally(runs), LabelTally(runs, len(rule), partial(_masks, rule))
    for start, planes in batches:
        for k, drawn in enumerate(planes, start):
            maps.place(k, sum(drawn) / np.float32(runs))
            votes = np.stack([maps.decided(one, k) for one in drawn])
            if len(rule) == 1:
                masks = votes > 0
                maps.place_uncertainty(k, disagreement(masks))
                single.add(masks)
            else:
                maps.place_uncertainty(k, disagreement_of_labels(votes))
                several.add(votes)
    return (single if len(rule) == 1 else several).agreement()


def _masks(rule: ClassRule, held: Array) -> Iterator[NDArray[np.bool_]]:
    """The mask of each class in what is held of voxels, one at a time."""
    return (rule.mask_of(held, number) for number in range(len(rule)))


def check_volume(volume: Volume, normalisation: Normalisation) -> tuple[Finding, ...]:
    """Warnings about a scan that is to be predicted: nothing here stops the prediction.

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


@dataclass(frozen=True)
class Need:
    """Memory that one prediction takes, in bytes, besides what the process has taken before it."""

    scan: int
    mask: int
    probability: int
    uncertainty: int
    copies: int
    """Of a map, while it is written."""
    preview: int
    batch: int
    """Of slices: their pixels, what the networks hold at once, and the answers."""

    @property
    def total(self) -> int:
        """All of it: the most at any one time, or a little more."""
        return sum(asdict(self).values())

    def __str__(self) -> str:
        parts = (f"{name} {value / GB:.2f}" for name, value in asdict(self).items() if value)
        return ", ".join(parts)


def need_of(
    outputs: OutputPaths,
    geometry: Geometry,
    voxel_bytes: int,
    batch_bytes: int,
    draws: int = 1,
    classes: ClassRule | None = None,
) -> Need:
    """Memory that a prediction takes; see `MemoryGuard` for the arguments."""
    rule = classes or ClassRule()
    voxels, side = math.prod(geometry.shape), max(Planes.of(geometry).shape)
    share = np.dtype(outputs.probability_dtype).itemsize
    share *= len(outputs.probabilities(rule.names)) or 1
    held = rule.held_type.itemsize
    # Of several classes: one of them by itself, where overlapping ones become a label map that too.
    beside = 0 if len(rule) == 1 else 1 + 2 * rule.overlapping
    planes = SLICE_BYTES_PER_PIXEL + 2 * draws
    planes += 0 if len(rule) == 1 else 8 * (len(rule) if rule.overlapping else 2) + 8 * draws
    others = [path for path in (outputs.probability, outputs.uncertainty) if path is not None]
    copied = [_copied_bytes(outputs.mask, held), *(_copied_bytes(path, 4) for path in others)]
    return Need(
        scan=voxels * voxel_bytes,
        mask=voxels * (held + beside),
        probability=voxels * share * (outputs.probability is not None),
        uncertainty=voxels * (outputs.uncertainty is not None),
        copies=voxels * max(copied),
        preview=PREVIEW_BYTES * (outputs.preview is not None),
        batch=batch_bytes + side**2 * planes,
    )


def _copied_bytes(path: Path, held: int) -> int:
    """Per voxel: NIfTI is written plane by plane, the other formats' libraries hold what they write
    (and probabilities as float32, for these formats know no slope).
    """
    return 0 if suffix_of(path) in NIFTI_SUFFIXES else held


def advice(savings: Mapping[str, int], short: int) -> str:
    """What to do where `short` bytes are missing, of options in the order of preference -> bytes
    that each saves.
    """
    enough = [[option] for option, saved in savings.items() if saved >= short]
    together = [option for option, saved in savings.items() if saved > 0]
    if "no --prob" in together and "--prob-dtype uint8" in together:
        together.remove("--prob-dtype uint8")
    if sum(savings[option] for option in together) >= short:
        enough.append(together)
    if not enough:
        return "No option makes it fit: end other programs, or take a machine with more memory."
    return f"It fits with {' and '.join(enough[0])}."


@dataclass(frozen=True)
class MemoryGuard:
    """Refuses a scan that does not fit; an `OnHeader`.

    Attributes:
        name: Of the scan.
        outputs: The files that are written.
        batch_bytes: Memory of a batch, by its size; by None as it is set.
        draws: Masks of a slice that are compared.
        batch_size: As it is set; a scan of fewer slices has a smaller one. None: unknown.
        classes: The run's; None is one class.
    """

    name: str
    outputs: OutputPaths
    batch_bytes: Callable[[int | None], int]
    draws: int = 1
    batch_size: int | None = None
    classes: ClassRule | None = None

    def __call__(self, geometry: Geometry, voxel_bytes: int) -> None:
        """Called before the scan is read, with its geometry and bytes per stored voxel.

        Raises:
            RunError: It does not fit.
        """
        size = self.batch_size and min(self.batch_size, Planes.of(geometry).count)
        set_batch = self.batch_bytes(size)
        need = need_of(self.outputs, geometry, voxel_bytes, set_batch, self.draws, self.classes)
        free = available_bytes()
        if need.total <= free:
            return
        is_float = self.outputs.probability_dtype != "uint8"
        left = free - (need.total - set_batch)
        smaller = max(1, largest_that_fits(self.batch_bytes, size or 1, left))
        savings = {
            f"--batch-size {smaller}": set_batch - self.batch_bytes(smaller),
            "outputs in .nii.gz": need.copies,
            "--prob-dtype uint8": need.probability * 3 // 4 if is_float else 0,
            "no --preview": need.preview,
            "no --uncertainty": need.uncertainty,
            "no --prob": need.probability,
        }
        raise RunError(
            f"{self.name}: predicting it takes {need.total / GB:.2f} GB of memory ({need}), "
            f"and {free / GB:.2f} GB are free.",
            advice(savings, need.total - free),
        )
