"""Twenty classes through the commands: prepared, trained, and predicted as named segments."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from sdseg_cli.cli.app import run_command
from sdseg_cli.imaging.io.files import read_labels
from tests.dicom_files import write_series

COUNT = 20
NAMES = [f"part {n}" for n in range(1, COUNT + 1)]


def write_twenty(folder: Path, seed: int) -> None:
    """Twenty boxes of 10 x 10 x 4 voxels, each brighter than the one before; label n of box n."""
    rng = np.random.default_rng(seed)
    hu = np.full((64, 64, 4), -1000, np.int16)
    labels = np.zeros(hu.shape, np.uint8)
    hu[2:62, 2:62] = -50
    for n in range(COUNT):
        row, column = 4 + 11 * (n // 5), 4 + 11 * (n % 5)
        down, right = rng.integers(0, 3, size=2)
        box = (slice(row + down, row + down + 10), slice(column + right, column + right + 10))
        hu[box], labels[box] = 15 * n, n + 1
    hu += rng.integers(-5, 5, size=hu.shape).astype(np.int16)
    folder.mkdir(parents=True)
    affine = np.diag([-4.0, -4.0, 5.0, 1.0])
    nib.save(nib.Nifti1Image(hu, affine), folder / "image.nii.gz")
    nib.save(nib.Nifti1Image(labels, affine), folder / "label.nii.gz")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("highdicom") is None, reason="no highdicom")
def test_a_set_of_twenty_labels_becomes_twenty_named_segments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from highdicom.seg import segread

    def done(*arguments: object) -> str:
        assert run_command([str(one) for one in arguments]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    monkeypatch.setenv("SDSEG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for seed in range(3):
        write_twenty(tmp_path / "raw" / f"pt_{seed}", seed)
    (tmp_path / "names.json").write_text(
        json.dumps({str(n): name for n, name in enumerate(NAMES, start=1)})
    )
    done("prepare", "raw", "--name", "twenty", "--classes", "all", "--class-names", "names.json")
    quick = ("batch_size=1", "validate_every=20", "validation_slices=2", 'flips=""')
    sets = [word for one in quick for word in ("--set", f"train.{one}")]
    done("train", "--dataset", "twenty", "--run", "./run", "--steps", 20, "--device", "cpu", *sets)
    rows = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 20 and sum(losses[-5:]) < sum(losses[:5])
    assert list(rows[-1]["val_dice_classes"]) == NAMES

    scan = tmp_path / "raw/pt_0/image.nii.gz"
    for mask in ("m.nii.gz", "m.seg.nrrd"):
        done("predict", "--run", "./run", scan, "-o", mask, "--device", "cpu")
    expected = read_labels(tmp_path / "m.nii.gz").array
    assert np.array_equal(read_labels(tmp_path / "m.seg.nrrd").array, expected)
    image = SimpleITK.ReadImage(str(tmp_path / "m.seg.nrrd"))
    assert [image.GetMetaData(f"Segment{n}_Name") for n in range(COUNT)] == NAMES
    values = [int(image.GetMetaData(f"Segment{n}_LabelValue")) for n in range(COUNT)]
    assert values == list(range(1, COUNT + 1))

    series = write_series(tmp_path / "dicom")
    done("predict", "--run", "./run", series, "-o", "m.dcm", "--device", "cpu")
    seg = segread(tmp_path / "m.dcm")
    found = [seg.get_segment_description(n).segment_label for n in range(1, COUNT + 1)]
    assert found == NAMES
