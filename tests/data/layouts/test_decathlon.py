"""Tasks of the Medical Segmentation Decathlon."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sdseg_cli.core.errors import DataError
from sdseg_cli.data.manifest import Manifest
from sdseg_cli.data.prepare import PrepareOptions, prepare
from sdseg_cli.data.recognise import find_cases
from tests.archives import write_decathlon, write_nifti


def test_the_listed_pairs_are_the_cases_without_macos_twins(tmp_path: Path) -> None:
    spec, cases = find_cases(write_decathlon(tmp_path))
    assert (spec.name, spec.modality) == ("decathlon", "MR/other")
    assert [case.id for case in cases] == ["la_001", "la_002", "la_003", "la_004"]
    assert cases[0].label == tmp_path / "labelsTr/la_001.nii.gz"


def test_a_task_prepares(tmp_path: Path) -> None:
    report = prepare(write_decathlon(tmp_path / "Task02"), tmp_path, PrepareOptions(workers=1))
    manifest = Manifest.load(report.manifest)
    assert report.cases == {"train": 2, "val": 1, "test": 1}
    assert (manifest.labels, manifest.cleaning) == ((1, 2), {})


def test_several_channels_are_refused(tmp_path: Path) -> None:
    write_decathlon(tmp_path, modality={"0": "T2", "1": "ADC"})
    with pytest.raises(DataError, match=r"4D, with 2 channels \(T2, ADC\)"):
        find_cases(tmp_path)


def test_a_4d_scan_that_is_not_described_as_such_is_refused(tmp_path: Path) -> None:
    write_decathlon(tmp_path / "d")
    write_nifti(tmp_path / "d/imagesTr/la_001.nii.gz", np.zeros((12, 10, 6, 2), np.int16))
    with pytest.raises(DataError, match=r"la_001.*\(12, 10, 6, 2\), not one 3D volume"):
        prepare(tmp_path / "d", tmp_path, PrepareOptions(workers=1))


def test_a_listed_file_that_is_missing_is_named(tmp_path: Path) -> None:
    write_decathlon(tmp_path / "d")
    (tmp_path / "d/imagesTr/la_002.nii.gz").unlink()
    with pytest.raises(DataError, match=r"case la_002: .*la_002\.nii\.gz does not exist"):
        prepare(tmp_path / "d", tmp_path, PrepareOptions(workers=1))


@pytest.mark.parametrize("path", ["../secret.nii.gz", "/etc/passwd", "imagesTr/../../x.nii.gz"])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path: Path, path: str) -> None:
    write_decathlon(tmp_path, training=[{"image": path, "label": "./labelsTr/la_001.nii.gz"}])
    with pytest.raises(DataError, match="leaves the data set's folder"):
        find_cases(tmp_path)


def test_a_list_of_something_else_is_named(tmp_path: Path) -> None:
    write_decathlon(tmp_path, training=["imagesTr/la_001.nii.gz"])
    with pytest.raises(DataError, match=r"dataset\.json"):
        find_cases(tmp_path)


@pytest.mark.data
def test_the_real_hippocampus_prepares_in_its_original_layout(
    real_data: Path, tmp_path: Path
) -> None:
    root = tmp_path / "Task04_Hippocampus"
    root.mkdir()
    for real, name in (("images", "imagesTr"), ("labels", "labelsTr")):
        (root / name).symlink_to(real_data / "msd-hippocampus" / real)
    names = sorted(path.name for path in (root / "imagesTr").glob("*.nii.gz"))
    described = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "training": [
            {"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names
        ],
    }
    (root / "dataset.json").write_text(json.dumps(described))
    report = prepare(root, tmp_path, PrepareOptions(workers=1))
    assert sum(report.cases.values()) == len(names) == 40


def test_an_entry_listed_twice_is_named_as_such(tmp_path: Path) -> None:
    write_decathlon(tmp_path)
    about = json.loads((tmp_path / "dataset.json").read_text())
    about["training"].append(about["training"][0])
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match=r"lists './imagesTr/la_001\.nii\.gz' twice") as caught:
        find_cases(tmp_path)
    assert caught.value.hint == "Remove one of the two entries."


def test_a_label_map_of_two_scans_is_an_error(tmp_path: Path) -> None:
    write_decathlon(tmp_path / "d")
    about = json.loads((tmp_path / "d/dataset.json").read_text())
    about["training"][1]["label"] = about["training"][0]["label"]
    (tmp_path / "d/dataset.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match=r"la_001\.nii\.gz is that of case la_001 too"):
        prepare(tmp_path / "d", tmp_path, PrepareOptions(workers=1))
