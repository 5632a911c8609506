from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import sdseg_cli.training.run_files as run_files_module
from sdseg_cli.core.errors import RunError
from sdseg_cli.data.spec import ClassRule
from sdseg_cli.model.distributed import Ranks
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training.batches import PreparedSlices
from sdseg_cli.training.run_files import RunFiles, shown_slices
from sdseg_cli.training.step import StepResult, Validation
from tests.training.small import small_config, small_slices, small_trainer


def test_of_several_processes_only_the_first_writes(tmp_path: Path) -> None:
    loop, run = small_trainer(small_config()), RunDir(tmp_path / "run")
    loop.ranks = Ranks(1, 2)
    assert RunFiles.begin(run, loop, None) == ()
    values, terms = torch.tensor([3.0, 1, 2, 0.5]), ("loss_noise", "loss_latent")
    result = StepResult(step=1, positions=[0], rate=1e-3, values=values, terms=terms)
    loop.step = 1
    with RunFiles(run, loop, {}, tensorboard=False) as files:
        assert files.log(result, small_slices(tmp_path))  # one of two was asked to stop
        assert files.row["loss"] == 3
        files.log_validation(Validation(0.5, np.zeros((0, 8, 8), np.float32)))
        files.save("stopped")
    assert loop.best == {"step": 1, "val_dice": 0.5}  # for all must stop early together
    assert not run.path.exists()


def begun(folder: Path) -> RunFiles:
    """A run right before its first step."""
    run, loop = RunDir(folder / "run"), small_trainer(small_config())
    RunFiles.begin(run, loop, None)
    return RunFiles(run, loop, {}, tensorboard=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "state"),
    [
        (RunError("the disk is full.", "Free some space."), "failed"),
        (ValueError("a bug"), "failed"),
        (KeyboardInterrupt(), "running"),  # as a kill: `sdseg runs` calls it interrupted
    ],
)
def test_an_error_leaves_the_state_failed_and_what_was_saved(
    tmp_path: Path, error: BaseException, state: str
) -> None:
    files = begun(tmp_path)
    with pytest.raises(type(error)), files:
        files.run.status_file.write_text('{"state": "running", "step": 3, "best": {"step": 2}}')
        files.saved = 3
        raise error
    assert files.run.status() == {"state": state, "step": 3, "best": {"step": 2}}


def test_a_state_that_cannot_be_written_masks_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RunError("status.json: cannot be written.", "Free some space.")

    files = begun(tmp_path)
    monkeypatch.setattr(run_files_module, "_write_status", full)
    with pytest.raises(RunError, match="the loss is nan"), files:
        raise RunError("the loss is nan.", "Lower it.")


def slices(folder: Path, *areas: list[int]) -> PreparedSlices:
    """Cases whose slices have so many foreground pixels."""
    folders, filled = [], []
    for number, case in enumerate(areas):
        place = folder / str(number)
        place.mkdir()
        labels = np.zeros((len(case), 8, 8), np.uint8)
        for k, area in enumerate(case):
            labels[k].flat[:area] = 1
        np.save(place / "labels.npy", labels)
        np.save(place / "pixels.npy", np.zeros(labels.shape, np.float16))
        folders.append(place)
        filled.append([[k for k, area in enumerate(case) if area]])
    return PreparedSlices(folders, ClassRule(), filled)


def test_each_case_shows_its_fullest_slice(tmp_path: Path) -> None:
    made = slices(tmp_path, [0, 3, 9], [1, 2, 0], [7, 7, 7], [0, 0, 0])
    assert shown_slices(made, range(12), limit=3) == [2, 4, 6]  # of equals, the first


def test_of_many_cases_those_with_most_foreground_are_shown(tmp_path: Path) -> None:
    made = slices(tmp_path, [1], [5], [2], [9], [4], [8])
    assert shown_slices(made, range(6)) == [1, 3, 4, 5]


def test_few_cases_give_several_slices_that_are_no_neighbours(tmp_path: Path) -> None:
    made = slices(tmp_path, [1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 6])  # more than two apart
    assert shown_slices(made, range(12), limit=4) == [2, 5, 8, 11]


def test_only_validated_slices_are_chosen(tmp_path: Path) -> None:
    made = slices(tmp_path, [9, 1], [9, 1])
    assert shown_slices(made, [1, 3]) == [1, 3]
    assert shown_slices(made, []) == []


def test_without_foreground_nothing_is_shown(tmp_path: Path) -> None:
    assert shown_slices(slices(tmp_path, [0, 0]), range(2)) == []
