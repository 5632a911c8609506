"""One mask against its reference: read, checked, scored. Runs in a worker's process."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from sdseg_cli.core.errors import DataError, GeometryError
from sdseg_cli.core.processes import available_bytes
from sdseg_cli.evaluation.case_scores import CaseResult, score_case
from sdseg_cli.evaluation.pairing import Pair
from sdseg_cli.imaging.io.files import read_labels
from sdseg_cli.imaging.io.picture import MaskLevels
from sdseg_cli.imaging.resample import Span, extended, overlap, padded, resample_to
from sdseg_cli.imaging.slices import SliceTransform
from sdseg_cli.imaging.volume import Array, Volume, reorient_to
from sdseg_cli.metrics import Grid, Mask, Protocol, ScoringOptions


@dataclass(frozen=True)
class Judging:
    """How all pairs of two folders are scored.

    Attributes:
        target: Labels that count as foreground; None = all but 0.
        classes: Labels to score each on its own, instead of a foreground.
        levels: What the grey values of pictured references mean.
        grid: What they are scored on.
        protocol: How empty masks are scored.
        terms: Tolerance and the like.
        plain: Whether a mask that holds a single value is foreground wherever it is not 0; else the
            target is looked for in it, as in one of several values.
    """

    target: tuple[int, ...] | None = None
    classes: tuple[int, ...] | None = None
    levels: MaskLevels | None = None
    grid: Grid = "native"
    protocol: Protocol = "standard"
    terms: ScoringOptions = field(default_factory=ScoringOptions)
    plain: bool = True


@dataclass(frozen=True)
class CaseScores:
    """What became of a pair."""

    rows: tuple[CaseResult, ...]
    """One, or one for each class."""
    labels: tuple[int, ...]
    """That the mask holds, without 0."""
    reference_labels: tuple[int, ...]
    """Likewise."""
    outside: int = 0
    """Predicted voxels beyond the reference's own grid, where all is background."""


def score_pair(pair: Pair, judging: Judging) -> CaseScores:
    """Read and score a pair.

    Where a mask that is brought onto its reference's grid reaches beyond it, the grid is continued
    with background: a reference may be cut to what it shows, and what a prediction adds elsewhere
    is as wrong there as it would be on the whole scan.

    Raises:
        DataError: A file is damaged, no label map, or holds labels that are not declared; each
            message names the case.
        GeometryError: A mask that is to be resampled lies nowhere near its reference, or reaches
            beyond it where the model's planes are scored.
    """
    try:
        label = read_labels(pair.ref, judging.levels)
        mask = read_labels(pair.pred)
        inside: Span | None = None
        if pair.resample:
            mask, label, inside = _resampled(pair, mask, label, judging.grid)
        mask = reorient_to(mask, label.geometry)
        held, known = held_labels(mask.array), held_labels(label.array)
        if judging.classes is not None:
            _require_declared(pair, judging.classes, held, known)
    except DataError as error:
        raise type(error)(f"case {pair.id}: {error.message}", error.hint, error.code) from error
    spacing_mm = label.spacing_mm
    pred, truth = mask.array, label.array
    if judging.grid == "model":
        restore = SliceTransform.of(label.geometry)
        pred, truth, spacing_mm = _planes(mask, restore), _planes(label, restore), None
    masks: list[tuple[int | None, Mask, Mask]]
    if judging.classes is None:
        chosen = _target_of(pair, judging, held, known)
        masks = [(None, _foreground(pred, chosen), _foreground(truth, judging.target))]
    else:
        masks = [(value, pred == value, truth == value) for value in judging.classes]
    rows = [
        score_case(
            pair.id,
            one,
            other,
            spacing_mm,
            grid=judging.grid,
            protocol=judging.protocol,
            terms=judging.terms,
            class_label=value,
            start=None if inside is None else tuple(part.start for part in inside),
        )
        for value, one, other in masks
    ]
    outside = 0 if inside is None else sum(_outside(one, inside) for _, one, _ in masks)
    return CaseScores(tuple(rows), held, known, outside)


def _resampled(
    pair: Pair, mask: Volume, label: Volume, on: Grid
) -> tuple[Volume, Volume, Span | None]:
    """The mask on the reference's grid, as long as something of it gets there.

    Returns:
        Mask and reference on one grid, and where the reference's own grid lies in it, None for all
        of it.
    """
    if mask.array.any() and not overlap(mask.geometry, label.geometry):
        raise _nothing_left(pair)
    grid, inside = extended(label.geometry, mask)
    if 3 * math.prod(grid.shape) > available_bytes():
        raise GeometryError(
            f"{pair.pred} and {pair.ref} together reach over {grid.shape} voxels, which do not fit "
            "into memory.",
            "Do their headers place them apart? Check both.",
            "grid",
        )
    found = resample_to(mask, grid)
    if mask.array.any() and not found.array.any():
        raise _nothing_left(pair)
    if on == "native":
        return found, padded(label, grid, inside), inside
    if beyond := _outside(found.array != 0, inside):
        raise GeometryError(
            f"{beyond:,} voxels of {pair.pred} lie beyond the grid of {pair.ref}, of which the "
            "model's planes are made.",
            "Score on the native grid, or give references on the grids of the scans.",
            "grid",
        )
    return replace(found, array=found.array[inside], geometry=label.geometry), label, None


def _nothing_left(pair: Pair) -> GeometryError:
    return GeometryError(
        f"nothing of {pair.pred} is left on the grid of {pair.ref}.",
        "Their headers place them apart, or it is smaller than a voxel there: check both. If both "
        "are cut to what they show, save them on the scan's grid.",
        "grid",
    )


def _outside(mask: Mask, inside: Span) -> int:
    """How many voxels of a mask lie beyond a part of its grid."""
    return int(np.count_nonzero(mask)) - int(np.count_nonzero(mask[inside]))


def held_labels(labels: Array) -> tuple[int, ...]:
    """The labels a map holds, ascending, without 0.

    Args:
        labels: (I,J,K) uint8 or uint16.
    """
    counts = np.zeros(np.iinfo(labels.dtype).max + 1, np.int64)
    for plane in np.moveaxis(labels, -1, 0):
        flat = plane.ravel(order="K")  # as it lies in memory
        counts += np.bincount(flat[flat != 0], minlength=counts.size)
    return tuple(int(value) for value in np.flatnonzero(counts))


def _require_declared(pair: Pair, classes: tuple[int, ...], *held: tuple[int, ...]) -> None:
    """Refuse labels that nobody would score."""
    for file, labels in zip((pair.pred, pair.ref), held, strict=True):
        strange = [str(label) for label in labels if label not in classes]
        if strange:
            raise DataError(
                f"{file} holds label values that are not declared: {', '.join(strange)}.",
                "Add them to --classes; or, for one foreground of some labels, give --target.",
                "values",
            )


def _target_of(
    pair: Pair, judging: Judging, held: tuple[int, ...], known: tuple[int, ...]
) -> tuple[int, ...] | None:
    """Which labels of a mask are foreground; None = all but 0."""
    if judging.target is None or (judging.plain and len(held) <= 1):
        return None
    if held and not set(held) & {*judging.target, *known}:
        raise DataError(
            f"case {pair.id}: {pair.pred} holds the values {', '.join(map(str, held[:5]))}"
            f"{', ...' if len(held) > 5 else ''}, none of which is a label of its reference; "
            "--target cannot be looked for in it.",
            "Store the mask as 0 and 1, or with the labels of the reference.",
            "values",
        )
    return judging.target


def _foreground(labels: Array, target: tuple[int, ...] | None) -> Mask:
    """As `manifest.foreground`, but in the order of memory, and so faster on a whole scan."""
    mask: Mask = labels != 0
    if target is not None:
        mask &= False
        for label in target:
            mask |= labels == label
    return mask


def _planes(labels: Volume, restore: SliceTransform) -> Array:
    """(S,256,256): the labels on the model's squares, as `prepare` takes them."""
    planes = (restore.canonical_plane(labels.array, k) for k in range(restore.slices))
    return np.stack([restore.labels_to_model(plane, k) for k, plane in enumerate(planes)])
