"""Small DICOM series, made by code: six oblique CT slices of a patient whose name is a secret."""

from __future__ import annotations

import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

COLUMNS, ROWS, SLICES = 12, 16, 6
SHAPE = (COLUMNS, ROWS, SLICES)
SECRETS = {
    "PatientName": "Zaphod^Beeblebrox",
    "PatientID": "ID-4711-0815",
    "PatientBirthDate": "19420528",
    "InstitutionName": "Sankt Nirgendwo",
    "SeriesDescription": "Zaphod thorax",
}
SERIES_UID = "1.2.826.0.1.3680043.8.498.1.100"
STUDY_UID = "1.2.826.0.1.3680043.8.498.1"
FRAME_UID = "1.2.826.0.1.3680043.8.498.2"
ALONG_ROW = np.array([0.8, 0.6, 0.0])
"""LPS: a patient turned by 36.87 degrees about the head-foot axis."""
ALONG_COLUMN = np.array([-0.6, 0.8, 0.0])
ORIGIN = np.array([-10.0, 20.0, -300.0])
SPACING = (2.0, 3.0, 5.0)
"""mm from column to column, row to row and slice to slice."""
AFFINE = np.array(
    [[-1.6, 1.8, 0, 10], [-1.2, -2.4, 0, -20], [0, 0, 5.0, -300], [0, 0, 0, 1]], np.float64
)
"""By hand: columns 2 x ALONG_ROW, 3 x ALONG_COLUMN and 5 x head in LPS; x and y negated for RAS."""

Change = Callable[[Dataset, int], None]


def stored_values() -> np.ndarray:
    """(12, 16, 6) uint16: a different number in each voxel; HU is 1024 less."""
    return np.arange(np.prod(SHAPE), dtype=np.uint16).reshape(SHAPE) + 900


def position(k: int) -> np.ndarray:
    """LPS mm of the first pixel of slice k."""
    return ORIGIN + np.array([0, 0, k * SPACING[2]])


def seg_as_volume(seg: Dataset) -> np.ndarray:
    """(12, 16, S) uint8: the frames of a SEG, each at the slice where it says it lies."""
    slices = len(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence)
    mask = np.zeros((COLUMNS, ROWS, slices), np.uint8)
    places = seg.PerFrameFunctionalGroupsSequence
    for frame, place in zip(seg.pixel_array, places, strict=True):
        where = place.PlanePositionSequence[0].ImagePositionPatient
        k = round((where[2] - ORIGIN[2]) / SPACING[2])
        assert np.allclose(where, position(k))
        mask[:, :, k] = frame.T
    return mask


def base(sop_class: str, modality: str, series_uid: str) -> Dataset:
    """What every object of the patient has."""
    made = Dataset()
    made.SOPClassUID, made.SOPInstanceUID = sop_class, generate_uid()
    made.StudyInstanceUID, made.SeriesInstanceUID = STUDY_UID, series_uid
    made.Modality = modality
    for name, value in SECRETS.items():
        setattr(made, name, value)
    made.StudyDate = made.SeriesDate = made.ContentDate = "20200101"
    made.StudyTime = made.ContentTime = "101010"
    made.PatientSex, made.StudyID, made.AccessionNumber = "M", "1", "2"
    made.ReferringPhysicianName, made.SeriesNumber = "", 7
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return made


def ct_slice(values: np.ndarray, k: int, series_uid: str = SERIES_UID) -> Dataset:
    """Slice k of a volume of stored values."""
    made = base(CTImageStorage, "CT", series_uid)
    made.FrameOfReferenceUID, made.InstanceNumber = FRAME_UID, k + 1
    made.ImageOrientationPatient = [*ALONG_ROW, *ALONG_COLUMN]
    made.ImagePositionPatient = position(k).tolist()
    made.PixelSpacing, made.SliceThickness = [SPACING[1], SPACING[0]], SPACING[2]
    made.Columns, made.Rows, _ = values.shape
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 16, 15, 0
    made.RescaleSlope, made.RescaleIntercept = 1, -1024
    made.PixelData = values[:, :, k].T.tobytes()
    return made


def save(made: Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # faults made on purpose
        made.save_as(path, enforce_file_format=True)
    return path


def write_series(
    folder: Path,
    values: np.ndarray | None = None,
    *,
    change: Change | None = None,
    series_uid: str = SERIES_UID,
    leave_out: tuple[int, ...] = (),
) -> Path:
    """One file per slice, without extension, in names that say nothing of the order.

    Args:
        folder: Made if missing.
        values: (I, J, K) uint16; `stored_values()` by default.
        change: Told each slice before it is saved.
        series_uid: SeriesInstanceUID.
        leave_out: Slices that are not written.
    """
    values = stored_values() if values is None else values
    names = list(range(values.shape[2]))
    random.Random(0).shuffle(names)
    for k in range(values.shape[2]):
        if k not in leave_out:
            made = ct_slice(values, k, series_uid)
            if change is not None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    change(made, k)
            save(made, folder / f"IM{names[k]}")
    return folder


def write_contours(path: Path) -> Path:
    """An RTSTRUCT as far as a reader of images looks."""
    return save(base(RTStructureSetStorage, "RTSTRUCT", f"{SERIES_UID}.9"), path)


def zipped(folder: Path, path: Path) -> Path:
    """A folder as a zip file."""
    return Path(shutil.make_archive(str(path.with_suffix("")), "zip", folder))
