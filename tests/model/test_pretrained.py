from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sdseg_cli.errors import WeightsError
from sdseg_cli.imaging.files import read_labels
from sdseg_cli.imaging.slices import Restore
from sdseg_cli.model.autoencoder import Autoencoder
from sdseg_cli.model.pretrained import (
    load_autoencoder,
    load_strictly,
    load_tiny_autoencoder,
    read_tensors,
    start_vision_encoder,
)
from sdseg_cli.model.sdseg import build_sdseg
from sdseg_cli.presets import PRESETS

TINY = PRESETS["tiny"].model


@pytest.fixture
def layer() -> torch.nn.Linear:
    return torch.nn.Linear(2, 2)


def test_missing_unexpected_and_misshapen_keys_are_named(layer: torch.nn.Linear) -> None:
    before = layer.weight.clone()
    with pytest.raises(WeightsError, match=r"missing bias; unexpected more; weight is \(3, 3\)"):
        load_strictly(layer, {"weight": torch.ones(3, 3), "more": torch.ones(1)}, source="x")
    assert torch.equal(layer.weight, before)


def test_values_that_are_not_finite_are_refused(layer: torch.nn.Linear) -> None:
    bad = {"weight": torch.full((2, 2), float("nan")), "bias": torch.zeros(2)}
    with pytest.raises(WeightsError, match="weight holds NaN"):
        load_strictly(layer, bad, source="x")


def test_half_precision_files_load_as_float32(layer: torch.nn.Linear) -> None:
    load_strictly(layer, {"weight": torch.ones(2, 2).half(), "bias": torch.zeros(2)}, source="x")
    assert layer.weight.dtype == torch.float32
    assert layer.weight.tolist() == [[1, 1], [1, 1]]


class _Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("harm-was-done"),)  # type: ignore[return-value]


def test_code_in_a_pickle_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.ckpt").write_bytes(pickle.dumps({"state_dict": _Harmful()}, protocol=2))
    with pytest.raises(WeightsError):
        read_tensors(tmp_path / "bad.ckpt")
    assert not (tmp_path / "harm-was-done").exists()


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.ckpt"])
def test_a_truncated_file_is_one_clear_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("ckpt"):
        torch.save({"a": torch.zeros(1000)}, path)
    else:
        save_file({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(WeightsError, match="damaged"):
        read_tensors(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nowhere\.safetensors: no such file"):
        read_tensors(tmp_path / "nowhere.safetensors")


def test_a_checkpoint_of_the_public_autoencoder_loads_without_its_discriminator(
    tmp_path: Path,
) -> None:
    trained = Autoencoder(TINY.autoencoder)
    state = {**trained.state_dict(), "loss.discriminator.main.0.weight": torch.zeros(3)}
    torch.save({"state_dict": state}, tmp_path / "model.ckpt")
    fresh = Autoencoder(TINY.autoencoder)
    load_autoencoder(fresh, tmp_path / "model.ckpt")
    assert all(
        torch.equal(a, b) for a, b in zip(fresh.parameters(), trained.parameters(), strict=True)
    )


def _disks(radius: float) -> torch.Tensor:
    """(8,256,256) bool: one disk each, at centres off the latent's grid."""
    axis = torch.arange(256.0)
    centres = [(60.3 + 16.8 * i, 180.1 - 15.4 * i) for i in range(8)]
    return torch.stack(
        [(axis[:, None] - y) ** 2 + (axis[None] - x) ** 2 < radius**2 for y, x in centres]
    )


@pytest.mark.parametrize(("radius_px", "least"), [(16.0, 0.99), (5.0, 0.95)])
def test_the_shipped_autoencoder_returns_disks(radius_px: float, least: float) -> None:
    model = Autoencoder(TINY.autoencoder).eval()
    load_tiny_autoencoder(model)
    disks = _disks(radius_px)
    with torch.inference_mode():
        mask = (disks.float() * 2 - 1)[:, None].expand(-1, 3, -1, -1)
        decoded = model.decode(model.moments(mask)[:, :4])
    found = ((decoded + 1) / 2).clamp(0, 1).mean(dim=1) > 0.5
    dice = 2 * (found & disks).sum() / (found.sum() + disks.sum())
    assert dice.item() >= least


def test_the_vision_encoder_starts_as_the_autoencoders_encoder() -> None:
    model = build_sdseg(TINY)
    start_vision_encoder(model)
    for name, value in model.autoencoder.encoder.state_dict().items():
        assert torch.equal(model.vision_encoder.encoder.state_dict()[name], value)


@pytest.mark.data
def test_the_shipped_autoencoder_returns_real_masks(real_data: Path) -> None:
    """Every 32nd slice with a structure of all 30 scans: total Dice on the scans' own grids."""
    model = Autoencoder(TINY.autoencoder).eval()
    load_tiny_autoencoder(model)
    overlap = size = 0
    for path in sorted((real_data / "openkbp-hn-ct").glob("pt_*/label.nii.gz")):
        labels = read_labels(path)
        restore = Restore.of(labels.geometry)
        planes = [restore.canonical_plane(labels.array, k) > 0 for k in range(restore.slices)]
        for k in [k for k, plane in enumerate(planes) if plane.any()][::32]:
            square = torch.from_numpy(restore.labels_to_model(planes[k].astype(np.uint8), k))
            mask = (square.float() * 2 - 1).expand(1, 3, -1, -1)
            with torch.inference_mode():
                decoded = model.decode(model.moments(mask)[:, :4])
            probability = ((decoded + 1) / 2).clamp(0, 1).mean(dim=1)[0].numpy()
            found = restore.to_native(probability, k) > 0.5
            overlap += 2 * int((found & planes[k]).sum())
            size += int(found.sum() + planes[k].sum())
    assert overlap / size >= 0.95
