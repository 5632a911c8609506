"""NRRD and MetaImage through SimpleITK, whose world is LPS and whose arrays are (z, y, x)."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdseg_cli.atomic import replacing
from sdseg_cli.errors import DataError
from sdseg_cli.filenames import storable
from sdseg_cli.imaging.claims import find_voxels, require_held
from sdseg_cli.imaging.shear import geometry_of
from sdseg_cli.imaging.volume import LPS_TO_RAS, Array, Claim, Geometry, Volume

WRITABLE = (".nrrd", ".mha")
"""One file each: an .mhd is two files, which no rename replaces at once."""

_BITS = {"8-bit": 8, "16-bit": 16, "32-bit": 32, "64-bit": 64}


@dataclass(frozen=True, eq=False)
class ImageHeader:
    """The SimpleITK image itself: it owns the memory the array looks into, and the grid."""

    image: Any


def read(path: Path, claim: Claim | None = None) -> Volume:
    """Read an NRRD or MetaImage file at its stored type.

    Args:
        path: The file.
        claim: Told of the header before the voxels are read.

    Raises:
        DataError: Unreadable, or not one 3D volume of numbers.
    """
    import SimpleITK

    geometry, voxel_bytes = _read_header(path)
    if claim is not None:
        claim(geometry, voxel_bytes)
    try:
        image: Any = SimpleITK.ReadImage(str(path))
    except RuntimeError as error:
        raise _unreadable(path) from error
    array = SimpleITK.GetArrayViewFromImage(image).transpose(2, 1, 0)
    return Volume(array, geometry, header=ImageHeader(image), source=path)


def read_geometry(path: Path) -> Geometry:
    """Read where a volume lies, from its header alone.

    Raises:
        DataError: Unreadable, or not one 3D volume of numbers.
    """
    return _read_header(path)[0]


def _read_header(path: Path) -> tuple[Geometry, int]:
    """Where a volume lies, and the bytes of a voxel."""
    import SimpleITK

    # Its warnings go straight to the terminal, where they would break a progress bar.
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        voxels = find_voxels(path)
    except OSError as error:
        raise _unreadable(path) from error
    header: Any = SimpleITK.ImageFileReader()
    header.SetFileName(str(path))
    try:
        header.ReadImageInformation()
    except RuntimeError as error:
        raise _unreadable(path) from error
    axes, values = header.GetDimension(), header.GetNumberOfComponents()
    kind = SimpleITK.GetPixelIDValueAsString(header.GetPixelID())
    if axes != 3 or values != 1 or "complex" in kind:
        raise DataError(
            f"{path}: has {axes} axes and {values} value(s) per voxel ({kind}).",
            "Export one 3D volume of grey values.",
            "dimensions",
        )
    width, height, depth = header.GetSize()
    bits = _BITS.get(kind.split()[0], 8)
    claimed, held = width * height * depth * bits // 8, voxels.file.stat().st_size
    require_held(path, claimed, held, packed=voxels.packed)
    lps = np.eye(4)
    lps[:3, :3] = np.reshape(header.GetDirection(), (3, 3)) * np.asarray(header.GetSpacing())
    lps[:3, 3] = header.GetOrigin()
    return geometry_of(path, (width, height, depth), LPS_TO_RAS @ lps), bits // 8


def _unreadable(path: Path) -> DataError:
    return DataError(
        f"{path}: cannot be read.",
        "The file is damaged, or not what its name says; export it again.",
        "damaged",
    )


def write(path: Path, array: Array, like: Volume, *, shares: bool = False) -> None:
    """Write a uint8 or float32 array on the grid of `like`, atomically.

    SimpleITK writes what it holds: memory has one copy of the array, with `shares` as float32.

    Args:
        path: The file to write or replace.
        array: (I, J, K).
        like: Says where it lies.
        shares: uint8 stands for value / 255 in float32: these formats know no slope.

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
    if isinstance(like.header, ImageHeader):
        image.CopyInformation(like.header.image)
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
    with replacing(path) as temporary, _plainly_named(temporary) as named:
        try:
            SimpleITK.WriteImage(image, str(named), useCompression=True)
        except RuntimeError as error:
            raise OSError("SimpleITK could not write it") from error


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
