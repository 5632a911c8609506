"""One's own data: pairs, case folders and patterns."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdseg_cli.core.errors import ConfigError, DataError
from sdseg_cli.data.layouts.folder import find_by_globs, find_cases, recognises


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def pairs(root: Path, cases: list) -> list[tuple[str, str, str | None]]:
    return [
        (
            case.id,
            case.image.relative_to(root).as_posix(),
            case.label.relative_to(root).as_posix() if case.label else None,
        )
        for case in cases
    ]


@pytest.mark.parametrize("labels", ["labels", "masks"])
def test_images_pair_with_labels_of_equal_stem_whatever_the_suffix(
    tmp_path: Path, labels: str
) -> None:
    touch(tmp_path, "images/b10.nii.gz", "images/b2.nrrd", "images/notes.txt")
    touch(tmp_path, f"{labels}/b10.nii", f"{labels}/b2.mha", f"{labels}/._b2.nii.gz")
    touch(tmp_path, "images/._b2.nii.gz")
    assert pairs(tmp_path, find_cases(tmp_path)) == [
        ("b2", "images/b2.nrrd", f"{labels}/b2.mha"),
        ("b10", "images/b10.nii.gz", f"{labels}/b10.nii"),
    ]


def test_case_folders_are_named_by_their_path_and_others_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "pt_10/image.nii.gz", "pt_10/label.nii.gz", "pt_10/voxel_dimensions.csv")
    touch(tmp_path, "STS_2/CT_image.nii.gz", "STS_2/CT_mask.nii.gz")
    touch(tmp_path, "site a/pt_1/ct.nii", "site a/pt_1/segmentation.nii")
    touch(tmp_path, "STS_2_dicom/image/0001.dcm", ".hidden/image.nii.gz")
    assert pairs(tmp_path, find_cases(tmp_path)) == [
        ("pt_10", "pt_10/image.nii.gz", "pt_10/label.nii.gz"),
        ("site_a_pt_1", "site a/pt_1/ct.nii", "site a/pt_1/segmentation.nii"),
        ("STS_2", "STS_2/CT_image.nii.gz", "STS_2/CT_mask.nii.gz"),
    ]
    assert recognises(tmp_path)


def test_links_to_nowhere_are_cases_that_will_say_so(tmp_path: Path) -> None:
    touch(tmp_path, "twins/images/a.nii", "twins/labels/a.nii", "twins/labels/b.nii")
    touch(tmp_path, "cases/pt_1/image.nii", "cases/pt_1/label.nii", "pictures/masks/a.png")
    touch(tmp_path, "cases/pt_2/image.nii", "pictures/images/b.png", "pictures/masks/b.png")
    for name in (
        "twins/images/b.nii",
        "cases/pt_2/label.nii",
        "cases/pt_3",
        "cases/notes.txt",
        "pictures/images/a.png",
    ):
        (tmp_path / name).symlink_to("/not/there")
    assert pairs(tmp_path / "twins", find_cases(tmp_path / "twins")) == [
        ("a", "images/a.nii", "labels/a.nii"),
        ("b", "images/b.nii", "labels/b.nii"),
    ]
    assert pairs(tmp_path / "cases", find_cases(tmp_path / "cases")) == [
        ("pt_1", "pt_1/image.nii", "pt_1/label.nii"),
        ("pt_2", "pt_2/image.nii", "pt_2/label.nii"),
        ("pt_3", "pt_3", None),
    ]
    assert pairs(tmp_path / "pictures", find_cases(tmp_path / "pictures")) == [
        ("a", "images/a.png", "masks/a.png"),
        ("b", "images/b.png", "masks/b.png"),
    ]


def test_a_folder_with_nothing_but_a_link_to_nowhere_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to("/not/there")
    assert find_cases(tmp_path) == []


def test_a_case_behind_a_link_is_found_once_by_either_way(tmp_path: Path) -> None:
    touch(tmp_path, "store/image.nii", "store/label.nii")
    touch(tmp_path, "set/pt_1/image.nii", "set/pt_1/label.nii", "set/.old/image.nii")
    for name, target in (("pt_2", "../store"), ("pt_3", "../store"), ("loop", ".")):
        (tmp_path / "set" / name).symlink_to(target)
    root = tmp_path / "set"
    expected = [
        ("pt_1", "pt_1/image.nii", "pt_1/label.nii"),
        ("pt_2", "pt_2/image.nii", "pt_2/label.nii"),
    ]
    assert pairs(root, find_cases(root)) == expected
    assert pairs(root, find_by_globs(root, "*/image.nii", "*/label.nii")) == expected
    assert pairs(root, find_by_globs(root, "**/image.nii", "**/label.nii")) == expected


def test_a_case_folder_without_label_is_a_case_without_label(tmp_path: Path) -> None:
    touch(tmp_path, "pt_1/image.nii.gz")
    assert pairs(tmp_path, find_cases(tmp_path)) == [("pt_1", "pt_1/image.nii.gz", None)]


def test_two_scans_in_one_case_folder_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "pt_1/ct.nii.gz", "pt_1/mr.nii.gz", "pt_1/label.nii.gz")
    with pytest.raises(DataError, match="2 scans") as caught:
        find_cases(tmp_path)
    assert "--image-glob" in caught.value.hint
    assert recognises(tmp_path)


def test_two_cases_of_one_id_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.nii.gz", "images/a.nrrd", "labels/a.nii.gz")
    with pytest.raises(DataError, match="both case a"):
        find_cases(tmp_path)


def test_an_empty_folder_has_no_cases(tmp_path: Path) -> None:
    assert find_cases(tmp_path) == []
    assert not recognises(tmp_path)


@pytest.mark.parametrize(
    ("image", "label", "image_glob", "label_glob", "id"),
    [
        ("pt_1/image.nii", "pt_1/label.nii", "*/image.nii", "*/label.nii", "pt_1"),
        ("img/img07.nii", "lab/label07.nii", "img/img*.nii", "lab/label*.nii", "07"),
        ("imagesTr/a_0000.nii", "labelsTr/a.nii", "imagesTr/*_0000.nii", "labelsTr/*.nii", "a"),
        ("x/y/ct.nii", "x/y/seg.nii", "**/ct.nii", "**/seg.nii", "x_y"),
        ("a/img3.nii", "a/seg3.nii", "a/img[0-9].nii", "a/seg?.nii", "3"),
        ("full/image.nii", "full/seg_v1.nii", "*/image.nii", "*/seg*.nii", "full"),
    ],
)
def test_patterns_pair_by_their_wildcards_or_by_folder(
    tmp_path: Path, image: str, label: str, image_glob: str, label_glob: str, id: str
) -> None:
    touch(tmp_path, image, label)
    cases = find_by_globs(tmp_path, image_glob, label_glob)
    assert pairs(tmp_path, cases) == [(id, image, label)]


def test_a_pattern_that_matches_two_files_of_a_case_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "pt_1/image_a.nii", "pt_1/image_b.nii", "pt_1/label.nii")
    with pytest.raises(DataError, match="several files of case pt_1"):
        find_by_globs(tmp_path, "*/image_*.nii", "*/label.nii")


def test_a_pattern_without_match_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "pt_1/image.nii")
    with pytest.raises(DataError, match="no file matches"):
        find_by_globs(tmp_path, "*/image.nii", "*/label.nii")


@pytest.mark.parametrize("pattern", ["/etc/*", "../*.nii", ""])
def test_a_pattern_stays_inside_the_folder(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(ConfigError):
        find_by_globs(tmp_path, pattern, "*.nii")


@pytest.mark.data
def test_the_real_case_folders_are_found(real_data: Path) -> None:
    openkbp, sts = find_cases(real_data / "openkbp-hn-ct"), find_cases(real_data / "ibsi-sts-ct")
    hippocampus = find_cases(real_data / "msd-hippocampus")
    assert (len(openkbp), len(sts), len(hippocampus)) == (30, 8, 40)
    assert all(case.label for case in [*openkbp, *sts, *hippocampus])


def test_a_label_map_may_begin_with_its_kind_where_none_ends_so(tmp_path: Path) -> None:
    for name in ("a/image.nii.gz", "a/seg_v2_117classes.nii.gz", "b/ct.nii", "b/mask.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b/label_old.nii").touch()  # mask.nii ends so: this one is no label map
    assert [(case.id, case.label and case.label.name) for case in find_cases(tmp_path)] == [
        ("a", "seg_v2_117classes.nii.gz"),
        ("b", "mask.nii"),
    ]
