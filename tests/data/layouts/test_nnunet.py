"""nnU-Net's raw data folders, in both versions' descriptions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sdseg_cli.core.errors import DataError
from sdseg_cli.data.classes import ClassOptions, choose
from sdseg_cli.data.layouts.nnunet import NNUNET
from sdseg_cli.data.manifest import Manifest
from sdseg_cli.data.prepare import PrepareOptions, prepare
from sdseg_cli.data.recognise import find_cases
from sdseg_cli.data.spec import ClassRule
from tests.archives import write_nnunet
from tests.raw_pictures import save_pair

VERSION_1 = {
    "modality": {"0": "CT"},
    "labels": {"0": "background", "1": "root", "2": "crown"},
    "training": [{"image": "./imagesTr/case_001.nii.gz", "label": "./labelsTr/case_001.nii.gz"}],
    "channel_names": {"0": "CT"},
}


@pytest.mark.parametrize("description", [{}, VERSION_1])
def test_both_versions_are_recognised(tmp_path: Path, description: dict) -> None:
    spec, cases = find_cases(write_nnunet(tmp_path, **description))
    assert (spec.name, spec.modality, spec.target) == ("nnunet", "CT", None)
    assert [case.id for case in cases] == [f"case_{n:03d}" for n in range(1, 5)]
    assert cases[0].image.name == "case_001_0000.nii.gz"
    assert cases[0].label == tmp_path / "labelsTr/case_001.nii.gz"


def test_other_channels_than_ct_are_scaled_by_percentiles(tmp_path: Path) -> None:
    write_nnunet(tmp_path / "d", channel_names={"0": "T1"})
    manifest = Manifest.load(prepare(tmp_path / "d", tmp_path, PrepareOptions(workers=1)).manifest)
    assert (manifest.name, manifest.modality) == ("nnunet", "MR/other")
    assert manifest.normalisation["kind"] == "percentile"


def test_the_ignore_label_is_no_foreground_and_regions_are_no_labels_of_their_own(
    tmp_path: Path,
) -> None:
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "ignore": 4}
    assert find_cases(write_nnunet(tmp_path, labels=labels))[0].target == (1, 2, 3)


def test_several_channels_are_refused_with_the_patterns_that_choose_one(tmp_path: Path) -> None:
    write_nnunet(tmp_path, channels=2)
    with pytest.raises(DataError, match=r"several channels \(CT, PET\)") as caught:
        find_cases(tmp_path)
    assert "--image-glob 'imagesTr/*_0000.nii.gz'" in caught.value.hint
    spec, cases = find_cases(tmp_path, None, "imagesTr/*_0001.nii.gz", "labelsTr/*.nii.gz")
    assert (spec.name, [case.id for case in cases][:2]) == ("folder", ["case_001", "case_002"])
    assert cases[0].image.name == "case_001_0001.nii.gz"


def test_a_second_channel_that_is_not_described_is_seen_too(tmp_path: Path) -> None:
    write_nnunet(tmp_path, channels=2, channel_names={"0": "CT"})
    with pytest.raises(DataError, match="several channels"):
        find_cases(tmp_path)


def test_the_file_ending_is_the_descriptions(tmp_path: Path) -> None:
    for name in ("imagesTr/a_0000.mha", "labelsTr/a.mha", "imagesTr/b_0000.nrrd"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    text = '{"channel_names": {"0": "CT"}, "labels": {"a": 1}, "file_ending": ".mha"}'
    (tmp_path / "dataset.json").write_text(text)
    assert [case.id for case in find_cases(tmp_path)[1]] == ["a"]


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"labels": [1]}', '{"labels": {"a": "b"}}', '{"labels": {"a": {}}}']
)
def test_a_damaged_description_is_named(tmp_path: Path, text: str) -> None:
    write_nnunet(tmp_path)
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset\.json") as caught:
        find_cases(tmp_path)
    assert caught.value.hint


def test_pictures_are_pictures_whatever_dataset_json_calls_them(
    tmp_path: Path, workspace: Path
) -> None:
    root = tmp_path / "set"
    for number in range(3):
        save_pair(root / f"imagesTr/x{number}_0000.png", root / f"labelsTr/x{number}.png", number)
    said = {
        "channel_names": {"0": "xray"},
        "labels": {"background": 0, "polyp": 255},
        "file_ending": ".png",
    }
    (root / "dataset.json").write_text(json.dumps(said))
    manifest = Manifest.load(prepare(root, workspace, PrepareOptions(workers=1)).manifest)
    assert (manifest.adapter, manifest.modality) == ("nnunet", "photograph")


def test_a_second_channel_where_one_is_declared_is_named(tmp_path: Path) -> None:
    write_nnunet(tmp_path)
    stray = tmp_path / "imagesTr/case_002_0000.nii.gz"
    stray.rename(stray.with_name("case_002_0001.nii.gz"))
    with pytest.raises(DataError, match="declares one channel, and imagesTr/case_002_0001 is"):
        find_cases(tmp_path)


def test_regions_names_and_the_ignore_label_come_from_dataset_json(tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    content = {"channel_names": {"0": "T1"}, "labels": labels, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    spec = NNUNET.refine(tmp_path, NNUNET)
    assert spec.class_names == {3: "enhancing"}
    rule, _ = choose(ClassOptions(), spec).rule({1, 2, 3, 4}, {1, 2, 3, 4})
    assert rule.names == ("whole", "core", "enhancing")
    assert rule.groups == ((1, 2, 3), (2, 3), (3,))
    assert (rule.ignore, rule.overlapping, rule.values) == (4, True, (1, 2, 3))
    merged, _ = choose(ClassOptions(classes="any"), spec).rule({1, 2, 3, 4}, {1, 2, 3, 4})
    assert merged == ClassRule.of_target((1, 2, 3))
    core, _ = choose(ClassOptions(classes="core,rest=1"), spec).rule({1, 2, 3}, {1, 2, 3})
    assert core.groups == ((2, 3), (1,))
