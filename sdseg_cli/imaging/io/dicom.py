"""A DICOM series as a Volume: pydicom for headers and plain pixels, GDCM for compressed ones.

The array is (column, row, slice), slices along the normal row x column, as converters to NIfTI have
it. Nothing is resampled and nothing is guessed: a series whose slices do not stack is refused.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.errors import ConfigError, DataError
from sdseg_cli.core.filenames import ZIP_SUFFIX, natural_key
from sdseg_cli.imaging.io.dicom_series import (
    Instance,
    find_series,
    opened,
    quiet,
    unreadable,
)
from sdseg_cli.imaging.io.native import silenced
from sdseg_cli.imaging.volume import (
    GRID_TOLERANCE_VOXELS,
    LPS_TO_RAS,
    Array,
    Geometry,
    OnHeader,
    Volume,
)

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
_MAX_PLANE_PIXELS = 1 << 26
"""8192 x 8192: a compressed file that claims more is not believed."""
_TOLERANCE = 1e-4
"""How far cosines and mm per pixel of one series may differ: 0.05 pixels over a row of 512."""
_HOUNSFIELD = ("HU", "HU_MOD", "US")
"""Kinds of values in CT: Hounsfield units, those somehow modified, and not said."""
_NAMED = 5
"""So many slices are named in a message."""

_Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class DicomHeader:
    """The origin of a volume's slices: enough to refer to them, nothing about the patient.

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
        on_header: Called before the pixels are read.

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
    """Refuse, as a ConfigError, to write over a file of the series."""
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
    slices = find_series(source, folder, name).instances
    for slice_ in slices:
        _check_header(slice_)
    _check_alike(slices)
    return _sorted_stack(slices)


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
    if "Corrupt JPEG data" in printed[0]:
        raise ValueError(printed[0])  # what is missing was filled in with anything
    return np.asarray(decoded[0])


def _check_header(slice_: Instance) -> None:
    """Refuse a file that is no single plane of grey values, or smaller than its header claims."""
    (frames,) = slice_.numbers("NumberOfFrames", 1, default=1)
    (samples,) = slice_.numbers("SamplesPerPixel", 1, default=1)
    if frames != 1:
        raise DataError(
            f"{slice_.path}: a multi-frame object of {frames:g} frames, which is not read.",
            "Export the series as one file per slice, or convert it, for example with dcm2niix.",
        )
    if samples != 1:
        raise DataError(f"{slice_.path}: a colour image.", "Give a series of grey values.")
    if slice_.get("ModalityLUTSequence"):
        raise DataError(
            f"{slice_.path}: its grey values need a lookup table, which is not applied.",
            "Export the series with a rescale slope and intercept.",
        )
    _check_grey(slice_)
    (rows,), (columns,) = slice_.numbers("Rows", 1), slice_.numbers("Columns", 1)
    (bits,) = slice_.numbers("BitsAllocated", 1)
    pixels = int(rows * columns)
    held = slice_.path.stat().st_size
    if pixels > _MAX_PLANE_PIXELS or (not slice_.is_compressed and pixels * bits / 8 > held):
        raise DataError(
            f"{slice_.path}: claims {pixels:,} pixels, which its {held:,} bytes do not hold.",
            "It is cut short or damaged: copy or export the series again.",
        )


def _check_grey(slice_: Instance) -> None:
    """Refuse grey values that mean something else than they seem to."""
    meaning = slice_.text("PhotometricInterpretation").strip().upper()
    if meaning == "MONOCHROME1":
        raise DataError(
            f"{slice_.path}: its grey values are inverted (MONOCHROME1), which is not handled.",
            "Export the series as MONOCHROME2.",
        )
    if meaning not in ("", "MONOCHROME2"):
        raise DataError(f"{slice_.path}: a colour image.", "Give a series of grey values.")
    (bits,) = slice_.numbers("BitsAllocated", 1)
    (stored,) = slice_.numbers("BitsStored", 1, default=bits)
    (highest,) = slice_.numbers("HighBit", 1, default=stored - 1)
    if not 1 <= stored <= bits or highest != stored - 1:
        raise DataError(
            f"{slice_.path}: its header says {stored:g} of {bits:g} bits up to bit {highest:g}, "
            "which is not handled.",
            "Export the series again; pixels are read whose bits begin with bit 0.",
        )
    kind = slice_.text("RescaleType").strip().upper()
    if slice_.modality == "CT" and kind not in ("", *_HOUNSFIELD):
        raise DataError(
            f"{slice_.path}: its RescaleType says that its values are no Hounsfield units.",
            "Export the series of the CT's own grey values, in HU.",
        )


def _check_alike(slices: Sequence[Instance]) -> None:
    """Refuse slices whose grey values do not mean the same throughout the series.

    Slopes and intercepts may differ from slice to slice; they are applied. But a slice without one
    among slices that have it would be off, by 1024 HU in a CT, and nobody would see it.
    """
    for name in ("RescaleSlope", "RescaleIntercept"):
        lacking = [one for one in slices if one.get(name) is None]
        if 0 < len(lacking) < len(slices):
            having = len(slices) - len(lacking)
            raise DataError(
                f"{_named(lacking)}: no {name}, which {having} of {len(slices)} slices have.",
                "Export the series again: without it these slices would be off against the others.",
            )
    negative = [one for one in slices if (one.numbers("RescaleSlope", 1, default=1) < 0).any()]
    if 0 < len(negative) < len(slices):
        raise DataError(
            f"{_named(negative)}: a RescaleSlope below 0, where other slices have one above 0.",
            "Export the series again; its header is damaged.",
        )
    for name in ("Modality", "RescaleType", "Units", "FrameOfReferenceUID"):
        groups: dict[str, list[Instance]] = {}
        for one in slices:
            groups.setdefault(one.text(name).strip().upper(), []).append(one)
        # Some anonymisers give each file a frame of its own, which then says nothing.
        is_everywhere = name == "FrameOfReferenceUID" and len(groups) == len(slices)
        if len(groups) > 1 and not is_everywhere:
            few = min(groups.values(), key=len)
            raise DataError(
                f"{_named(few)}: another {name} than the other {len(slices) - len(few)} slices.",
                "Export the series again, or move what does not belong to it away.",
            )


def _named(slices: Sequence[Instance]) -> str:
    """The first with its path, some more by name."""
    paths = sorted((one.path for one in slices), key=lambda path: natural_key(str(path)))
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return ", ".join([str(paths[0]), *(path.name for path in paths[1:_NAMED])]) + more


def _sorted_stack(instances: Sequence[Instance]) -> tuple[list[Instance], Geometry]:
    """Slices sorted along their normal, row x column, and the grid of (column, row, slice).

    Slices of several sizes or directions, two at one place, a gap and a tilt are refused.
    """
    first = instances[0]
    for elements, count, tolerance, what in (
        (("Columns", "Rows"), 1, 0.0, "size"),
        (("PixelSpacing",), 2, _TOLERANCE, "pixel spacing"),
        (("ImageOrientationPatient",), 6, _TOLERANCE, "direction"),
    ):
        wanted = None
        for one in instances:
            values = np.concatenate([one.numbers(name, count) for name in elements])
            wanted = values if wanted is None else wanted
            if np.abs(values - wanted).max() > tolerance:
                raise DataError(
                    f"{one.path}: has another {what} than {first.path.name}.",
                    "Localizers or several stacks share one series: move the others away.",
                )
    columns, rows = int(first.get("Columns")), int(first.get("Rows"))
    row_mm, column_mm = first.numbers("PixelSpacing", 2)
    if min(row_mm, column_mm) <= 0:
        raise DataError(
            f"{first.path}: its pixel spacing is no number above 0.", "Export the series again."
        )
    along_row, along_column = np.split(first.numbers("ImageOrientationPatient", 6), 2)
    cosines = np.array([along_row, along_column])
    if not np.allclose(cosines @ cosines.T, np.eye(2), rtol=0, atol=10 * _TOLERANCE):
        raise DataError(
            f"{first.path}: ImageOrientationPatient gives no two perpendicular directions.",
            "Export the series again; its orientation is damaged.",
        )
    normal = np.cross(along_row, along_column)
    places = np.array([one.numbers("ImagePositionPatient", 3) for one in instances])
    order = np.argsort(places @ normal, kind="stable")
    stack, places = [instances[n] for n in order], places[order]
    step = _step(stack, places, normal, min(row_mm, column_mm))
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1] = along_row * column_mm, along_column * row_mm
    lps[:3, 2], lps[:3, 3] = normal * step, places[0]
    try:
        return stack, Geometry((columns, rows, len(stack)), LPS_TO_RAS @ lps)
    except ValueError as error:
        raise DataError(
            f"{first.path}: its pixel spacing or orientation is no number above 0.",
            "Export the series again.",
        ) from error


def _step(stack: list[Instance], places: _Vector, normal: _Vector, pixel_mm: float) -> float:
    """Distance between neighbouring slices in mm, once they are known to stack."""
    if len(stack) == 1:
        (thickness,) = stack[0].numbers("SliceThickness", 1, default=1)
        (distance,) = stack[0].numbers("SpacingBetweenSlices", 1, default=thickness)
        return float(abs(distance)) or 1.0
    heights = places @ normal
    gaps = np.diff(heights)
    usual = float(np.median(gaps))
    for n in np.flatnonzero(gaps <= 0.01 * max(usual, 0.1)).tolist():
        raise DataError(
            f"{stack[n].path} and {stack[n + 1].path.name} lie at one position.",
            "Keep one copy of each slice, and one phase or echo: move the others away.",
        )
    step = float(heights[-1] - heights[0]) / len(gaps)
    even = heights[0] + step * np.arange(len(stack))
    if np.abs(heights - even).max() > GRID_TOLERANCE_VOXELS * step:
        n = int(np.argmax(np.abs(gaps - usual)))
        raise DataError(
            f"{stack[n].path} and {stack[n + 1].path.name} lie {gaps[n]:.4g} mm apart, most "
            f"slices {usual:.4g} mm: {_missing(gaps[n] / usual)}.",
            "Export the whole series again, or resample it to equal spacing.",
        )
    drift = np.linalg.norm(places[-1] - places[0] - normal * (heights[-1] - heights[0]))
    if drift > GRID_TOLERANCE_VOXELS * pixel_mm:
        degrees = math.degrees(math.atan2(drift, heights[-1] - heights[0]))
        raise DataError(
            f"{stack[0].path}: the slices of its series are sheared by {degrees:.3g} degrees "
            "(gantry tilt).",
            "Correct the tilt first, for example with dcm2niix, and give its NIfTI file.",
        )
    return step


def _missing(ratio: float) -> str:
    slices = round(ratio) - 1
    if slices < 1 or abs(ratio - slices - 1) > GRID_TOLERANCE_VOXELS:
        return "the spacing is not constant"
    return f"{slices} slice{'s are' if slices > 1 else ' is'} missing between them"
