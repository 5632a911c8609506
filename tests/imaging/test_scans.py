from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from sdseg_cli.core.errors import ConfigError, DataError
from sdseg_cli.imaging.io.files import read_image
from sdseg_cli.imaging.scans import find_scans, is_many, require_file_name, size_and_time
from tests import dicom_files
from tests.dicom_files import write_contours, write_series


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")


def masks(source: Path, output: Path) -> dict[str, str]:
    """Case -> where its mask goes."""
    return {scan.case: scan.mask.as_posix() for scan in find_scans(source, output).scans}


def test_a_folder_gives_its_scans_in_natural_order_and_each_mask_its_scans_path(tmp_path):
    touch(tmp_path, "in/pt_10/ct.nii.gz", "in/pt_2/ct.nii", "in/b.nrrd", "in/c.mhd", "in/c.raw")
    touch(tmp_path, "in/d.jpg", "in/e.zip", "in/notes.txt", "in/.hidden.nii", "in/.git/f.nii")
    assert list(masks(tmp_path / "in", tmp_path / "out").items()) == [
        ("b", "b.nrrd"),
        ("c", "c.mha"),
        ("d", "d.png"),
        ("e", "e.nii.gz"),
        ("pt_2/ct", "pt_2/ct.nii"),
        ("pt_10/ct", "pt_10/ct.nii.gz"),
    ]


def test_nnunets_masks_are_called_without_the_channel(tmp_path):
    touch(tmp_path, "in/b_0000.nii.gz", "in/x/a_0000.nrrd", "in/c_0001_0000.mhd", "in/p_0000.jpg")
    assert find_scans(tmp_path / "in", tmp_path / "out").channels == 1
    assert masks(tmp_path / "in", tmp_path / "out") == {
        "b": "b.nii.gz",
        "c_0001": "c_0001.mha",
        "p": "p.png",
        "x/a": "x/a.nrrd",
    }
    (tmp_path / "list.txt").write_text("in/b_0000.nii.gz\n")
    assert masks(tmp_path / "list.txt", tmp_path / "out") == {"in/b": "in/b.nii.gz"}


@pytest.mark.parametrize(
    ("names", "channels"),
    [
        (["a.nii.gz", "a_0000.nii.gz"], 0),
        (["a_0000.nii.gz", "b.nii.gz"], 0),
        (["a_0000.nii.gz", "a_0001.nii.gz"], 2),
        (["a_0000.png", "a_0001.png", "b_0000.png", "b_0001.png"], 2),
        (["a_0000.png", "a_0001.png", "b_0000.png"], 0),
        (["frame_0003.png", "frame_0004.png"], 0),
        (["a_0001.nii.gz"], 0),
        (["_0000.nii.gz"], 0),
        (["a_00000.nii.gz"], 0),
        (["a_0000.zip"], 0),
    ],
)
def test_any_other_names_are_the_masks_too(tmp_path, names, channels):
    touch(tmp_path, *(f"in/{name}" for name in names))
    found = find_scans(tmp_path / "in", tmp_path / "out")
    assert found.channels == channels
    kept = [name.replace(".zip", ".nii.gz") for name in names]
    assert sorted(scan.mask.as_posix() for scan in found.scans) == kept


def test_two_files_of_one_nnunet_case_keep_their_cases_apart(tmp_path):
    touch(tmp_path, "in/a_0000.nii.gz", "in/a_0000.nrrd")
    found = find_scans(tmp_path / "in", tmp_path / "out")
    assert found.channels == 1
    assert {scan.case: scan.mask.name for scan in found.scans} == {
        "a.nii.gz": "a.nii.gz",
        "a.nrrd": "a.nrrd",
    }
    touch(tmp_path, "in/b_0000.mhd", "in/b_0000.mha")
    with pytest.raises(ConfigError, match=r"would both be written to .*b\.mha"):
        find_scans(tmp_path / "in", tmp_path / "out")


def test_a_list_names_files_in_any_bytes_and_what_is_no_file_is_a_scan_too(tmp_path):
    long, latin = "n" * 300, os.fsdecode(b"g\xfc.nii")
    (tmp_path / "loop.nii").symlink_to(tmp_path / "loop.nii")
    text = f"a b.nii\r\n{latin}\n{long}\ngone.nii\nloop.nii\nform\x0cfeed.nii\n"
    (tmp_path / "list.txt").write_bytes(os.fsencode(text))
    found = find_scans(tmp_path / "list.txt", tmp_path / "out").scans
    assert {scan.path.name for scan in found} == {
        "a b.nii",
        latin,
        long,
        "gone.nii",
        "loop.nii",
        "form\x0cfeed.nii",
    }


@pytest.mark.parametrize("data", [b"a.nii\nb\0.nii\n", "a.nii\n".encode("utf-16")])
def test_a_list_that_is_no_text_is_refused(tmp_path, data):
    (tmp_path / "list.txt").write_bytes(data)
    with pytest.raises(DataError, match="cannot be read as a list of scans"):
        find_scans(tmp_path / "list.txt", tmp_path / "out")


def test_a_list_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "list.txt")
    with pytest.raises(DataError, match="is a pipe or a device"):
        find_scans(tmp_path / "list.txt", tmp_path / "out")


def test_a_folder_of_dicom_images_is_one_scan_and_one_of_contours_is_none(tmp_path):
    write_series(tmp_path / "in" / "patient" / "series", leave_out=(2, 3, 4, 5))
    write_contours(tmp_path / "in" / "patient" / "structures" / "RS1")
    (scan,) = find_scans(tmp_path / "in", tmp_path / "out").scans
    assert scan.path == tmp_path / "in" / "patient" / "series"
    assert scan.mask == Path("patient/series.nii.gz")
    (itself,) = find_scans(scan.path, tmp_path / "out").scans
    assert itself.path == scan.path and itself.mask == Path("series.nii.gz")


def test_what_may_be_a_scan_and_is_not_read_is_counted(tmp_path):
    touch(tmp_path, "in/a.nii", "in/b.mgz", "in/c.mgz", "in/README", "in/d.json", "in/e.csv")
    found = find_scans(tmp_path / "in", tmp_path / "out")
    assert [scan.case for scan in found.scans] == ["a"]
    assert found.passed_over == {".mgz": 2, "README": 1}


def test_label_maps_beside_a_scan_are_none_unless_a_list_names_them(tmp_path: Path) -> None:
    touch(tmp_path, "in/a/image.nii", "in/a/label.nii", "in/b/ct.nii", "in/b/ct_SEG.nii")
    touch(tmp_path, "in/c/mask.nii", "in/d/masked.nii", "in/d/image.nii")
    found = find_scans(tmp_path / "in", tmp_path / "out")
    assert [scan.case for scan in found.scans] == [
        "a/image",
        "b/ct",
        "c/mask",
        "d/image",
        "d/masked",
    ]
    assert found.labels == (tmp_path / "in/a/label.nii", tmp_path / "in/b/ct_SEG.nii")
    (tmp_path / "list.txt").write_text("in/a/image.nii\nin/a/label.nii\n")
    found = find_scans(tmp_path / "list.txt", tmp_path / "out")
    assert (len(found.scans), found.labels) == (2, ())


def test_the_masks_are_no_scans_wherever_they_lie(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "in/a.nii",
        "in/out/a.nii",
        "in/out/.ledger/x",
        "in/prob/a.nii",
        "in/old/a.nii",
        "in/old/.ledger/x",
    )
    found = find_scans(
        tmp_path / "in", tmp_path / "in" / "out", {"probability": tmp_path / "in" / "prob"}
    )
    assert [scan.case for scan in found.scans] == ["a"]
    with pytest.raises(ConfigError, match="is the scans' own folder"):
        find_scans(tmp_path / "in", tmp_path / "in")


def test_a_link_into_a_circle_is_not_followed_and_one_to_scans_is(tmp_path):
    touch(tmp_path, "in/a.nii", "elsewhere/b.nii")
    (tmp_path / "in" / "round").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "more").symlink_to(tmp_path / "elsewhere")
    assert set(masks(tmp_path / "in", tmp_path / "out")) == {"a", "more/b"}


def test_a_list_is_relative_to_its_folder_and_knows_comments(tmp_path):
    touch(tmp_path, "set/a.nii", "set/deep/b.nii.gz", "other/c.nii")
    listed = tmp_path / "set" / "scans.txt"
    listed.write_text(f"# mine\ndeep/b.nii.gz\n\na.nii\n../other/c.nii\n{tmp_path}/set/a.nii\n")
    outside = Path("_outside", *tmp_path.parts[1:], "other", "c.nii").as_posix()
    assert set(masks(listed, tmp_path / "out").values()) == {"a.nii", "deep/b.nii.gz", outside}
    table = tmp_path / "set" / "scans.csv"
    table.write_text('"a.nii",CT\nmissing.nii,MR\n')
    assert set(masks(table, tmp_path / "out").values()) == {"a.nii", "missing.nii"}


def test_two_scans_for_one_mask_are_refused(tmp_path):
    touch(tmp_path, "in/a.jpg", "in/a.png")
    with pytest.raises(ConfigError, match=r"a\.jpg and .*a\.png would both be written to"):
        find_scans(tmp_path / "in", tmp_path / "out")
    touch(tmp_path, "set/a.nii", "set/set/a.nii")
    with pytest.raises(ConfigError, match="would replace the scan"):
        find_scans(tmp_path / "set", tmp_path)


@pytest.mark.parametrize(
    ("option", "folder", "scans"),
    [
        ("probability", "set/sub", ["a.nii.gz", "sub/a.nii.gz"]),
        ("uncertainty", "set/x/../sub", ["a.nii.gz", "sub/a.nii.gz"]),
        ("preview", "set/sub", ["a.nii.gz", "sub/a.png"]),
        ("preview", "set/link", ["a.jpg", "sub/a.png"]),
    ],
)
def test_no_file_beside_a_mask_replaces_a_scan(tmp_path, option, folder, scans):
    touch(tmp_path / "set", *scans)
    (tmp_path / "set" / "link").symlink_to(tmp_path / "set" / "sub")
    listed = tmp_path / "set" / "scans.txt"
    listed.write_text("\n".join(scans))
    with pytest.raises(ConfigError, match=r"would replace the scan .*sub/a\."):
        find_scans(listed, tmp_path / "out", {option: tmp_path / folder})
    assert len(find_scans(listed, tmp_path / "out", {option: tmp_path / "p"}).scans) == 2


@pytest.mark.parametrize(
    ("output", "folders"), [("in/sub", {}), ("out", {"probability": "in/sub"})]
)
def test_a_folder_of_scans_among_the_scans_is_not_written_to(tmp_path, output, folders):
    touch(tmp_path, "in/a.nii", "in/sub/a.nii")
    others = {option: tmp_path / name for option, name in folders.items()}
    with pytest.raises(ConfigError, match=r"sub/a\.nii: lies among the scans"):
        find_scans(tmp_path / "in", tmp_path / output, others)


def test_two_outputs_of_one_name_are_refused_and_a_preview_may_lie_beside_its_mask(tmp_path):
    touch(tmp_path, "in/a.nii", "in/b/a.nii")
    source, out = tmp_path / "in", tmp_path / "out"
    assert find_scans(source, out, {"preview": out}).scans
    with pytest.raises(ConfigError, match=r"two files of .*a\.nii would have this name"):
        find_scans(source, out, {"probability": out})
    with pytest.raises(ConfigError, match="two files of"):
        find_scans(source, out, {"probability": out / "p", "uncertainty": out / "p"})
    with pytest.raises(ConfigError, match=r"in/a\.nii and .*b/a\.nii would both be written to"):
        find_scans(source, out, {"probability": out / "b"})


def test_scans_that_differ_only_in_kind_keep_their_whole_names(tmp_path):
    touch(tmp_path, "in/a.nii", "in/a.nrrd", "in/b.nii")
    assert set(masks(tmp_path / "in", tmp_path / "out")) == {"a.nii", "a.nrrd", "b"}


def test_no_scan_at_all_is_refused(tmp_path):
    touch(tmp_path, "in/notes.txt")
    with pytest.raises(DataError, match="holds no scan"):
        find_scans(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as a list"):
        find_scans(tmp_path / "in" / "list.txt", tmp_path / "out")


@pytest.mark.parametrize(
    ("source", "output", "many"),
    [
        ("in", "out", True),
        ("in", "v1.2/", True),
        ("in", "there.d", True),
        ("in", ".masks", True),
        ("in", "mask.nii.gz", False),
        ("in", "mask.dcm", False),
        ("list.txt", "out", True),
        ("list.txt", "mask.nrrd", False),
        ("in/a.nii", "out", False),
        ("gone", "mask.nii.gz", False),
    ],
)
def test_the_output_says_whether_one_scan_or_many_are_meant(tmp_path, source, output, many):
    touch(tmp_path, "in/a.nii", "list.txt")
    (tmp_path / "there.d").mkdir()
    assert is_many(tmp_path / source, f"{tmp_path}/{output}") is many


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("mask.nii.gzz", r"\.gzz is no suffix of a mask"),
        ("mask.docx", r"\.docx is no suffix"),
        ("mask.jpg", r"\.jpg is no suffix"),
        ("v1.2", r"\.2 is no suffix"),
        ("mask.nii.gz/", "a folder that is called as a mask is"),
        ("", "-o is empty"),
    ],
)
def test_an_output_that_is_neither_a_mask_nor_a_folder_is_refused(
    tmp_path, monkeypatch, output, said
):
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "in/a.nii")
    for source in ("in", "list.txt"):
        touch(tmp_path, "list.txt")
        with pytest.raises(ConfigError, match=said):
            is_many(Path(source), output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "list.txt"]


def test_a_source_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="gone does not exist"):
        is_many(tmp_path / "gone", tmp_path / "out")


def test_scans_that_are_links_to_nowhere_are_scans(tmp_path):
    touch(tmp_path, "in/a.nii", "in/README")
    for name in ("in/b.nii.gz", "in/c.png", "in/d.zip", "in/latest", "in/e.txt"):
        (tmp_path / name).symlink_to("/not/there")
    found = find_scans(tmp_path / "in", tmp_path / "out")
    assert [scan.path.name for scan in found.scans] == [
        "a.nii",
        "b.nii.gz",
        "c.png",
        "d.zip",
    ]
    assert found.passed_over == {"README": 1, "latest": 1}, "beside scans, no name of a slice"


def test_a_folder_with_lost_slices_or_a_lost_folder_is_a_scan_that_says_so(tmp_path):
    write_series(tmp_path / "in/one")
    (tmp_path / "in/two").mkdir()
    for name in ("in/two/IM1", "in/three", "in/two/IM2.dcm"):
        (tmp_path / name).symlink_to("/not/there")
    found = find_scans(tmp_path / "in", tmp_path / "out")
    assert [scan.path for scan in found.scans] == [
        tmp_path / "in",
        tmp_path / "in/one",
        tmp_path / "in/two",
    ]
    for path, lost in ((tmp_path / "in", "in/three"), (tmp_path / "in/two", "in/two/IM1")):
        with pytest.raises(DataError, match=f"{lost}: a link to /not/there, which is not there"):
            read_image(path)


def test_each_folder_is_searched_once_whatever_links_lead_to_it(tmp_path):
    touch(tmp_path, "in/pt_1/a.nii", "in/pt_2/a.nii", "else/b.nii")
    for name, target in (
        ("in/loop", "."),
        ("in/pt_1/to_2", "../pt_2"),
        ("in/pt_2/to_1", "../pt_1"),
        ("in/x", "../else"),
        ("in/y", "../else"),
        ("else/back", "../in"),
        ("link", "in"),
    ):
        (tmp_path / name).symlink_to(target)
    for root in ("in", "link"):
        assert list(masks(tmp_path / root, tmp_path / "out")) == ["pt_1/a", "pt_2/a", "x/b"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (".nii.gz", "a suffix without a name"),
        ("./.NRRD", "a suffix without a name"),
        ("mask.nii.gz/x.nii.gz", "the folder mask.nii.gz is called as a mask is"),
        ("a/m.png/b/x.nii.gz", "the folder m.png is called as a mask is"),
    ],
)
def test_a_file_that_would_make_a_folder_called_as_a_mask_or_has_no_name_is_refused(
    tmp_path, monkeypatch, name, said
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=said):
        require_file_name("-o", name)
    (tmp_path / "old.nii.gz").mkdir()
    require_file_name("-o", "old.nii.gz/x.nii.gz")  # it is there already


def test_the_state_of_a_dicom_series_is_that_of_all_its_files(tmp_path):
    folder = dicom_files.write_series(tmp_path / "ct")
    (tmp_path / "plain.nii").write_bytes(b"12345")
    assert size_and_time(tmp_path / "plain.nii")[0] == 5
    before = size_and_time(folder), size_and_time(folder / "IM0")
    assert before[0] == before[1]
    changed = folder / "IM3"
    os.utime(changed, ns=(0, changed.stat().st_mtime_ns + 1))
    assert size_and_time(folder) != before[0]
    assert size_and_time(folder / "IM0") != before[1]


@pytest.mark.parametrize("suffix", [".nii.gz", ".png"])
def test_what_is_written_below_a_dicom_folder_does_not_change_the_series(tmp_path, suffix):
    folder = dicom_files.write_series(tmp_path / "ct")
    before = size_and_time(folder), size_and_time(folder / "IM0")
    (folder / "out" / ".ledger").mkdir(parents=True)
    for name in (f"ct{suffix}", f".7.part.ct{suffix}", "ledger.csv", ".7.part.ledger.csv"):
        (folder / name).write_text("new")
        (folder / "out" / name).write_text("new")
    for name in ("in-use.lock", "0a.json"):
        (folder / "out" / ".ledger" / name).write_text("new")
    assert (size_and_time(folder), size_and_time(folder / "IM0")) == before
    (folder / "out" / "IM9").write_text("new")
    assert size_and_time(folder)[0] == before[0][0] + 3


@pytest.mark.parametrize("header", ["a.mhd", "a.nrrd"])
def test_voxels_that_changed_beside_their_header_are_seen(tmp_path, header):
    texts = {
        "a.mhd": "ObjectType = Image\nNDims = 3\nElementDataFile = a.raw\n",
        "a.nrrd": "NRRD0004\ndimension: 3\ndata file: a.raw\n\n",
    }
    path, voxels = tmp_path / header, tmp_path / "a.raw"
    path.write_text(texts[header])
    alone = size_and_time(path)
    assert alone[0] == len(texts[header]), "without voxels the header counts"
    voxels.write_bytes(b"1234")
    before = size_and_time(path)
    assert before[0] == alone[0] + 4
    os.utime(voxels, ns=(0, voxels.stat().st_mtime_ns + 1))
    assert size_and_time(path) == (before[0], before[1] + 1)


def test_a_file_that_holds_its_voxels_itself_counts_once(tmp_path):
    path = tmp_path / "a.mha"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.zeros((2, 3, 4), np.int16)), path)
    assert size_and_time(path) == (path.stat().st_size, path.stat().st_mtime_ns)
