"""A mask and its reference: which belong together, by name and header, and the scores of one pair.

`pair_folders` checks all of them before `score_pair`, in a worker's process, reads the first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from sdseg_cli.core.errors import DataError, GeometryError, SdsegError
from sdseg_cli.core.filenames import (
    PICTURE_SUFFIXES,
    VOLUME_SUFFIXES,
    is_picture,
    leads_nowhere,
    natural_key,
    require_there,
    stem_of,
    suffix_of,
    walked,
)
from sdseg_cli.core.processes import available_bytes
from sdseg_cli.data.layouts.folder import LABEL_FOLDERS, SCAN_FOLDERS, labels_and_scans
from sdseg_cli.evaluation.results import CaseResult, score_case
from sdseg_cli.imaging.io.files import read_geometry, read_labels
from sdseg_cli.imaging.io.picture import MaskLevels
from sdseg_cli.imaging.resample import Span, extended, overlap, padded, resample_to
from sdseg_cli.imaging.slices import SliceTransform
from sdseg_cli.imaging.volume import Array, Volume, geometry_like, reorient_to, require_same_grid
from sdseg_cli.metrics import Grid, Mask, ScoringOptions

CHANNEL = "_0000"
"""Suffix that nnU-Net adds to the name of a scan, and a mask of the scan's name has too."""


@dataclass(frozen=True)
class Pair:
    """A mask and its reference."""

    id: str
    """Path below the two folders, without suffix."""
    pred: Path
    ref: Path
    resample: bool = False
    """True if the mask has to be brought onto the reference's grid."""


@dataclass(frozen=True)
class Pairing:
    """Two folders of masks, put together."""

    pairs: tuple[Pair, ...]
    """In natural order of their ids, at least one."""
    missing: tuple[str, ...]
    """References without a mask."""
    extra: tuple[str, ...]
    """Masks without a reference."""
    renamed: tuple[str, ...] = ()
    """Cases whose mask is called as nnU-Net calls the scan: with `CHANNEL` after the case."""

    @property
    def resampled(self) -> tuple[str, ...]:
        """Cases whose mask has to be brought onto the reference's grid."""
        return tuple(pair.id for pair in self.pairs if pair.resample)


def pair_folders(
    pred: Path, ref: Path, *, allow_missing: bool = False, resample: bool = False
) -> Pairing:
    """Put two folders together and check that they fit, by names and headers alone.

    Files belong together whose paths below the two folders agree up to the suffix, or up to
    nnU-Net's `CHANNEL`, which its scans have and its labels have not. They have to lie on one grid
    in the world; in which order and direction its axes are stored may differ.

    Args:
        pred: Folder of masks.
        ref: Folder of label maps.
        allow_missing: Go on without the references that have no mask.
        resample: Let masks lie on other grids, which the result then says.

    Raises:
        DataError: A folder is missing or empty, a reference has no mask or two, or a header is
            damaged.
        GeometryError: A mask does not lie on its reference's grid.
    """
    found, references = masks_below(pred, "--pred"), references_below(ref)
    masks = _without_channel(_of_case_folders(found, references), references)
    missing = tuple(name for name in references if name not in masks)
    if len(missing) == len(references):
        raise DataError(
            f"{pred}: no mask for any of {len(references)} cases, such as {missing[0]}.",
            "Name each mask as its reference, in the same folders below --pred as below --ref.",
        )
    if missing and not allow_missing:
        raise DataError(
            f"{pred}: no mask for {len(missing)} of {len(references)} cases: {', '.join(missing)}.",
            "Name each mask as its reference, or predict the missing cases; --allow-missing scores "
            "the rest.",
        )
    pairs = [Pair(id, masks[id], file) for id, file in references.items() if id in masks]
    return Pairing(
        tuple(_checked(pairs, resample)),
        missing,
        tuple(name for name in masks if name not in references),
        tuple(name for name in references if name in masks and name + CHANNEL in found),
    )


def _without_channel(masks: dict[str, Path], references: Mapping[str, Path]) -> dict[str, Path]:
    """The masks, those called "case_0000" under "case" where only that has a reference."""
    named = {}
    for name, path in masks.items():
        case = name.removesuffix(CHANNEL)
        if name in references or case not in references:
            case = name
        elif case != name and case in masks:
            raise DataError(
                f"{path} and {masks[case]} are both masks of case {case}.",
                f"Keep the one that is meant: {CHANNEL} is how nnU-Net names a scan.",
            )
        named[case] = path
    return named


def masks_below(folder: Path, option: str) -> dict[str, Path]:
    """Path below the folder without suffix -> mask, naturally sorted.

    Pictures are masks only where there is no volume: beside volumes they are views of them.

    Args:
        folder: Searched with all its folders, as by `walked`.
        option: That named it, for messages.

    Raises:
        DataError: No such folder, no mask in it, or two of one case.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder.", f"Give {option} a folder of masks.")
    found: dict[str, Path] = {}
    files = [file for _, files in walked(folder) for file in files]
    for path in files:
        if not path.suffix and leads_nowhere(path):
            require_there(path, "")  # a folder, for all we know, with masks in it
    volumes = [path for path in files if suffix_of(path) is not None]
    for path in volumes or [path for path in files if is_picture(path)]:
        name = path.relative_to(folder).with_name(stem_of(path)).as_posix()
        if name in found:
            raise DataError(
                f"{path} and {found[name]} are both case {name}.", "Keep one of the two."
            )
        found[name] = path
    if not found:
        raise DataError(
            f"{folder}: no masks.",
            f"They end in {', '.join((*VOLUME_SUFFIXES, *PICTURE_SUFFIXES))}.",
        )
    return {name: found[name] for name in sorted(found, key=natural_key)}


def references_below(folder: Path) -> dict[str, Path]:
    """As `masks_below`, of the references: beside scans, in a folder for each case, the label maps.

    A case is then called as its folder.

    Raises:
        DataError: As `masks_below`; or scans lie among the references, and which files are label
            maps is not clear.
    """
    found = masks_below(folder, "--ref")
    scans = next((f for f in SCAN_FOLDERS if (folder / f).is_dir()), None)
    labels = next((f for f in LABEL_FOLDERS if (folder / f).is_dir()), None)
    if scans and labels:
        raise DataError(
            f"{folder} holds scans in {scans}/ beside label maps in {labels}/.",
            f"Give the label maps alone: --ref {folder / labels}.",
        )
    by_case: dict[str, list[Path]] = {}
    for name, path in found.items():
        by_case.setdefault(name.rpartition("/")[0], []).append(path)
    cases, unclear = {}, []
    for case, paths in by_case.items():
        maps, scan = labels_and_scans(paths)
        if case and len(maps) == 1 and (scan or len(paths) == 1):
            cases[case] = maps[0]
        else:
            unclear.append(case)
    if not any(len(by_case[case]) > 1 for case in cases):
        return found  # no scan lies beside a label map
    if unclear:
        where = folder / unclear[0]
        raise DataError(
            f"{where}: not one label map beside its scan, as in the folders of other cases.",
            "Keep one label.nii.gz for each case, or give a folder that holds label maps alone.",
        )
    return cases


def _of_case_folders(masks: dict[str, Path], references: Mapping[str, Path]) -> dict[str, Path]:
    """The masks, "case/image" under "case" where only that has a reference.

    `predict` keeps the folder of each case, and the name of its scan.

    Raises:
        DataError: A case has several.
    """
    named: dict[str, Path] = {}
    for name, path in masks.items():
        case = name.rpartition("/")[0]
        if name in references or case not in references:
            case = name
        if case in named:
            raise DataError(
                f"{path} and {named[case]} are both masks of case {case}.",
                "Keep the one that is meant.",
            )
        named[case] = path
    return named


def _checked(pairs: Sequence[Pair], resample: bool) -> list[Pair]:
    """The pairs, those of two grids marked if that is allowed and else refused."""
    checked, faults = [], []
    for pair in pairs:
        try:
            _require_one_grid(pair)
            checked.append(pair)
        except GeometryError as error:
            if not resample or is_picture(pair.ref) or is_picture(pair.pred):
                faults.append(error)
            checked.append(Pair(pair.id, pair.pred, pair.ref, resample=True))
        except SdsegError as error:
            raise DataError(f"case {pair.id}: {error.message}", error.hint) from error
    if faults:
        first, count = faults[0], len(faults)
        also = f" {count} of {len(pairs)} cases differ so." if count > 1 else ""
        pictures = all(is_picture(pair.ref) for pair in pairs)
        way = "" if pictures else " Or --resample: nearest neighbour, onto the reference's grid."
        raise GeometryError(first.message + also, first.hint + way, first.code) from first
    return checked


def _require_one_grid(pair: Pair) -> None:
    reference = read_geometry(pair.ref)
    mask = geometry_like(read_geometry(pair.pred), reference)
    names = f"case {pair.id}: prediction {pair.pred.name}", f"reference {pair.ref.name}"
    require_same_grid(mask, reference, *names)


@dataclass(frozen=True)
class PairOptions:
    """Options for scoring all pairs of two folders.

    Attributes:
        target: Labels that count as foreground; None = all but 0.
        classes: Classes to score each on its own, instead of a foreground: their labels by name or
            label.
        levels: What the grey values of pictured references mean.
        scoring: Grid, protocol, tolerance and the like.
        plain: Whether a mask that holds a single value is foreground wherever it is not 0; else the
            target is looked for in it, as in one of several values.
    """

    target: tuple[int, ...] | None = None
    classes: Mapping[int | str, tuple[int, ...]] | None = None
    levels: MaskLevels | None = None
    scoring: ScoringOptions = field(default_factory=ScoringOptions)
    plain: bool = True


@dataclass(frozen=True)
class CaseScores:
    """The scores of a pair."""

    rows: tuple[CaseResult, ...]
    """One, or one for each class."""
    labels: tuple[int, ...]
    """That the mask holds, without 0."""
    reference_labels: tuple[int, ...]
    """Likewise."""
    outside: int = 0
    """Predicted voxels beyond the reference's own grid, where all is background."""


def score_pair(pair: Pair, options: PairOptions) -> CaseScores:
    """Read and score a pair.

    Where a mask that is brought onto its reference's grid reaches beyond it, the grid is continued
    with background: a reference may be cut to what it shows, and what a prediction adds elsewhere
    is as wrong there as it would be on the whole scan.

    Raises:
        DataError: A file is damaged or no label map; each message names the case.
        GeometryError: A mask that is to be resampled lies nowhere near its reference, or reaches
            beyond it where the model's planes are scored.
    """
    try:
        label = read_labels(pair.ref, options.levels)
        mask = read_labels(pair.pred)
        inside: Span | None = None
        if pair.resample:
            mask, label, inside = _resampled(pair, mask, label, options.scoring.grid)
        mask = reorient_to(mask, label.geometry)
        held, known = held_labels(mask.array), held_labels(label.array)
    except DataError as error:
        raise type(error)(f"case {pair.id}: {error.message}", error.hint, error.code) from error
    spacing_mm = label.spacing_mm
    pred, truth = mask.array, label.array
    if options.scoring.grid == "model":
        restore = SliceTransform.of(label.geometry)
        pred, truth, spacing_mm = _planes(mask, restore), _planes(label, restore), None
    masks: list[tuple[int | str | None, Mask, Mask]]
    if options.classes is None:
        chosen = _target_of(pair, options, held, known)
        masks = [(None, _foreground(pred, chosen), _foreground(truth, options.target))]
    else:
        masks = [
            (name, np.isin(pred, labels), np.isin(truth, labels))
            for name, labels in options.classes.items()
        ]
    rows = [
        score_case(
            pair.id,
            one,
            other,
            spacing_mm,
            options=options.scoring,
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
    """Number of voxels of a mask outside a part of its grid."""
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


def _target_of(
    pair: Pair, options: PairOptions, held: tuple[int, ...], known: tuple[int, ...]
) -> tuple[int, ...] | None:
    """Which labels of a mask are foreground; None = all but 0."""
    if options.target is None or (options.plain and len(held) <= 1):
        return None
    if held and not set(held) & {*options.target, *known}:
        raise DataError(
            f"case {pair.id}: {pair.pred} holds the values {', '.join(map(str, held[:5]))}"
            f"{', ...' if len(held) > 5 else ''}, none of which is a label of its reference; "
            "--target cannot be looked for in it.",
            "Store the mask as 0 and 1, or with the labels of the reference.",
            "values",
        )
    return options.target


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
