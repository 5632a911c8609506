"""Many scans, one model: with a stand-in for the network, which has tests of its own."""

from __future__ import annotations

import json
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sdseg_cli.core.config import SampleConfig
from sdseg_cli.core.errors import ConfigError, DataError, WeightsError
from sdseg_cli.core.filenames import as_path
from sdseg_cli.imaging.postprocess import PostProcess
from sdseg_cli.imaging.scans import Scan, find_scans
from sdseg_cli.inference import cohort
from sdseg_cli.inference.cohort import CohortReport, Shard, Task, Worker, predict_cohort, said
from sdseg_cli.inference.ledger import Ledger
from sdseg_cli.inference.options import OutputPaths, PredictOptions, PredictorOptions
from sdseg_cli.inference.predict import PredictReport
from sdseg_cli.inference.ray import actor_shares, require_ray
from sdseg_cli.model.distributed import Ranks
from tests.cohort_cases import AFFINE, BAD, GOOD, StandIn, stand_in, table, task
from tests.dicom_files import write_series
from tests.raw_cases import contents

__all__ = ["stand_in", "task"]


def scans(task: Task) -> Path:
    return task.outputs.mask.parent / "in"


def run(task: Task, **options) -> CohortReport:
    return predict_cohort(find_scans(scans(task), task.outputs.mask).scans, task, **options)


def rows(task: Task) -> dict[str, dict[str, str]]:
    return table(task.outputs.mask)


def test_one_bad_scan_is_one_row_and_the_model_is_loaded_once(
    task: Task, stand_in: StandIn
) -> None:
    told: list[tuple[int, int, str]] = []
    report = run(task, progress=lambda *step: told.append(step))
    assert (report.done, len(report.failed), report.skipped, report.left) == (3, 1, 0, 0)
    assert stand_in.loaded == 1
    table = rows(task)
    assert list(table) == ["pt_1/ct", "pt_2/ct", "pt_3/ct", "pt_10/ct"]
    assert [row["status"] for row in table.values()] == ["done", "done", "failed", "done"]
    # 3 x 2 voxels a row, one to three rows.
    assert [table[f"{case}/ct"]["foreground_voxels"] for case in GOOD] == ["6", "12", "18"]
    assert "not a gzip file" in table["pt_3/ct"]["error"]
    assert table["pt_3/ct"]["sha256"] == ""
    assert told[-1] == (4, 4, "scans, 1 failed")
    assert not (task.outputs.mask / BAD).exists()


def test_scans_slices_and_folders_that_are_links_to_nowhere_are_rows(
    task: Task, stand_in: StandIn
) -> None:
    source = scans(task)
    write_series(source / "ct", leave_out=(5,))
    write_series(source / "half")
    for name in ("pt_1/gone.nii.gz", "ct/IM9", "half/IM9.dcm", "pt_4"):
        (source / name).symlink_to("/not/there")
    run(task)
    found = {case: row["error"] for case, row in rows(task).items() if row["status"] == "failed"}
    del found["pt_3/ct"]
    lost = {"pt_1/gone": "pt_1/gone.nii.gz", "ct": "ct/IM9", "half": "half/IM9.dcm", "in": "pt_4"}
    assert set(found) == set(lost)
    for case, name in lost.items():
        assert f"{source / name}: a link to /not/there, which is not there" in found[case]


def test_the_json_is_the_contracts_object(task: Task, stand_in: StandIn) -> None:
    values = run(task).to_json()
    assert values["ledger"] == str(task.outputs.mask / "ledger.csv")
    assert (values["done"], values["failed"], values["skipped"], values["left"]) == (3, 1, 0, 0)
    assert values["seconds"] >= values["seconds_per_scan"] >= 0
    assert [one["case"] for one in values["failures"]] == ["pt_3/ct"]
    again = run(task).to_json()
    assert again["seconds_per_scan"] is None
    assert values["decoder"] == again["decoder"] == "exact"


def test_a_second_run_does_what_failed_and_nothing_else(task: Task, stand_in: StandIn) -> None:
    run(task)
    before = contents(task.outputs.mask)
    stand_in.predicted.clear()
    again = run(task)
    assert (again.done, len(again.failed), again.skipped) == (0, 1, 3)
    assert stand_in.predicted == [BAD]
    masks = [f"{case}/ct.nii.gz" for case in GOOD]
    assert all(contents(task.outputs.mask)[name] == before[name] for name in masks)
    good = scans(task) / "pt_1" / "ct.nii.gz"
    (scans(task) / BAD / "ct.nii.gz").write_bytes(good.read_bytes())
    mended = run(task)
    assert (mended.done, len(mended.failed), mended.skipped) == (1, 0, 3)
    assert {row["status"] for row in rows(task).values()} == {"done"}


def test_a_run_with_nothing_to_do_loads_no_model(task: Task, stand_in: StandIn) -> None:
    (scans(task) / BAD / "ct.nii.gz").unlink()
    run(task)
    assert run(task).skipped == 3
    assert stand_in.loaded == 1


def test_what_changed_is_done_again(task: Task, stand_in: StandIn) -> None:
    run(task)
    mask = task.outputs.mask / "pt_1" / "ct.nii.gz"

    def redone(task: Task) -> list[str]:
        stand_in.predicted.clear()
        run(task)
        return [case for case in stand_in.predicted if case != BAD]

    mask.write_bytes(mask.read_bytes() + b"x")
    assert redone(task) == ["pt_1"], "another mask"
    mask.unlink()
    assert redone(task) == ["pt_1"], "no mask"
    os.utime(scans(task) / "pt_2" / "ct.nii.gz", ns=(1, 1))
    assert redone(task) == ["pt_2"], "another scan"
    for record in (task.outputs.mask / ".ledger").glob("*.json"):
        record.write_text("{}")
    assert redone(task) == GOOD, "no record"
    task = replace(task, options=PredictOptions(post=PostProcess(0.4)))
    assert redone(task) == GOOD, "another option"
    assert redone(replace(task, options=replace(task.options, runs=None))) == []
    assert redone(replace(task, predictor=PredictorOptions("cpu", batch_size=2, threads=1))) == []
    assert redone(replace(task, predictor=PredictorOptions(crop="body"))) == GOOD, "another crop"
    (task.model / "checkpoints" / "best.pt").write_text("other weights")
    assert redone(task) == GOOD, "another model"


def test_the_identity_of_a_task_stays_what_older_versions_recorded(tmp_path: Path) -> None:
    """Else a cohort that one of them has half done would be done again. Hashes of theirs."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "best.pt").write_text("weights")
    plain = Task(tmp_path, OutputPaths(Path("out")), options=PredictOptions(sample=SampleConfig()))
    assert plain.identity() == "925e34b84c2f2f6010f9ae3805b7f8294e94f839dd65e9a3038f114cd3c055a3"
    post, sample = PostProcess(0.4, True, 1.5, 2), SampleConfig(steps=2, eta=0.5)
    asked = Task(
        tmp_path,
        OutputPaths(Path("out"), Path("p"), "float32", preview=Path("v")),
        PredictorOptions("cpu", "exact", 4, crop="body", compiled=True),
        PredictOptions("2", 3, sample, post, 3),
    )
    assert asked.identity() == "0741912df8ca80509ba788b0d0d9750e96e1ec522dae532bbc8967a7001ff288"


def test_a_mask_that_no_longer_lies_on_its_scan_is_made_again(
    task: Task, stand_in: StandIn
) -> None:
    scan = scans(task) / "moved" / "ct.nii"
    scan.parent.mkdir()
    array = np.zeros((4, 3, 2), np.int16)
    nib.save(nib.Nifti1Image(array, AFFINE), scan)
    run(task)
    before = scan.stat()
    elsewhere = AFFINE.copy()
    elsewhere[0, 3] = 40
    nib.save(nib.Nifti1Image(array, elsewhere), scan)
    os.utime(scan, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert scan.stat().st_size == before.st_size
    stand_in.predicted.clear()
    run(task)
    assert sorted(stand_in.predicted) == ["moved", BAD]


def test_masks_below_a_dicom_folder_do_not_make_it_another_scan(
    task: Task, stand_in: StandIn, tmp_path: Path
) -> None:
    series = write_series(tmp_path / "series")
    task = replace(task, outputs=OutputPaths(series / "masks", series / "prob"))
    for done in (1, 0):
        report = predict_cohort(
            find_scans(series, task.outputs.mask, task.outputs.beside).scans, task
        )
        assert (report.done, report.skipped) == (done, 1 - done)


def test_files_beside_the_mask_go_to_their_folder_and_are_missed(
    task: Task, stand_in: StandIn
) -> None:
    task = replace(
        task, outputs=replace(task.outputs, probability=task.outputs.mask.parent / "prob")
    )
    run(task)
    prob = task.outputs.mask.parent / "prob" / "pt_1" / "ct.nii.gz"
    assert prob.exists()
    prob.unlink()
    stand_in.predicted.clear()
    run(task)
    assert stand_in.predicted == ["pt_1", BAD]
    assert prob.exists()


def test_a_float_map_is_refused_where_all_scans_are_pictures(task: Task) -> None:
    out = task.outputs.mask
    task = replace(task, outputs=OutputPaths(out, out / "prob", "float32"))
    picture, volume = (Scan(name, Path(name), Path(name)) for name in ("a.png", "b.nii"))
    task.check([picture, volume])
    replace(task, outputs=replace(task.outputs, probability=None)).check([picture])
    with pytest.raises(ConfigError, match="a PNG holds no float32"):
        task.check([picture])


def test_a_folder_in_the_tables_place_is_refused_before_anything_is_predicted(
    task: Task, stand_in: StandIn
) -> None:
    (task.outputs.mask / "ledger.csv").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"ledger\.csv: is a folder"):
        run(task)
    assert stand_in.predicted == []


def test_any_trouble_with_a_scan_is_its_row(task: Task, stand_in: StandIn) -> None:
    stand_in.trouble = {
        "pt_1": MemoryError(),
        "pt_2": RuntimeError("CUDA out of\nmemory"),
        "pt_10": ZeroDivisionError("a bug"),
    }
    run(task)
    errors = {case: row["error"] for case, row in rows(task).items()}
    assert errors["pt_1/ct"] == "MemoryError: the memory that is free did not suffice."
    assert errors["pt_2/ct"] == "RuntimeError: CUDA out of memory"
    assert errors["pt_10/ct"] == "ZeroDivisionError: a bug"
    assert said(DataError("a: damaged.", "Copy it again.")) == "a: damaged. Copy it again."


LATIN_1 = os.fsdecode(b"pt_\xfc")
"""A folder's name in bytes that are no UTF-8."""


def test_names_that_are_no_utf8_are_rows_like_any_other(task: Task, stand_in: StandIn) -> None:
    source = scans(task)
    (source / "pt_1").rename(source / LATIN_1)
    (source / "pt_2").rename(source / r"pt_\xfc")  # a backslash and letters: another name
    (source / BAD).rename(source / os.fsdecode(b"bad\xff"))
    first, again = run(task), run(task)
    assert (first.done, len(first.failed)) == (3, 1)
    assert (again.done, len(again.failed), again.skipped) == (0, 1, 3)
    table = rows(task)
    assert sorted(table) == [r"bad\xff/ct", "pt_10/ct", r"pt_\x5cxfc/ct", r"pt_\xfc/ct"]
    assert r"in/bad\xff/ct.nii.gz: not a gzip file" in table[r"bad\xff/ct"]["error"]
    for case, name in ((r"pt_\xfc/ct", LATIN_1), (r"pt_\x5cxfc/ct", r"pt_\xfc")):
        assert as_path(table[case]["input"]) == source / name / "ct.nii.gz"
        assert as_path(table[case]["output"]) == task.outputs.mask / name / "ct.nii.gz"
        assert as_path(table[case]["output"]).is_file()


@pytest.mark.parametrize("looks", ["made_from", "read_geometry", "file_sha256"])
def test_trouble_with_looking_at_what_is_there_ends_no_cohort(
    task: Task, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, looks: str
) -> None:
    run(task)
    whole = getattr(cohort, looks)

    def fails(path: Path, *rest: object) -> object:
        if path.parent.name == "pt_1":
            raise ValueError("Invalid name ''")
        return whole(path, *rest)

    monkeypatch.setattr(f"sdseg_cli.inference.cohort.{looks}", fails)
    report = run(task)
    assert report.done + len(report.failed) + report.skipped == 4
    assert len(rows(task)) == 4


RECORDS = {
    "cut short": b'{"case": "pt_1/ct", "input',
    "no JSON": b"\x00\x01",
    "no UTF-8": b'{"case": "\xff"}',
    "a list": b"[]",
    "nested too deep": b"[" * 100_000,
    "a number too long": b'{"seconds": ' + b"9" * 5000 + b"}",
    "a number beyond all floats": b'{"status": "done", "seconds": ' + b"9" * 400 + b"}",
    "another version's": b'{"case": "pt_1/ct", "colour": "red"}',
    "empty": b"",
}
WRONG_VALUES = {
    "case": 5,
    "input": None,
    "status": "perhaps",
    "seconds": "soon",
    "slices": [1],
    "foreground_voxels": 1.5,
    "sha256": 0,
    "error": {},
    "made_from": [],
    "beside": {"probability": "big"},
    "warnings": [{"code": "odd"}],
    "decoder": 1,
}


@pytest.mark.parametrize("fault", [*RECORDS, *WRONG_VALUES])
def test_a_damaged_record_is_its_scan_done_again(task: Task, stand_in: StandIn, fault: str) -> None:
    run(task)
    ledger = Ledger(task.outputs.mask)
    record = ledger._record(Path("pt_1/ct.nii.gz"))
    if fault in RECORDS:
        record.write_bytes(RECORDS[fault])
    else:
        values = json.loads(record.read_text(encoding="utf-8"))
        record.write_text(json.dumps({**values, fault: WRONG_VALUES[fault]}))
    stand_in.predicted.clear()
    report = run(task)
    assert (report.done, len(report.failed), report.skipped) == (1, 1, 2)
    assert stand_in.predicted == ["pt_1", BAD]
    assert [row["status"] for row in rows(task).values()] == ["done", "done", "failed", "done"]


def test_a_record_that_is_no_file_or_a_strangers_ends_no_cohort(
    task: Task, stand_in: StandIn
) -> None:
    run(task)
    os.mkfifo(task.outputs.mask / ".ledger" / "pipe.json")
    (task.outputs.mask / ".ledger" / "folder.json").mkdir()
    strange = {"case": "9" * 5000, "input": "/in/\x00", "output": "n" * 5000, "status": "failed"}
    (task.outputs.mask / ".ledger" / "stranger.json").write_text(json.dumps(strange))
    assert run(task).skipped == 3
    assert len(rows(task)) == 4, "a failure of a scan that is nowhere is forgotten"


def test_trouble_with_the_model_is_nobodys_row(
    task: Task, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_: object, **__: object) -> None:
        raise WeightsError("best.pt: damaged.", "Train again.")

    monkeypatch.setattr("sdseg_cli.inference.cohort.load_predictor", damaged)
    with pytest.raises(WeightsError):
        run(task)
    assert not (task.outputs.mask / "ledger.csv").exists()


def test_a_signal_lets_the_scan_in_work_end_and_the_ledger_is_written(
    task: Task, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = stand_in.predict

    def interrupted(*arguments, **options) -> PredictReport:
        os.kill(os.getpid(), signal.SIGTERM)
        return whole(*arguments, **options)

    monkeypatch.setattr("sdseg_cli.inference.cohort.predict_file", interrupted)
    report = run(task)
    assert (report.done, report.left) == (1, 3)
    assert list(rows(task)) == ["pt_1/ct"]


def test_an_interrupt_leaves_the_ledger_of_what_was_done(task: Task, stand_in: StandIn) -> None:
    stand_in.trouble = {"pt_2": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        run(task)
    assert list(rows(task)) == ["pt_1/ct"]


def test_two_shards_at_once_do_everything_once_and_share_one_table(
    task: Task, stand_in: StandIn
) -> None:
    threads = [
        threading.Thread(target=run, args=(task,), kwargs={"shard": Shard(index, 2)})
        for index in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(stand_in.predicted) == sorted([*GOOD, BAD])
    assert len(rows(task)) == 4
    (task.outputs.mask / "ledger.csv").unlink()
    half = run(task, shard=Shard(1, 2))
    assert (half.done, half.skipped) == (0, 2), "pt_2 and pt_10"
    assert len(rows(task)) == 4, "the table is that of all"


def test_a_shard_is_every_nth_scan() -> None:
    assert list(Shard.parse("1/3").of(range(8))) == [1, 4, 7]
    parts = [list(Shard(index, 3).of(range(8))) for index in range(3)]
    assert sorted(number for part in parts for number in part) == list(range(8))
    # The second of two array jobs, whose srun started three processes: this is the last.
    assert Shard(1, 2).among(Ranks(2, 3, 2)) == Shard(5, 6)
    for text in ("3/3", "-1/3", "1", "a/b", "1/0", "0/0", "", "1/2/3"):
        with pytest.raises(ConfigError, match="--shard"):
            Shard.parse(text)


def test_a_worker_says_where_a_moved_folder_is_now(task: Task, stand_in: StandIn) -> None:
    run(task)
    moved = task.outputs.mask.rename(task.outputs.mask.with_name("moved"))
    task = replace(task, outputs=OutputPaths(moved))
    scan = find_scans(moved.parent / "in", moved).scans[0]
    outcome = Worker(task, task.identity())(scan)
    assert outcome.skipped
    assert outcome.row.output == str(moved / "pt_1" / "ct.nii.gz")


def test_each_header_that_points_nowhere_or_elsewhere_is_a_row(
    task: Task, stand_in: StandIn
) -> None:
    folder = scans(task)
    fields = ("", " = ", " = /etc/passwd", " = LIST", " = %03d.raw 1 9 1", " = a\0b")
    for number, field in enumerate(fields):
        lines = f"NDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\nElementDataFile{field}\n"
        (folder / f"h{number}.mhd").write_text(lines)
    report = run(task)
    assert (report.done, len(report.failed)) == (3, 1 + len(fields))
    failed = [row["error"] for case, row in rows(task).items() if case.startswith("h")]
    assert len(failed) == len(fields)
    assert all("no field" in error or "are said to lie" in error for error in failed)


def test_actors_share_the_machines_evenly() -> None:
    one, gpus = [{"CPU": 16.0}], [{"CPU": 17.0, "GPU": 4.0}]
    assert actor_shares(one, None, "auto") == (8, {"num_cpus": 2, "num_gpus": 0})
    assert actor_shares([{"CPU": 1.0}], None, "cpu") == (1, {"num_cpus": 1, "num_gpus": 0})
    assert actor_shares(gpus, None, "auto") == (4, {"num_cpus": 4, "num_gpus": 1})
    assert actor_shares(gpus, 2, "cuda") == (2, {"num_cpus": 8, "num_gpus": 1})
    # Five on four GPUs: at 4/5 of a GPU each, the fifth would wait for ever.
    assert actor_shares(gpus, 5, "cuda") == (5, {"num_cpus": 3, "num_gpus": 0.5})
    assert actor_shares(gpus, 8, "cpu") == (8, {"num_cpus": 2, "num_gpus": 0})


def test_an_actor_fits_on_one_machine() -> None:
    two = [{"CPU": 4.0}, {"CPU": 4.0}]
    assert actor_shares(two, 1, "cpu")[1]["num_cpus"] == 4
    assert actor_shares(two, 3, "cpu")[1]["num_cpus"] == 2
    only_one_has_gpus = [{"CPU": 4.0, "GPU": 2.0}, {"CPU": 12.0}]
    assert actor_shares(only_one_has_gpus, None, "auto") == (2, {"num_cpus": 2, "num_gpus": 1})


def test_more_actors_than_there_is_room_for_are_refused() -> None:
    with pytest.raises(ConfigError, match="--workers is 3, and the cluster has 2 CPUs and 0 GPUs"):
        actor_shares([{"CPU": 2.0}], 3, "cpu")


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as refused:
        require_ray()
    assert "sdseg-cli[ray]" in refused.value.hint
