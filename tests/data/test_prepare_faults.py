"""What stops `prepare`, what it says, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sdseg_cli.core.errors import ConfigError, DataError, GeometryError, RunError, SdsegError
from sdseg_cli.core.locks import locked
from sdseg_cli.data.check import check
from sdseg_cli.data.manifest import Manifest, lock_of
from tests.data.faulty_cases import Fault, cut, lose_mask, move, nan, relabel
from tests.raw_cases import AFFINE, IDS, SHAPE, contents, prepared, split_file
from tests.raw_pictures import save, save_pair


def plain_text(case: Path) -> None:
    (case / "image.nii.gz").write_text("this is no scan")


FAULTS: list[tuple[Fault, str, type[SdsegError]]] = [
    (relabel(lambda labels: labels[:-1]), "grid-shape", GeometryError),
    (move, "grid-place", GeometryError),
    (nan, "values-not-finite", DataError),
    (plain_text, "image-damaged", DataError),
    (cut, "image-damaged", DataError),
    (relabel(lambda labels: labels * np.float32(0.7)), "label-values", DataError),
    (lose_mask, "label-missing", DataError),
]


@pytest.mark.parametrize(("fault", "code", "error"), FAULTS)
def test_a_faulty_case_stops_it_or_is_left_out_and_listed(
    raw: Path, workspace: Path, fault: Fault, code: str, error: type[SdsegError]
) -> None:
    fault(raw / "pt_3")
    with pytest.raises(error, match="case pt_3: ") as caught:
        prepared(raw, workspace)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    assert list(workspace.iterdir()) == []
    report = prepared(raw, workspace, skip_bad=True)
    assert [(entry["case"], entry["code"]) for entry in report.skipped] == [("pt_3", code)]
    assert report.skipped[0]["why"].startswith("case pt_3: ")
    assert report.cases == {"train": 2, "val": 1, "test": 1}
    assert [path.name for path in (workspace / "prepared").iterdir()] == ["raw_data"]
    assert not (report.manifest.parent / "cases/pt_3").exists()


def test_a_picture_too_large_for_memory_is_that_cases_fault(
    tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tmp_path / "pictures"
    for number in range(5):
        save_pair(raw / f"images/{number}.png", raw / f"masks/{number}.png", number)
    for kind in ("images", "masks"):
        save(raw / kind / "3.png", np.zeros((1, 60_000), np.uint8))
    monkeypatch.setattr("sdseg_cli.imaging.io.picture.available_bytes", lambda: 40_000_000_000)
    with pytest.raises(DataError, match=r"case 3: .* 60000 x 1 pixels take 43\.20 GB"):
        prepared(raw, workspace)
    report = prepared(raw, workspace, skip_bad=True)
    assert [(one["case"], one["code"]) for one in report.skipped] == [("3", "image-memory")]
    found = check(raw, workers=1).findings
    assert ("image-memory", "error", "3") in {(one.code, one.level, one.case) for one in found}


def test_a_faulty_case_in_a_worker_process_is_named_too(raw: Path, workspace: Path) -> None:
    nan(raw / "pt_10")
    with pytest.raises(DataError, match="case pt_10: ") as caught:
        prepared(raw, workspace, workers=2)
    assert "Replace them" in caught.value.hint
    assert list(workspace.iterdir()) == []


def test_a_failed_run_leaves_the_published_set_alone(raw: Path, workspace: Path) -> None:
    prepared(raw, workspace)
    before = contents(workspace)
    cut(raw / "pt_3")
    with pytest.raises(DataError):
        prepared(raw, workspace, window=(0, 1))
    assert contents(workspace) == before


def test_skipping_every_validation_case_of_a_split_file_is_refused(
    raw: Path, workspace: Path
) -> None:
    split = split_file(workspace, train=["pt_10", "pt_2"], val=["pt_3"])
    nan(raw / "pt_3")
    with pytest.raises(DataError, match="No usable val case"):
        prepared(raw, workspace, split_file=split, skip_bad=True)
    assert list(workspace.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"crop": "head"}, ConfigError),
        ({"dataset": "nothing"}, ConfigError),
        ({"dataset": "btcv"}, DataError),
        ({"name": "a/b"}, ConfigError),
        ({"target": (0,)}, ConfigError),
        ({"target": (7,)}, DataError),
        ({"window": (5, 5)}, ConfigError),
        ({"image_glob": "*/image.nii.gz"}, ConfigError),
        ({"split_file": Path("nothing.json")}, ConfigError),
    ],
)
def test_options_that_make_no_sense_are_refused_and_write_nothing(
    raw: Path, workspace: Path, options: dict[str, object], error: type[SdsegError]
) -> None:
    with pytest.raises(error) as caught:
        prepared(raw, workspace, **options)  # type: ignore[arg-type]
    assert caught.value.hint
    assert list(workspace.iterdir()) == []


def copy_image(case: Path, other: Path) -> None:
    shutil.copy(case / "image.nii.gz", other / "image.nii.gz")


def test_one_image_in_two_splits_stops_it(raw: Path, workspace: Path) -> None:
    split = split_file(workspace, train=["pt_1", "pt_2"], val=["pt_3"], test=["pt_10"])
    copy_image(raw / "pt_2", raw / "pt_10")  # with another mask: only the image gives it away
    with pytest.raises(DataError, match="case pt_10: the same image as case pt_2: one is in train"):
        prepared(raw, workspace, split_file=split)
    assert list(workspace.iterdir()) == []


def test_copies_of_an_image_can_be_left_out(raw: Path, workspace: Path) -> None:
    for other in ("pt_2", "pt_3"):
        copy_image(raw / "pt_1", raw / other)
    report = prepared(raw, workspace, skip_bad=True)
    assert {(entry["case"], entry["code"]) for entry in report.skipped} <= {
        ("pt_2", "leakage"),
        ("pt_3", "leakage"),
    }
    assert report.skipped
    folders = {path.name for path in (report.manifest.parent / "cases").iterdir()}
    assert folders == set(IDS) - {entry["case"] for entry in report.skipped}
    of = {case.id: case.split for case in Manifest.load(report.manifest).entries}
    assert len({of[id] for id in ("pt_1", "pt_2", "pt_3") if id in of}) == 1


def test_copies_within_a_split_are_a_warning(raw: Path, workspace: Path) -> None:
    split = split_file(workspace, train=["pt_1", "pt_2"], val=["pt_3"], test=["pt_10"])
    copy_image(raw / "pt_1", raw / "pt_2")
    report = prepared(raw, workspace, split_file=split)
    assert [(one.code, one.case) for one in report.warnings] == [("duplicate", "pt_2")]


def test_odd_values_are_warnings_that_a_second_run_repeats(raw: Path, workspace: Path) -> None:
    image = nib.load(raw / "pt_3/image.nii.gz")
    values = np.asanyarray(image.dataobj) + 1024
    nib.save(nib.Nifti1Image(values.astype(np.int16), AFFINE), raw / "pt_3/image.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), AFFINE), raw / "pt_4/label.nii.gz")
    first = prepared(raw, workspace)
    found = [(one.code, one.case, one.level) for one in first.warnings]
    assert found == [("hu-offset", "pt_3", "warning"), ("label-empty", "pt_4", "warning")]
    again = prepared(raw, workspace)
    assert again.warnings == first.warnings
    assert json.loads(json.dumps(again.to_json()))["warnings"][0]["code"] == "hu-offset"


def test_two_cases_are_too_few(raw: Path, workspace: Path) -> None:
    with pytest.raises(DataError, match="2 case"):
        prepared(raw, workspace, image_glob="pt_[12]/image.*", label_glob="pt_[12]/label.*")


def test_a_second_prepare_of_a_name_is_refused_and_told_who_is_at_it(
    raw: Path, workspace: Path
) -> None:
    root = workspace / "prepared" / "raw_data"
    with locked(lock_of(root)):
        who = f"raw_data: process {os.getpid()} on {socket.gethostname()} is preparing this set"
        with pytest.raises(RunError, match=who) as caught:
            prepared(raw, workspace, crop="body")
        assert "--name" in caught.value.hint
        prepared(raw, workspace, name="other")
    assert contents(root.parent).keys() == {
        f"other/{file}" for file in contents(root.with_name("other"))
    }


def test_two_at_once_make_one_set_of_one_crop(raw: Path, workspace: Path) -> None:
    """The second comes while the first is at its scans."""
    refused: list[str] = []

    def second(done: int, total: int, what: str) -> None:
        if done == 2:
            with pytest.raises(RunError) as caught:
                prepared(raw, workspace, crop="body")
            refused.append(caught.value.message)

    report = prepared(raw, workspace, progress=second)
    assert len(refused) == 1
    assert Manifest.load(report.manifest).crop == "none"
    assert [path.name for path in (workspace / "prepared").iterdir()] == ["raw_data"]


def test_the_lock_of_a_killed_process_does_not_stay_in_the_way(raw: Path, workspace: Path) -> None:
    lock = lock_of(workspace / "prepared" / "raw_data")
    lock.parent.mkdir()
    lock.write_text(json.dumps({"pid": 1, "host": "gone"}))
    prepared(raw, workspace)
    assert not lock.exists()


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.unlink()  # cases that are kept are links to the same file
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["pixels.npy", "labels.npy"])
@pytest.mark.parametrize("place", [9, 60, 5000, -1])
def test_a_flipped_bit_in_an_array_is_found_and_that_case_made_again(
    raw: Path, workspace: Path, name: str, place: int
) -> None:
    report = prepared(raw, workspace)
    before, inode = contents(workspace), (report.manifest.parent / "cases/pt_2/pixels.npy").stat()
    flip(report.manifest.parent / "cases/pt_3" / name, place)
    told: list[str] = []
    again = prepared(raw, workspace, progress=lambda a, b, what: told.append(what))
    assert told == ["done before", "case pt_3"]
    assert contents(workspace) == before
    assert (again.manifest.parent / "cases/pt_2/pixels.npy").stat().st_ino == inode.st_ino


@pytest.mark.parametrize(
    "record",
    [b"", b"{", b"[]", b"{}", b"[" * 100_000, b"\xff", b'{"bytes": 7}', b'{"fingerprint": null}'],
)
def test_a_damaged_record_is_made_again(raw: Path, workspace: Path, record: bytes) -> None:
    remade_after(raw, workspace, lambda _: record)


def test_a_record_whose_slices_were_changed_is_made_again(raw: Path, workspace: Path) -> None:
    changed = {"label_slices": {"1": [0]}}
    remade_after(raw, workspace, lambda old: json.dumps(json.loads(old) | changed).encode())


def remade_after(raw: Path, workspace: Path, change: Callable[[bytes], bytes]) -> None:
    report = prepared(raw, workspace)
    before = contents(workspace)
    file = report.manifest.parent / "cases/pt_3/case.json"
    record = file.read_bytes()
    file.unlink()
    file.write_bytes(change(record))
    prepared(raw, workspace)
    assert contents(workspace) == before


def test_an_interrupted_prepare_takes_up_only_whole_cases(raw: Path, workspace: Path) -> None:
    class StopError(Exception):
        pass

    def stop(done: int, total: int, what: str) -> None:
        if done == 3:
            raise StopError

    with pytest.raises(StopError):
        prepared(raw, workspace, progress=stop)
    built = workspace / "prepared/.raw_data.part/cases"
    flip(built / "pt_2/pixels.npy", -1)
    told: list[tuple[int, str]] = []
    prepared(raw, workspace, progress=lambda done, _, what: told.append((done, what)))
    assert told[:2] == [(2, "done before"), (3, "case pt_2")]
    prepared(raw, workspace, name="undisturbed")
    place = workspace / "prepared"
    arrays = [
        {name: data for name, data in contents(place / one).items() if name != "manifest.json"}
        for one in ("raw_data", "undisturbed")
    ]
    assert arrays[0] == arrays[1]


def test_too_few_cases_for_want_of_good_ones_says_what_the_others_had(
    raw: Path, workspace: Path
) -> None:
    for id in IDS[2:]:
        (raw / id / "label.nii.gz").write_bytes(b"no")
    said = rf"^Of {len(IDS)} cases 2 can be used \(.*{IDS[2]}.*{IDS[-1]}"
    with pytest.raises(DataError, match=said) as caught:
        prepared(raw, workspace, skip_bad=True)
    assert caught.value.hint.startswith("At least 3 are needed")
