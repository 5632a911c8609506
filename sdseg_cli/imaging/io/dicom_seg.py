"""A mask as a DICOM Segmentation object beside its series, through highdicom (an optional extra).

Unlike all else that is written here, it is a document of the patient: it carries the identity that
its source series carries, as every DICOM object must.
"""

from __future__ import annotations

from collections.abc import Iterator
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
from sdseg_cli.imaging.volume import Array, Volume

_REPEATED = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate",
    "StudyTime", "AccessionNumber",
)  # fmt: skip
"""Elements that have to be there, though they may be empty."""
_ONE_FOR_ALL = ("StudyInstanceUID", "FrameOfReferenceUID", "SOPClassUID", "PatientID")
"""Elements of which a series has one value."""
_SERIES_NUMBER = 9000
"""Of our series: far above what scanners count."""


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


def write(path: Path, array: Array, like: Volume) -> None:
    """Write a mask as a DICOM SEG: binary, one segment, empty frames left out.

    Args:
        path: Ends in .dcm.
        array: (column, row, slice) uint8, 0 or 1.
        like: The scan, read from a DICOM series that is still where it was.

    Raises:
        DataError: The series is gone, or its headers lack what a SEG has to repeat.
        RunError: The disk refused.
    """
    header = _header(like)
    with _telling(header.source), quiet():
        segmentation = _segmentation(_sources(header), array)
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


def _segmentation(sources: list[Any], array: Array) -> Any:
    import highdicom
    from highdicom.seg import Segmentation, SegmentationTypeValues, SegmentDescription

    code = highdicom.sr.CodedConcept
    segment = SegmentDescription(
        segment_number=1,
        segment_label="segmentation",
        segmented_property_category=code("91723000", "SCT", "Anatomical Structure"),
        segmented_property_type=code("85756007", "SCT", "Tissue"),
        algorithm_type="AUTOMATIC",
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name="sdseg",
            version=__version__,
            family=code("123110", "DCM", "Artificial Intelligence"),
        ),
    )
    return Segmentation(
        source_images=sources,
        pixel_array=np.ascontiguousarray(array.transpose(2, 1, 0)),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[segment],
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
