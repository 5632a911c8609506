"""Read and write scans: NIfTI by nibabel, NRRD and MetaImage by readers of our own, pictures by
Pillow, DICOM series by pydicom.

nibabel leaves a copied header's affine bit-exact, so a NIfTI mask lies exactly on its scan.
The LPS world of NRRD and MetaImage is known in `metaimage.py` and its parts, nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.errors import ConfigError, DataError
from sdseg_cli.core.filenames import (
    DICOM_SUFFIX,
    NIFTI_SUFFIXES,
    PICTURE_SUFFIXES,
    VOLUME_SUFFIXES,
    is_picture,
    may_hold_dicom,
    require_there,
    suffix_of,
)
from sdseg_cli.core.files import require_replaceable
from sdseg_cli.imaging.io import dicom, dicom_seg, dicom_series, metaimage, nifti
from sdseg_cli.imaging.io.picture import (
    MaskLevels,
    Picture,
    read_picture,
    read_picture_geometry,
    read_picture_labels,
    write_png,
)
from sdseg_cli.imaging.volume import Array, Geometry, OnHeader, Segment, Volume

_TWO_FILES = {
    ".nhdr": "Save header and voxels as one .nrrd file.",
    ".hdr": "Convert the pair .hdr/.img to one .nii file.",
    ".img": "Convert the pair .hdr/.img to one .nii file.",
}
"""Kinds that are not read, and what to make of them."""


def read_image(path: Path, series: str | None = None, on_header: OnHeader | None = None) -> Volume:
    """Read a scan at its stored type.

    Args:
        path: A .nii, .nii.gz, .nrrd, .mha or .mhd file of one 3D volume; a DICOM series (its
            folder, a .zip, or one of its files); or a picture.
        series: Which series, where a DICOM source holds several.
        on_header: Called with the scan's header before voxels are read or pixels decoded.

    Raises:
        DataError: The file is missing, damaged, or not one 3D volume of numbers.
        ConfigError: The source holds several DICOM series, or not the one that is asked for.
    """
    suffix = check_readable(path, series)
    if suffix == DICOM_SUFFIX:
        return dicom.read(path, series, on_header)
    if is_picture(path):
        return read_picture(path, on_header)
    reader = nifti.read if suffix in NIFTI_SUFFIXES else metaimage.read
    return reader(path, on_header)


def read_geometry(path: Path, series: str | None = None) -> Geometry:
    """Read where a volume lies, from its header alone; errors as of `read_image`."""
    suffix = check_readable(path, series)
    if suffix == DICOM_SUFFIX:
        return dicom.read_geometry(path, series)
    if is_picture(path):
        return read_picture_geometry(path)
    reader = nifti.read_geometry if suffix in NIFTI_SUFFIXES else metaimage.read_geometry
    return reader(path)


def read_labels(path: Path, levels: MaskLevels | None = None) -> Volume:
    """Read a label map.

    Args:
        path: As for `read_image`. Floats are accepted where they are whole numbers.
        levels: What the grey values of a picture's mask mean, see `read_picture_labels`.

    Returns:
        A volume of uint8, or uint16 when a label exceeds 255; slope 1, intercept 0.

    Raises:
        DataError: As for `read_image`, or a value is no whole number in 0..65535.
    """
    if is_picture(path):
        check_readable(path)
        return read_picture_labels(path, levels)
    volume = read_image(path)
    whole = volume.array.dtype.kind in "iu" and (volume.slope, volume.intercept) == (1.0, 0.0)
    if whole and volume.array.dtype == np.uint8:
        return volume
    largest = 0.0
    for _, values in _slabs(volume, stored=whole):
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 65535 and (whole or (values == np.rint(values)).all())):
            held = f"values from {low:g} to {high:g}"
            if np.isnan(low):
                held = "it holds NaN, which is no number"
            message = f"{path}: not a label map ({held})."
            raise DataError(message, _label_hint(low, high), "values")
        largest = max(largest, high)
    dtype = np.dtype(np.uint8 if largest <= 255 else np.uint16)
    labels = np.empty(volume.geometry.shape, dtype, order="F")
    for k, values in _slabs(volume, stored=whole):
        labels[:, :, k] = values
    return Volume(labels, volume.geometry, header=volume.header, source=volume.source)


def _label_hint(low: float, high: float) -> str:
    """A hint for values that are no labels."""
    if np.isnan(low):
        return "Find out what made the NaN; of a probability map, store values > 0.5 as 1, else 0."
    if 0 <= low and high <= 1:
        return "It looks like a probability map: store values > 0.5 as 1, the rest as 0."
    if -16 <= low < 0 and high <= 255:
        return f"Labels are 0 or more: store negatives as 0, or add {-low:g} to every value."
    return "Labels are whole numbers from 0 to 65535; was the image given as the label?"


def write_mask(
    path: Path, mask: NDArray[Any], like: Volume, segments: Sequence[Segment] = ()
) -> None:
    """Write a mask or a label map on the grid of the scan it belongs to, atomically.

    Args:
        path: Ends in .nii, .nii.gz, .nrrd or .mha; for a picture in .png; for a DICOM series also
            in .dcm, a DICOM SEG. Missing folders are made.
        mask: (I, J, K) uint8, 0 or 1, in the scan's own axis order; a PNG shows 1 as 255, white.
            With two or more segments a label map of their values, uint8 or uint16, which a PNG
            holds as they are.
        like: The scan. A NIfTI scan's sform, qform, codes, units and zooms go into a NIfTI mask
            bit for bit.
        segments: The classes of a label map, which a DICOM SEG and a .seg.nrrd name.

    Raises:
        DataError: The name has another suffix, or is a folder.
        RunError: The disk refused.
    """
    shown = isinstance(like, Picture) and len(segments) < 2
    _write(path, mask * np.uint8(255) if shown else mask, like, slope=1.0, segments=segments)


PROBABILITY_SLOPE = float(np.nextafter(np.float32(1 / 255), np.float32(0)))
"""1/255 as the header's float32, rounded down: rounded to nearest, 255 would read as 1.00000006."""


def write_probability(
    path: Path, probability: NDArray[np.uint8] | NDArray[np.float32], like: Volume
) -> None:
    """Write a probability map on the grid of its scan, atomically.

    Args:
        path: As for `write_mask`.
        probability: (I, J, K), float32 in [0, 1], or uint8 with 255 meaning 1. NIfTI stores uint8
            with scl_slope 1/255; a PNG holds uint8; the other formats always hold float32.
        like: The scan.

    Raises:
        DataError: The name has another suffix, or is a folder.
        RunError: The disk refused.
    """
    shares = probability.dtype == np.uint8
    _write(path, probability, like, slope=PROBABILITY_SLOPE if shares else 1.0)


def _write(
    path: Path, array: Array, like: Volume, slope: float, segments: Sequence[Segment] = ()
) -> None:
    types = (np.uint8, np.float32, *([np.uint16] if segments else []))
    if array.shape != like.geometry.shape or array.dtype not in types:
        raise ValueError(
            f"{array.shape} {array.dtype} is no uint8 or float32 array on {like.geometry.shape}"
        )
    check_writable(path, like)
    if isinstance(like, Picture):
        write_png(path, array)
    elif path.suffix.lower() == DICOM_SUFFIX:
        dicom_seg.write(path, array, like, segments)
    elif suffix_of(path) in NIFTI_SUFFIXES:
        nifti.write(path, array, like, slope)
    else:
        metaimage.write(path, array, like, shares=slope != 1, segments=segments)


def check_writable(path: Path, like: Volume | Path | None = None) -> None:
    """Refuse an output name before any work is spent on it.

    Args:
        path: What to write.
        like: The scan, or its name; a volume when absent. A DICOM SEG needs a DICOM scan.

    Raises:
        DataError: The name is a folder or has a suffix that cannot be written for this scan.
        ConfigError: A DICOM SEG is asked for, and highdicom is not installed; or a pipe or a device
            lies there.
    """
    if _is_folder(path):
        raise DataError(f"{path} is a folder.", "Name the file to write, such as mask.nii.gz.")
    require_replaceable(path)
    of_picture = is_picture(like) if isinstance(like, Path) else isinstance(like, Picture)
    if path.suffix.lower() == DICOM_SUFFIX and not of_picture:
        dicom_seg.check_writable(path, like.source if isinstance(like, Volume) else like)
        return
    suffixes = (".png",) if of_picture else (*NIFTI_SUFFIXES, *metaimage.WRITABLE)
    if not path.name.lower().endswith(suffixes):
        kind = "picture" if of_picture else "volume"
        hint = f"End the name in {', '.join(suffixes)}"
        if not of_picture:
            hint += f"; a mask also in {metaimage.SEGMENTATION} (named segments, for 3D Slicer)"
        if not of_picture and is_picture(path):
            hint += "; a picture of the mask on its scan is --preview"
        raise DataError(f"{path}: cannot write this kind of file for a {kind}.", f"{hint}.")


def check_mask_writable(path: Path, like: Volume) -> None:
    """Refuse a mask that could not be written once it is predicted.

    Raises:
        DataError: As `check_writable`; or a DICOM SEG cannot refer to this series.
        ConfigError: It would replace a slice of the scan.
    """
    check_writable(path, like)
    _require_place(path, like)
    dicom.require_no_slice(path, like)
    if path.suffix.lower() == DICOM_SUFFIX:
        dicom_seg.check_references(like)


def _require_place(path: Path, like: Volume) -> None:
    """Refuse a format that cannot say where the scan lies, or would say it otherwise."""
    own, asked = like.source and suffix_of(like.source), suffix_of(path)
    families = [own in NIFTI_SUFFIXES, asked in NIFTI_SUFFIXES]
    if own is None or asked is None or families[0] == families[1]:
        return  # the scan's own header goes out as it came in
    if like.geometry.shear_degrees:
        raise DataError(
            f"{path}: the axes of {like.name} are {like.geometry.shear_degrees:.1f} degrees off "
            "right angles, and only its own format says so exactly.",
            f"Write {own} instead.",
        )
    if not like.geometry.says_place:
        raise DataError(
            f"{path}: {like.name} does not say how it lies (both codes are 0); readers of other "
            "formats would guess otherwise.",
            f"Write {own} instead.",
        )
    if like.geometry.forms_apart_mm:
        raise DataError(
            f"{path}: the sform and the qform of {like.name} lie "
            f"{like.geometry.forms_apart_mm:.3g} mm apart; a mask in another format follows one "
            "of them, and other readers of the scan the other.",
            f"Write {own} instead, or make the scan's two forms agree first.",
        )


def check_readable(path: Path, series: str | None = None) -> str:
    """Refuse an input name before any work is spent on it.

    Args:
        path: As for `read_image`.
        series: As for `read_image`.

    Returns:
        The suffix that says how it is read; ".dcm" for all that is DICOM.

    Raises:
        DataError: Missing, or a kind of file that is not read.
        ConfigError: A series is named where there are none.
    """
    if _is_folder(path) and not dicom_series.any_dicom(path):
        raise DataError(
            f"{path} is a folder without a DICOM file.",
            "Give one scan file, or the folder of a DICOM series.",
            "kind",
        )
    require_there(path, "Check the path of the scan.")
    if not (path.is_file() or path.is_dir()):
        raise DataError(
            f"{path}: is a pipe or a device, not a file.",
            "Write what it gives to a file, and give that.",
            "kind",
        )
    if may_hold_dicom(path):
        return DICOM_SUFFIX
    suffix = suffix_of(path)
    if suffix is None and is_picture(path):
        return path.suffix.lower()
    if suffix is None:
        raise DataError(
            f"{path}: not a kind of file this tool reads.",
            _TWO_FILES.get(path.suffix.lower())
            or f"It reads {', '.join((*VOLUME_SUFFIXES, *PICTURE_SUFFIXES))} and DICOM series "
            "(folder, .zip, one file).",
            "kind",
        )
    if series is not None:
        raise ConfigError(
            f"{path}: holds one volume, so --series has no meaning.", "Leave --series out."
        )
    return suffix


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:  # the system takes no such name, for example one of 300 letters
        long = max((part for part in path.parts), key=len)
        raise DataError(
            f"{long[:20]}...: cannot be a file name ({error.strerror}).", "Give a shorter one."
        ) from error


def _slabs(volume: Volume, *, stored: bool) -> Iterator[tuple[int, Array]]:
    """Each plane of the last stored axis, as stored or as float32 values, with its index."""
    for k in range(volume.array.shape[2]):
        plane = volume.array[:, :, k]
        yield k, plane if stored else volume.values(plane)
