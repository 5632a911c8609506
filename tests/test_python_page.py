"""The examples of docs/PYTHON.md, run in order in one namespace."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from sdseg_cli.inference.options import OutputPaths
from sdseg_cli.inference.predict import predict_file
from sdseg_cli.inference.predictor import Predictor
from tests.conftest import Workspace

PAGE = Path(__file__).resolve().parents[1] / "docs/PYTHON.md"


def test_the_examples_run_and_do_what_they_say(
    tiny_run: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 4
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tiny").symlink_to(tiny_run.run.path.parent)
    shutil.copy(tiny_run.scan, "scan.nii.gz")
    names: dict[str, Any] = {}
    exec(examples[0], names)
    predict_file(
        Path("scan.nii.gz"),
        OutputPaths(Path("same.nii.gz")),
        Predictor("runs/tiny/run", device="cpu"),
    )
    assert Path("same.nii.gz").read_bytes() == Path("mask.nii.gz").read_bytes()
    assert names["prediction"].probability.shape == (6, 64, 64)
    for example in examples[1:]:
        exec(example, names)
    assert names["mask"].shape == nib.load("scan.nii.gz").shape
    assert names["report"].stability.runs == 3
    assert np.asarray(nib.load("uncertainty.nii.gz").dataobj).max() <= 1
