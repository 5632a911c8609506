"""MetaImage's header by the format's rules; NRRD and MetaImage read, and written by SimpleITK.

Both formats know the world of DICOM, LPS. SimpleITK has no part in reading: it takes damaged packed
voxels for whole ones, prints what it likes, and its parser and a check beside it would disagree.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.errors import DataError
from sdseg_cli.core.filenames import printable, storable
from sdseg_cli.core.files import replacing
from sdseg_cli.imaging.io import nrrd
from sdseg_cli.imaging.io.header_checks import geometry_of
from sdseg_cli.imaging.io.native import silenced
from sdseg_cli.imaging.io.text_header import (
    Fields,
    HeaderError,
    TextHeader,
    Three,
    file_beside,
    header_lines,
    numbers,
    quoted,
    read_voxels,
    reading,
    require_claimed,
    require_millimetres,
    require_volume,
    sizes,
    three,
    whole,
)
from sdseg_cli.imaging.volume import (
    LPS_TO_RAS,
    Array,
    Geometry,
    OnHeader,
    Segment,
    Volume,
    bounding_box,
)

WRITABLE = (".nrrd", ".mha")
"""One file each: an .mhd is two files, which no rename replaces at once."""

_SEPARATOR = re.compile("[=:]")
_FIELDS = {
    "ObjectType", "ObjectSubType", "NDims", "Comment", "Name", "ID", "ParentID", "Color",
    "BinaryData", "BinaryDataByteOrderMSB", "ElementByteOrderMSB", "CompressedData",
    "CompressedDataSize", "CompressionLevel", "TransformMatrix", "Rotation", "Orientation",
    "Offset", "Position", "Origin", "CenterOfRotation", "AnatomicalOrientation", "DistanceUnits",
    "ElementSpacing", "ElementSize", "DimSize", "HeaderSize", "Modality", "SequenceID",
    "ElementMin", "ElementMax", "ElementNumberOfChannels", "ElementNBits", "ElementType",
    "ElementToIntensityFunctionSlope", "ElementToIntensityFunctionOffset", "ElementDataFile",
}  # fmt: skip
_BY_LOWER_CASE = {name.lower(): name for name in _FIELDS}
_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2",
    "MET_INT": "i4", "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip


def _first_of(fields: Fields, *names: str, otherwise: str) -> str:
    """The format has several names for some fields; ITK takes them in this order."""
    return next((fields.values[name] for name in names if name in fields.values), otherwise)


def _yes(fields: Fields, name: str, otherwise: bool) -> bool:
    text = fields.text(name, str(otherwise)).lower()
    if text not in ("true", "false", "1", "0", "t", "f"):
        raise HeaderError(f"its {name} is neither True nor False")
    return text in ("true", "1", "t")


def read(path: Path, on_header: OnHeader | None = None) -> Volume:
    """Read an NRRD or MetaImage file at its stored type.

    Raises:
        DataError: Unreadable, damaged, or not one 3D volume of numbers.
    """
    with reading(path):
        header, geometry = _read_header(path)
        if on_header is not None:
            on_header(geometry, header.dtype.itemsize)
        array = read_voxels(header)
    return Volume(array, geometry, header=header, source=path)


def read_geometry(path: Path) -> Geometry:
    """Read where a volume lies, from its header alone; errors as of `read`."""
    with reading(path):
        return _read_header(path)[1]


def voxel_file(path: Path) -> Path:
    """The file in which an NRRD or MetaImage header's voxels lie; often the header's own.

    Raises:
        DataError: The header is no such header, or its voxels lie elsewhere or nowhere.
    """
    with reading(path):
        if _is_nrrd(path):
            return nrrd.voxel_file(path)
        return _file_of(path, _fields(path))


def _is_nrrd(path: Path) -> bool:
    return path.suffix.lower() == ".nrrd"


def _read_header(path: Path) -> tuple[TextHeader, Geometry]:
    header = nrrd.read_header(path) if _is_nrrd(path) else _read_metaimage_header(path)
    lps = np.eye(4)
    with np.errstate(all="ignore"):  # what overflows is no grid, as `geometry_of` finds
        lps[:3, :3] = header.directions * np.asarray(header.spacing_mm)
        lps[:3, 3] = header.origin_mm
        geometry = geometry_of(path, header.shape, LPS_TO_RAS @ lps)
    require_claimed(header)
    return header, geometry


def _read_metaimage_header(path: Path) -> TextHeader:
    fields = _fields(path)
    if fields.text("ObjectType", "Image") != "Image":
        raise HeaderError(f"it is a {quoted(fields.values['ObjectType'])} and no Image")
    kind = fields.text("ElementType")
    axes = whole("NDims", fields.text("NDims"), 1)
    channels = whole("ElementNumberOfChannels", fields.text("ElementNumberOfChannels", "1"), 1)
    require_volume(path, axes, channels, kind)
    if kind not in _TYPES:
        raise HeaderError(
            f"its ElementType {quoted(kind)} is none of a number", "Export one number a voxel."
        )
    _require_real_values(fields)
    file = _file_of(path, fields)
    encoding, begin, skip = _place(fields, local=file == path)
    packed = fields.values.get("CompressedDataSize") if encoding == "zlib" else None
    spacing, directions, origin = _grid(fields)
    return TextHeader(
        path=path,
        shape=sizes("DimSize", fields.text("DimSize"), 0),
        dtype=np.dtype(_TYPES[kind]).newbyteorder(">" if _big_endian(fields) else "<"),
        spacing_mm=spacing,
        directions=directions,
        origin_mm=origin,
        file=file,
        encoding=encoding,
        begin=begin,
        skip_bytes=skip,
        packed_bytes=None if packed is None else whole("CompressedDataSize", packed),
    )


def _fields(path: Path) -> Fields:
    fields = Fields()
    with path.open("rb") as file:
        for number, line in enumerate(header_lines(file), 1):
            fields.begin = file.tell()
            if not line.strip():
                continue
            separator = _SEPARATOR.search(line)
            if separator is None:
                raise HeaderError(f"line {number} of its header is no field")
            name = line[: separator.start()].strip(" \t")
            meant = _BY_LOWER_CASE.get(re.sub(r"[\s_]", "", name).lower())
            if meant is None:
                continue  # a field of somebody's own, such as a DICOM tag
            if name != meant:
                raise HeaderError(
                    f"line {number} of its header says {name}, which is written {meant}"
                )
            fields.put(name, line[separator.end() :])
            if name == "ElementDataFile":
                return fields
    raise HeaderError("its header has no ElementDataFile")


def _file_of(path: Path, fields: Fields) -> Path:
    name = fields.values["ElementDataFile"]
    return path if name in ("LOCAL", "Local", "local") else file_beside(path, name)


def _place(fields: Fields, *, local: bool) -> tuple[str, int, int]:
    """Storage of the voxels, the byte at which they begin, and how much to skip from there."""
    packed, binary = _yes(fields, "CompressedData", False), _yes(fields, "BinaryData", True)
    if packed and not binary:
        raise HeaderError("its header says both CompressedData and voxels written out as text")
    encoding = "zlib" if packed else "raw" if binary else "ascii"
    head = whole("HeaderSize", fields.text("HeaderSize", "0"), -1)
    if head == -1 and encoding != "raw":
        raise HeaderError("its HeaderSize of -1 is for raw voxels only")
    if local and head > 0 and head != fields.begin:
        raise HeaderError(f"its HeaderSize is {head}, its header ends at {fields.begin}")
    return encoding, fields.begin if local else max(head, 0), min(head, 0)


def _grid(fields: Fields) -> tuple[Three, NDArray[np.float64], Three]:
    """Spacing in mm, directions and origin, LPS; to the last bit as ITK, as masks repeat them."""
    require_millimetres("DistanceUnits", [fields.text("DistanceUnits", "mm")])
    names = ("TransformMatrix", "Rotation", "Orientation")
    matrix = numbers(names[0], _first_of(fields, *names, otherwise="1 0 0 0 1 0 0 0 1"), 9)
    names = ("Offset", "Position", "Origin")
    origins = {three(name, fields.values[name]) for name in names if name in fields.values}
    if len(origins) > 1:
        raise HeaderError("its header says two places where it begins")
    x, y, z = origins.pop() if origins else (0.0, 0.0, 0.0)
    steps = three(
        "ElementSpacing", _first_of(fields, "ElementSpacing", "ElementSize", otherwise="1 1 1")
    )
    # The file's rows are the directions of the axes; adding 0 makes 0 of -0.
    directions = np.reshape(matrix, (3, 3)).T + 0.0
    for axis, step in enumerate(steps):
        if step < 0:  # an axis that runs the other way
            directions[:, axis] *= -1
    spacing = (abs(steps[0]), abs(steps[1]), abs(steps[2]))
    return spacing, directions, (x + 0.0, y + 0.0, z + 0.0)


def _big_endian(fields: Fields) -> bool:
    names = [n for n in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB") if n in fields.values]
    orders = {_yes(fields, name, False) for name in names}
    if len(orders) > 1:
        raise HeaderError("its header says two byte orders")
    return orders == {True}


def _require_real_values(fields: Fields) -> None:
    """Refuse a slope and an offset: the format has them, and most of its readers pass them over."""
    for name, none in (("Slope", 1.0), ("Offset", 0.0)):
        full = f"ElementToIntensityFunction{name}"
        if numbers(full, fields.text(full, str(none)), 1) != (none,):
            raise HeaderError(
                f"its {full} is {fields.values[full]}, which most readers pass over",
                "Store the real values, with a slope of 1 and an offset of 0.",
            )


SEGMENTATION = ".seg.nrrd"
"""An NRRD of this name says in its header what each value is, as 3D Slicer reads it."""


def write(
    path: Path,
    array: Array,
    like: Volume,
    *,
    shares: bool = False,
    segments: Sequence[Segment] = (),
) -> None:
    """Write a uint8, uint16 or float32 array (I, J, K) on the grid of `like`, atomically.

    SimpleITK writes what it holds: memory has one copy of the array, with `shares` as float32.

    Args:
        path: The file to write or replace.
        array: What it holds.
        like: Says where it lies.
        shares: uint8 stands for value / 255 in float32: these formats know no slope.
        segments: The classes of a label map, which a `SEGMENTATION` names.

    Raises:
        DataError: The grid is sheared, which these formats cannot say.
        RunError: The disk refused.
    """
    import SimpleITK

    image: Any
    if shares:
        image = SimpleITK.Image(array.shape, SimpleITK.sitkFloat32)
        for k in range(array.shape[2]):
            plane = array[:, :, k].T.astype(np.float32) / np.float32(255)
            image[:, :, k] = SimpleITK.GetImageFromArray(plane)
    else:
        image = SimpleITK.GetImageFromArray(array.transpose(2, 1, 0))
    if isinstance(like.header, TextHeader):  # its grid goes out as it came in
        image.SetSpacing(like.header.spacing_mm)
        image.SetDirection(like.header.directions.ravel().tolist())
        image.SetOrigin(like.header.origin_mm)
    else:
        lps = LPS_TO_RAS @ like.geometry.affine
        directions = lps[:3, :3] / np.asarray(like.geometry.spacing_mm)
        sheared = not np.allclose(directions.T @ directions, np.eye(3), atol=1e-4)
        if sheared or like.geometry.shear_degrees:
            raise DataError(
                f"{path}: the scan's grid is sheared, which this format cannot hold.",
                "Write .nii.gz instead.",
            )
        image.SetSpacing(like.geometry.spacing_mm)
        image.SetDirection(directions.ravel().tolist())
        image.SetOrigin(lps[:3, 3].tolist())
    if segments and path.name.lower().endswith(SEGMENTATION):
        for key, value in _segment_fields(array, segments).items():
            image.SetMetaData(key, value)
    with replacing(path) as temporary, _plainly_named(temporary) as named:
        try:
            with silenced():
                SimpleITK.WriteImage(image, str(named), useCompression=True)
        except RuntimeError as error:
            raise OSError("SimpleITK could not write it") from error


def _segment_fields(array: Array, segments: Sequence[Segment]) -> dict[str, str]:
    """Keys and values of a header by which 3D Slicer opens a label map as a segmentation."""
    fields = {
        "Segmentation_ContainedRepresentationNames": "Binary labelmap|",
        "Segmentation_ConversionParameters": "",
        "Segmentation_MasterRepresentation": "Binary labelmap",  # up to Slicer 5.0
        "Segmentation_SourceRepresentation": "Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset": "0 0 0",
    }
    for number, segment in enumerate(segments):
        box = bounding_box(array == segment.value)
        first_last = ((0, -1),) * 3 if box is None else ((one.start, one.stop - 1) for one in box)
        of_segment = {
            "ID": f"Segment_{segment.value}",
            "Name": " ".join(printable(segment.name).split()),
            "NameAutoGenerated": "0",
            "LabelValue": str(segment.value),
            "Layer": "0",
            "Color": " ".join(f"{one / 255:.6g}" for one in segment.colour),
            "ColorAutoGenerated": "0",
            "Extent": " ".join(f"{first} {last}" for first, last in first_last),
            "Tags": "|",
        }
        fields |= {f"Segment{number}_{key}": value for key, value in of_segment.items()}
    return fields


@contextmanager
def _plainly_named(path: Path) -> Iterator[Path]:
    """A name for SimpleITK to write to, which a name that is no UTF-8 ends the whole process."""
    if storable(str(path)) == str(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        named = Path(folder) / f"image{path.suffix}"
        yield named
        shutil.copyfile(named, path)
