"""Runs of several classes: killed and resumed, in parts, from other runs, and as packages."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from sdseg_cli.core.config import BASELINES, Network, RunConfig
from sdseg_cli.core.config_file import from_dict
from sdseg_cli.core.errors import ConfigError
from sdseg_cli.core.presets import PRESETS, for_classes, for_network
from sdseg_cli.core.progress import TrainProgress
from sdseg_cli.data.manifest import Manifest
from sdseg_cli.data.prepare import PrepareOptions, prepare
from sdseg_cli.imaging.io.files import read_image
from sdseg_cli.inference.predictor import Predictor
from sdseg_cli.model.baselines import build_baseline
from sdseg_cli.model.weights import WeightStore
from sdseg_cli.runs.checkpoint import Checkpoint
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training.batches import StepInputs, open_split
from sdseg_cli.training.calibration import measure_run
from sdseg_cli.training.fit_batch import fitting_batch_size
from sdseg_cli.training.initialise import initial_model
from sdseg_cli.training.objective import Objective
from sdseg_cli.training.train import train
from sdseg_cli.training.weights import export_run
from tests.conftest import PLANE, tiny_settings
from tests.raw_cases import IDS
from tests.training.test_fit_batch import gpu_in_name

SMALL = Network(
    "monai.networks.nets:BasicUNet",
    tiny={"features": (4, 4, 8, 8, 8, 4)},
    sd={},
    answers=("final_conv",),
)
IGNORED = 9
STEPS = 4


def write_case(folder: Path, seed: int) -> None:
    """A body of 40 HU with two boxes, labels 1 and 2, and a rim of label 9 about the first."""
    rng = np.random.default_rng(seed)
    hu = np.full((40, 36, 5), -1000, np.int16)
    labels = np.zeros(hu.shape, np.uint8)
    hu[4:36, 4:32] = 40
    row, column = rng.integers(6, 12, size=2)
    labels[row - 1 : row + 9, column - 1 : column + 9, 1:4] = IGNORED
    for label, down, top in ((1, 0, 4), (2, 12, 5)):
        box = (slice(row + down, row + down + 8), slice(column, column + 8), slice(1, top))
        labels[box], hu[box] = label, 100 + 50 * label
    hu += rng.integers(-15, 15, size=hu.shape).astype(np.int16)
    folder.mkdir(parents=True)
    affine = np.diag([-3.0, -3.0, 5.0, 1.0])
    nib.save(nib.Nifti1Image(hu, affine), folder / "image.nii.gz")
    nib.save(nib.Nifti1Image(labels, affine), folder / "label.nii.gz")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several") / "raw"
    for seed, name in enumerate(IDS):
        write_case(folder / name, seed)
    return folder


def prepared(raw: Path, classes: str) -> Manifest:
    """With the label to ignore, and a training case in which the second class was not drawn."""
    workspace = raw.parent / classes.replace("=", "").replace("+", "")
    if not workspace.exists():
        workspace.mkdir()
        name = classes.split(",")[0].split("=")[0]
        lists = {"train": IDS[:3], "val": IDS[3:4], "test": IDS[4:], "labelled": {IDS[0]: [name]}}
        if classes == "any":
            del lists["labelled"]
        split = workspace / "split.json"
        split.write_text(json.dumps(lists))
        options = PrepareOptions(
            name="tiny",
            workers=1,
            size=PLANE,
            classes=classes,
            ignore=IGNORED if classes != "any" else None,
            split_file=split,
        )
        prepare(raw, workspace, options)
    return Manifest.load(workspace / "prepared" / "tiny")


def settings(manifest: Manifest, network: str = "sdseg", **recipe: object) -> RunConfig:
    """As `tiny_settings`, for the classes of a set."""
    config = tiny_settings(steps=STEPS)
    if network != "sdseg":
        own = for_network(PRESETS["tiny"], network)
        shared = ("batch_size", "validate_every", "checkpoint_every", "validation_slices", "steps")
        few = {key: getattr(config.train, key) for key in shared}
        config = from_dict({"dataset": "tiny", "train": few}, own, source="test")
    rule = manifest.classes
    config = for_classes(config, len(rule), overlapping=rule.overlapping)
    return from_dict({"train": recipe}, config, source="test")


@pytest.fixture
def small_network(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(BASELINES, "small", SMALL)
    return "small"


def assert_same_run(run: RunDir, other: RunDir) -> None:
    """To the last bit."""
    assert run.log_file.read_bytes() == other.log_file.read_bytes()
    ours, theirs = Checkpoint.load(run.last), Checkpoint.load(other.last)
    for one, same in ((ours.weights, theirs.weights), (ours.ema, theirs.ema)):
        assert one.keys() == same.keys()
        assert all(torch.equal(value, same[key]) for key, value in one.items())


def killed_in_step(step: int, config: RunConfig, manifest: Manifest, run: RunDir) -> None:
    """A training in a process of its own, ended by SIGKILL after a step."""

    def kill(now: TrainProgress) -> None:
        if now.step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(
        target=train,
        args=(config, manifest, run),
        kwargs={"device": "cpu", "on_step": kill},
    )
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize(
    ("classes", "network", "recipe"),
    [
        ("a=1,b=2", "sdseg", {}),
        ("whole=1+2,part=2", "sdseg", {"accumulate": 2}),
        ("a=1,b=2", "sdseg", {"mask_loss_weight": 0.0}),  # whose background does not learn
        ("a=1,b=2", "small", {}),
    ],
)
def test_a_killed_run_of_several_classes_ends_as_one_that_was_not(
    raw: Path,
    tmp_path: Path,
    classes: str,
    network: str,
    recipe: dict[str, object],
    small_network: str,
) -> None:
    manifest = prepared(raw, classes)
    assert manifest.classes.ignore == IGNORED
    assert any(case.labelled is not None for case in manifest.cases("train"))
    config = settings(manifest, network, **recipe)
    whole, run = RunDir(tmp_path / "whole"), RunDir(tmp_path / "run")
    train(config, manifest, whole, device="cpu")
    killed_in_step(3, config, manifest, run)  # the checkpoint is of step 2
    assert train(config, manifest, run, device="cpu").begun == 2
    assert_same_run(run, whole)
    rows = [json.loads(line) for line in run.log_file.read_text().splitlines()]
    assert len({row["loss"] for row in rows if "loss" in row}) == STEPS


@pytest.mark.slow
def test_a_run_of_one_or_of_the_same_classes_starts_another_and_of_others_is_refused(
    raw: Path, tmp_path: Path
) -> None:
    two, other, one = (prepared(raw, classes) for classes in ("a=1,b=2", "c=1,d=2", "any"))

    def trained(manifest: Manifest, name: str, **recipe: object) -> RunDir:
        run = RunDir(tmp_path / name)
        train(settings(manifest, steps=1, **recipe), manifest, run, device="cpu")
        return run

    first = trained(two, "first")
    again = trained(two, "again", init=str(first.path))
    before, after = (Checkpoint.load(run.last) for run in (first, again))
    for key in ("class_scale", "autoencoder.encoder.conv_in.weight"):
        kept = before.weights[key].half().float()  # what predicts is kept as float16
        assert torch.equal(kept, after.weights[key])
    assert after.origin["model"].startswith("first, step 1")
    binary = trained(one, "binary")
    assert "model" in Checkpoint.load(trained(two, "wider", init=str(binary.path)).last).origin
    with pytest.raises(ConfigError, match=r"draws a, b; this set has c, d\."):
        trained(other, "refused", init=str(first.path))
    with pytest.raises(ConfigError, match=r"draws a, b; this set has foreground\."):
        trained(one, "narrower", init=str(first.path))
    assert not any((tmp_path / name).exists() for name in ("refused", "narrower"))


@pytest.mark.slow
def test_a_baseline_of_one_class_starts_none_of_several(
    raw: Path, tmp_path: Path, small_network: str
) -> None:
    one, two = prepared(raw, "any"), prepared(raw, "a=1,b=2")
    run = RunDir(tmp_path / "one")
    train(settings(one, small_network, steps=1), one, run, device="cpu")
    config = settings(two, small_network, steps=1, init=str(run.path))
    with pytest.raises(ConfigError, match=r"model\.classes"):
        train(config, two, RunDir(tmp_path / "two"), device="cpu")


def test_the_start_of_a_baseline_is_a_function_of_the_set_and_is_recorded(
    raw: Path, tmp_path: Path, small_network: str
) -> None:
    manifest = prepared(raw, "a=1,b=2")
    slices = open_split(manifest, "train")
    config, store = settings(manifest, small_network), WeightStore(tmp_path)
    model, origin = initial_model(config, store, slices)
    shares = slices.class_shares()
    bias = model.state_dict()["unet.final_conv.bias"]
    assert bias[1:].tolist() == pytest.approx(shares.log().tolist())
    assert bias[0].item() == pytest.approx((1 - shares.sum()).log().item())
    assert "the classes' shares of the pixels" in origin["network"]


@pytest.mark.slow
def test_a_package_of_several_classes_predicts_as_its_run_and_says_their_names(
    raw: Path, tmp_path: Path
) -> None:
    manifest, run = prepared(raw, "a=1,b=2"), RunDir(tmp_path / "run")
    train(settings(manifest), manifest, run, device="cpu")
    measure_run(
        run,
        open_split(manifest, "train"),
        open_split(manifest, "val"),
        torch.device("cpu"),
        WeightStore(tmp_path),
    )
    export_run(run.path, tmp_path / "two.sdseg")
    scan = read_image(manifest.cases("test")[0].image)
    found = []
    for trained in (run.path, tmp_path / "two.sdseg"):
        predictor = Predictor(trained, device="cpu", skip_air=False)
        assert predictor.classes.names == ("a", "b")
        found.append(predictor.predict(scan).probabilities)
    assert found[0].shape[0] == 2 and np.array_equal(*found)


@pytest.mark.slow
def test_the_fastest_batch_is_measured_with_all_classes(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu_in_name(monkeypatch, peak=1, whole=100)
    manifest = prepared(raw, "a=1,b=2")
    slices, seen = open_split(manifest, "train"), list[torch.Size]()
    forward = Objective.forward

    def recording(self: Objective, inputs: StepInputs, *rest: Any) -> torch.Tensor:
        seen.append(inputs.masks.shape)
        return forward(self, inputs, *rest)

    monkeypatch.setattr(Objective, "forward", recording)
    monkeypatch.setattr("sdseg_cli.training.fit_batch.LARGEST", 2)
    size = fitting_batch_size(settings(manifest), slices, tmp_path, torch.device("cpu"))
    assert size in (1, 2)
    assert {shape[1] for shape in seen} == {2} and {shape[0] for shape in seen} == {1, 2}


@pytest.mark.parametrize("preset", ["tiny", "sd"])
def test_every_answer_of_a_deeply_supervised_network_starts_at_the_shares(preset: str) -> None:
    config = for_network(PRESETS[preset], "dynunet").model
    model = build_baseline(replace(config, classes=7))
    model.start_at(torch.full((7,), 0.01))
    expected = torch.tensor([0.93, *[0.01] * 7]).log()
    biases = [
        value
        for key, value in model.named_parameters()
        if key.endswith("bias") and value.shape == (8,)
    ]
    assert len(biases) == 1 + getattr(BASELINES["dynunet"], preset)["deep_supr_num"]
    assert all(torch.allclose(value, expected) for value in biases)
