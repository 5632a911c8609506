"""NRRD and MetaImage: what we read is what ITK reads of whole files, and damage is refused.

SimpleITK is the judge of geometry and voxels; only here does it read these formats.
"""

from __future__ import annotations

import bz2
import gzip
import os
import random
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from sdseg_cli.core.errors import DataError
from sdseg_cli.imaging.io.files import (
    read_geometry,
    read_image,
    read_labels,
    write_mask,
    write_probability,
)
from sdseg_cli.imaging.volume import LPS_TO_RAS

VOXELS = np.arange(24, dtype="<i2").reshape(2, 3, 4, order="F")
RAW = VOXELS.tobytes(order="F")
META = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
    "DimSize = 2 3 4\nElementType = MET_SHORT\n"
)
LOCAL = "ElementDataFile = LOCAL\n"
NRRD = "NRRD0004\ntype: int16\ndimension: 3\nsizes: 2 3 4\nencoding: raw\nendian: little\n"
DIRECTIONS = "space directions: (2,0,0) (0,3,0) (0,0,4)\nspace origin: (10,20,30)\n"
OBLIQUE = "0.8 0.6 0 -0.6 0.8 0 0 0 1"


def put(path: Path, head: str, data: bytes = RAW) -> Path:
    path.write_bytes(head.encode() + data)
    return path


def itk_affine(image: SimpleITK.Image) -> np.ndarray:
    """Voxel index -> RAS+ mm."""
    lps = np.eye(4)
    lps[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.asarray(image.GetSpacing())
    lps[:3, 3] = image.GetOrigin()
    return LPS_TO_RAS @ lps


def require_as_itk(path: Path, folder: Path) -> None:
    """The same voxels, type and place; and masks that are what ITK would write."""
    image, volume = SimpleITK.ReadImage(str(path)), read_image(path)
    array = SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)
    assert volume.array.dtype == array.dtype
    assert np.array_equal(volume.array, array)
    assert np.array_equal(volume.geometry.affine, itk_affine(image))
    mask = (np.arange(array.size).reshape(array.shape) % 7 == 0).astype(np.uint8)
    for suffix in ("nrrd", "mha"):
        ours, theirs = folder / f"ours.{suffix}", folder / f"theirs.{suffix}"
        write_mask(ours, mask, volume)
        expected = SimpleITK.GetImageFromArray(mask.transpose(2, 1, 0))
        expected.CopyInformation(image)
        SimpleITK.WriteImage(expected, str(theirs), useCompression=True)
        assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("suffix", ["nrrd", "mha", "mhd"])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("dtype", ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_each_type_and_packing_is_read_as_itk_reads_it(tmp_path, suffix, compress, dtype):
    voxels = np.random.default_rng(0).integers(0, 99, (4, 5, 6)).astype(dtype)
    path = tmp_path / f"scan.{suffix}"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels), str(path), compress)
    require_as_itk(path, tmp_path)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("suffix", ["nrrd", "mha"])
def test_each_orientation_is_read_as_itk_reads_it(tmp_path, suffix, seed):
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    if seed < 4:
        rotation = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)
    image = SimpleITK.GetImageFromArray(rng.integers(-99, 99, (4, 5, 6)).astype(np.int16))
    image.SetDirection(rotation.ravel().tolist())
    image.SetSpacing(rng.uniform(0.3, 5, 3).tolist())
    image.SetOrigin(rng.uniform(-300, 300, 3).tolist())
    path = tmp_path / f"scan.{suffix}"
    SimpleITK.WriteImage(image, str(path), bool(seed % 2))
    require_as_itk(path, tmp_path)
    if suffix == "nrrd":
        written = path.read_bytes()
        for space in (b"RAS", b"left-anterior-superior", b"Right-Anterior-Superior"):
            path.write_bytes(written.replace(b"left-posterior-superior", space))
            require_as_itk(path, tmp_path)


WHOLE_NRRD = {
    "no place at all": NRRD + "\n",
    "spacings": NRRD + "spacings: 2 3 4\n\n",
    "an axis that runs back": NRRD + "spacings: 2 -3 4\n\n",
    "axis mins": NRRD + "spacings: 2 3.3 4\naxis mins: 10 20.1 30\n\n",
    "axis mins of nodes": NRRD + "spacings: 2 3.3 4\naxismins: 1 2 3\ncenters: node cell node\n\n",
    "spacings that are not known": NRRD + "spacings: nan nan nan\naxis mins: nan nan nan\n\n",
    "a space without directions": NRRD + "space: LPS\n\n",
    "directions without origin": NRRD + "space: RAS\n" + DIRECTIONS.split("space o")[0] + "\n",
    "a space of three dimensions": NRRD + "space dimension: 3\n" + DIRECTIONS + "\n",
    "spaces in vectors": NRRD + "space: LAS\nspace directions: ( 2, 0,0 ) (0,3,0) (0,0, 4)\n\n",
    "comments and keys": NRRD + "# sizes: 9 9 9\nsizes:=9 9 9\ndata file:=/etc/passwd\n\n",
    "capitals": NRRD.replace("type: int16", "TYPE: INT16") + "\n",
    "Windows line ends": (NRRD + "space: LPS\n" + DIRECTIONS + "\n").replace("\n", "\r\n"),
    "kinds": NRRD + "kinds: domain space ???\n\n",
    "everything else": NRRD + 'content: x\nthicknesses: nan nan 3\nlabels: "a" "b" "c"\nmin: 0\n'
    'old max: 9\nsample units: HU\nnumber: 24\n\n',
    "millimetres": NRRD + 'space: LPS\nspace units: "mm" "mm" "mm"\n' + DIRECTIONS
    + "measurement frame: (1,0,0) (0,1,0) (0,0,1)\n\n",
    "an old version": NRRD.replace("0004", "0001") + "\n",
    "the newest version": NRRD.replace("0004", "0005") + "\n",
}  # fmt: skip


@pytest.mark.parametrize("what", WHOLE_NRRD)
def test_an_nrrd_header_is_read_as_itk_reads_it(tmp_path, what):
    require_as_itk(put(tmp_path / "s.nrrd", WHOLE_NRRD[what]), tmp_path)


def nrrd(encoding: str, *lines: str) -> str:
    return NRRD.replace("raw", encoding) + "".join(f"{line}\n" for line in lines) + "\n"


WHOLE_VOXELS = {
    "big": (NRRD.replace("little", "big") + "\n", VOXELS.astype(">i2").tobytes(order="F")),
    "bytes to skip": (nrrd("raw", "byte skip: 5"), b"abcde" + RAW),
    "lines to skip": (nrrd("raw", "line skip: 2"), b"a\nb\n" + RAW),
    "both": (nrrd("raw", "lineskip: 1", "byteskip: 3"), b"a\nabc" + RAW),
    "the last bytes": (nrrd("raw", "byte skip: -1"), b"what so ever" + RAW),
    "gzip": (nrrd("gzip"), gzip.compress(RAW)),
    "gz": (nrrd("gz"), gzip.compress(RAW)),
    "two members": (nrrd("gzip"), gzip.compress(RAW[:20]) + gzip.compress(RAW[20:])),
    "packed bytes to skip": (nrrd("gzip", "byte skip: 3"), gzip.compress(b"abc" + RAW)),
    "lines before packed": (nrrd("gzip", "line skip: 1"), b"abc\n" + gzip.compress(RAW)),
    "ascii": (nrrd("ascii"), " ".join(map(str, range(24))).encode()),
    "text": (nrrd("text"), "\n".join(map(str, range(24))).encode() + b"\n"),
}


@pytest.mark.parametrize("what", WHOLE_VOXELS)
def test_an_nrrd_is_unpacked_as_itk_unpacks_it(tmp_path, what):
    head, data = WHOLE_VOXELS[what]
    path = put(tmp_path / "s.nrrd", head, data)
    require_as_itk(path, tmp_path)
    assert np.array_equal(read_image(path).array, VOXELS)


def test_bzip2_which_itk_does_not_know_is_read(tmp_path):
    path = put(tmp_path / "s.nrrd", nrrd("bzip2"), bz2.compress(RAW))
    assert np.array_equal(read_image(path).array, VOXELS)
    damaged = bytearray(path.read_bytes())
    damaged[-20] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="cannot be read"):
        read_image(path)


WHOLE_META = {
    "no byte order": META.replace("BinaryDataByteOrderMSB = False\n", ""),
    "no word on binary": META.replace("BinaryData = True\n", ""),
    "no object type": META.replace("ObjectType = Image\n", ""),
    "ElementSize": META + "ElementSize = 2 3 4\n",
    "ElementSpacing before ElementSize": META + "ElementSize = 5 6 7\nElementSpacing = 2 3 4\n",
    "an axis that runs back": META + f"ElementSpacing = 2 -3 4\nTransformMatrix = {OBLIQUE}\n",
    "Rotation and Position": META + f"Rotation = {OBLIQUE}\nPosition = 1.1 2.2 3.3\n",
    "Orientation and Origin": META + f"Orientation = {OBLIQUE}\nOrigin = 1.1 2.2 -3.3\n",
    "one place said twice": META + "Origin = 1 2 3\nOffset = 1.0 2 3\n",
    "a matrix that scales": META + "TransformMatrix = 2 0 0 0 1 0 0 0 1\n",
    "minus nought": META + "TransformMatrix = -1 -0 0 0 -1 -0 0 -0 1\nOffset = -0 1 2\n",
    "CenterOfRotation": META + f"TransformMatrix = {OBLIQUE}\nCenterOfRotation = 5 6 7\n",
    "AnatomicalOrientation": META + "AnatomicalOrientation = RAI\n",
    "millimetres": META + "DistanceUnits = mm\nElementSpacing = 2 3 4\n",
    "one channel": META + "ElementNumberOfChannels = 1\n",
    "colons": META.replace(" =", ":"),
    "no spaces": META.replace(" = ", "="),
    "empty lines and values": META + "\n \n\t\nComment =\n",
    "a DICOM tag": META + "0008|0060 = CT\n",
    "the last bytes": META + "HeaderSize = -1\n",
}


@pytest.mark.parametrize("what", WHOLE_META)
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_metaimage_header_is_read_as_itk_reads_it(tmp_path, what, ends):
    path = put(tmp_path / "s.mha", (WHOLE_META[what] + LOCAL).replace("\n", ends))
    require_as_itk(path, tmp_path)


@pytest.mark.parametrize("name", ["BinaryDataByteOrderMSB", "ElementByteOrderMSB"])
def test_a_metaimage_of_the_other_byte_order_is_read(tmp_path, name):
    head = META.replace("BinaryDataByteOrderMSB = False", f"{name} = True") + LOCAL
    path = put(tmp_path / "s.mha", head, VOXELS.astype(">i2").tobytes(order="F"))
    require_as_itk(path, tmp_path)
    assert np.array_equal(read_image(path).array, VOXELS)


@pytest.mark.parametrize("pack", [zlib.compress, gzip.compress])
@pytest.mark.parametrize("size", [True, False])
def test_a_packed_metaimage_is_read_with_and_without_its_size(tmp_path, pack, size):
    data = pack(RAW)
    head = META + "CompressedData = True\n" + f"CompressedDataSize = {len(data)}\n" * size + LOCAL
    assert np.array_equal(read_image(put(tmp_path / "s.mha", head, data)).array, VOXELS)


def test_a_metaimage_written_out_as_text_is_read(tmp_path):
    head = META.replace("BinaryData = True", "BinaryData = False") + LOCAL
    data = " ".join(map(str, range(24))).encode()
    assert np.array_equal(read_image(put(tmp_path / "s.mha", head, data)).array, VOXELS)


@pytest.mark.parametrize("name", ["s.raw", "./s.raw", "s 1.raw", "sch\u00e4del.raw", "listing.raw"])
@pytest.mark.parametrize("skip", [0, 3])
def test_voxels_in_a_file_beside_the_header_are_read(tmp_path, name, skip):
    (tmp_path / name).write_bytes(b"x" * skip + RAW)
    head = f"HeaderSize = {skip}\nElementDataFile = {name}\n"
    assert np.array_equal(read_image(put(tmp_path / "s.mhd", META + head, b"")).array, VOXELS)
    head = f"byte skip: {skip}\ndata file: {name}\n"
    assert np.array_equal(read_image(put(tmp_path / "s.nrrd", NRRD + head, b"")).array, VOXELS)


def test_voxels_may_be_a_link_with_a_local_name(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store/5d4140.raw").write_bytes(RAW)
    (tmp_path / "s.raw").symlink_to("store/5d4140.raw")
    path = put(tmp_path / "s.mhd", META + "ElementDataFile = s.raw\n", b"")
    assert np.array_equal(read_image(path).array, VOXELS)


@pytest.mark.parametrize("kind", ["device", "pipe", "folder", "dangling link", "the header"])
@pytest.mark.parametrize("header", ["s.mhd", "s.nrrd"])
def test_voxels_in_what_is_no_file_are_refused_at_once(tmp_path, kind, header):
    other = tmp_path / "s.raw"
    path = tmp_path / header
    make = {
        "device": lambda: other.symlink_to("/dev/zero"),
        "pipe": lambda: os.mkfifo(other),
        "folder": other.mkdir,
        "dangling link": lambda: other.symlink_to("gone"),
        "the header": lambda: other.symlink_to(header),
    }
    make[kind]()
    last = "HeaderSize = -1\nElementDataFile = s.raw\n"
    if header == "s.nrrd":
        last = "byte skip: -1\ndata file: s.raw\n\n"
    put(path, (META if header == "s.mhd" else NRRD) + last, RAW)
    with pytest.raises(DataError, match="no file beside it"):
        read_image(path)


def test_a_header_that_is_a_pipe_is_not_waited_for(tmp_path):
    for name in ("s.mha", "s.nrrd"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(DataError, match="is a pipe or a device, not a file"):
            read_image(tmp_path / name)


ELSEWHERE = {
    "a blank line before": META + "\n{}",
    "a line of tabs before": META + "\t\t\n{}",
    "a line of spaces before": META + "   \n{}",
    "Windows line ends": META.replace("\n", "\r\n") + "\r\n{}",
    "a colon": META + "{colon}",
    "no spaces": META + "{tight}",
    "spaces before the name": META + "  {}",
    "an own field of like name before": META + "ElementDataFiles = LOCAL\n{}",
}


@pytest.mark.parametrize("what", ELSEWHERE)
@pytest.mark.parametrize("suffix", ["mhd", "mha"])
def test_metaimage_voxels_elsewhere_are_refused_however_the_field_is_written(
    tmp_path, what, suffix
):
    other = tmp_path / "other/secret.txt"
    other.parent.mkdir()
    other.write_bytes(b"secret" * 999)
    field = f"ElementDataFile = {other}\n"
    head = ELSEWHERE[what].format(field, colon=field.replace(" =", " :"), tight=field.replace(" = ", "="))  # fmt: skip  # noqa: E501
    with pytest.raises(DataError, match="outside its folder"):
        read_image(put(tmp_path / f"s.{suffix}", head, b"P" * 999))


@pytest.mark.parametrize("name", ["data file", "datafile", "Data File", "DATAFILE"])
@pytest.mark.parametrize(
    "before", ["", "data file:=LOCAL\n", "datafile:=s.nrrd\n", "# data file: x\n"]
)
def test_nrrd_voxels_elsewhere_are_refused_however_the_field_is_written(tmp_path, name, before):
    head = f"{NRRD}{before}{name}: /etc/passwd\n\n"
    with pytest.raises(DataError, match="outside its folder"):
        read_image(put(tmp_path / "s.nrrd", head))


NOT_UNDERSTOOD = {
    # NRRD: what breaks the format's rules, or is of another kind than a volume of numbers
    "magic.nrrd": (NRRD.replace("NRRD0004", "NRRD0006") + "\n", RAW, "NRRD0001 to NRRD0005"),
    "tab.nrrd": (NRRD + "\t\n\n", RAW, "line 7 of its header"),
    "nospace.nrrd": (NRRD + "content:x\n\n", RAW, "line 7 of its header"),
    "unknown.nrrd": (NRRD + "datafiles: x\n\n", RAW, "no field of the format"),
    "twice.nrrd": (NRRD + "sizes: 2 3 4\n\n", RAW, "says sizes twice"),
    "twice spelled.nrrd": (NRRD + "data file: a\ndatafile: b\n\n", RAW, "says data file twice"),
    "noend.nrrd": (NRRD, b"", "no empty line"),
    "notype.nrrd": (NRRD.replace("type: int16\n", "") + "\n", RAW, "has no type"),
    "block.nrrd": (NRRD.replace("int16", "block") + "\n", RAW, "'block' is none of a number"),
    "hex.nrrd": (nrrd("hex"), RAW.hex().encode(), "encoding 'hex' is not read"),
    "noendian.nrrd": (NRRD.replace("endian: little\n", "") + "\n", RAW, "byte order"),
    "middle.nrrd": (NRRD.replace("little", "middle") + "\n", RAW, "little nor big"),
    "more sizes.nrrd": (NRRD.replace("2 3 4", "2 3 4 1") + "\n", RAW, "are 4 numbers, not 3"),
    "dimension.nrrd": (NRRD.replace("dimension: 3", "dimension: 999999999") + "\n", RAW, "axes"),
    "number.nrrd": (NRRD + "number: 23\n\n", RAW, "not the product"),
    "digits.nrrd": (NRRD.replace("2 3 4", "2 3 \u0664") + "\n", RAW, "sizes"),
    "grouped.nrrd": (NRRD.replace("2 3 4", "2 3 0_4") + "\n", RAW, "sizes"),
    "xyz.nrrd": (NRRD + "space: scanner-xyz\n" + DIRECTIONS + "\n", RAW, "does not say where left"),
    "hand.nrrd": (NRRD + "space: 3D-left-handed\n" + DIRECTIONS + "\n", RAW, "does not say where"),
    "rps.nrrd": (NRRD + "space: RPS\n" + DIRECTIONS + "\n", RAW, "does not say where left"),
    "um.nrrd": (NRRD + 'space: LPS\nspace units: "um" "um" "um"\n\n', RAW, "'um', not mm"),
    "cm.nrrd": (NRRD + 'spacings: 1 1 1\nunits: "mm" "mm" "cm"\n\n', RAW, "'cm', not mm"),
    "nospace2.nrrd": (NRRD + DIRECTIONS + "\n", RAW, "of no space"),
    "both.nrrd": (NRRD + "space: LPS\nspacings: 2 3 4\n" + DIRECTIONS + "\n", RAW, "both space"),
    "nan.nrrd": (NRRD + "spacings: 2 nan 4\n\n", RAW, "its spacings"),
    "nan2.nrrd": (NRRD + "space: LPS\nspace origin: (nan,0,0)\n\n", RAW, "space origin"),
    "kinds.nrrd": (NRRD + "kinds: domain domain list\n\n", RAW, "2 axes and 4 value(s)"),
    "rgb.nrrd": (NRRD.replace("2 3 4", "3 2 4") + "kinds: RGB-color domain domain\n\n", RAW, "3 v"),
    "time.nrrd": (NRRD + "kinds: domain domain time\n\n", RAW, "2 axes"),
    "esc.nrrd": (NRRD.replace("raw", "\x1b[2Jraw") + "\n", RAW, "'\\x1b[2jraw'"),
    "esc.mha": (META.replace("MET_", "\x1b[2J") + LOCAL, RAW, "'\\x1b[2J"),
    "bomb.nrrd": (nrrd("bzip2").replace("2 3 4", "99999999 99999999 9999999"), RAW, "claims 1"),
    "skip.nrrd": (nrrd("gzip", "byte skip: -1"), gzip.compress(RAW), "byte skip"),
    "lines.nrrd": (nrrd("raw", "line skip: 99999"), RAW, "fewer lines"),
    # MetaImage
    "case.mha": (META.replace("DimSize", "dimsize") + LOCAL, RAW, "is written DimSize"),
    "space.mha": (META + "Element Spacing = 2 2 2\n" + LOCAL, RAW, "written ElementSpacing"),
    "twice.mha": (META + "DimSize = 2 3 4\n" + LOCAL, RAW, "says DimSize twice"),
    "noline.mha": (META + "what\n" + LOCAL, RAW, "line 7 of its header"),
    "comment.mha": (META + "# what\n" + LOCAL, RAW, "line 7 of its header"),
    "nofile.mha": (META, RAW, "line 7 of its header"),
    "nofile2.mha": (META, b"", "no ElementDataFile"),
    "empty.mhd": (META + "ElementDataFile = \n", b"", "''"),
    "scene.mha": (META.replace("= Image", "= Scene") + LOCAL, RAW, "'Scene' and no Image"),
    "dims.mha": (META.replace("2 3 4", "2 3 4 1") + LOCAL, RAW, "DimSize are 4 numbers"),
    "ndims.mha": (META.replace("NDims = 3", "NDims = 999999999") + LOCAL, RAW, "999999999 axes"),
    "ndims2.mha": (META.replace("NDims = 3", "NDims = " + "9" * 9999) + LOCAL, RAW, "NDims"),
    "channels.mha": (META + "ElementNumberOfChannels = 3\n" + LOCAL, RAW, "3 value(s)"),
    "array.mha": (META.replace("MET_SHORT", "MET_SHORT_ARRAY") + LOCAL, RAW, "none of a number"),
    "matrix.mha": (META + "TransformMatrix = 1 0 0 0 1 0\n" + LOCAL, RAW, "Matrix is not 9"),
    "flat.mha": (META + "TransformMatrix = 1 0 0 0 1 0 0 1 0\n" + LOCAL, RAW, "no usable grid"),
    "huge.mha": (META + "ElementSpacing = 1e999 1 1\n" + LOCAL, RAW, "no usable grid"),
    "orders.mha": (META + "ElementByteOrderMSB = True\n" + LOCAL, RAW, "two byte orders"),
    "places.mha": (META + "Offset = 1 2 3\nOrigin = 1 2 4\n" + LOCAL, RAW, "two places"),
    "places2.mha": (META + "Position = 1 2 3\nOffset = 9 2 3\n" + LOCAL, RAW, "two places"),
    "maybe.mha": (META.replace("= True", "= maybe") + LOCAL, RAW, "neither True nor False"),
    "cm.mha": (META + "DistanceUnits = cm\n" + LOCAL, RAW, "'cm', not mm"),
    "slope.mha": (META + "ElementToIntensityFunctionSlope = 2\n" + LOCAL, RAW, "Slope is 2"),
    "head.mha": (META + "HeaderSize = 3\n" + LOCAL, RAW, "its header ends at"),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_UNDERSTOOD)
def test_what_is_not_understood_is_refused_at_once(tmp_path, name):
    head, data, said = NOT_UNDERSTOOD[name]
    path = put(tmp_path / name, head, data)
    for read in (read_geometry, read_image):
        began = time.perf_counter()
        with pytest.raises(DataError) as caught:
            read(path)
        assert time.perf_counter() - began < 1
        assert said in caught.value.message, caught.value.message
        assert caught.value.hint and caught.value.code and "\n" not in caught.value.message


PACKED = {
    "s.nrrd": (nrrd("gzip"), gzip.compress),
    "z.nrrd": (nrrd("bzip2"), bz2.compress),
    "s.mha": (META + "CompressedData = True\n" + LOCAL, zlib.compress),
}


@pytest.mark.parametrize("name", PACKED)
def test_packed_voxels_must_be_exactly_as_many_as_the_header_claims(tmp_path, name):
    head, pack = PACKED[name]
    assert np.array_equal(read_image(put(tmp_path / name, head, pack(RAW))).array, VOXELS)
    for data, said in (
        (pack(RAW[:-2]), "46 of 48 bytes"),
        (pack(RAW + b"12"), "more voxels than its header claims"),
        (pack(RAW)[:-1], "cannot be read"),
    ):
        with pytest.raises(DataError, match=said):
            read_image(put(tmp_path / name, head, data))


def test_bytes_behind_packed_voxels_are_refused(tmp_path):
    for name, (head, pack) in PACKED.items():
        with pytest.raises(DataError, match="cannot be read"):
            read_image(put(tmp_path / name, head, pack(RAW) + b"x"))


def test_a_packed_size_that_is_not_the_files_is_refused(tmp_path):
    data = zlib.compress(RAW)
    for size in (len(data) - 1, len(data) + 1):
        head = META + f"CompressedData = True\nCompressedDataSize = {size}\n" + LOCAL
        with pytest.raises(DataError, match=f"claims {size} packed bytes"):
            read_image(put(tmp_path / "s.mha", head, data))


@pytest.mark.parametrize("head", [NRRD + "\n", META + LOCAL])
@pytest.mark.parametrize("held", [46, 47, 49, 50])
def test_raw_voxels_must_be_exactly_as_many_as_the_header_claims(tmp_path, head, held):
    path = put(tmp_path / ("s.mha" if head.startswith("O") else "s.nrrd"), head, bytes(held))
    with pytest.raises(DataError, match=f"claims 48 bytes of voxels, the file holds {held}"):
        read_geometry(path)


TEXTS = {
    "one too few": " ".join(map(str, range(23))),
    "one too many": " ".join(map(str, range(25))),
    "a word": " ".join(map(str, range(23))) + " x",
    "a number that does not fit": " ".join(map(str, range(23))) + " 32768",
    "a fraction": " ".join(map(str, range(23))) + " 0.5",
    "grouped digits": " ".join(map(str, range(23))) + " 1_0",
}


@pytest.mark.parametrize("what", TEXTS)
def test_voxels_written_out_as_text_must_be_so_many_such_numbers(tmp_path, what):
    path = put(tmp_path / "s.nrrd", nrrd("ascii"), TEXTS[what].encode())
    with pytest.raises(DataError, match="cannot be read"):
        read_image(path)


@pytest.mark.parametrize("name", PACKED)
def test_damaged_labels_are_refused_too(tmp_path, name):
    head, pack = PACKED[name]
    data = bytearray(pack(RAW))
    assert read_labels(put(tmp_path / name, head, bytes(data))).array.max() == 23
    data[len(data) - 2] ^= 16
    with pytest.raises(DataError, match="cannot be read"):
        read_labels(put(tmp_path / name, head, bytes(data)))


@pytest.mark.slow
def test_a_disk_that_is_full_leaves_nothing_and_no_word_of_the_library(tmp_path):
    code = """
import resource, signal, sys
import numpy as np
from pathlib import Path
from sdseg_cli.core.errors import RunError
from sdseg_cli.imaging.io.files import write_mask
from sdseg_cli.imaging.volume import Geometry, Volume
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
noise = np.random.default_rng(0).integers(0, 2, (90, 90, 90)).astype(np.uint8)
like = Volume(noise, Geometry(noise.shape, np.eye(4)))
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))
for name in ("m.mha", "m.nrrd"):
    try:
        write_mask(Path(sys.argv[1]) / name, noise, like)
    except RunError as error:
        print(error.message)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("cannot be written") == 2
    assert done.stderr == ""
    assert not list(tmp_path.iterdir())


def test_a_probability_lies_where_its_scan_does(tmp_path):
    scan = read_image(put(tmp_path / "s.mha", META + f"TransformMatrix = {OBLIQUE}\n" + LOCAL))
    write_probability(tmp_path / "p.nrrd", np.full((2, 3, 4), 255, np.uint8), scan)
    assert np.array_equal(read_geometry(tmp_path / "p.nrrd").affine, scan.geometry.affine)
    assert read_image(tmp_path / "p.nrrd").array.max() == 1


@pytest.mark.data
@pytest.mark.parametrize("name", ["lung1_image.nrrd", "lung1_label.nrrd"])
def test_the_real_nrrd_is_read_as_itk_reads_it(tmp_path, real_data, name):
    require_as_itk(real_data / "pyradiomics-lung1" / name, tmp_path)


HEADER_LINES = [
    b"", b"\t", b" ", b"ElementDataFile = /etc/passwd", b"data file:=x", b"data file: /etc/passwd",
    b"sizes: 7 6 5", b"DimSize = 5 6 7", b"NDims = 9999999999", b"dimension: 3", b"byte skip: -1",
    b"HeaderSize = -1", b"foo", b"encoding: raw", b"encoding: gzip", b"CompressedData = True",
    b"BinaryData = False", b"line skip: 1", b"byte skip: 1", b"HeaderSize = 1", b"kinds: a b c",
]  # fmt: skip


def edited(data: bytes, head: int, chance: random.Random) -> bytes:
    """With a line of the header lost, doubled, exchanged, or one too many."""
    lines = data[:head].split(b"\n")
    k, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    how = chance.choice(["lose", "swap", "insert", "repeat"])
    if how == "lose":
        del lines[k]
    elif how == "swap":
        lines[k], lines[other] = lines[other], lines[k]
    else:
        lines.insert(k, lines[k] if how == "repeat" else chance.choice(HEADER_LINES))
    return b"\n".join(lines) + data[head:]


def damaged(data: bytes, chance: random.Random) -> bytes:
    """With bits turned over, cut short, or with bytes added."""
    how = chance.choice(["bit", "bytes", "cut", "add"])
    changed = bytearray(data)
    if how == "bit":
        changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif how == "bytes":
        for _ in range(chance.randrange(2, 20)):
            changed[chance.randrange(len(data))] = chance.randrange(256)
    elif how == "cut":
        del changed[chance.randrange(len(data)) :]
    else:
        changed += chance.randbytes(chance.randrange(1, 50))
    return bytes(changed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_done_to_a_file_its_voxels_are_the_same_or_it_is_refused(tmp_path, seed):
    # Raw voxels have no checksum: of those the header alone is changed.
    chance = random.Random(seed)
    voxels = np.random.default_rng(seed).integers(-900, 900, (5, 6, 7)).astype(np.int16)
    files = {}
    for suffix in ("mha", "mhd", "nrrd"):
        for compress in (False, True):
            path = tmp_path / f"s{compress:d}.{suffix}"
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels), str(path), compress)
            files[path] = path
    packed = tmp_path / "s1.zraw"
    files[packed] = tmp_path / "s1.mhd"
    refused = 0
    for _ in range(1500):
        path = chance.choice(list(files))
        data = path.read_bytes()
        head = data.find(b"\n\n") if path.suffix == ".nrrd" else data.find(b"ElementDataFile") + 23
        whole_file = path == packed or ("1." in path.name and chance.random() < 0.5)
        path.write_bytes(damaged(data, chance) if whole_file else edited(data, head, chance))
        try:
            read = read_image(files[path])
        except DataError as error:
            assert error.hint and "\n" not in error.message
            refused += 1
        else:
            assert np.array_equal(read.array.transpose(2, 1, 0), voxels)
        path.write_bytes(data)
    assert 500 < refused < 1400
