from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sdseg_cli.core.files import LEFT_AFTER_S
from sdseg_cli.inference.ledger import COLUMNS, DONE, FAILED, Ledger, Row


def row(case: str, status: str = DONE, **values) -> Row:
    return Row(case, f"/in/{case}.nii", f"/out/{case}.nii", status, **values)


def table(ledger: Ledger) -> list[dict[str, str]]:
    with ledger.table.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_a_row_comes_back_as_it_was_written(tmp_path: Path) -> None:
    ledger, mask = Ledger(tmp_path), Path("a/b.nii")
    written = row(
        "a/b",
        slices=3,
        foreground_voxels=0,
        sha256="f" * 64,
        made_from={"task": "t", "bytes": 7, "scan_modified_ns": 2000 * time.time_ns()},
    )
    assert ledger.find(mask) is None
    ledger.write(mask, written)
    assert ledger.find(mask) == written
    assert ledger.find(Path("a/c.nii")) is None


def test_the_table_has_the_contracts_columns_in_natural_order(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.write(Path("10.nii"), row("10", FAILED, error='cut short, "really"'))
    ledger.write(Path("9.nii"), row("9", seconds=1.5, slices=4, foreground_voxels=0, sha256="ab"))
    ledger.publish()
    assert ledger.table.read_text().splitlines()[0] == ",".join(COLUMNS)
    assert [list(one.values()) for one in table(ledger)] == [
        ["9", "/in/9.nii", "/out/9.nii", "done", "1.5", "4", "0", "ab", ""],
        ["10", "/in/10.nii", "/out/10.nii", "failed", "0.0", "", "", "", 'cut short, "really"'],
    ]


def test_the_rows_of_another_process_are_in_the_table(tmp_path: Path) -> None:
    one, other = Ledger(tmp_path), Ledger(tmp_path)
    one.write(Path("a.nii"), row("a"))
    one.publish()
    other.write(Path("b.nii"), row("b"))
    other.write(Path("a.nii"), row("a", FAILED))
    one.publish()
    assert [(r["case"], r["status"]) for r in table(one)] == [("a", "failed"), ("b", "done")]


def test_half_a_row_is_no_row(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.write(Path("a.nii"), row("a"))
    (record,) = (tmp_path / ".ledger").glob("*.json")
    record.with_name(f".77.part.{record.name}").write_bytes(record.read_bytes())
    assert [one.case for one in ledger.rows()] == ["a"]
    record.write_bytes(record.read_bytes()[:30])
    assert ledger.rows() == [] and ledger.find(Path("a.nii")) is None


def test_the_table_takes_its_share_of_the_time_and_no_more(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.write(Path("a.nii"), row("a"))
    ledger.publish(at_once=False)
    assert len(table(ledger)) == 1, "the first is written at once"
    ledger._cost_s = 1e6
    ledger.write(Path("b.nii"), row("b"))
    ledger.publish(at_once=False)
    assert len(table(ledger)) == 1
    ledger.publish()
    assert len(table(ledger)) == 2


def half_written(path: Path, *, seconds_ago: float = LEFT_AFTER_S + 60) -> Path:
    path.write_text("half")
    os.utime(path, (time.time() - seconds_ago,) * 2)
    return path


def test_leftovers_of_the_cohort_go_and_nothing_else(tmp_path: Path) -> None:
    mask = tmp_path / "a" / "ct.nii.gz"
    mask.parent.mkdir()
    mine = [mask.with_name(".12.part.ct.nii.gz"), tmp_path / ".12.part.ledger.csv"]
    others = [mask.with_name(".12.part.mr.nii.gz"), mask.with_name(".ct.nii.gz")]
    for path in (*mine, *others):
        half_written(path)
    ledger = Ledger(tmp_path)
    with ledger.in_use([mask]):
        assert [path.exists() for path in (*mine, *others)] == [False, False, True, True]
        half_written(mine[0])
        with Ledger(tmp_path).in_use([mask]):
            assert mine[0].exists(), "it is not alone"
        assert mine[0].exists()
    assert not mine[0].exists()


def test_what_was_half_written_within_the_hour_may_be_in_work_on_another_machine(
    tmp_path: Path,
) -> None:
    recent = half_written(tmp_path / ".12.part.a.nii", seconds_ago=LEFT_AFTER_S - 60)
    old = half_written(tmp_path / ".13.part.a.nii")
    with Ledger(tmp_path).in_use([tmp_path / "a.nii"]):
        assert recent.exists() and not old.exists()


def test_what_a_kill_leaves_of_a_file_written_for_another_is_removed(tmp_path: Path) -> None:
    mask = tmp_path / "ct.nii.gz"
    killed = """
import os, pathlib, sys
from sdseg_cli.core.files import replacing
with replacing(pathlib.Path(sys.argv[1])) as outer, replacing(outer) as inner:
    inner.write_text("half")
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", killed, mask], check=False).returncode == 9
    (left,) = tmp_path.iterdir()
    half_written(left)
    with Ledger(tmp_path).in_use([mask]):
        assert not left.exists()


def test_a_row_that_another_process_forgets_meanwhile_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path)
    ledger.write(Path("a.nii"), row("a"))
    ledger.write(Path("b.nii"), row("b"))
    listed = list((tmp_path / ".ledger").glob("*.json"))
    listed[0].unlink()
    monkeypatch.setattr(Path, "glob", lambda *_: iter(listed))
    assert len(ledger.rows()) == 1


def test_a_failure_is_forgotten_when_its_scan_is_gone(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    here = tmp_path / "here.nii"
    here.write_text("x")
    ledger.write(Path("gone.nii"), row("gone", FAILED))
    ledger.write(Path("asked.nii"), row("asked", FAILED))
    ledger.write(Path("done.nii"), row("done"))
    ledger.write(Path("here.nii"), Row("here", str(here), "/out/here.nii", FAILED))
    ledger.forget_lost([Path("asked.nii")])
    assert [one.case for one in ledger.rows()] == ["asked", "done", "here"]
