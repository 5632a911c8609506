"""STS-3D's archive: layout, split, window and what its label maps lose."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sdseg_cli.data.layouts.sts import STS
from sdseg_cli.data.manifest import Manifest
from sdseg_cli.data.prepare import PrepareOptions, prepare
from sdseg_cli.data.recognise import find_cases
from sdseg_cli.imaging.intensity import Normalisation
from tests.archives import write_sts


def test_cases_are_found_from_the_archive_and_from_its_labelled_folder(tmp_path: Path) -> None:
    write_sts(tmp_path)
    spec, cases = find_cases(tmp_path)
    assert spec.name == "sts"
    assert [case.id for case in cases] == [f"Teeth_{n:04d}" for n in range(1, 13)]
    assert cases[9].image.name == "Teeth_0010_0000.nii.gz"
    assert cases[9].label == tmp_path / "labelled/label/Teeth_0010_0000.nii.gz"
    assert STS.find_cases(tmp_path / "labelled")[0].id == "Teeth_0001"
    assert STS.find_cases(tmp_path / "unlabelled") == []


def test_a_scan_without_label_and_a_macos_twin(tmp_path: Path) -> None:
    write_sts(tmp_path, range(1, 4))
    (tmp_path / "labelled/label/Teeth_0002_0000.nii.gz").unlink()
    (tmp_path / "labelled/image/._Teeth_0001_0000.nii.gz").write_bytes(b"Mac OS X")
    assert [case.label is None for case in STS.find_cases(tmp_path)] == [False, True, False]


def test_level_500_width_1200_is_minus_100_to_1100() -> None:
    assert STS.window_hu == (-100, 1100)
    assert Normalisation(STS.window_kind, *STS.window_hu).kind == "window-range"


def test_it_prepares_with_the_papers_split_and_cleaned_labels(tmp_path: Path) -> None:
    report = prepare(write_sts(tmp_path / "sts"), tmp_path, PrepareOptions(workers=1))
    manifest = Manifest.load(report.manifest)
    assert [case.id for case in manifest.cases("test")] == [
        "Teeth_0010",
        "Teeth_0011",
        "Teeth_0012",
    ]
    assert report.cases == {"train": 8, "val": 1, "test": 3}
    assert (manifest.modality, manifest.target) == ("CT", None)
    assert manifest.normalisation == {"kind": "window-range", "low": -100, "high": 1100}
    assert manifest.cleaning == {"smallest_voxels": 64, "inside_field": True}
    assert manifest.labels == (2,), "the stray voxel of label 1 is gone"
    labels = np.load(manifest.labels_file(manifest.entries[0]))
    without, within = labels[1].sum(), labels[2].sum()
    assert within < without, "slice 2 has lost the voxel at the scan's minimum"
