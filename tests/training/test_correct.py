from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from sdseg_cli.core.errors import DataError
from sdseg_cli.core.files import file_sha256
from sdseg_cli.core.presets import for_classes, preset
from sdseg_cli.inference.ledger import DONE, FAILED, Ledger, Row
from sdseg_cli.training.correct import continued, corrected_cases
from tests.raw_cases import write_cases


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """A folder as `predict` leaves it: two masks, one of them in a folder, and a failure."""
    folder = tmp_path / "masks"
    for name in ("a.nii.gz", "of/b.nii.gz"):
        mask = folder / name
        mask.parent.mkdir(parents=True, exist_ok=True)
        mask.write_text(name)
        row = Row(name, f"/scans/{name}", str(mask), DONE, sha256=file_sha256(mask))
        Ledger(folder).write(Path(name), row)
    failed = Row("c.nii.gz", "/scans/c.nii.gz", str(folder / "c.nii.gz"), FAILED)
    Ledger(folder).write(Path("c.nii.gz"), failed)
    return folder


def test_of_a_folder_of_predictions_the_changed_masks_are_taken(masks: Path) -> None:
    with pytest.raises(DataError, match="none of its 2 masks has changed") as caught:
        corrected_cases(masks)
    assert "under the names they have" in caught.value.hint
    (masks / "of" / "b.nii.gz").write_text("corrected")
    (case,) = corrected_cases(masks)
    assert case.id == "of_b.nii.gz"
    assert (case.image, case.label) == (Path("/scans/of/b.nii.gz"), masks / "of" / "b.nii.gz")


def test_a_copy_of_that_folder_serves_as_well(masks: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(masks, copy)
    (copy / "of" / "b.nii.gz").write_text("corrected")
    (copy / "a.nii.gz").unlink()  # not looked at, so not corrected
    assert [case.label for case in corrected_cases(copy)] == [copy / "of" / "b.nii.gz"]


def test_a_folder_of_scans_and_masks_is_read_as_a_data_set(tmp_path: Path) -> None:
    assert len(corrected_cases(write_cases(tmp_path))) == 5


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("nowhere", "empty"):
        with pytest.raises(DataError, match=name) as caught:
            corrected_cases(tmp_path / name)
        assert "that `sdseg predict` filled, or its copy" in caught.value.hint


def test_a_run_goes_on_for_a_fifth_at_half_the_rate() -> None:
    config = for_classes(preset("tiny"), 3, overlapping=False)
    config = replace(config, train=replace(config.train, steps=1000, augment="light"))
    later = continued(config, Path("/runs/set/a"), "set-added-1", None)
    assert (later.dataset, later.train.init) == ("set-added-1", "/runs/set/a")
    assert (later.train.steps, later.train.warmup_steps) == (200, 20)
    assert (later.train.validate_every, later.train.checkpoint_every) == (50, 50)
    assert later.train.learning_rate == config.train.learning_rate / 2
    assert later.train.class_balance == 0
    assert (later.model, later.train.augment) == (config.model, "light")
    assert continued(config, Path("a"), "b", 30).train.steps == 30
    short = replace(config, train=replace(config.train, steps=100))
    assert continued(short, Path("a"), "b", None).train.steps == 50
