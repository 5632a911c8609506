from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sdseg_cli.config import RunConfig
from sdseg_cli.errors import RunError, WeightsError
from sdseg_cli.training.checkpoint import Checkpoint, config_values


def _checkpoint(step: int = 3) -> Checkpoint:
    return Checkpoint(
        step=step,
        config=config_values(RunConfig()),
        data={"crop": "none"},
        latent_scale=0.5,
        weights={"w": torch.arange(3.0)},
        ema={"w": torch.ones(2)},
        optimizer={"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]},
    )


def test_a_checkpoint_survives_the_disk(tmp_path: Path) -> None:
    _checkpoint().save(tmp_path / "c" / "last.pt")
    loaded = Checkpoint.load(tmp_path / "c" / "last.pt")
    assert (loaded.step, loaded.latent_scale, loaded.data) == (3, 0.5, {"crop": "none"})
    assert loaded.weights["w"].tolist() == [0, 1, 2]
    assert loaded.optimizer["param_groups"] == [{"lr": 1e-3}]
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["last.pt"]


def test_a_failed_save_keeps_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.pt"
    _checkpoint(1).save(path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match="No space left"):
        _checkpoint(2).save(path)
    assert Checkpoint.load(path).step == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_a_damaged_checkpoint_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    _checkpoint().save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(WeightsError, match="damaged"):
        Checkpoint.load(path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoint = _checkpoint()
    values = {n: getattr(checkpoint, n) for n in checkpoint.__dataclass_fields__}
    torch.save({**values, "format_version": 99}, path)
    with pytest.raises(WeightsError, match="format 99"):
        Checkpoint.load(path)
