"""CVC-ClinicDB in its archive's layout, and by video sequence."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from sdseg_cli.core.errors import DataError
from sdseg_cli.data.layouts.cvc import CVC, find_cases, recognises
from sdseg_cli.data.spec import Case
from sdseg_cli.data.split import split_of
from tests.raw_pictures import touch


def make_video(root: Path, rows: list[str]) -> None:
    """images/, masks/ and a split.csv of "frame,sequence,split" rows."""
    for row in rows:
        frame = row.split(",")[0]
        touch(root, f"images/{frame}.jpg", f"masks/{frame}.png")
    (root / "split.csv").write_text("\n".join(["frame,sequence,split", *rows]) + "\n")


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("place", ["", "PNG", "CVC-ClinicDB", "CVC-ClinicDB/TIF"])
def test_the_archive_is_found_from_any_of_its_folders(tmp_path: Path, place: str, suffix: str):
    for number in (10, 2, 1):
        touch(tmp_path / place, f"Original/{number}.{suffix}", f"Ground Truth/{number}.{suffix}")
    assert recognises(tmp_path)
    cases = find_cases(tmp_path)
    assert [case.id for case in cases] == ["1", "2", "10"]
    assert cases[2].label == tmp_path / place / f"Ground Truth/10.{suffix}"


def test_the_archive_is_split_as_in_the_paper() -> None:
    frames = [str(number) for number in range(1, 613)]
    split = split_of([Case(id, Path(id), None) for id in reversed(frames)], CVC, seed=0)
    assert [len(split.ids(name)) for name in ("train", "val", "test")] == [488, 62, 62]
    # Of the sorted numeric list and seed 0, whatever order the frames come in.
    random.Random(0).shuffle(frames)
    assert set(split.ids("test")) == set(frames[:62])
    assert set(split.ids("val")) == set(frames[62:124])


def test_held_out_sequences_test_and_no_sequence_is_torn(tmp_path: Path) -> None:
    rows = [f"{n},{n // 5},{'held-out' if n >= 40 else 'dev'}" for n in range(50)]
    make_video(tmp_path, rows)
    cases = find_cases(tmp_path)
    split = split_of(cases, CVC, seed=0)
    assert split.ids("test") == [str(n) for n in range(40, 50)]
    # A tenth of 40 is 4: one sequence of 5 is nearest.
    assert len({case.group for case in cases if split.of[case.id] == "val"}) == 1
    assert len(split.ids("val")) == 5
    assert split.rule.endswith("groups whole")


def test_without_held_out_frames_whole_sequences_are_drawn(tmp_path: Path) -> None:
    make_video(tmp_path, [f"{n},{n // 5},dev" for n in range(50)])
    cases = find_cases(tmp_path)
    split = split_of(cases, CVC, seed=0)
    in_splits: dict[str, set[str]] = {}
    for case in cases:
        in_splits.setdefault(str(case.group), set()).add(split.of[case.id])
    assert all(len(found) == 1 for found in in_splits.values())
    assert [len(split.ids(name)) for name in ("train", "val", "test")] == [40, 5, 5]


def test_a_frame_that_the_csv_lacks_is_refused(tmp_path: Path) -> None:
    make_video(tmp_path, ["1,1,dev"])
    touch(tmp_path, "images/2.jpg", "masks/2.png")
    with pytest.raises(DataError, match=r"split\.csv: no sequence for frame 2"):
        find_cases(tmp_path)


def test_another_csv_is_not_this_data_set(tmp_path: Path) -> None:
    make_video(tmp_path, ["1,1,dev"])
    (tmp_path / "split.csv").write_text("id,fold\n1,0\n")
    assert not recognises(tmp_path)
    assert find_cases(tmp_path) == []
