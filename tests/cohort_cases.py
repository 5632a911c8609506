"""Three good scans and a bad one, and a stand-in for the network, which has tests of its own."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sdseg_cli.core.config import SampleConfig
from sdseg_cli.imaging.io.files import read_image, write_mask
from sdseg_cli.inference.cohort import Task
from sdseg_cli.inference.options import OutputPaths, PredictOptions
from sdseg_cli.inference.predict import PredictReport

AFFINE = np.diag([-2.0, -2.0, 5.0, 1.0])
GOOD, BAD = ["pt_1", "pt_2", "pt_10"], "pt_3"


@dataclass
class StandIn:
    """Segments what is above 0 HU, and counts."""

    loaded: int = 0
    predicted: list[str] = field(default_factory=list)
    trouble: dict[str, BaseException] = field(default_factory=dict)

    def load(self, *_: object, **__: object) -> str:
        self.loaded += 1
        return "a model"

    def predict(
        self, scan: Path, outputs: OutputPaths, predictor: object, options: PredictOptions
    ) -> PredictReport:
        case = scan.parent.name
        self.predicted.append(case)
        if case in self.trouble:
            raise self.trouble[case]
        volume = read_image(scan)
        mask = (volume.values() > 0).astype(np.uint8)
        for path in outputs.files:
            write_mask(path, mask, volume)
        slices, voxels = mask.shape[2], int(mask.sum())
        return PredictReport(outputs, Path("run"), 0, slices, voxels, None, 0.1, SampleConfig())


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn()
    monkeypatch.setattr("sdseg_cli.inference.cohort.load_predictor", made.load)
    monkeypatch.setattr("sdseg_cli.inference.cohort.predict_file", made.predict)
    return made


@pytest.fixture
def task(tmp_path: Path) -> Task:
    """Three good scans and a bad one in `in`, and a model that is only hashed."""
    for number, case in enumerate(GOOD):
        hu = np.full((4, 3, 2), -1000, np.int16)
        hu[: number + 1] = 50
        (tmp_path / "in" / case).mkdir(parents=True)
        nib.save(nib.Nifti1Image(hu, AFFINE), tmp_path / "in" / case / "ct.nii.gz")
    (tmp_path / "in" / BAD).mkdir()
    (tmp_path / "in" / BAD / "ct.nii.gz").write_text("no scan")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "best.pt").write_text("weights")
    return Task(tmp_path / "run", OutputPaths(tmp_path / "out"))


def table(output: Path) -> dict[str, dict[str, str]]:
    """Case -> its row of the ledger."""
    with (output / "ledger.csv").open(newline="", encoding="utf-8") as stream:
        return {row["case"]: row for row in csv.DictReader(stream)}
