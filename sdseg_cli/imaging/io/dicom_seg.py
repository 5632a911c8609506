"""A mask as a DICOM Segmentation object beside its series, through highdicom (an optional extra).

Unlike all else that is written here, it is a document of the patient: it carries the identity that
its source series carries, as every DICOM object must.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from sdseg_cli import __version__
from sdseg_cli.core.errors import ConfigError, DataError
from sdseg_cli.core.filenames import may_hold_dicom
from sdseg_cli.core.files import replacing
from sdseg_cli.imaging.io.dicom import DicomHeader
from sdseg_cli.imaging.io.dicom_series import opened, quiet
from sdseg_cli.imaging.volume import Array, Segment, Volume

_REPEATED = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate",
    "StudyTime", "AccessionNumber",
)  # fmt: skip
"""Elements that have to be there, though they may be empty."""
_ONE_FOR_ALL = ("StudyInstanceUID", "FrameOfReferenceUID", "SOPClassUID", "PatientID")
"""Elements of which a series has one value."""
_SERIES_NUMBER = 9000
"""Of our series: far above what scanners count."""
_CATEGORIES = {"CID7192": ("91723000", "Anatomical Structure"), "CID7159": ("49755003", "Lesion")}
"""Context groups of DICOM in which a class is looked up by its name, and the SNOMED CT code of what
they hold: anatomical structures, and what is abnormal."""
_TISSUE = ("85756007", "Tissue")
"""What a class of another name is."""
_NO_PART_OF_A_NAME = frozenset({"left", "right", "l", "r", "lt", "rt"})
_ALSO_CALLED = {
    "oesophagus": "esophagus", "brainstem": "brainstem", "postcava": "inferiorvenacava",
    "ivc": "inferiorvenacava", "parotid": "parotidgland", "adrenal": "adrenalgland",
    "cord": "spinalcord", "tumour": "neoplasm", "tumor": "neoplasm", "spinal": "spinalcord",
}  # fmt: skip
"""Names in data sets, without spaces -> in the context groups."""
_LONGEST_LABEL = 64
"""Of a segment's label, letters (its VR is LO)."""


def check_writable(path: Path, scan: Path | None) -> None:
    """Refuse a .dcm output that cannot come about.

    Raises:
        DataError: The scan is no DICOM series.
        ConfigError: highdicom is not installed.
    """
    if scan is None or not may_hold_dicom(scan):
        raise DataError(
            f"{path}: a DICOM SEG refers to the DICOM series it was made from, and "
            f"{'this output' if scan is None else scan} has none.",
            "End the name in .nii.gz, .nrrd or .mha, or give the scan as DICOM.",
        )
    if find_spec("highdicom") is None:
        raise ConfigError(
            f"{path}: a DICOM SEG needs the package highdicom, which is not installed.",
            "Install it: pip install 'sdseg-cli[dicom-seg]'; or write .nii.gz.",
        )


def check_references(like: Volume) -> None:
    """Refuse, as a DataError, a series that a SEG cannot refer to or cannot repeat."""
    header = _header(like)
    source, sources = header.source, _sources(header)
    with _telling(source), quiet():
        for name in _REPEATED:
            if name not in sources[0]:
                raise _lacks(source, name, ", which a DICOM SEG has to repeat")
        for name in _ONE_FOR_ALL:
            if len({str(one[name].value) for one in sources if name in one}) > 1:
                raise DataError(
                    f"{source}: its files have several {name}, and a DICOM SEG refers to one.",
                    "Write .nii.gz, or give the series as the scanner made it.",
                )
        # What else may be refused is refused of two slices as well, and before the work.
        columns, rows, _ = like.geometry.shape
        few = sources[:2]
        _segmentation(few, np.ones((columns, rows, len(few)), np.uint8))


def _header(like: Volume) -> DicomHeader:
    """The series' header, once it has all identifiers. Raises DataError."""
    assert isinstance(like.header, DicomHeader)  # `check_writable` refuses other scans
    if like.header.blank:
        raise _lacks(like.header.source, like.header.blank[0], " for a DICOM SEG to refer to")
    return like.header


def _lacks(source: Path, name: str, why: str) -> DataError:
    return DataError(
        f"{source}: its files have no {name}{why}.",
        "Write .nii.gz, or give the series with its identifiers.",
    )


@contextmanager
def _telling(source: Path) -> Iterator[None]:
    """Refusals of highdicom, as an error that quotes no value of the headers."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        name = getattr(error, "name", None)
        what = f"have no {name}, which" if name else "lack or misspell what"
        raise DataError(
            f"{source}: its headers {what} a DICOM SEG has to repeat.",
            "Write .nii.gz, or give the series as the scanner made it.",
        ) from error


def write(path: Path, array: Array, like: Volume, segments: Sequence[Segment] = ()) -> None:
    """Write a mask as a DICOM SEG: binary, one segment for each class, empty frames left out.

    Args:
        path: Ends in .dcm.
        array: (column, row, slice) uint8, 0 or 1; with segments their values.
        like: The scan, read from a DICOM series that is still where it was.
        segments: The classes; none for a mask of one, which has no name.

    Raises:
        DataError: The series is gone, or its headers lack what a SEG has to repeat.
        RunError: The disk refused.
    """
    header = _header(like)
    with _telling(header.source), quiet():
        segmentation = _segmentation(_sources(header), _numbered(array, segments), segments)
    with replacing(path) as temporary, quiet():
        segmentation.save_as(temporary)


def _sources(header: DicomHeader) -> list[Any]:
    """The series' own headers, slice by slice."""
    import pydicom

    with opened(header.source) as folder, quiet():
        try:
            sources = [
                pydicom.dcmread(folder / file, stop_before_pixels=True) for file in header.files
            ]
        except Exception as error:  # pydicom raises many kinds on what was changed meanwhile
            raise DataError(
                f"{header.source}: the series changed or vanished meanwhile.",
                "Run again; a mask that is no .dcm needs the series only once.",
            ) from error
    return sources


def _numbered(array: Array, segments: Sequence[Segment]) -> Array:
    """The label map with the number of the segment, from 1, in place of each value."""
    if not segments:
        return array
    number_of = np.zeros(max(segment.value for segment in segments) + 1, np.uint16)
    for number, segment in enumerate(segments, start=1):
        number_of[segment.value] = number
    return number_of.astype(np.uint8 if len(segments) <= 255 else np.uint16)[array]


def codes_of(name: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """Category and type of a class, each as SNOMED CT's code and meaning, where DICOM's context
    groups have its name, its side left out; else an anatomical structure that is tissue.
    """
    from pydicom.sr.codedict import codes

    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    plain = [word.lower() for word in words if word.lower() not in _NO_PART_OF_A_NAME]
    joined = "".join(plain)
    wanted = {joined, joined.removesuffix("s"), _ALSO_CALLED.get(joined, joined)} - {""}
    if joined == "brainstem":
        wanted.add("stemofbrain")
    for group, category in _CATEGORIES.items():
        concepts = getattr(codes, group)
        for keyword in concepts.dir():
            if keyword.lower() in wanted:
                found = getattr(concepts, keyword)
                return category, (found.value, found.meaning)
    return _CATEGORIES["CID7192"], _TISSUE


def _description(number: int, segment: Segment | None) -> Any:
    """Of one segment; None is the mask of one class, which has no name."""
    import highdicom
    from highdicom.seg import SegmentDescription

    code = highdicom.sr.CodedConcept
    category, kind = (
        (_CATEGORIES["CID7192"], _TISSUE) if segment is None else codes_of(segment.name)
    )
    label = "segmentation" if segment is None else " ".join(segment.name.replace("\\", "/").split())
    return SegmentDescription(
        segment_number=number,
        segment_label=label[:_LONGEST_LABEL],
        segmented_property_category=code(category[0], "SCT", category[1]),
        segmented_property_type=code(kind[0], "SCT", kind[1]),
        algorithm_type="AUTOMATIC",
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name="sdseg",
            version=__version__,
            family=code("123110", "DCM", "Artificial Intelligence"),
        ),
    )


def _segmentation(sources: list[Any], array: Array, segments: Sequence[Segment] = ()) -> Any:
    import highdicom
    from highdicom.seg import Segmentation, SegmentationTypeValues

    described = [_description(n, one) for n, one in enumerate(segments or (None,), start=1)]
    return Segmentation(
        source_images=sources,
        pixel_array=np.ascontiguousarray(array.transpose(2, 1, 0)),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        series_instance_uid=highdicom.UID(),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="sdseg",
        manufacturer_model_name="sdseg",
        software_versions=__version__,
        device_serial_number="none",
        omit_empty_frames=bool(array.any()),
    )
