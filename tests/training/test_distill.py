from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sdseg_cli.core.errors import ConfigError
from sdseg_cli.core.presets import PRESETS
from sdseg_cli.inference.decoders import DecoderCheck, keep_with_run, read_check
from sdseg_cli.inference.predictor import Predictor
from sdseg_cli.model.diffusion import seeded_generator
from sdseg_cli.model.mask_decoder import build_mask_decoder
from sdseg_cli.model.tensor_files import read_metadata, read_tensors
from sdseg_cli.model.weights import WeightStore
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training import distillation
from sdseg_cli.training.batches import open_split
from sdseg_cli.training.distill import distill, prepared_masks
from tests.conftest import Workspace, rated


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(distillation, "POOL", 4)
    monkeypatch.setattr(distillation, "SIDE", 64)
    monkeypatch.setattr(distillation, "RADIUS_PX", (3.0, 20.0))
    monkeypatch.setattr("sdseg_cli.training.distill.HELD_OUT", 2)
    monkeypatch.setattr("sdseg_cli.training.distill.SAVE_EVERY", 2)
    yield


def test_what_is_distilled_lies_in_the_store_by_its_autoencoder(tmp_path: Path) -> None:
    store = WeightStore(tmp_path)
    report = distill(steps=2, device="cpu", store=store)
    assert report.decoder.parent == tmp_path / "mask-decoders"
    assert report.autoencoder.startswith(report.decoder.stem)
    assert read_metadata(report.decoder) == {"autoencoder": report.autoencoder}
    assert [path.name for path in report.decoder.parent.iterdir()] == [report.decoder.name]
    values = report.to_json()
    assert 0 < values["gflop"] <= 0.03 * values["exact_gflop"]
    assert values["parameters"] == 108_664
    assert values["check"] is None


class Enough(Exception):  # noqa: N818, it is no error
    """Stands for a kill."""


def test_killed_it_goes_on_from_its_last_state(tmp_path: Path) -> None:
    seen: list[int] = []

    def kill(step: int, steps: int, _: str) -> None:
        seen.append(step)
        if step == 3 and len(seen) == 3:
            raise Enough

    file = tmp_path / "decoder.safetensors"
    with pytest.raises(Enough):
        distill(steps=5, device="cpu", output=file, store=WeightStore(tmp_path), progress=kill)
    assert not file.exists()
    distill(steps=5, device="cpu", output=file, store=WeightStore(tmp_path), progress=kill)
    assert seen == [1, 2, 3, 3, 4, 5]
    assert [path.name for path in tmp_path.iterdir()] == ["decoder.safetensors"]


def test_a_state_of_another_call_is_not_gone_on_from(tmp_path: Path) -> None:
    file = tmp_path / "decoder.safetensors"

    def stop_after_two(step: int, steps: int, _: str) -> None:
        if step == 3:
            raise Enough

    with pytest.raises(Enough):
        distill(steps=5, device="cpu", output=file, progress=stop_after_two)
    seen: list[int] = []
    distill(steps=2, device="cpu", output=file, progress=lambda step, *_: seen.append(step))
    assert seen == [1, 2]


def test_prepared_masks_are_those_of_training_cases_flipped(
    tiny_set: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distillation, "REAL_SHARE", 1.0)
    monkeypatch.setattr(distillation, "SIDE", 256)
    slices = open_split(tiny_set.manifest, "train")
    known = slices.batch(slices.with_foreground).foreground
    drawn = prepared_masks(tiny_set.manifest)(6, seeded_generator("test", 0))[:, 0] > 0
    ways = [plane.flip(axes) for plane in drawn for axes in ((), (0,), (1,), (0, 1))]
    found = [any(torch.equal(way, plane) for plane in known) for way in ways]
    assert all(any(found[4 * k : 4 * k + 4]) for k in range(6))
    assert not all(found)


@pytest.mark.slow
def test_a_run_is_measured_with_what_was_distilled_and_predicts_with_it_on_request(
    tiny_run: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(Path(shutil.copytree(tiny_run.run.path, tmp_path / "run")))
    rated(run, 0.1)
    measured: list[torch.nn.Module] = []

    def keep(decoder: torch.nn.Module, *_: object, **__: object) -> torch.nn.Module:
        measured.append(decoder)
        return decoder

    monkeypatch.setattr("sdseg_cli.training.calibration.adapted", keep)
    report = distill(
        run=run,
        manifest=tiny_run.manifest,
        steps=1,
        device="cpu",
        output=tmp_path / "own.safetensors",
    )
    assert report.check is not None
    assert read_check(run.path) == report.check
    own = read_tensors(tmp_path / "own.safetensors")
    assert torch.equal(measured[0].leave.weight, own["leave.weight"])
    assert Predictor(run.path, device="cpu", decoder="fast").decoder == "fast"
    assert Predictor(run.path, device="cpu", decoder="exact").decoder == "exact"


def test_no_steps_are_refused() -> None:
    with pytest.raises(ConfigError, match="--steps is 0"):
        distill(steps=0)


def test_a_run_that_was_trained_through_its_decoder_keeps_it(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.checkpoints.mkdir()
    decoder = build_mask_decoder(PRESETS["tiny"].model.autoencoder)
    keep_with_run(run, decoder, DecoderCheck(0, 0, 0.0, 0.0, trained_through=True))
    with pytest.raises(ConfigError, match="trained through its own fast decoder"):
        distill(run=run, steps=1, device="cpu")
