"""Runs of several classes: killed and resumed, in parts, from other runs, and as packages."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from sdseg_cli.core.config import BASELINES, Network, RunConfig
from sdseg_cli.core.config_file import from_dict
from sdseg_cli.core.presets import PRESETS, for_classes, for_network
from sdseg_cli.core.progress import TrainProgress
from sdseg_cli.data.manifest import Manifest
from sdseg_cli.data.prepare import PrepareOptions, prepare
from sdseg_cli.runs.checkpoint import Checkpoint
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training.train import train
from tests.conftest import PLANE, tiny_settings
from tests.raw_cases import IDS

SMALL = Network("BasicUNet", tiny={"features": (4, 4, 8, 8, 8, 4)}, sd={}, answers=("final_conv",))
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
        split = workspace / "split.json"
        split.write_text(json.dumps(lists))
        options = PrepareOptions(
            name="tiny",
            workers=1,
            size=PLANE,
            classes=classes,
            ignore=IGNORED,
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
