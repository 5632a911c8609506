"""Which files of a folder, a zip or around one file are one DICOM series of images.

Only the elements named here are read from a file, none of which says who the patient is.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.errors import ConfigError, DataError
from sdseg_cli.core.filenames import (
    DICOM_SUFFIXES,
    is_dicom_file,
    leads_nowhere,
    may_be_called_slice,
    name_pattern,
    natural_key,
    walked,
)
from sdseg_cli.imaging.io.archives import extracted

HEADER_ELEMENTS = (
    "SOPClassUID", "SOPInstanceUID", "Modality", "SeriesInstanceUID", "ImageOrientationPatient",
    "ImagePositionPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "Rows",
    "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "PixelRepresentation",
    "RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence", "StudyInstanceUID",
    "FrameOfReferenceUID", "PhotometricInterpretation", "BitsStored", "HighBit", "Units",
)  # fmt: skip
"""What is read of each file to group, order and place it."""

_NO_IMAGES = {"SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "RTRECORD", "SR", "PR", "KO", "REG", "RWV"}
"""Modalities of objects that speak about images; some of them have rows and columns too."""
_MODALITIES = (
    "CR", "CT", "DX", "ES", "MG", "MR", "NM", "OP", "OT", "PT", "RF", "RTDOSE", "RTIMAGE", "RTPLAN",
    "RTSTRUCT", "SC", "SEG", "SR", "US", "XA",
)  # fmt: skip
_NO_IMAGE_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.66",  # segmentations, registrations, fiducials
    "1.2.840.10008.5.1.4.1.1.481.2",  # RT dose
    "1.2.840.10008.5.1.4.1.1.30",  # parametric maps
)
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_HEAD_BYTES = 132
"""Up to the end of DICOM's mark."""
_UNMARKED = (b"\x08\0\0\0", b"\x08\0\x05\0", b"\x08\0\x08\0", b"\x02\0\0\0", b"\x02\0\1\0")
"""What a DICOM file begins with that was stored without its preamble."""
_PACKED = (".gz", ".bz2", ".xz", ".zst", ".z", ".lz4")
_UNFINISHED = (".crdownload", ".download", ".filepart", ".part", ".partial")
"""What browsers and copying programs add to a name until the file is whole."""
_LISTED = 12
"""So many series are listed in a hint."""


@dataclass(frozen=True, eq=False)
class Instance:
    """One file of a series.

    Attributes:
        path: Where it is.
        values: Those of `HEADER_ELEMENTS` that are there and not empty.
        sop_class: What kind of object it is.
        is_compressed: Whether the pixels are in capsules: JPEG, RLE or a maker's own syntax.
    """

    path: Path
    values: dict[str, Any]
    sop_class: str
    is_compressed: bool

    def get(self, name: str, default: Any = None) -> Any:
        """An element's value; the default where it is absent or empty."""
        return self.values.get(name, default)

    def text(self, name: str) -> str:
        """An element as text, empty where it is absent."""
        return str(self.get(name, ""))

    def numbers(self, name: str, count: int, default: float | None = None) -> NDArray[np.float64]:
        """An element of so many numbers: (count,) float64, finite.

        Raises:
            DataError: Absent without a default, or something else.
        """
        value = self.get(name, default)
        if value is None:
            raise DataError(
                f"{self.path}: has no {name}, which says where or what its pixels are.",
                "Give a series of cross sections (CT, MR, PET) with its positions.",
            )
        try:
            numbers = np.atleast_1d(np.asarray(value, np.float64))
        except (ValueError, TypeError):
            numbers = np.empty(0)
        if numbers.shape != (count,) or not np.isfinite(numbers).all():
            raise DataError(
                f"{self.path}: its {name} is not {count} number{'s' if count > 1 else ''}.",
                "The header is damaged: export the series again.",
            )
        return numbers

    @property
    def is_image(self) -> bool:
        """True for an image of the patient: no contours, doses, reports, screenshots."""
        if not ({"Rows", "Columns"} <= set(self.values)) or self.text("Modality") in _NO_IMAGES:
            return False
        if _is_below(self.sop_class, _SECONDARY_CAPTURE):
            return self.get("ImagePositionPatient") is not None
        return not any(_is_below(self.sop_class, root) for root in _NO_IMAGE_CLASSES)

    @property
    def modality(self) -> str:
        """Modality as the standard names it; anything else may be free text."""
        said = self.text("Modality")
        return said if said in _MODALITIES else "other"


@dataclass(frozen=True, eq=False)
class Series:
    """The images of one SeriesInstanceUID, in no order; it is empty where it was blanked."""

    uid: str
    instances: tuple[Instance, ...]

    def is_called(self, name: str) -> bool:
        """True if a name is its SeriesInstanceUID or the last parts of it."""
        return bool(self.uid) and f".{self.uid}".endswith(f".{name}")

    def __str__(self) -> str:
        """For choosing: never a description, which may hold a name."""
        first = self.instances[0]
        last = self.uid.rsplit(".", 1)[-1]
        ending = f"(UID ...{last}) " if last.isdecimal() else ""
        size = f"{first.get('Columns')}x{first.get('Rows')}"
        return f"{ending}{first.modality} {len(self.instances)} slices {size}"


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings: pydicom quotes the values it finds odd, and they may be a patient's."""
    log = logging.getLogger("pydicom")
    was_disabled, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = was_disabled


@contextmanager
def opened(source: Path) -> Iterator[Path]:
    """The folder in which a source's files lie; a zip's exists only within the block."""
    if source.is_dir():
        yield source
    elif is_dicom_file(source):
        yield source.parent
    else:
        with extracted(source) as folder:
            try:
                yield folder
            except DataError as error:  # it names a file that will be gone
                message = error.message.replace(f"{folder}{os.sep}", f"{source}: entry ")
                raise type(error)(message, error.hint) from error


def any_dicom(folder: Path) -> bool:
    """True if a folder holds a DICOM file, or a lost one, at any depth."""
    return any(
        is_dicom_file(file) or (may_be_called_slice(file) and leads_nowhere(file))
        for _, files in walked(folder)
        for file in files
    )


def find_series(source: Path, folder: Path, wanted: str | None = None) -> Series:
    """The one series of a source.

    Args:
        source: What the user named: a folder, a zip, or one file of the series.
        folder: Of `opened`.
        wanted: `--series`: a number of the list that the hint gives, or a SeriesInstanceUID or its
            last parts. None where there is but one.

    Raises:
        DataError: No images, or a damaged file.
        ConfigError: Several series and none was chosen, or there is no such series.
    """
    single = source if is_dicom_file(source) else None
    is_zip = folder != source and single is None
    files = _dicom_files(folder, nested=single is None, named=not is_zip)
    instances = every = [read_header(path) for path in files]
    if single is not None:
        asked = read_header(single)
        if not asked.is_image:
            raise DataError(
                f"{source}: a DICOM object without an image ({asked.modality}).",
                "Give a file or the folder of the image series.",
                "no-image",
            )
        _refuse_nameless(asked, instances)
        uid = asked.text("SeriesInstanceUID")
        instances = [one for one in instances if one.text("SeriesInstanceUID") == uid]
    images: dict[str, list[Instance]] = {}
    for one in instances:
        if one.is_image:
            images.setdefault(one.text("SeriesInstanceUID"), []).append(one)
    if not images:
        raise DataError(
            f"{source}: holds no DICOM images ({len(instances)} other DICOM files).",
            "Give the folder of an image series, or a volume file such as scan.nii.gz.",
            "no-image",
        )
    found = [Series(uid, tuple(images[uid])) for uid in sorted(images, key=natural_key)]
    chosen = _chosen(source, found, wanted)
    _refuse_cut(chosen.instances[0], every, named=not is_zip)
    _refuse_half_images(chosen, instances)
    return chosen


def _refuse_nameless(asked: Instance, instances: Sequence[Instance]) -> None:
    """Refuse images that may belong to a file's series, but do not say to which they belong."""
    if not asked.text("SeriesInstanceUID"):
        return
    same = ("SOPClassUID", "StudyInstanceUID", "FrameOfReferenceUID")
    for one in instances:
        is_kin = all(one.text(name) == asked.text(name) for name in same)
        if one.is_image and is_kin and not one.text("SeriesInstanceUID"):
            raise DataError(
                f"{one.path}: has no SeriesInstanceUID, and may be a slice of the series.",
                "Export the series again, or take the file away.",
            )


def _refuse_cut(image: Instance, instances: Sequence[Instance], *, named: bool) -> None:
    """Refuse files that end, or are damaged, before their header says that they are slices.

    They are known by their kind, which stands first, and where files have names, by these.
    """
    series = {one.text("SeriesInstanceUID") for one in instances if one.is_image}
    patterns = {name_pattern(one.path) for one in instances if one.is_image and named}
    for one in instances:
        is_kin = one.sop_class == image.sop_class or name_pattern(one.path) in patterns
        known = one.text("SeriesInstanceUID") in series - {""}
        if is_kin and not known and not ({"Rows", "Columns"} & set(one.values)):
            raise DataError(
                f"{one.path}: its header ends before its Rows, and may be a slice of the series.",
                "It was cut short or is damaged: copy or export the series again.",
            )


def _refuse_half_images(series: Series, instances: Sequence[Instance]) -> None:
    """Refuse objects of a series that are slices by their kind or their place, but no images."""
    kinds = {one.sop_class for one in series.instances}
    for one in instances:
        if one.is_image or one.text("SeriesInstanceUID") != series.uid:
            continue
        lacking = [n for n in ("Rows", "Columns", "ImagePositionPatient") if not one.text(n)]
        has_place = bool(series.uid) and not lacking
        if one.sop_class in kinds or has_place:
            said = f"has no {lacking[0]}" if lacking else "is of another kind than the other slices"
            raise DataError(
                f"{one.path}: {said}, though it is of the series.",
                "The header is damaged: export the series again, or take the file away.",
            )


def _chosen(source: Path, found: Sequence[Series], wanted: str | None) -> Series:
    lines = [f"{number} = {series}" for number, series in enumerate(found[:_LISTED], start=1)]
    more = f"; and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    listed = f"{'; '.join(lines)}{more}"
    if wanted is None:
        if len(found) == 1:
            return found[0]
        raise ConfigError(
            f"{source}: holds {len(found)} image series.", f"Choose with --series: {listed}."
        )
    named = {n for n, series in enumerate(found) if series.is_called(wanted)}
    if wanted.isdecimal() and 1 <= int(wanted) <= len(found):
        named.add(int(wanted) - 1)
    if len(named) != 1:
        fault = "is ambiguous" if named else "is none of its image series"
        raise ConfigError(
            f'{source}: --series "{wanted}" {fault}.',
            f"Give the number or a longer end of the UID: {listed}.",
        )
    return found[named.pop()]


def _dicom_files(folder: Path, *, nested: bool, named: bool) -> Iterator[Path]:
    """Files with DICOM's mark, naturally sorted; those of a zip are not `named`.

    A file without the mark is refused where it may be a lost slice, perhaps the first or the last,
    whose absence nothing else would show.
    """
    for place, files in walked(folder, None if nested else lambda below: False):
        try:
            is_marked = {path: is_dicom_file(path) for path in files}
            marked = [path for path in files if is_marked[path]]
            patterns = {name_pattern(path) for path in marked} if named else set()
            faults = ((path, _lost(path, patterns)) for path in files if not is_marked[path])
            lost = next(((path, fault) for path, fault in faults if fault), None)
        except OSError as error:
            raise DataError(
                f"{error.filename or place}: cannot be read ({error.strerror or error}).",
                "Check the permissions; it may be a slice.",
            ) from error
        if lost is not None:
            raise DataError(
                f"{lost[0]}: {lost[1]}, and may be a slice of the series.",
                "Copy, fetch or export the series again, or take the file away.",
            )
        yield from marked


def _lost(path: Path, patterns: Collection[str]) -> str | None:
    """The fault of a file without the mark that may be a slice; None for other files.

    Patterns are of the names of the DICOM files beside it.
    """
    is_unfinished = path.suffix.lower() in _UNFINISHED
    is_packed = path.suffix.lower() in _PACKED
    name = path.with_suffix("") if is_unfinished or is_packed else path
    is_like_others = name_pattern(name) in patterns
    if not (is_like_others or may_be_called_slice(name)):
        return None
    if is_packed:
        is_slice = is_like_others or name.suffix.lower() in DICOM_SUFFIXES
        return "packed by itself, which is not read" if is_slice else None
    if is_unfinished:
        return "a download that was not finished"
    if leads_nowhere(path):
        return f"a link to {path.readlink()}, which is not there"
    if not path.is_file():
        return "a pipe or a device, not a file"
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        return "not a DICOM file: it is empty"
    is_certain = is_like_others or name.suffix.lower() in DICOM_SUFFIXES
    if len(head) < _HEAD_BYTES and (is_certain or b"\0" in head):  # a text would hold no zeros
        return f"not a DICOM file: it ends after {len(head)} bytes"
    if is_certain or not head.strip(b"\0") or head.startswith(_UNMARKED):
        return "not a DICOM file, whatever its name says"
    return None


def read_header(path: Path) -> Instance:
    """Read `HEADER_ELEMENTS` of a file.

    Raises:
        DataError: Damaged, also in a single one of them, or deflated as a whole.
    """
    import pydicom

    try:
        with quiet():
            meta: Any = pydicom.filereader.read_file_meta_info(path)
            syntax = meta.TransferSyntaxUID
            if syntax == _DEFLATED:
                # It would be unpacked whole, without a limit, to read a single element.
                raise DataError(f"{path}: deflated DICOM is not read.", "Export it uncompressed.")
            header = pydicom.dcmread(
                path, stop_before_pixels=True, specific_tags=list(HEADER_ELEMENTS)
            )
            # Here, at once: a damaged slope must not pass for one that is absent.
            values = {name: header[name].value for name in HEADER_ELEMENTS if name in header}
            # Anonymisers blank the class, but leave the one in the file's own preamble.
            sop_class = str(values.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID", ""))
            is_compressed = bool(syntax.is_private or syntax.is_encapsulated)
    except DataError:
        raise
    except Exception as error:  # pydicom raises many kinds on arbitrary bytes
        raise unreadable(path) from error
    present = {name: value for name, value in values.items() if value is not None and value != ""}
    return Instance(path, present, sop_class, is_compressed)


def unreadable(path: Path) -> DataError:
    """The error for a file that is cut short or damaged; it quotes nothing of the file."""
    return DataError(
        f"{path}: cannot be read as DICOM.",
        "It may be cut short or damaged: copy or export the series again.",
    )


def _is_below(uid: str, root: str) -> bool:
    return uid == root or uid.startswith(f"{root}.")
