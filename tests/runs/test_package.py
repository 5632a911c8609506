from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import sdseg_cli.runs.package as package_module
from sdseg_cli.core.errors import ConfigError, RunError, WeightsError
from sdseg_cli.imaging.io.files import read_image
from sdseg_cli.inference.options import OutputPaths
from sdseg_cli.inference.predict import predict_file
from sdseg_cli.inference.predictor import Predictor
from sdseg_cli.runs.checkpoint import Checkpoint, to_float16
from sdseg_cli.runs.package import read_package, read_trained, threshold_of, write_package
from sdseg_cli.runs.run_folder import RunDir
from tests.conftest import Workspace


@pytest.fixture(scope="module")
def shared_package(shared_run: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package(
        Checkpoint.load(shared_run.run.best), tmp_path_factory.mktemp("made") / "model.sdseg"
    ).folder


@pytest.fixture
def package(shared_package: Path, tmp_path: Path) -> Path:
    """Of the shared run, for one test alone."""
    return Path(shutil.copytree(shared_package, tmp_path / "model.sdseg"))


def describe(package: Path, **changes: object) -> None:
    """Change values of a package's description."""
    values = json.loads((package / "sdseg.json").read_text())
    (package / "sdseg.json").write_text(json.dumps({**values, **changes}))


def test_a_package_holds_half_precision_weights_settings_hash_and_terms(
    package: Path, shared_run: Workspace
) -> None:
    files = sorted(path.name for path in package.iterdir())
    assert files == ["LICENSE.md", "model.safetensors", "sdseg.json"]
    best, read = Checkpoint.load(shared_run.run.best), read_package(package)
    assert (read.step, read.latent_scale, read.data) == (best.step, best.latent_scale, best.data)
    assert read.config == best.config
    assert {value.dtype for value in read.weights.values()} == {torch.float16}
    assert set(read.weights) == set(best.weights)
    terms = (package / "LICENSE.md").read_text()
    assert 'data set "tiny"' in terms and "medical device" in terms
    assert "autoencoder: shipped with sdseg" in terms


@pytest.mark.slow
def test_run_and_package_predict_the_same_bytes(
    package: Path, shared_run: Workspace, tmp_path: Path
) -> None:
    masks, maps = [], []
    for number, trained in enumerate((shared_run.run.path, package)):
        predictor = Predictor(trained, device="cpu", decoder="exact")
        mask = tmp_path / f"{number}.nii.gz"
        predict_file(shared_run.scan, OutputPaths(mask), predictor)
        masks.append(mask.read_bytes())
        maps.append(predictor.predict(read_image(shared_run.scan)).probability)
    assert masks[0] == masks[1]
    assert np.array_equal(maps[0], maps[1])


@pytest.mark.slow
def test_run_and_package_have_the_threshold_that_a_validation_chose(
    shared_run: Workspace, tmp_path: Path
) -> None:
    best = Checkpoint.load(shared_run.run.best)
    chosen = replace(best, best={**best.best, "threshold": 0.25})
    write_package(chosen, tmp_path / "model.sdseg")
    scan = read_image(shared_run.scan)
    plain = Predictor(shared_run.run.path, device="cpu", decoder="exact").predict(scan)
    moved = Predictor(tmp_path / "model.sdseg", device="cpu", decoder="exact").predict(scan)
    run = RunDir(tmp_path / "run")
    shutil.copytree(shared_run.run.path, run.path)
    chosen.save(run.best)
    again = Predictor(run.path, device="cpu", decoder="exact").predict(scan)
    assert np.array_equal(moved.probability > 0.5, plain.probability > 0.25)
    assert (plain.probability > 0.5).sum() < (plain.probability > 0.25).sum()
    assert np.array_equal(again.probability, moved.probability)


@pytest.mark.parametrize("value", [0, 1, -0.5, float("nan"), "0.5", None])
def test_a_threshold_that_is_no_share_is_refused(value: object, shared_run: Workspace) -> None:
    best = Checkpoint.load(shared_run.run.best)
    with pytest.raises(WeightsError, match="model: its threshold is"):
        threshold_of(replace(best, best={"threshold": value}), source="model")


def test_a_package_of_a_package_is_the_same(package: Path, tmp_path: Path) -> None:
    again = write_package(read_package(package), tmp_path / "again")
    assert again.sha256 == json.loads((package / "sdseg.json").read_text())["sha256"]


def test_a_package_replaces_a_package_and_nothing_else(package: Path, tmp_path: Path) -> None:
    write_package(read_package(package), package)
    (tmp_path / "notes").mkdir()
    with pytest.raises(ConfigError, match="notes: exists and is no package"):
        write_package(read_package(package), tmp_path / "notes")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.sdseg", "notes"]


def test_what_a_killed_export_left_in_a_container_stops_no_other(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getpid", lambda: 1)  # as in every container
    for left in (".1.part.model.sdseg", ".1.old.model.sdseg"):
        (package.parent / left).mkdir()
        (package.parent / left / "model.safetensors").write_text("half")
    write_package(read_package(package), package)
    assert read_package(package).step == 4


def test_a_folder_of_other_things_beside_a_package_is_kept(package: Path) -> None:
    (package / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="exists and is no package"):
        write_package(read_package(package), package)
    assert (package / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("failing", ["write_tensors", "_write_text"])
def test_a_full_disk_leaves_the_old_package_and_nothing_else(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    before, checkpoint = (package / "sdseg.json").read_text(), read_package(package)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(package_module, failing, full)
    with pytest.raises(RunError, match="No space left"):
        write_package(checkpoint, package)
    assert [p.name for p in tmp_path.iterdir()] == ["model.sdseg"]
    assert (package / "sdseg.json").read_text() == before


@pytest.mark.parametrize("scale", [float("nan"), 0, -1, float("inf"), "1"])
def test_a_latent_scale_that_is_none_is_refused(package: Path, scale: object) -> None:
    describe(package, latent_scale=scale)
    with pytest.raises(WeightsError):
        read_package(package)


def test_a_package_that_does_not_say_how_slices_are_made_is_refused(package: Path) -> None:
    describe(package, data={"crop": "none"})
    with pytest.raises(WeightsError, match="does not say how its slices are made"):
        Predictor(package, device="cpu")


def test_changed_weights_are_refused(package: Path) -> None:
    model = package / "model.safetensors"
    changed = bytearray(model.read_bytes())
    changed[-1] ^= 1
    model.write_bytes(changed)
    with pytest.raises(WeightsError, match="sha256 differs"):
        read_package(package)


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_a_damaged_description_is_one_clear_error(package: Path, content: str) -> None:
    (package / "sdseg.json").write_text(content)
    with pytest.raises(WeightsError, match="no package of sdseg, or damaged"):
        read_package(package)


def test_a_package_of_a_later_format_names_the_version_that_wrote_it(package: Path) -> None:
    describe(package, format_version=3, sdseg_version="9.1")
    with pytest.raises(WeightsError, match="package format 3") as caught:
        read_package(package)
    assert "9.1" in caught.value.hint


def test_a_package_without_its_weights_names_the_file(package: Path) -> None:
    (package / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"model\.safetensors: no such file"):
        read_package(package)


def test_runs_and_packages_are_read_alike(package: Path, shared_run: Workspace) -> None:
    ours, theirs = read_trained(package), read_trained(shared_run.run.path)
    assert ours.latent_scale == theirs.latent_scale
    with pytest.raises(WeightsError, match=r"best\.pt: no such checkpoint"):
        read_trained(package.parent)


def test_a_tensor_beyond_half_precision_stays_as_it_is() -> None:
    smaller = to_float16({"small": torch.tensor([1.5]), "large": torch.tensor([1e6])})
    assert (smaller["small"].dtype, smaller["small"].item()) == (torch.float16, 1.5)
    assert (smaller["large"].dtype, smaller["large"].item()) == (torch.float32, 1e6)
