"""Scans that a folder or a list names, where the mask of each goes, and their state on disk."""

from __future__ import annotations

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sdseg_cli.core.errors import ConfigError, DataError
from sdseg_cli.core.filenames import (
    DICOM_SUFFIX,
    DICOM_SUFFIXES,
    LABEL_STEM,
    LEDGER_FOLDER,
    METAIMAGE_SUFFIXES,
    NIFTI_SUFFIXES,
    VOLUME_SUFFIXES,
    ZIP_SUFFIX,
    is_dicom_file,
    is_folder,
    is_picture,
    is_there,
    leads_nowhere,
    listed,
    may_be_called_slice,
    natural_key,
    real_path,
    require_there,
    stem_of,
    suffix_of,
    walked,
)
from sdseg_cli.imaging.io.dicom_series import read_header
from sdseg_cli.imaging.io.metaimage import WRITABLE, voxel_file

LIST_SUFFIXES = (".txt", ".lst", ".csv")
"""A file that names scans, one path per line."""
MASK_SUFFIXES = (*VOLUME_SUFFIXES, ".png", DICOM_SUFFIX)
"""An output that ends so is one mask."""
WRITTEN = (*NIFTI_SUFFIXES, *WRITABLE, ".png", DICOM_SUFFIX)
"""What the name of one mask may end in; a MetaImage of two files is read, but not written."""
SLASHES = tuple({os.sep, os.altsep or os.sep})
CHANNEL = re.compile(r"(.+)_(\d{4})")
"""What nnU-Net calls the files of a case, without suffix: its name, and the channel's number."""
MOST_CHANNELS = 16
"""More are frames of a video."""
OUTSIDE = "_outside"
"""Below the masks' folder: where those of scans go that lie elsewhere than their list."""
FILE_SUFFIX = {"preview": ".png", "per_class": ""}
"""Files beside a mask that are of another kind than the mask: what their names end in. The masks of
each class lie in a folder."""

_NO_SCANS = {
    ".bval", ".bvec", ".cfg", ".csv", ".doc", ".docx", ".gif", ".html", ".ini", ".ipynb", ".json",
    ".jsonl", ".log", ".lst", ".md", ".md5", ".pdf", ".pt", ".py", ".raw", ".rtf", ".sh", ".sha256",
    ".svg", ".toml", ".tsv", ".txt", ".xls", ".xlsx", ".xml", ".yaml", ".yml", ".zraw",
}  # fmt: skip


@dataclass(frozen=True)
class Scan:
    """One of many.

    Attributes:
        case: Its path below the folder, without suffix: "patient_1/ct".
        path: The file, or the folder of a DICOM series.
        mask: Where its mask goes, relative to the masks' folder.
    """

    case: str
    path: Path
    mask: Path

    def beside(self, option: str) -> Path:
        """The name of another file of this scan, relative to its folder: called as the mask is."""
        suffix = FILE_SUFFIX.get(option)
        return self.mask if suffix is None else self.mask.with_name(stem_of(self.mask) + suffix)


@dataclass(frozen=True)
class FoundScans:
    """The scans of a folder or a list, in natural order.

    Attributes:
        scans: At least one.
        passed_over: Suffix -> files of a kind that is not read, though it may be a scan's.
        labels: Files named as label maps that lie beside a scan, and are none.
        channels: How many files of one case there are, by nnU-Net's way of naming channels; 0 where
            not all files are named so. With one, masks and cases are called without it.
    """

    scans: tuple[Scan, ...]
    passed_over: Mapping[str, int] = field(default_factory=dict)
    labels: tuple[Path, ...] = ()
    channels: int = 0


def is_many(source: Path, output: Path | str) -> bool:
    """True if a folder or a list of scans is meant, with a folder for their masks.

    The output decides: a DICOM series is a folder too, and its mask a file.

    Args:
        source: What is to be predicted.
        output: As typed, for a Path has lost a slash at its end.

    Raises:
        DataError: There is no such source.
        ConfigError: The output is neither a mask's name nor a folder's.
    """
    name = str(output)
    if name.lower().endswith(MASK_SUFFIXES):
        return False
    require_there(source, "Check the path of the scan, folder or list.")
    if not (source.is_dir() or source.suffix.lower() in LIST_SUFFIXES):
        return False
    require_folder_name("-o", name)
    return True


def require_folder_name(option: str, name: str) -> None:
    """Refuse what is not plainly a folder: it exists, ends in a slash, or has no suffix.

    A mistyped suffix would otherwise make a folder of that name. That of a mask is left to the
    caller, who knows what the name is for.
    """
    path = Path(name)
    if not name:
        raise ConfigError(f"{option} is empty.", f"Give {option} the name of a folder.")
    slash = name.endswith(SLASHES)
    if slash and path.name.lower().endswith(MASK_SUFFIXES):
        raise ConfigError(
            f"{option} {name}: a folder that is called as a mask is.",
            "For one mask leave out the slash; for many give the folder another name.",
        )
    known = path.name.lower().endswith(MASK_SUFFIXES)
    if slash or known or not path.suffix or is_folder(path):
        return
    raise ConfigError(
        f"{option} {name}: {path.suffix} is no suffix of a mask, and there is no folder of this "
        "name.",
        f"For one mask end the name in {', '.join(WRITTEN)}; for a folder end it in a slash: "
        f"{name}/",
    )


def require_file_name(option: str, name: str) -> None:
    """Refuse a folder where one scan is written.

    Also a suffix alone, and a file in a folder that would be made and is called as a mask is.
    """
    path = Path(name)
    if path.name.lower() in MASK_SUFFIXES:
        raise ConfigError(
            f"{option} {name} is a suffix without a name.", f"Give a name, such as mask{path.name}."
        )
    masks = (one for one in path.parents if one.name.lower().endswith(MASK_SUFFIXES))
    if (called := next(masks, None)) is not None and not is_there(called):
        raise ConfigError(
            f"{option} {name}: the folder {called.name} is called as a mask is.",
            "Give the folder another name.",
        )
    if name.endswith(SLASHES):
        raise ConfigError(
            f"{option} {name} is a folder, and the scan is one.",
            f"Name the file to write, such as {name}mask.nii.gz.",
        )


def find_scans(source: Path, output: Path, others: Mapping[str, Path] | None = None) -> FoundScans:
    """Find the scans of a folder, at any depth, or of a list.

    Args:
        source: A folder, or a .txt, .lst or .csv file with one path per line (a .csv's first
            column), relative to its own folder; empty lines and those with a # are passed over.
        output: The masks' folder; it may lie inside the source and is never searched.
        others: Further folders that are written to, by the option of `predict_file`.

    Raises:
        DataError: There is no scan.
        ConfigError: Two files would have one name, or one would replace a scan, or a file among the
            scans that may be one, for no cohort wrote to the output before.
    """
    others = others or {}
    passed: Counter[str] = Counter()
    labels: list[Path] = []
    if source.is_dir():
        if real_path(source) == real_path(output):
            raise ConfigError(f"{output}: is the scans' own folder.", "Give -o another folder.")
        written = {real_path(path) for path in (output, *others.values())}
        base, paths = source, list(_walked(source, written, passed, labels))
    else:
        base, paths = source.parent, list(dict.fromkeys(_listed(source)))
    if not paths:
        raise DataError(
            f"{source}: holds no scan.",
            "Give a folder with NIfTI, NRRD, MetaImage, DICOM or picture files, or a list of them.",
        )
    places = sorted(
        ((path, _below(base, path)) for path in paths), key=lambda pair: natural_key(str(pair[1]))
    )
    channels = _channels(places)
    if channels == 1:
        places = [(path, _without_channel(place)) for path, place in places]
    stems = Counter(_stem(place) for _, place in places)
    scans = []
    for path, place in places:
        stem = _stem(place)
        case = stem if stems[stem] == 1 else place.as_posix()
        scans.append(Scan(case, path, _mask_name(path, place)))
    _refuse_clashes(scans, output, others)
    if source.is_dir() and not (output / LEDGER_FOLDER).exists():
        _refuse_strangers(scans, source, output, others)
    return FoundScans(tuple(scans), dict(passed), tuple(labels), channels)


def _channels(places: Iterable[tuple[Path, Path]]) -> int:
    """Number of channels per case if all files are named as nnU-Net does, else 0.

    Frames of one video may be numbered alike: what has not the same channels, from 0 on, is none.
    """
    found: dict[Path, set[int]] = {}
    for path, place in places:
        is_file = not is_folder(path) and (suffix_of(place) or is_picture(place))
        named = CHANNEL.fullmatch(stem_of(place)) if is_file else None
        if named is None:
            return 0
        found.setdefault(place.with_name(named[1]), set()).add(int(named[2]))
    count = max(len(channels) for channels in found.values())
    same = all(one == set(range(count)) for one in found.values())
    return count if same and count <= MOST_CHANNELS else 0


def _without_channel(place: Path) -> Path:
    """`a_0000.nii.gz` as `a.nii.gz`, as nnU-Net calls the mask."""
    return place.with_name(f"{stem_of(place)[:-5]}{place.name[len(stem_of(place)) :]}")


def _walked(
    root: Path, written: set[Path], passed: Counter[str], labels: list[Path]
) -> Iterator[Path]:
    """Every scan below a folder; a folder with DICOM images is one scan.

    Other kinds of files are counted in `passed`, label maps beside a scan are added to `labels`.
    """

    def enter(folder: Path) -> bool:
        if (folder / LEDGER_FOLDER).is_dir():  # masks of another cohort
            return False
        return real_path(folder) not in written

    for folder, files in walked(root, enter):
        scans = [path for path in files if _is_called_scan(path)]
        named = [path for path in scans if LABEL_STEM.fullmatch(stem_of(path))]
        if len(named) < len(scans):
            labels += named
            yield from (path for path in scans if path not in named)
        else:
            yield from scans
        others = [path for path in files if not _is_called_scan(path)]
        slices = [path for path in others if _may_be_slice(path, alone=not scans)]
        if any(map(_shows_something, slices)):
            yield folder
        elif not slices:
            unknown = (path for path in others if path.suffix.lower() not in _NO_SCANS)
            passed.update(path.suffix.lower() or path.name for path in unknown)


def _is_called_scan(path: Path) -> bool:
    return bool(suffix_of(path)) or is_picture(path) or path.suffix.lower() == ZIP_SUFFIX


def _may_be_slice(path: Path, *, alone: bool) -> bool:
    """True if it is DICOM, or was: a broken link is judged by its name.

    With no scan beside it (`alone`), a lost link without suffix is a slice or a folder.
    """
    if path.suffix.lower() in _NO_SCANS:
        return False
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    try:
        return is_dicom_file(path) or (alone and may_be_called_slice(path) and leads_nowhere(path))
    except OSError:
        return False


def _shows_something(path: Path) -> bool:
    """True if a DICOM file is an image; a damaged one may be, and will be named."""
    try:
        return read_header(path).is_image
    except DataError:
        return True


def _listed(source: Path) -> Iterator[Path]:
    """The paths of a list, which need not be UTF-8: names of files need not either."""
    hint = "Write one path per line, in UTF-8."
    try:
        if not source.is_file():
            raise DataError(f"{source}: is a pipe or a device, not a list of scans.", hint)
        text = source.read_text(encoding="utf-8-sig", errors="surrogateescape")
        lines = text.split("\n")
        if source.suffix.lower() == ".csv":
            lines = [row[0] if row else "" for row in csv.reader(io.StringIO(text, newline=""))]
    except (OSError, csv.Error) as error:
        raise DataError(f"{source}: cannot be read as a list of scans ({error}).", hint) from error
    for number, line in enumerate(map(str.strip, lines), 1):
        if "\0" in line:
            raise DataError(
                f"{source}: cannot be read as a list of scans (a NUL character in line {number}).",
                hint,
            )
        if line and not line.startswith("#"):
            yield Path(os.path.normpath(source.parent / line))


def _below(base: Path, path: Path) -> Path:
    """A path relative to a folder; for one elsewhere its whole path, below `OUTSIDE`."""
    root, full = (Path(os.path.normpath(one.absolute())) for one in (base, path))
    if full == root:
        return Path(full.name)
    if full.is_relative_to(root):
        return full.relative_to(root)
    return Path(OUTSIDE, full.drive.replace(":", ""), full.relative_to(full.anchor))


def _stem(place: Path) -> str:
    short = place.stem if place.suffix.lower() in (ZIP_SUFFIX, DICOM_SUFFIX) else stem_of(place)
    return place.with_name(short).as_posix()


def _mask_name(path: Path, place: Path) -> Path:
    """The scan's own name; what cannot be written becomes .nii.gz (DICOM), .mha or .png."""
    suffix = suffix_of(place)
    if is_folder(path):
        return place.with_name(f"{place.name}.nii.gz")
    if is_picture(place):
        return place.with_name(f"{stem_of(place)}.png")
    if suffix is None:
        return Path(f"{_stem(place)}.nii.gz")
    writable = suffix in (*NIFTI_SUFFIXES, *WRITABLE)
    return place if writable else place.with_name(f"{stem_of(place)}.mha")


def _refuse_clashes(scans: Iterable[Scan], output: Path, others: Mapping[str, Path]) -> None:
    """Before anything starts: no file is written twice, and none over a scan."""
    known = {real_path(scan.path): scan for scan in scans}
    first: dict[Path, Scan] = {}
    for scan, path in _outputs(scans, output, others):
        real = real_path(path)
        other = first.get(real)
        if other is scan:
            raise ConfigError(
                f"{path}: two files of {scan.path} would have this name.",
                "Give -o, --prob, --uncertainty and --preview a folder each.",
            )
        if other is not None:
            raise ConfigError(
                f"{other.path} and {scan.path} would both be written to {path}.",
                "Give a list (.txt, one path per line) that names one of them, "
                "or each output another folder.",
            )
        if real in known:
            raise ConfigError(
                f"{path}: would replace the scan {known[real].path}.",
                f"Give another folder than {path.parent}.",
            )
        first[real] = scan


def _refuse_strangers(
    scans: Iterable[Scan], root: Path, output: Path, others: Mapping[str, Path]
) -> None:
    """Folders that are written to were not searched: a file there, among the scans, may be one."""
    for _, path in _outputs(scans, output, others):
        if path.exists() and real_path(path).is_relative_to(real_path(root)):
            raise ConfigError(
                f"{path}: lies among the scans and would be replaced, and may be one.",
                f"Give another folder than {path.parent}, or remove the file.",
            )


def _outputs(
    scans: Iterable[Scan], output: Path, others: Mapping[str, Path]
) -> Iterator[tuple[Scan, Path]]:
    """Every file that is written, with its scan."""
    for scan in scans:
        yield scan, output / scan.mask
        for option, folder in others.items():
            yield scan, folder / scan.beside(option)


def size_and_time(path: Path) -> tuple[int, int]:
    """Bytes and time of change, ns, of all that a scan is read from, summed.

    While they hold still, so does what was made from the scan. Of a DICOM series that is every
    file, and of a header the file of its voxels too.

    Raises:
        OSError: It is gone, or a folder of it cannot be searched.
    """
    try:
        states = [file.stat() for file in _files(path)]
    except DataError as error:
        raise OSError(error.message) from error
    return sum(state.st_size for state in states), sum(state.st_mtime_ns for state in states)


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        every = (file for _, files in walked(path) for file in files)
        yield from filter(_may_be_of_series, every)
    elif suffix_of(path) is None and not is_picture(path) and is_dicom_file(path):
        yield from filter(_may_be_of_series, listed(path.parent)[1])
    else:
        yield path
        if suffix_of(path) in METAIMAGE_SUFFIXES and path.is_file():  # a pipe would be waited for
            yield from _voxels_elsewhere(path)


def _may_be_of_series(file: Path) -> bool:
    """Not what `predict` itself writes: masks and a ledger may lie below the series' folder."""
    if suffix_of(file) or is_picture(file) or file.name.endswith("ledger.csv"):
        return False
    return file.is_file()


def _voxels_elsewhere(header: Path) -> Iterator[Path]:
    try:
        file = voxel_file(header)
    except DataError:  # reading the scan will say what is wrong with it
        return
    if file != header:
        yield file
