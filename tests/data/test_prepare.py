"""`prepare`: from two files a case to arrays, a split and a manifest."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sdseg_cli.core.errors import ConfigError
from sdseg_cli.data.manifest import Manifest
from sdseg_cli.imaging.io.files import read_image
from sdseg_cli.inference.options import OutputPaths
from sdseg_cli.inference.predict import predict_file
from sdseg_cli.inference.predictor import Predictor
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training.train import train
from tests.conftest import tiny_settings
from tests.raw_cases import AFFINE, IDS, SHAPE, contents, prepared, split_file, write_case


def inodes(folder: Path) -> dict[str, int]:
    return {path.as_posix(): path.stat().st_ino for path in folder.rglob("*.npy")}


class Interrupting:
    """A progress that presses Ctrl-C when so many cases are done."""

    def __init__(self, after: int) -> None:
        self.after = after

    def __call__(self, done: int, total: int, what: str) -> None:
        if done == self.after:
            raise KeyboardInterrupt


def test_it_writes_squares_labels_a_split_and_a_manifest(raw: Path, workspace: Path) -> None:
    report = prepared(raw, workspace, size=256)
    manifest = Manifest.load(report.manifest)
    assert report.manifest == workspace / "prepared/raw_data/manifest.json"
    assert [case.id for case in manifest.entries] == IDS
    assert (manifest.adapter, manifest.modality, manifest.labels) == ("folder", "CT", (1, 300))
    assert manifest.normalisation == {"kind": "window", "low": -175.0, "high": 250.0}
    case = manifest.entries[0]
    assert case.image == raw / "pt_1/image.nii.gz"
    assert (case.slices, case.foreground_slices, case.spacing_mm) == (5, 3, (2, 2, 5))
    assert manifest.foreground_slices(case) == [1, 2, 4]
    pixels, labels = np.load(manifest.pixels_file(case)), np.load(manifest.labels_file(case))
    assert (pixels.shape, pixels.dtype) == ((5, 256, 256), np.float16)
    assert (labels.shape, labels.dtype) == ((5, 256, 256), np.uint16)
    assert (pixels.min(), pixels.max()) == (-1, 1)
    assert set(np.unique(labels)) == {0, 1, 300}
    # Two of 24 columns on each side are padding; up to the second one's middle nothing else.
    assert (pixels[:, :, :16] == -1).all()
    # 4 x 7 of 24 x 24 pixels.
    assert (labels[1] == 1).mean() == pytest.approx(28 / 576, rel=0.06)


@pytest.mark.parametrize("size", [-64, 0, 24, 60])
def test_no_slices_of_another_size_than_the_networks_take(
    raw: Path, workspace: Path, size: int
) -> None:
    with pytest.raises(ConfigError, match=f"{size} x {size}"):
        prepared(raw, workspace, size=size)
    assert not list(workspace.iterdir())


@pytest.mark.slow
def test_slices_of_a_chosen_size_train_and_predict_on_the_scans_grid(
    raw: Path, workspace: Path
) -> None:
    manifest = Manifest.load(prepared(raw, workspace, name="tiny", target=(1,), size=64).manifest)
    assert manifest.size == 64
    for case in manifest.entries:
        assert np.load(manifest.pixels_file(case)).shape == (5, 64, 64)
        assert np.load(manifest.labels_file(case)).shape == (5, 64, 64)
    run = RunDir(workspace / "run")
    train(tiny_settings(steps=2), manifest, run, device="cpu")
    predictor = Predictor(run.path, device="cpu")
    scan = raw / "pt_1/image.nii.gz"
    assert predictor.predict(read_image(scan)).probability.shape == (5, 64, 64)
    predict_file(scan, OutputPaths(workspace / "mask.nii.gz"), predictor)
    mask = nib.load(workspace / "mask.nii.gz")
    assert mask.shape == SHAPE
    np.testing.assert_array_equal(mask.affine, AFFINE)


def test_its_report_is_the_contracts_json(raw: Path, workspace: Path) -> None:
    report = prepared(raw, workspace, name="small", target=(300,))
    assert json.loads(json.dumps(report.to_json())) == {
        "manifest": str(workspace / "prepared/small/manifest.json"),
        "cases": {"train": 3, "val": 1, "test": 1},
        "slices": 25,
        "skipped": [],
        "warnings": [],
    }
    assert [case.foreground_slices for case in Manifest.load(report.manifest).entries] == [1] * 5


def test_the_bytes_do_not_depend_on_the_workers(raw: Path, workspace: Path) -> None:
    prepared(raw, workspace / "one")
    prepared(raw, workspace / "two", workers=2)
    one, two = contents(workspace / "one"), contents(workspace / "two")
    assert len(one) == 3 * len(IDS) + 1
    assert one == two


def test_a_second_run_redoes_nothing(raw: Path, workspace: Path) -> None:
    report = prepared(raw, workspace)
    before, written = inodes(workspace), report.manifest.stat().st_mtime_ns
    calls: list[tuple[int, int]] = []
    again = prepared(raw, workspace, progress=lambda d, n, _: calls.append((d, n)))
    assert again == report
    assert inodes(workspace) == before
    assert report.manifest.stat().st_mtime_ns == written
    assert calls == [(5, 5)]


def test_an_interrupted_run_publishes_nothing_and_the_next_one_finishes_it(
    raw: Path, workspace: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepared(raw, workspace, progress=Interrupting(after=2))
    assert not (workspace / "prepared/raw_data").exists()
    calls: list[int] = []
    prepared(raw, workspace, progress=lambda done, *_: calls.append(done))
    prepared(raw, workspace / "at once")
    assert calls == [2, 3, 4, 5]
    assert [path.name for path in (workspace / "prepared").iterdir()] == ["raw_data"]
    assert contents(workspace / "prepared") == contents(workspace / "at once/prepared")


def test_a_changed_case_alone_is_redone(raw: Path, workspace: Path) -> None:
    prepared(raw, workspace)
    before = inodes(workspace)
    for name in ("image.nii.gz", "label.nii.gz"):
        (raw / "pt_2" / name).unlink()
    (raw / "pt_2").rmdir()
    write_case(raw / "pt_2", 99)
    prepared(raw, workspace)
    changed = {path for path, inode in inodes(workspace).items() if before[path] != inode}
    assert {Path(path).parent.name for path in changed} == {"pt_2"}


def test_another_window_redoes_the_arrays_and_another_target_does_not(
    raw: Path, workspace: Path
) -> None:
    first = Manifest.load(prepared(raw, workspace, classes="any").manifest)
    before = inodes(workspace)
    target = Manifest.load(prepared(raw, workspace, target=(1,)).manifest)
    assert inodes(workspace) == before
    assert (first.target, target.target) == (None, (1,))
    assert [case.foreground_slices for case in target.entries] == [2] * 5
    window = Manifest.load(prepared(raw, workspace, window=(0, 100)).manifest)
    assert not set(inodes(workspace).values()) & set(before.values())
    assert window.normalisation == {"kind": "window", "low": 0, "high": 100}


def test_the_body_crop_is_kept_in_the_manifest(raw: Path, workspace: Path) -> None:
    assert Manifest.load(prepared(raw, workspace, crop="body").manifest).crop == "body"


def test_scans_without_air_are_scaled_by_percentiles(raw: Path, workspace: Path) -> None:
    for id in IDS:
        image = nib.load(raw / id / "image.nii.gz")
        values = np.abs(np.asanyarray(image.dataobj))
        nib.save(nib.Nifti1Image(values, AFFINE), raw / id / "image.nii.gz")
    manifest = Manifest.load(prepared(raw, workspace).manifest)
    assert manifest.modality == "MR/other"
    assert manifest.normalisation == {"kind": "percentile", "low": 0.5, "high": 99.5}


def test_a_split_file_decides_and_unlisted_cases_are_named(raw: Path, workspace: Path) -> None:
    split = split_file(workspace, train=["pt_10", "pt_2"], val=["pt_1"], test=["pt_3"])
    report = prepared(raw, workspace, split_file=split)
    manifest = Manifest.load(report.manifest)
    assert [(case.id, case.split) for case in manifest.entries] == [
        ("pt_1", "val"),
        ("pt_2", "train"),
        ("pt_3", "test"),
        ("pt_10", "train"),
    ]
    assert manifest.split["rule"] == "file split.json"
    assert [entry["case"] for entry in report.skipped] == ["pt_4"]


def test_btcv_is_recognised_with_its_published_test_cases(
    phantom_set: Path, workspace: Path
) -> None:
    report = prepared(phantom_set, workspace)
    manifest = Manifest.load(report.manifest)
    assert (manifest.name, manifest.adapter, manifest.target) == (
        "btcv",
        "btcv",
        tuple(range(1, 14)),
    )
    assert [case.id for case in manifest.cases("test")] == ["0001", "0002", "0003", "0004"]
    assert report.cases == {"train": 2, "val": 1, "test": 4}


@pytest.mark.data
def test_a_real_set_keeps_its_tumours(real_data: Path, workspace: Path) -> None:
    report = prepared(real_data / "ibsi-sts-ct", workspace, size=256)
    manifest = Manifest.load(report.manifest)
    assert (len(manifest.entries), manifest.modality) == (8, "CT")
    for case in manifest.entries:
        native = np.asanyarray(nib.load(case.label).dataobj) > 0
        labels = np.load(manifest.labels_file(case)) > 0
        scale = (256 / max(native.shape[:2])) ** 2
        assert labels.sum() == pytest.approx(native.sum() * scale, rel=0.03)


def test_a_label_map_stored_in_another_order_of_axes_gives_the_same_arrays(
    raw: Path, workspace: Path
) -> None:
    prepared(raw, workspace / "before")
    path = raw / "pt_2" / "label.nii.gz"
    label = nib.load(path)
    turned = label.as_reoriented([[2, 1], [0, -1], [1, 1]])
    assert turned.shape != label.shape
    nib.save(turned, path)
    prepared(raw, workspace / "after")
    place = "prepared/raw_data/cases/pt_2/labels.npy"
    before, after = (np.load(workspace / name / place) for name in ("before", "after"))
    assert before.any()
    assert np.array_equal(before, after)
