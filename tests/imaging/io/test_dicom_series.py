"""Which files are one series: strangers ignored, a choice between series never silent."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from sdseg_cli.core.errors import ConfigError, DataError
from sdseg_cli.imaging.io.files import check_readable, read_geometry, read_image
from tests.dicom_files import (
    SECRETS,
    SERIES_UID,
    base,
    ct_slice,
    save,
    stored_values,
    write_contours,
    write_series,
    zipped,
)

SECOND_UID = "1.2.826.0.1.3680043.8.498.1.200"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_series(tmp_path / "scan")


def is_the_series(path: Path, series: str | None = None) -> bool:
    return np.array_equal(read_image(path, series).array, stored_values())


def other_series(folder: Path) -> Path:
    return write_series(folder / "other", stored_values()[:, :, :2] + 7, series_uid=SECOND_UID)


def test_files_that_are_no_dicom_are_passed_over(folder):
    (folder / "notes.txt").write_text("a note")
    (folder / "note").write_text("a short one")
    (folder / "viewer").write_text("#!/bin/sh\n" * 20)
    for name in ("DICOMDIR", "README", "Icon\r", "Thumbs.db", ".DS_Store", "IM1.xml", "IM1.json"):
        (folder / name).touch()
    (folder / "gone.txt").symlink_to("/not/there")
    (folder / "._IM0").write_bytes(b"\0" * 128 + b"DICM, not really: macOS left it")
    (folder / "cover.png").write_bytes(b"\x89PNG" * 50)
    assert is_the_series(folder)


def test_slices_may_be_spread_over_nested_folders(folder):
    for name in ("IM1", "IM4"):
        (folder / "deeper" / name).mkdir(parents=True)
        (folder / name).rename(folder / "deeper" / name / "same name")
    assert is_the_series(folder)


def test_a_zip_and_any_single_file_stand_for_the_series(folder, tmp_path):
    other_series(folder / "..")
    assert is_the_series(zipped(folder, tmp_path / "scan.zip"))
    for file in folder.iterdir():
        assert is_the_series(file)


def test_a_single_file_picks_its_own_series_out_of_a_mixed_folder(folder):
    for file in other_series(folder).iterdir():
        shutil.move(file, folder / f"second_{file.name}")
    assert is_the_series(folder / "IM3")
    assert read_image(folder / "second_IM0").geometry.shape == (12, 16, 2)


@pytest.mark.parametrize(
    ("modality", "sop_class"),
    [
        ("RTDOSE", "1.2.840.10008.5.1.4.1.1.481.2"),
        ("SEG", "1.2.840.10008.5.1.4.1.1.66.4"),
        ("", "1.2.840.10008.5.1.4.1.1.66.4"),
        ("PR", "1.2.840.10008.5.1.4.1.1.11.1"),
        ("SR", "1.2.840.10008.5.1.4.1.1.88.22"),
        ("OT", "1.2.840.10008.5.1.4.1.1.7"),
    ],
)
def test_objects_about_the_images_are_no_second_series(folder, modality, sop_class):
    write_contours(folder / "structures")
    beside = base(sop_class, modality, f"{SERIES_UID}.5")
    beside.Rows = beside.Columns = 4
    save(beside, folder / "beside.dcm")
    assert is_the_series(folder)


def test_two_image_series_need_a_choice(folder):
    other_series(folder)
    with pytest.raises(ConfigError, match="holds 2 image series") as caught:
        read_image(folder)
    assert caught.value.hint == (
        "Choose with --series: 1 = (UID ...100) CT 6 slices 12x16; "
        "2 = (UID ...200) CT 2 slices 12x16."
    )
    for name in ("1", "100", "1.100", SERIES_UID):
        assert is_the_series(folder, name)
    for name in ("2", "200", SECOND_UID):
        assert read_image(folder, name).geometry.shape == (12, 16, 2)
    for name in ("3", "00", "", "CT"):
        with pytest.raises(ConfigError, match="is none of its image series") as caught:
            read_image(folder, name)
        assert "1 = (UID ...100)" in caught.value.hint


def test_a_name_that_means_two_series_is_refused(folder):
    write_series(folder / "b", series_uid="1.2.3.2")
    write_series(folder / "c", series_uid="1.2.9.2")
    with pytest.raises(ConfigError, match='--series "2" is ambiguous'):
        read_image(folder, "2")
    assert is_the_series(folder, "3.2")


def test_series_without_identifiers_are_one_series(tmp_path):
    """Anonymisers blank them, as in the files of TotalSegmentator's tests."""

    def blank(made: Dataset, k: int) -> None:
        made.SeriesInstanceUID = made.StudyInstanceUID = ""

    folder = write_series(tmp_path / "scan", change=blank)
    assert is_the_series(folder)
    assert is_the_series(folder / "IM2")
    with pytest.raises(ConfigError, match="is none") as caught:
        read_image(folder, "7")
    assert "1 = CT 6 slices 12x16" in caught.value.hint


def test_nothing_to_read_is_said(tmp_path):
    with pytest.raises(DataError, match="is a folder without a DICOM file"):
        read_image(tmp_path)
    contours = write_contours(tmp_path / "structures.dcm")
    with pytest.raises(DataError, match=r"holds no DICOM images \(1 other DICOM file"):
        read_image(tmp_path)
    with pytest.raises(DataError, match=r"without an image \(RTSTRUCT\)"):
        read_image(contours)
    empty = tmp_path / "empty.zip"
    zipfile.ZipFile(empty, "w").close()
    with pytest.raises(DataError, match="holds no DICOM images"):
        read_image(empty)


def test_series_has_no_meaning_for_other_files(tmp_path):
    (tmp_path / "scan.nii").touch()
    with pytest.raises(ConfigError, match="--series has no meaning"):
        check_readable(tmp_path / "scan.nii", "1")


def test_a_dcm_that_is_no_dicom_may_be_a_lost_slice(folder, tmp_path):
    (folder / "IM9.dcm").write_bytes(b"")
    with pytest.raises(DataError, match=r"IM9.dcm: not a DICOM file"):
        read_image(folder)
    with pytest.raises(DataError, match=r"scan.zip: entry \d+.dcm: not") as caught:
        read_image(zipped(folder, tmp_path / "scan.zip"))
    assert "sdseg-" not in caught.value.message


LOST = {
    "empty": (lambda path: path.write_bytes(b""), "not a DICOM file: it is empty"),
    "short": (lambda path: path.write_bytes(b"\0" * 100), "it ends after 100 bytes"),
    "short text": (lambda path: path.write_bytes(b"404"), "it ends after 3 bytes"),
    "zeros": (lambda path: path.write_bytes(b"\0" * 900), "not a DICOM file, whatever its name"),
    "unmarked": (
        lambda path: path.write_bytes(b"\x08\0\x05\0CS" + b"x" * 300),
        "not a DICOM file, whatever its name",
    ),
    "a web page": (
        lambda path: path.write_bytes(b"<html>" * 99),
        "not a DICOM file, whatever its name",
    ),
    "a link to nowhere": (
        lambda path: path.symlink_to("/not/fetched"),
        "a link to /not/fetched, which is not there",
    ),
    "a link to itself": (lambda path: path.symlink_to(path.name), "which is not there"),
    "a pipe": (os.mkfifo, "a pipe or a device"),
}


@pytest.mark.parametrize("name", ["IM9", "IM9.dcm", "deeper/IM9.IMA"])
@pytest.mark.parametrize("fault", LOST)
def test_a_lost_slice_is_named(folder, fault, name):
    """The first or last: no gap would show it."""
    make, said = LOST[fault]
    (folder / name).parent.mkdir(exist_ok=True)
    make(folder / name)
    with pytest.raises(DataError) as caught:
        read_image(folder)
    assert caught.value.message.startswith(f"{folder / name}: ")
    assert said in caught.value.message
    if "/" not in name:
        with pytest.raises(DataError, match="IM9"):
            read_image(folder / "IM0")


def test_an_unfinished_download_is_named(folder):
    (folder / "viewer.exe.part").touch()
    assert is_the_series(folder)
    (folder / "IM9.part").write_bytes(b"half of it")
    with pytest.raises(DataError, match=r"IM9\.part: a download that was not finished"):
        read_image(folder)


def test_a_file_called_as_the_slices_are_is_one(folder):
    for path in folder.glob("IM*"):
        path.rename(folder / f"{path.name}.img")
    (folder / "IM77.img").write_text("x" * 999)
    with pytest.raises(DataError, match=r"IM77\.img: not a DICOM file"):
        read_image(folder)


def test_half_a_series_in_a_linked_folder_is_read(folder, tmp_path):
    (tmp_path / "store").mkdir()
    for name in ("IM1", "IM2", "IM4"):
        (folder / name).rename(tmp_path / "store" / name)
    (folder / "more").symlink_to("../store")
    (folder / "more again").symlink_to("../store")
    (tmp_path / "store/loop").symlink_to(folder)
    assert is_the_series(folder)
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(DataError, match=r"more: a link to \.\./store, which is not there"):
        read_image(folder)


def test_lost_slices_of_a_zip_are_named_by_their_number(folder, tmp_path):
    for content, said in (
        (b"", "it is empty"),
        (b"\0" * 99, "ends after 99"),
        (b"\0" * 999, "not a"),
    ):
        (folder / "IM9").write_bytes(content)
        (folder / "notes.txt").touch()
        with pytest.raises(DataError, match=r"scan.zip: entry \d+: not a DICOM file") as caught:
            read_image(zipped(folder, tmp_path / "scan.zip"))
        assert said in caught.value.message
    (folder / "IM9").unlink()
    for name in ("README", "DICOMDIR", "IM1.xml"):
        (folder / name).touch()
    assert is_the_series(zipped(folder, tmp_path / "scan.zip"))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("Rows", None, "has no Rows, though it is of the series"),
        ("Columns", None, "has no Columns, though"),
        ("Modality", "SR", "is of another kind than the other slices, though"),
        ("SOPClassUID", "1.2.840.10008.5.1.4.1.1.66.4", "is of another kind than the other slices"),
    ],
)
def test_a_slice_without_what_makes_an_image_is_named(tmp_path, name, value, said):
    def odd(made: Dataset, k: int) -> None:
        if k == 5:
            setattr(made, name, value)

    with pytest.raises(DataError, match=f"IM3: {said}"):
        read_image(write_series(tmp_path / "scan", change=odd))


def test_a_slice_that_does_not_say_its_series_is_named(tmp_path):
    def odd(made: Dataset, k: int) -> None:
        if k == 5:
            made.SeriesInstanceUID = ""

    folder = write_series(tmp_path / "scan", change=odd)
    with pytest.raises(ConfigError, match="holds 2 image series"):
        read_image(folder)
    with pytest.raises(DataError, match="IM3: has no SeriesInstanceUID"):
        read_image(folder / "IM0")


def test_a_damaged_header_is_refused_without_quoting_it(folder):
    broken = folder / "IM0"
    content = broken.read_bytes()
    broken.write_bytes(content[:132] + b"\xff" * 40 + content[172:])
    with pytest.raises(DataError, match="IM0: cannot be read as DICOM") as caught:
        read_image(folder)
    assert not any(secret in str(caught.value) for secret in SECRETS.values())


def test_deflated_files_are_refused_unread(folder):
    made = ct_slice(stored_values(), 0)
    made.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    save(made, folder / "IM9")
    with pytest.raises(DataError, match="deflated DICOM is not read"):
        read_image(folder)


def test_a_modality_of_a_persons_words_is_not_repeated(tmp_path):
    def named(slice_: Dataset, k: int) -> None:
        slice_.Modality = "DOE^JOHN"

    for number in (1, 2):
        write_series(tmp_path / str(number), change=named, series_uid=f"{SERIES_UID}.{number}")
    with pytest.raises(ConfigError) as caught:
        read_geometry(tmp_path)
    assert "DOE" not in caught.value.message + caught.value.hint
    assert "other 6 slices" in caught.value.hint


@pytest.mark.parametrize("size", range(280, 620, 20))
def test_an_end_slice_cut_within_its_header_is_named(folder, size):
    """After DICOM's mark, before it says to which series it belongs or how large it is."""
    last = max(folder.iterdir(), key=lambda path: path.name)
    rows = last.read_bytes().index(b"\x28\x00\x10\x00")
    if size > rows:
        pytest.skip("it has its Rows")
    os.truncate(last, size)
    for source in (folder, min(folder.iterdir())):
        with pytest.raises(DataError, match=last.name):
            read_image(source)
    with pytest.raises(DataError, match="entry "):
        read_image(zipped(folder, folder.with_name("cut.zip")))


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_a_slice_that_is_packed_by_itself_is_named(folder, suffix):
    for k, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"IM{k}")
    (folder / "IM5").rename(folder / f"IM5{suffix}")
    assert is_the_series(folder), "what it holds decides"
    (folder / f"IM5{suffix}").write_bytes(b"\x1f\x8b, packed")
    with pytest.raises(DataError, match="packed by itself, which is not read"):
        read_image(folder)


def test_other_packed_files_and_an_index_beside_a_series_are_passed_over(folder):
    (folder / "export.log.gz").write_bytes(b"\x1f\x8b")
    (folder / "data.gz").write_bytes(b"\x1f\x8b")
    write_contours(folder / "RS.dcm")
    assert is_the_series(folder)
