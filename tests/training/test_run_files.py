from __future__ import annotations

from pathlib import Path

import torch

from sdseg_cli.training.distributed import Ranks
from sdseg_cli.training.run_files import RunFiles
from sdseg_cli.training.run_folder import RunDir
from sdseg_cli.training.trainer import StepResult
from tests.training.small import small_config, small_slices, small_trainer


def test_of_several_processes_only_the_first_writes(tmp_path: Path) -> None:
    loop, run = small_trainer(small_config()), RunDir(tmp_path / "run")
    loop.ranks = Ranks(1, 2)
    assert RunFiles.begin(run, loop, None) == ()
    result = StepResult(step=1, positions=[0], rate=1e-3, values=torch.tensor([3.0, 1, 2, 0.5]))
    loop.step = 1
    with RunFiles(run, loop, {}, tensorboard=False) as files:
        assert files.log(result, small_slices(tmp_path))  # one of two was asked to stop
        assert files.row["loss"] == 3
        files.log_validation(0.5)
        files.save("stopped")
    assert loop.best == {"step": 1, "val_dice": 0.5}  # for all must stop early together
    assert not run.path.exists()
