"""Which masks and references belong together, checked by name and header before any is scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

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
from sdseg_cli.imaging.io.files import read_geometry
from sdseg_cli.imaging.volume import geometry_like, require_same_grid

CHANNEL = "_0000"
"""What nnU-Net adds to the name of a scan, and a mask of the scan's name has too."""


@dataclass(frozen=True)
class Pair:
    """A mask and its reference."""

    id: str
    """Path below the two folders, without suffix."""
    pred: Path
    ref: Path
    resample: bool = False
    """Whether the mask has to be brought onto the reference's grid."""


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
    found, references = masks_below(pred, "--pred"), masks_below(ref, "--ref")
    masks = _without_channel(found, references)
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
        tuple(name for name in references if name in masks and name not in found),
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
