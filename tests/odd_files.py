"""Bad and odd files, made by code in the current folder: one function each, or a factory."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK
import torch
from PIL import Image
from pydicom import Dataset

from tests import dicom_files, raw_pictures
from tests.archives import write_decathlon, write_nnunet
from tests.parity.fill import tiny_autoencoder
from tests.raw_cases import AFFINE, SHAPE, write_cases

Build = Callable[[Path], None]
SMALL = (12, 10, 2)


def nothing(folder: Path) -> None:
    """No file at all."""


def together(*parts: Build) -> Build:
    def build(folder: Path) -> None:
        for part in parts:
            part(folder)

    return build


def content(name: str, data: bytes) -> Build:
    def build(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        put(folder / name, data)

    return build


def text(name: str, words: str = "this is no scan\n") -> Build:
    return content(name, words.encode())


DEEP = "[" * 100_000 + "]" * 100_000


def weights(kind: torch.dtype) -> Build:
    """An autoencoder's weights in `w.ckpt`, the largest of another kind of number."""

    def build(folder: Path) -> None:
        tensors = tiny_autoencoder()
        largest = max(tensors, key=lambda key: tensors[key].numel())
        torch.save({**tensors, largest: tensors[largest].to(kind)}, folder / "w.ckpt")

    return build


def subfolder(name: str) -> Build:
    return lambda folder: (folder / name).mkdir(parents=True)


def pipe(name: str) -> Build:
    return lambda folder: os.mkfifo(folder / name)


def latin_1(folder: Path) -> None:
    """`scan.nii.gz` as the one scan of `in`, called in bytes that are no UTF-8."""
    (folder / "in").mkdir()
    shutil.copy(folder / "scan.nii.gz", folder / "in" / os.fsdecode(b"gr\xfcn.nii.gz"))


def hu(shape: tuple[int, ...] = SMALL) -> np.ndarray:
    return np.random.default_rng(0).integers(-900, 900, shape).astype(np.int16)


def scan(
    name: str = "scan.nii.gz",
    array: np.ndarray | None = None,
    kind: type = nib.Nifti1Image,
    affine: np.ndarray = AFFINE,
) -> Build:
    def build(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        lower = (folder / name).with_name(Path(name).name.lower())
        nib.save(kind(hu() if array is None else array, affine), lower)
        lower.rename(folder / name)

    return build


def header(name: str = "scan.nii", kind: type = nib.Nifti1Header, **fields: Any) -> Build:
    """480 bytes of voxels behind a header with some fields overwritten."""

    def build(folder: Path) -> None:
        made = kind()
        made.set_data_shape(SMALL)
        made.set_data_dtype(np.int16)
        made.set_sform(AFFINE, code=1)
        made["vox_offset"] = made.sizeof_hdr + 4
        for field, value in fields.items():
            made[field] = value
        data = made.binaryblock + bytes(4) + hu().tobytes(order="F")
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)

    return build


def big_endian(folder: Path) -> None:
    made = nib.Nifti1Header(endianness=">")
    made.set_data_shape(SMALL)
    made.set_data_dtype(np.int16)
    made.set_sform(AFFINE, code=1)
    made["vox_offset"] = 352
    data = made.binaryblock + bytes(4) + hu().astype(">i2").tobytes(order="F")
    (folder / "scan.nii").write_bytes(data)


def put(path: Path, data: bytes) -> None:
    """In place of what is there, which may be a link to another test's file."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def swapped(name: str, old: str, new: str) -> Build:
    """The file that is there, with a piece of its text replaced."""

    def build(folder: Path) -> None:
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text, text[:500]
        put(folder / name, text.replace(old, new, 1).encode())

    return build


def coded(name: str, coding: str) -> Build:
    """The text file that is there, in another coding."""
    return lambda folder: put(
        folder / name, (folder / name).read_text(encoding="utf-8").encode(coding)
    )


def dangling(name: str) -> Build:
    """A link to what is not there."""

    def build(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to("gone.nii.gz")

    return build


def renamed(pattern: str, old: str, new: str) -> Build:
    """Files of a pattern, under another name."""

    def build(folder: Path) -> None:
        for path in sorted(folder.glob(pattern)):
            path.rename(path.with_name(path.name.replace(old, new)))

    return build


def pairs(scans: str, masks: str) -> Build:
    """Four small CT scans and masks below `data`, by patterns for their paths."""
    parts = [
        scan(f"data/{pattern.format(n)}.nii.gz", array)
        for n in range(1, 5)
        for pattern, array in ((scans, hu(SHAPE)), (masks, labels(1, np.uint8)))
    ]
    return together(*parts)


def colours(folder: Path) -> None:
    """An nnU-Net set of pictures that names three channels and has one file for them."""
    for number in range(3):
        name = f"x{number}"
        raw_pictures.save_pair(
            folder / f"data/imagesTr/{name}_0000.png", folder / f"data/labelsTr/{name}.png", number
        )
    said = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, "polyp": 255},
        "numTraining": 3,
        "file_ending": ".png",
    }
    put(folder / "data/dataset.json", json.dumps(said).encode())


def cut(name: str, keep: float) -> Build:
    """A part of the file that is there."""

    def build(folder: Path) -> None:
        data = (folder / name).read_bytes()
        put(folder / name, data[: int(len(data) * keep)])

    return build


def flip(name: str, place: int) -> Build:
    def build(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[place] ^= 0xFF
        put(folder / name, bytes(data))

    return build


def appended(name: str, data: bytes) -> Build:
    """The file that is there, and other bytes after it."""
    return lambda folder: put(folder / name, (folder / name).read_bytes() + data)


def moved(old: str, new: str) -> Build:
    return lambda folder: (folder / old).rename(folder / new) and None


def gzipped(name: str) -> Build:
    """The file that is there, packed (once more) under its own name."""
    return lambda folder: put(folder / name, gzip.compress((folder / name).read_bytes(), mtime=0))


def cut_reference(folder: Path) -> None:
    """A prediction of 8 x 8 x 4 voxels; its reference is cut to the 2 x 2 x 2 it shows."""
    scan("pred/a.nii.gz", np.ones((8, 8, 4), np.uint8))(folder)
    affine = AFFINE.copy()
    affine[:3, 3] = (AFFINE @ [3, 3, 1, 1])[:3]
    scan("ref/a.nii.gz", np.ones((2, 2, 2), np.uint8), affine=affine)(folder)


def itk(name: str, array: np.ndarray | None = None, old: bytes = b"", new: bytes = b"") -> Build:
    """An NRRD or MetaImage file, with a piece of its header replaced."""

    def build(folder: Path) -> None:
        voxels = hu(SMALL[::-1]) if array is None else array
        image = SimpleITK.GetImageFromArray(voxels, isVector=voxels.ndim == 4)
        SimpleITK.WriteImage(image, str(folder / name))
        data = (folder / name).read_bytes()
        assert old in data, data[:500]
        (folder / name).write_bytes(data.replace(old, new, 1))

    return build


def meta(name: str, *lines: str, data: bytes | None = None, **fields: str) -> Build:
    """A MetaImage of 12 x 10 x 2 written by hand, lines behind its fields."""
    said = {"NDims": "3", "DimSize": "12 10 2", "ElementType": "MET_SHORT", **fields}
    head = [f"{field} = {value}" for field, value in said.items()]
    words = "\n".join([*head, *(lines or ("ElementDataFile = LOCAL",)), ""])
    return content(name, words.encode() + (hu().tobytes(order="F") if data is None else data))


def nrrd(name: str, *lines: str, data: bytes | None = None, **fields: str) -> Build:
    """An NRRD of 12 x 10 x 2 written by hand, lines behind its fields."""
    said = {"type": "int16", "dimension": "3", "sizes": "12 10 2", "endian": "little"}
    said |= {"encoding": "raw", **fields}
    head = ["NRRD0004", *(f"{field}: {value}" for field, value in said.items()), *lines, "", ""]
    raw_data = hu().tobytes(order="F")
    return content(name, "\n".join(head).encode() + (raw_data if data is None else data))


def stored(data: bytes) -> bytes:
    """A zlib stream whose bytes are the data's own, so that a damaged one always reads alike."""
    return zlib.compress(data, 0)


def damaged(pack: Callable[[bytes], bytes], drop: int = 0, turn: int | None = None) -> bytes:
    """The voxels of `hu`, packed, less a few bytes before, or with a bit of the result turned."""
    data = bytearray(pack(hu().tobytes(order="F")[: hu().nbytes - drop]))
    if turn is not None:
        data[turn] ^= 4
    return bytes(data)


def raw(*changes: Build) -> Build:
    """Five small CT cases `raw data/pt_N/{image,label}.nii.gz`, changed."""
    return together(lambda folder: write_cases(folder) and None, *changes)


def label_of(case: str, array: np.ndarray, affine: np.ndarray = AFFINE) -> Build:
    return scan(f"raw data/{case}/label.nii.gz", array, affine=affine)


def image_of(case: str, array: np.ndarray) -> Build:
    return scan(f"raw data/{case}/image.nii.gz", array)


def lost(name: str) -> Build:
    return lambda folder: (folder / name).unlink()


def labels(value: float, dtype: type = np.float32) -> np.ndarray:
    array = np.zeros(SHAPE, dtype)
    array[5:9, 5:12, 1:3] = value
    return array


def all_labels_empty(folder: Path) -> None:
    for path in (folder / "raw data").glob("*/label.nii.gz"):
        nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), AFFINE), path)


def split(**lists: list[str]) -> Build:
    return text("split.json", json.dumps(lists))


def nnunet(**description: Any) -> Build:
    return lambda folder: write_nnunet(folder / "data", **description) and None


def decathlon(**description: Any) -> Build:
    return lambda folder: write_decathlon(folder / "data", **description) and None


def masks(**arrays: tuple[int, ...]) -> Build:
    """Folders `pred` and `ref` with a mask `a.nii.gz` of the given shape each."""
    return together(
        *(scan(f"{name}/a.nii.gz", np.ones(shape, np.uint8)) for name, shape in arrays.items())
    )


def series(leave_out: tuple[int, ...] = (), change: dicom_files.Change | None = None) -> Build:
    """A small CT series in `ct`."""

    def build(folder: Path) -> None:
        dicom_files.write_series(folder / "ct", leave_out=leave_out, change=change)

    return build


def two_series(folder: Path) -> None:
    """Two CT series in `ct`."""
    for number in (1, 2):
        uid = f"{dicom_files.SERIES_UID}.{number}"
        dicom_files.write_series(folder / "ct" / str(number), series_uid=uid)


def contours(folder: Path) -> None:
    """An RTSTRUCT in `ct`."""
    (folder / "ct").mkdir(exist_ok=True)
    dicom_files.write_contours(folder / "ct" / "RS1")


def smaller(slice_: Dataset, k: int) -> None:
    if k == 1:
        slice_.Rows -= 1
        slice_.PixelData = slice_.PixelData[: slice_.Rows * slice_.Columns * 2]


def same_place(slice_: Dataset, k: int) -> None:
    if k == 1:
        slice_.ImagePositionPatient = list(dicom_files.position(0))


def tilted(slice_: Dataset, k: int) -> None:
    slice_.ImagePositionPatient = list(dicom_files.position(k) + np.array([0, 1.5 * k, 0]))


def without_slope(slice_: Dataset, k: int) -> None:
    if k == 2:
        del slice_.RescaleSlope, slice_.RescaleIntercept


def inverted(slice_: Dataset, k: int) -> None:
    slice_.PhotometricInterpretation = "MONOCHROME1"


def nameless(slice_: Dataset, k: int) -> None:
    del slice_.PatientID


def link(name: str, target: str = "/not/there") -> Build:
    """In place of what is there."""

    def build(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(target)

    return build


def half_linked(folder: Path) -> None:
    """A series in `ct`, half of it in a folder that is linked twice, with a way back."""
    (dicom_files.write_series(folder / "store") / "back").symlink_to("../ct")
    (folder / "ct").mkdir()
    for k in range(3):
        (folder / "store" / f"IM{k}").rename(folder / "ct" / f"IM{k}")
    for name in ("more", "twice"):
        (folder / "ct" / name).symlink_to("../store")


def mac_zip(folder: Path) -> None:
    """A CT series as macOS packs it into `scan.zip`."""
    source = dicom_files.write_series(folder / "source")
    with zipfile.ZipFile(folder / "scan.zip", "w") as made:
        for path in source.iterdir():
            made.write(path, f"ct/{path.name}.dcm")
            made.writestr(f"__MACOSX/ct/._{path.name}.dcm", b"\0\5\x16\7Mac OS X")
        made.writestr("ct/.DS_Store", b"Bud1")
    shutil.rmtree(source)


def zip_entry(name: str, old: bytes, new: bytes) -> Build:
    """A zip whose one entry's name is changed into another of the same length."""

    def build(folder: Path) -> None:
        with zipfile.ZipFile(folder / "scan.zip", "w") as made:
            made.writestr(name, b"1")
        data = (folder / "scan.zip").read_bytes()
        put(folder / "scan.zip", data.replace(old, new))

    return build


def linked_masks(folder: Path) -> None:
    """Two cases; the reference of the second, which is missed, lies behind a link."""
    box = np.zeros((8, 8, 4), np.uint8)
    box[2:6, 2:6, 1:3] = 1
    for name, mask in {"pred/a": box, "pred/b": 0 * box, "ref/a": box, "store/b": box}.items():
        scan(f"{name}/m.nii.gz", mask)(folder)
    (folder / "ref/b").symlink_to("../store/b")
    (folder / "ref/loop").symlink_to(".")


def zipped_series(folder: Path) -> None:
    """A CT series as `scan.zip`."""
    source = dicom_files.write_series(folder / "source")
    dicom_files.zipped(source, folder / "scan.zip")
    shutil.rmtree(source)


def climbing_zip(folder: Path) -> None:
    with zipfile.ZipFile(folder / "scan.zip", "w") as made:
        made.writestr("../../evil", b"x")


def zip_of_text(folder: Path) -> None:
    with zipfile.ZipFile(folder / "scan.zip", "w") as made:
        made.writestr("notes.txt", b"no scan")


def picture(name: str) -> Build:
    """A colour picture."""

    def build(folder: Path) -> None:
        Image.fromarray(raw_pictures.polyp(1)[0]).save(folder / name)

    return build


def two_pages(folder: Path) -> None:
    page = Image.fromarray(raw_pictures.polyp(1)[0])
    page.save(folder / "p.tif", save_all=True, append_images=[page])


def sheared(folder: Path) -> None:
    """A scan whose second axis leans by one degree."""
    affine = AFFINE.copy()
    affine[:3, 1] += affine[:3, 0] * np.tan(np.deg2rad(1)) * 1.0
    scan(affine=affine)(folder)


def picture_masks(suffix: str, write: Callable[[Path, np.ndarray], None]) -> Build:
    """Three masks in ref/, written by `write` from (48,64) bool, and the same as 0/255 in pred/."""

    def build(folder: Path) -> None:
        for number in range(3):
            found = raw_pictures.polyp(number)[1]
            raw_pictures.save(folder / f"pred/{number}.png", found.astype(np.uint8) * 255)
            (folder / "ref").mkdir(exist_ok=True)
            write(folder / f"ref/{number}{suffix}", found)

    return build


def palette(*colours: int, inside: int = 0, outside: int = 1, **options: Any) -> Build:
    """Masks of two indices, with a palette."""

    def write(path: Path, found: np.ndarray) -> None:
        image = Image.fromarray(np.where(found, inside, outside).astype(np.uint8), mode="P")
        image.putpalette(list(colours))
        image.save(path, **options)

    return picture_masks(".png", write)


def white_is_zero(foreground: int) -> Build:
    """TIFF masks in which 0 is white and 255 black, the foreground stored as given."""

    def write(path: Path, found: np.ndarray) -> None:
        Image.fromarray(np.where(found, foreground, 255).astype(np.uint8)).save(path)
        content = path.read_bytes()
        entry = content.index(struct.pack("<HHI", 262, 3, 1)) + 8
        put(path, content[:entry] + struct.pack("<H", 0) + content[entry + 2 :])

    return picture_masks(".tif", write)


def transparent_masks(folder: Path) -> None:
    """Black pictures whose transparency is the mask."""

    def write(path: Path, found: np.ndarray) -> None:
        colours = np.zeros((*found.shape, 4), np.uint8)
        colours[..., 3] = found * 255
        Image.fromarray(colours).save(path)

    picture_masks(".png", write)(folder)


def claiming_jpeg(folder: Path) -> None:
    """64 x 48 pixels, and a header that claims 9000 x 9000."""
    picture("p.jpg")(folder)
    content = (folder / "p.jpg").read_bytes()
    place = content.index(b"\xff\xc0") + 5
    put(folder / "p.jpg", content[:place] + struct.pack(">HH", 9000, 9000) + content[place + 4 :])
