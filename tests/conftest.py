"""Small data, made by code: boxes in a body, prepared, and a run trained on them for seconds.

What takes long to make is made once and shared by the workers of pytest-xdist.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import nibabel as nib
import numpy as np
import pytest
import torch
import typer.main
from filelock import FileLock

from sdseg_cli.core.config import RunConfig
from sdseg_cli.core.config_file import from_dict
from sdseg_cli.core.presets import PRESETS
from sdseg_cli.data.manifest import Manifest
from sdseg_cli.data.prepare import PrepareOptions, prepare
from sdseg_cli.demo.phantom import Phantom, make_phantom, write_phantom_set
from sdseg_cli.runs.checkpoint import Checkpoint
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training.train import train
from tests.raw_cases import write_cases

torch.set_num_threads(1)  # on tensors this small, threads mostly wait for each other
# Deadlines would fail on a busy machine. "quick" is for `make check`.
hypothesis.settings.register_profile("full", deadline=None)
hypothesis.settings.register_profile("quick", max_examples=15, deadline=None)
hypothesis.settings.load_profile("full")

CASES = 5
SHAPE = (40, 36, 6)
"""Not square, few slices; its affine is oblique and runs LPS."""
PLANE = 64
"""Side of the prepared slices in pixels: a sixteenth of the work of 256."""
SETTINGS = {
    "dataset": "tiny",
    "train": {"batch_size": 2, "validate_every": 2, "validation_slices": 4, "checkpoint_every": 2},
}


def oblique_affine() -> np.ndarray:
    """(4,4): 10 degrees about the head-foot axis, x and y negative, 3 x 3 x 5 mm."""
    angle = np.deg2rad(10)
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-3.0, -3.0, 5.0])
    affine[:3, 3] = (60, 50, -100)
    return affine


def write_case(folder: Path, number: int) -> None:
    """`case_N/{image,label}.nii.gz`: air, a body at 40 HU and a bright organ (label 3) in it."""
    rng = np.random.default_rng(number)
    hu = np.full(SHAPE, -1000, np.int16)
    hu[4:36, 4:32] = 40
    labels = np.zeros(SHAPE, np.uint8)
    row, column = rng.integers(8, 20, size=2)
    organ = (slice(row, row + 10), slice(column, column + 8), slice(1, 5))
    labels[organ] = 3
    hu[organ] = 180
    hu += rng.integers(-15, 15, size=SHAPE).astype(np.int16)
    target = folder / f"case_{number}"
    target.mkdir(parents=True)
    nib.save(nib.Nifti1Image(hu, oblique_affine()), target / "image.nii.gz")
    nib.save(nib.Nifti1Image(labels, oblique_affine()), target / "label.nii.gz")


@dataclass(frozen=True)
class Workspace:
    """A folder with `raw/`, `prepared/tiny` and, for `tiny_run`, `runs/tiny/run`."""

    root: Path

    @property
    def raw(self) -> Path:
        return self.root / "raw"

    @property
    def manifest(self) -> Manifest:
        return Manifest.load(self.root / "prepared" / "tiny")

    @property
    def run(self) -> RunDir:
        return RunDir(self.root / "runs" / "tiny" / "run")

    @property
    def scan(self) -> Path:
        """The scan of the test case."""
        return self.manifest.cases("test")[0].image


def rated(run: RunDir, val_dice: float) -> Checkpoint:
    """Say of a run's best weights that they reached this Dice; what they are now."""
    best = Checkpoint.load(run.best)
    for path in run.checkpoints.glob("best.pt*"):
        path.unlink()
    best.best["val_dice"] = val_dice
    best.save(run.best)
    return best


def tiny_settings(**train_settings: object) -> RunConfig:
    """The tiny preset, small enough for seconds; keywords are keys of `[train]`."""
    config = from_dict(SETTINGS, PRESETS["tiny"], source="test")
    return from_dict({"train": train_settings}, config, source="test")


def built_once(
    tmp_path_factory: pytest.TempPathFactory, name: str, build: Callable[[Path], None]
) -> Path:
    """A folder that the first worker builds, while the others wait, and that all share."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, built = base / f"shared-{name}", base / f"shared-{name}.built"
    with FileLock(base / f"shared-{name}.lock"):
        if not built.exists():
            shutil.rmtree(folder, ignore_errors=True)  # a worker may have failed half-way
            folder.mkdir()
            build(folder)
            built.touch()
    return folder


LINKED = (".npy", ".pt", ".gz")
"""Large files that are never changed in place, only replaced."""


def linked_copy(source: Path, target: Path) -> Path:
    """A copy to be changed at will; its arrays and checkpoints are hard links."""

    def copy(from_: str, to: str) -> str:
        if from_.endswith(LINKED):
            os.link(from_, to)
            return to
        return str(shutil.copy2(from_, to))

    return Path(shutil.copytree(source, target, copy_function=copy, dirs_exist_ok=True))


def _prepare_tiny(root: Path, size: int = PLANE) -> None:
    for number in range(1, CASES + 1):
        write_case(root / "raw", number)
    prepare(root / "raw", root, PrepareOptions(name="tiny", workers=1, size=size))


def _train_tiny(root: Path) -> None:
    workspace = Workspace(root)
    train(tiny_settings(steps=4), workspace.manifest, workspace.run, device="cpu")


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Five prepared cases: 3 train, 1 val, 1 test. Treat as read-only."""
    return Workspace(built_once(tmp_path_factory, "set", _prepare_tiny))


@pytest.fixture(scope="session")
def shared_run(tiny_set: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """As `tiny_set`, with a run of four steps. It predicts badly, but really. Read-only."""

    def train_tiny(root: Path) -> None:
        linked_copy(tiny_set.root / "prepared", root / "prepared")
        _train_tiny(root)

    return Workspace(built_once(tmp_path_factory, "run", train_tiny))


@pytest.fixture
def tiny_run(shared_run: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """`shared_run` for this test alone, which may write into it."""
    return Workspace(linked_copy(shared_run.root, tmp_path_factory.mktemp("workspace")))


@pytest.fixture
def wide_run(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """As `tiny_run`, with slices of 256 px: MS-SSIM needs 176. For slow tests."""

    def build(root: Path) -> None:
        _prepare_tiny(root, size=256)
        _train_tiny(root)

    shared = built_once(tmp_path_factory, "wide-run", build)
    return Workspace(linked_copy(shared, tmp_path_factory.mktemp("workspace")))


@pytest.fixture(scope="session", autouse=True)
def parser_built_once() -> Iterator[None]:
    """typer builds the parser of all commands at each call, of which the tests make hundreds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", functools.cache(typer.main.get_command))
        yield


DATA = Path(__file__).resolve().parents[1] / "../shared/data"
PHANTOM_SHAPE = (44, 44, 10)
PHANTOM_SPACING_MM = (8.0, 8.0, 16.0)


@pytest.fixture(scope="session")
def ct_phantom() -> Phantom:
    """A small oblique abdomen CT with its organs."""
    return make_phantom(0, 1, PHANTOM_SHAPE, PHANTOM_SPACING_MM)


@pytest.fixture(scope="session")
def phantom_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven small patients in BTCV's layout; 1 to 4 test. Do not write into it."""

    def write(folder: Path) -> None:
        size = {"shape": PHANTOM_SHAPE, "spacing_mm": PHANTOM_SPACING_MM}
        write_phantom_set(folder / "btcv", cases=7, seed=0, **size)

    return built_once(tmp_path_factory, "phantoms", write) / "btcv"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real scans beside the checkout."""
    if not DATA.is_dir():
        pytest.skip(f"no real scans: {DATA} is absent")
    return DATA.resolve()


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A folder of small raw cases, to be broken at will."""
    return write_cases(tmp_path)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """An empty workspace."""
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--write-docs`: write the tables of docs/RELIABILITY.md instead of comparing them."""
    parser.addoption("--write-docs", action="store_true", help="write docs/RELIABILITY.md anew")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist starts its workers
def pytest_cmdline_main(config: pytest.Config) -> None:
    """`--write-docs` gathers the rows in one process."""
    if config.getoption("--write-docs"):
        config.option.numprocesses = 0
