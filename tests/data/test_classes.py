"""Which classes a set has: SPEC, names, pairs for mirrors, labelled cases, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sdseg_cli.core.errors import ConfigError, DataError
from sdseg_cli.data.check import check
from sdseg_cli.data.classes import (
    ClassOptions,
    choose,
    mirror_words,
    parse_classes,
    read_class_names,
)
from sdseg_cli.data.layouts import DATASETS
from sdseg_cli.data.layouts.folder import FOLDER
from sdseg_cli.data.manifest import Manifest
from sdseg_cli.data.spec import ClassRule, are_twins, side_of
from tests.raw_cases import AFFINE, IDS, prepared, split_file

NAMES = {1: "left_kidney", 2: "right_kidney", 3: "spleen"}


def rule_of(present: set[int], **options: object) -> ClassRule:
    spec = replace(FOLDER, class_names=NAMES)
    return choose(ClassOptions(**options), spec).rule(present, present)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("liver=6", (("liver", (6,)),)),
        ("liver=6,kidneys=2+1", (("liver", (6,)), ("kidneys", (1, 2)))),
        ("3,9", (("spleen", (3,)), ("label_9", (9,)))),
        ("spleen, Left_Kidney ", (("spleen", (3,)), ("Left_Kidney", (1,)))),
        ("kidneys=left_kidney+right_kidney", (("kidneys", (1, 2)),)),
        ("肝臓=6,печень=7", (("肝臓", (6,)), ("печень", (7,)))),
        ("whole=1+2+3,core=2+3", (("whole", (1, 2, 3)), ("core", (2, 3)))),
    ],
)
def test_classes_are_read_as_they_are_typed(text: str, groups: object) -> None:
    assert parse_classes(text, NAMES) == groups


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("liver=", "liver has no labels"),
        ("=6", "has no name"),
        ("", "a class is empty"),
        ("liver=6,,spleen=1", "a class is empty"),
        ("liver=0", "label 0 is the background"),
        ("liver=-3", "-3 is no label"),
        ("liver=70000", "70000 is no label"),
        ("a=b=6", "two equals signs"),
        ("1+2", "several labels without a name"),
        ("liverr", "no label and no known name"),
        ("all,liver=6", "no label and no known name"),
        ("liver, left=6", "no label and no known name"),
        ("liver=6,tumour=6", "liver and tumour are the same"),
        ("liver=6,Liver=7", "two classes are called Liver"),
        ("li\tver=6", "control character"),
        ("x" * 61 + "=6", "61 characters"),
        (",".join(f"c{n}={n}" for n in range(1, 301)), "300 classes: a run has at most 128"),
    ],
)
def test_what_is_no_list_of_classes_is_one_error(text: str, message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message) as caught:
        parse_classes(text, NAMES)
    assert "\n" not in caught.value.message and caught.value.hint


def test_by_default_each_label_of_ones_own_set_is_a_class_with_the_sets_name() -> None:
    rule = rule_of({1, 2, 3, 300})
    assert rule.names == ("left_kidney", "right_kidney", "spleen", "label_300")
    assert rule.groups == ((1,), (2,), (3,), (300,))
    assert rule.values == (1, 2, 3, 300)
    assert rule.mirror_pairs == ((0, 1),) and rule.mirror_safe


@pytest.mark.parametrize("present", [{1}, {255}, {1, 255}])
def test_one_structure_stays_one_foreground(present: set[int]) -> None:
    assert rule_of(present) == ClassRule()


def test_any_is_the_foreground_that_there_was_before() -> None:
    assert rule_of({1, 2, 3}, classes="any") == ClassRule()
    assert rule_of({1, 2, 3}, target=(2, 1)) == ClassRule(((1, 2),))


def test_the_papers_sets_have_one_foreground_unless_classes_are_asked_for() -> None:
    btcv = DATASETS["btcv"]
    labels = set(range(1, 14))
    default, _ = choose(ClassOptions(), btcv).rule(labels, labels)
    assert default == ClassRule.of_target(range(1, 14))
    rule, odd = choose(ClassOptions(classes="all"), btcv).rule(labels, labels)
    assert (len(rule), rule.names[5], odd) == (13, "liver", ())
    assert rule.mirror_pairs == ((1, 2), (11, 12))
    eight, _ = choose(ClassOptions(classes="all"), DATASETS["btcv8"]).rule(labels, labels)
    assert eight.values == (1, 2, 3, 4, 6, 7, 8, 11)


def test_the_ignore_label_is_no_class() -> None:
    rule = rule_of({1, 2, 3}, ignore=3)
    assert (rule.ignore, rule.groups) == (3, ((1,), (2,)))
    with pytest.raises(ConfigError, match="--ignore 3 is also a label of a class"):
        rule_of({1, 2, 3}, classes="a=3,b=1", ignore=3)
    assert rule_of({1, 3}, classes="any", ignore=3).ignore == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": (1,), "classes": "all"}, "--target and --classes"),
        ({"target": (1,), "mirror_pairs": "1:2"}, "no effect on one foreground"),
        ({"classes": "any", "mirror_pairs": "1:2"}, "--mirror-pairs has no effect on one foreg"),
        ({"classes": "any", "class_names": Path("n.csv")}, "--class-names has no effect on one"),
        ({"target": (1,), "class_names": Path("n.csv")}, "--class-names has no effect on one"),
        ({"classes": "a=1", "mirror_pairs": "1:2"}, "there is one class alone"),
        ({"ignore": 0}, "label 0 is the background"),
        ({"mirror_pairs": "1"}, "is no pair"),
        ({"mirror_pairs": "1:1"}, "one label twice"),
        ({"mirror_pairs": "1:9"}, "label 9 is in no class"),
        ({"mirror_pairs": "1:2,2:3"}, "names right_kidney twice"),
        ({"mirror_pairs": "a:b"}, "no known name"),
        ({"classes": "x=9,y=1"}, "no case has class x"),
    ],
)
def test_options_that_contradict_the_set_are_refused(options: dict, message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        rule_of({1, 2, 3}, **options)


def test_options_without_effect_on_the_labels_that_occur_are_named(tmp_path: Path) -> None:
    names = tmp_path / "names.csv"
    names.write_text("1,liver\n")
    _, odd = choose(ClassOptions(class_names=names, ignore=9), FOLDER).rule({1}, {1})
    assert [one.code for one in odd] == ["class-names-unused", "ignore-absent"]
    with pytest.raises(ConfigError, match="one class alone"):
        choose(ClassOptions(mirror_pairs="1:2"), FOLDER).rule({1}, {1})


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("left_kidney", ("left", ("kidney",))),
        ("kidney_right", ("right", ("kidney",))),
        ("Parotid_L", ("left", ("parotid",))),
        ("GlandSubmandR", ("right", ("gland", "submand"))),
        ("lung upper lobe rt", ("right", ("lung", "upper", "lobe"))),
        ("ren dexter", ("right", ("ren",))),
        ("左腎", ("left", ("腎",))),
        ("liver", None),
        ("vertebra_L5", None),
        ("L", None),
        ("right", None),
    ],
)
def test_names_say_sides(name: str, side: object) -> None:
    assert side_of(name) == side


def test_twins_are_the_two_sides_of_one_structure() -> None:
    assert are_twins("left_kidney", "kidney_right")
    assert not are_twins("left_kidney", "left_lung")
    assert not are_twins("left_kidney", "right_lung")
    assert not are_twins("left ventricle", "right ventricle")  # each keeps its own form
    assert are_twins("left lateral ventricle", "right lateral ventricle")


def test_mirrors_are_off_where_a_side_has_no_partner_and_the_reason_is_said() -> None:
    alone = rule_of({1, 3})
    assert not alone.mirror_safe
    assert mirror_words(alone).startswith("left-right mirrors are off: left_kidney would be")
    assert not rule_of({1, 2, 3}, mirror_pairs="none").mirror_safe
    assert rule_of({1, 2, 3}, classes="kidneys=1+2,3").mirror_safe
    assert mirror_words(rule_of({1, 2})) == (
        "in a left-right mirror left_kidney and right_kidney change places"
    )
    # Other names for the data set's own left and right.
    assert rule_of({1, 2, 3}, classes="a=1,b=2,c=3").mirror_pairs == ((0, 1),)
    assert rule_of({4, 7, 9}, mirror_pairs="9:4").mirror_pairs == ((0, 2),)


def test_a_label_without_training_slice_is_no_class_and_is_named() -> None:
    rule, odd = choose(ClassOptions(), FOLDER).rule({1, 2, 3}, {1, 3})
    assert rule.names == ("label_1", "label_3")
    assert [(one.code, one.level) for one in odd] == [("class-left-out", "warning")]
    with pytest.raises(DataError, match=r"no training case has class b \(2\)"):
        choose(ClassOptions(classes="a=1,b=2"), FOLDER).rule({1, 2}, {1})


def test_a_region_that_hides_another_is_named() -> None:
    choice = choose(ClassOptions(classes="core=2,whole=1+2"), FOLDER)
    assert [one.code for one in choice.rule({1, 2}, {1, 2})[1]] == ["class-hidden"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"1": "liver", "2": "a, b"}'),
        ("a.json", '{"labels": {"background": 0, "liver": 1, "a, b": 2}}'),
        ("a.csv", 'value,name\n1,liver\n2,"a, b"\n'),
        ("a.txt", "1;liver\n2;a, b\n"),
        ("a.tsv", "0\tbackground\n1\tliver\n2\ta, b\n"),
        ("itk.txt", '# ITK-SNAP\n 0 0 0 0 0 0 0 "Clear"\n 1 255 0 0 1 1 1 "liver"\n'
         ' 2 0 255 0 0.5 1 1 "a, b"\n'),
    ],
)  # fmt: skip
def test_names_of_labels_come_from_a_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_class_names(tmp_path / name) == {1: "liver", 2: "a, b"}


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "names no label"), ("1,a\n1,b\n", "named twice"), ("liver\n", "no value and name"),
     ("1,a\nx,b\n", "'x' is no label"), ("1,a\x07b\n", "control character")],
)  # fmt: skip
def test_a_file_that_names_no_labels_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "names.csv").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_class_names(tmp_path / "names.csv")


def test_several_classes_stand_in_the_manifest_and_the_report(raw: Path, workspace: Path) -> None:
    report = prepared(raw, workspace)
    manifest = Manifest.load(report.manifest)
    assert manifest.classes == ClassRule(((1,), (300,)), ("label_1", "label_300"))
    assert manifest.target == (1, 300)
    # 4 x 7 voxels in two slices, and in one.
    assert report.to_json()["classes"] == [
        {"name": "label_1", "labels": [1], "value": 1, "voxels": 5 * 56, "share": 0.666667},
        {"name": "label_300", "labels": [300], "value": 300, "voxels": 5 * 28, "share": 0.333333},
    ]


def test_other_classes_do_not_slice_again(raw: Path, workspace: Path) -> None:
    prepared(raw, workspace)
    files = {path: path.stat().st_ino for path in workspace.rglob("*.npy")}
    for classes in ("any", "a=1,b=300", "w=1+300,b=300", "all"):
        prepared(raw, workspace, classes=classes)
        assert {path: path.stat().st_ino for path in workspace.rglob("*.npy")} == files


def test_cases_in_which_a_class_was_never_drawn_are_in_the_manifest(
    raw: Path, workspace: Path
) -> None:
    lists = {"train": IDS[:3], "val": IDS[3:4], "test": IDS[4:]}
    split = split_file(workspace, **lists, labelled={"pt_1": ["b", "a"], "pt_2": ["a"]})  # type: ignore[arg-type]
    report = prepared(raw, workspace, classes="a=1,b=300", split_file=split)
    manifest = Manifest.load(report.manifest)
    assert [case.labelled for case in manifest.entries][:3] == [("a", "b"), ("a",), None]
    assert [(one.code, one.case) for one in report.warnings] == [("labelled-contradicted", "pt_2")]
    content = json.loads(report.manifest.read_text())
    assert "labelled" not in content["cases"][2]
    with pytest.raises(ConfigError, match="names 'b', which is no class"):
        prepared(raw, workspace, classes="all", split_file=split)
    with pytest.raises(ConfigError, match="no effect on one foreground"):
        prepared(raw, workspace, classes="any", split_file=split)


def write_pair(folder: Path, left: slice, right: slice, *, spot: bool) -> None:
    """Planes of 512 px with two boxes (labels 1 and 2) and at will a spot of 1 px (label 3)."""
    shape = (512, 512, 2)
    labels = np.zeros(shape, np.uint8)
    labels[left, 200:240], labels[right, 200:240] = 1, 2
    if spot:
        labels[300, 300, 1] = 3
    folder.mkdir(parents=True)
    hu = np.random.default_rng(int(folder.name[1:])).integers(-900, 900, shape).astype(np.int16)
    nib.save(nib.Nifti1Image(hu, AFFINE), folder / "image.nii.gz")
    nib.save(nib.Nifti1Image(labels, AFFINE), folder / "label.nii.gz")


def test_check_names_what_is_odd_about_classes(tmp_path: Path) -> None:
    # AFFINE runs to the patient's left: large row numbers are left.
    here, there = slice(370, 410), slice(100, 140)
    for number in range(3):
        write_pair(tmp_path / f"set/p{number}", here, there, spot=number == 0)
    write_pair(tmp_path / "set/p3", there, here, spot=False)
    names = tmp_path / "names.csv"
    names.write_text("1,kidney_left\n2,kidney_right\n3,spot\n")
    found = {one.code: one for one in check(
        tmp_path / "set", options=ClassOptions(class_names=names), workers=1
    ).findings}  # fmt: skip
    assert found["class-in-some-cases"].measured.startswith("spot (3) is in 1 of 4 cases")
    assert "0.25 px in any 256x256 slice of p0" in found["class-vanishes"].measured
    assert found["class-imbalance"].measured.startswith("spot (3) has ")
    swapped = found["sides-swapped"]
    assert (swapped.case, swapped.level) == ("p3", "warning")
    assert "lies to the right of kidney_right (2)" in swapped.measured


def test_check_names_a_pair_that_its_names_do_not(tmp_path: Path) -> None:
    for number in range(3):
        write_pair(tmp_path / f"set/p{number}", slice(100, 140), slice(372, 412), spot=False)
    found = [one for one in check(tmp_path / "set", workers=1).findings if "pair" in one.code]
    assert [one.code for one in found] == ["mirror-pair-unnamed"]
    assert "--mirror-pairs 1:2" in found[0].fix
    assert "mirrors in training show each as the other" in found[0].measured
    told = [one for one in prepared(tmp_path / "set", tmp_path).warnings if "pair" in one.code]
    assert told == found  # by the slices, which are smaller
    for pairs in ("1:2", "none"):
        report = prepared(tmp_path / "set", tmp_path, mirror_pairs=pairs)
        assert not [one for one in report.warnings if "pair" in one.code]


def test_labels_in_no_class_are_reported_as_background(raw: Path, workspace: Path) -> None:
    report = prepared(raw, workspace, target=(1,))
    assert report.background == (
        {"label": 300, "name": "label_300", "voxels": 5 * 28, "share": 0.333333},
    )
    assert "background" not in report.to_json()  # one class, as it was
    assert prepared(raw, workspace, classes="any").background == ()
    assert prepared(raw, workspace, classes="all").background == ()
