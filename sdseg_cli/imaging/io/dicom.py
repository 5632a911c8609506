"""A DICOM series as a Volume: pydicom for headers and plain pixels, GDCM for compressed ones.

The array is (column, row, slice), slices along the normal row x column, as converters to NIfTI have
it. Nothing is resampled and nothing is guessed: a series whose slices do not stack is refused.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.errors import ConfigError, DataError
from sdseg_cli.core.filenames import ZIP_SUFFIX
from sdseg_cli.imaging.io.dicom_series import (
    Instance,
    Series,
    find_series,
    opened,
    quiet,
    unreadable,
)
from sdseg_cli.imaging.io.dicom_stack import check_alike, check_header, sorted_stack
from sdseg_cli.imaging.io.native import silenced
from sdseg_cli.imaging.volume import Array, Geometry, OnHeader, Volume

_PIXEL_ELEMENTS = (
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "PixelData",
)  # fmt: skip
_REFERENCES = (
    "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "FrameOfReferenceUID",
    "Modality",
)  # fmt: skip
_RLE = "1.2.840.10008.1.2.5"
_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


@dataclass(frozen=True, eq=False)
class DicomHeader:
    """Where a volume's slices came from: enough to refer to them, nothing about the patient.

    Attributes:
        source: The folder, zip or file the user named.
        files: Path of each slice k below `dicom_series.opened(source)`.
        blank: Identifiers that another object would have to refer to, and that some slice lacks.
    """

    source: Path
    files: tuple[Path, ...]
    blank: tuple[str, ...]


def read(source: Path, series: str | None = None, on_header: OnHeader | None = None) -> Volume:
    """Read a DICOM series.

    Slope and intercept stay apart from the stored integers where all slices share them; where they
    differ (PET), the array holds the values themselves as float32.

    Args:
        source: A folder (nested, names do not matter), a .zip, or one file of the series.
        series: Which one, where there are several; see `dicom_series.find_series`.
        on_header: Told of the headers before the pixels are read.

    Raises:
        DataError: No series, not one stack of equally spaced slices, or a damaged file.
        ConfigError: Several series, or there is no such one.
    """
    with opened(source) as folder:
        stack, geometry = _stack(source, folder, series)
        scalings = [_scaling(slice_) for slice_ in stack]
        if on_header is not None:
            (bits,) = stack[0].numbers("BitsAllocated", 1)
            on_header(
                geometry, int(bits) // 8 if len(set(scalings)) == 1 else np.float32().itemsize
            )
        array = _read_array(stack, geometry.shape, scalings)
        files = tuple(slice_.path.relative_to(folder) for slice_ in stack)
    slope, intercept = (1.0, 0.0) if array.dtype == np.float32 else scalings[0][:2]
    blank = tuple(name for name in _REFERENCES if not all(slice_.text(name) for slice_ in stack))
    header = DicomHeader(source, files, blank)
    return Volume(array, geometry, slope, intercept, header=header, source=source)


def read_geometry(source: Path, series: str | None = None) -> Geometry:
    """Read where a DICOM series lies, from its headers alone; see `read`."""
    with opened(source) as folder:
        return _stack(source, folder, series)[1]


def require_no_slice(path: Path, scan: Volume) -> None:
    """Refuse to write over a file of the series.

    Raises:
        ConfigError: As said.
    """
    if not isinstance(scan.header, DicomHeader) or not path.exists():
        return
    source = scan.header.source
    folder = source if source.is_dir() else source.parent
    slices = (folder / file for file in scan.header.files)
    if source.suffix.lower() != ZIP_SUFFIX and any(
        path.samefile(slice_) for slice_ in slices if slice_.exists()
    ):
        raise ConfigError(f"{path}: is a slice of the scan itself.", "Give -o another name.")


def _stack(source: Path, folder: Path, name: str | None) -> tuple[list[Instance], Geometry]:
    series: Series = find_series(source, folder, name)
    for slice_ in series.instances:
        check_header(slice_)
    check_alike(series.instances)
    return sorted_stack(series.instances)


def _scaling(slice_: Instance) -> tuple[float, float, Any]:
    """Slope, intercept and stored type of a slice; equal in all = kept as stored."""
    (slope,) = slice_.numbers("RescaleSlope", 1, default=1)
    (intercept,) = slice_.numbers("RescaleIntercept", 1, default=0)
    if slope == 0:
        raise DataError(
            f"{slice_.path}: RescaleSlope is 0, which makes all pixels one grey.",
            "Export the series again; its header is damaged.",
        )
    stored = slice_.text("BitsAllocated"), slice_.text("PixelRepresentation")
    return float(slope), float(intercept), stored


def _read_array(
    stack: list[Instance],
    shape: tuple[int, int, int],
    scalings: list[tuple[float, float, Any]],
) -> Array:
    """(columns, rows, slices) at the stored type, or float32 values where scalings differ."""
    is_alike = len(set(scalings)) == 1
    array: Array | None = None
    with tempfile.TemporaryDirectory(prefix="sdseg-") as scratch:
        for k, (slice_, (slope, intercept, _)) in enumerate(zip(stack, scalings, strict=True)):
            plane = _stored_plane(slice_.path, Path(scratch))
            if plane.shape != (shape[1], shape[0]):
                raise unreadable(slice_.path)
            if array is None:  # once the first plane has shown that the header speaks the truth
                array = np.empty(shape, plane.dtype if is_alike else np.float32, order="F")
            if not is_alike:
                plane = plane.astype(np.float64) * slope + intercept
            array[:, :, k] = plane.T
    assert array is not None  # a stack has at least one slice
    return array


def _stored_plane(path: Path, scratch: Path) -> Array:
    """(rows, columns) as stored, before any rescaling."""
    import pydicom

    try:
        with quiet():
            image = pydicom.dcmread(path, specific_tags=list(_PIXEL_ELEMENTS))
            syntax = image.file_meta.TransferSyntaxUID
            if not syntax.is_encapsulated or syntax == _RLE:
                plane: Array = image.pixel_array
                return plane
            return _decoded(image, scratch)
    except Exception as error:  # pydicom and GDCM raise many kinds on arbitrary bytes
        raise unreadable(path) from error


def _decoded(image: Any, scratch: Path) -> NDArray[Any]:
    """Decode through GDCM a copy that holds pixels only: no rescaling, and no patient on disk."""
    import SimpleITK
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import generate_uid

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    bare: Any = Dataset()
    for name in _PIXEL_ELEMENTS:
        if name in image:
            bare[name] = image[name]
    bare.SOPClassUID, bare.SOPInstanceUID = _CAPTURE, generate_uid()
    bare.file_meta = FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = image.file_meta.TransferSyntaxUID
    path = scratch / "plane.dcm"
    bare.save_as(path, enforce_file_format=True)
    with silenced() as printed:  # decoders below GDCM report to the terminal, and to nobody else
        decoded: Any = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    if "Corrupt JPEG data" in printed.text:
        raise ValueError(printed.text)  # what is missing was filled in with anything
    return np.asarray(decoded[0])
