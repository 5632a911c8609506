"""The rules that compare cases, on statistics written by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sdseg_cli.data.checks import Expected, check_cohort, check_duplicates, check_mirrored
from sdseg_cli.imaging.measure import CaseFacts, GridStatistics, LabelStatistics

GRID = GridStatistics((64, 64, 20), (64, 64), "LPS", (1.0, 1.0, 3.0))
CENTRES = {1: (0.5, 0.35, 0.5), 2: (0.5, 0.62, 0.4), 3: (0.3, 0.5, 0.7)}


def case(id: str, grid: GridStatistics = GRID, **changes: object) -> CaseFacts:
    labels = LabelStatistics(100, {0: 90, 1: 5, 2: 3, 3: 2}, CENTRES)
    facts = CaseFacts(
        id, Path(f"set/{id}/ct.nii"), Path(f"set/{id}/mask.nii"), grid, labels=labels, sha256=id
    )
    return replace(facts, **changes)  # type: ignore[arg-type]


COHORT = [case(str(number)) for number in range(1, 6)]


def found(cases: list[CaseFacts], split: dict[str, str] | None = None) -> list[tuple[str, str]]:
    return [(one.code, one.case) for one in check_cohort(cases, split or {}, Expected())]


def test_a_uniform_cohort_is_sound() -> None:
    assert found(COHORT) == []


def test_the_same_image_in_two_splits_is_an_error_and_in_one_a_warning() -> None:
    contents = {"a": "x", "b": "x", "c": "x", "d": "y", "e": "", "f": ""}
    split = {"a": "train", "b": "train", "c": "test", "d": "test", "e": "train", "f": "val"}
    findings = list(check_duplicates(contents, split))
    assert [(one.code, one.level, one.case) for one in findings] == [
        ("duplicate", "warning", "b"),
        ("leakage", "error", "c"),
    ]
    assert findings[1].measured == "the same image as case a: one is in train, the other in test"
    assert [one.code for one in check_duplicates(contents, {})] == ["duplicate"] * 2


def test_a_stranger_in_orientation_is_named() -> None:
    stranger = case("9", replace(GRID, axis_codes="RAS"))
    assert found([*COHORT, stranger]) == [("orientation-outlier", "9")]
    assert found([*COHORT[:3], stranger, replace(stranger, id="8", sha256="8")]) == []  # 3 of 5


@pytest.mark.parametrize(
    ("spacing", "codes"),
    [
        ((3.0, 1.0, 1.0), []),  # the order of the axes says nothing
        ((1.0, 1.0, 8.9), []),
        ((1.0, 1.0, 9.1), ["spacing-outlier"]),
        ((0.3, 1.0, 3.0), ["spacing-outlier"]),
    ],
)
def test_a_stranger_in_spacing_is_named(
    spacing: tuple[float, float, float], codes: list[str]
) -> None:
    stranger = case("9", replace(GRID, spacing_mm=spacing))
    assert found([*COHORT, stranger]) == [(code, "9") for code in codes]


def test_three_cases_or_other_folders_are_no_majority() -> None:
    stranger = case("9", replace(GRID, axis_codes="RAS", spacing_mm=(9.0, 9.0, 9.0)))
    assert found([*COHORT[:2], stranger]) == []
    elsewhere = replace(stranger, image=Path("other/9/ct.nii"))
    assert found([*COHORT, elsewhere]) == []


def test_planes_that_are_not_square_are_one_finding() -> None:
    odd = [case(id, replace(GRID, plane=(101, 122))) for id in ("6", "7")]
    assert found([*COHORT, *odd]) == [("planes-not-square", "*")]
    finding = next(check_cohort([*COHORT, *odd], {}, Expected()))
    assert finding.measured == "2 of 7 scan(s), such as 6 with 122x101"
    assert found([*COHORT, odd[0]]) == [("planes-not-square", "6")]


def test_photographs_need_not_be_square() -> None:
    picture = GridStatistics((288, 384), (288, 384))
    assert found([case(str(number), picture) for number in range(5)]) == []


def test_masks_that_are_not_binary_are_one_finding() -> None:
    grey = [
        case(str(n), labels=LabelStatistics(100, {0: 50, 255: 50}, {}, between_share=share))
        for n, share in enumerate((0.01, 0.03, 0.02, 0.0))
    ]
    findings = list(check_cohort(grey, {}, Expected()))
    assert [(one.code, one.case) for one in findings] == [("mask-not-binary", "*")]
    assert findings[0].measured.startswith("3 of 4 .nii mask(s)")
    assert "2.0% of the pixels, at most 3.0% (1)" in findings[0].measured


def test_a_target_that_occurs_nowhere_is_an_error_naming_what_does() -> None:
    findings = list(check_cohort(COHORT, {}, Expected(target=(9,))))
    assert [(one.code, one.level) for one in findings] == [("target-absent", "error")]
    assert findings[0].fix == "--target 1,2,3"
    assert list(check_cohort(COHORT, {}, Expected(target=(3, 9)))) == []


@pytest.mark.parametrize(
    ("axis", "direction"), [(0, "front to back"), (1, "left to right"), (2, "head to feet")]
)
def test_a_mirrored_case_is_named_with_its_direction(axis: int, direction: str) -> None:
    centres = {
        label: tuple(1 - share if n == axis else share for n, share in enumerate(place))
        for label, place in CENTRES.items()
    }
    mirrored = case("9", labels=LabelStatistics(100, {0: 97, 1: 1, 2: 1, 3: 1}, centres))  # type: ignore[arg-type]
    findings = list(check_mirrored([*COHORT, mirrored]))
    assert [(one.code, one.case) for one in findings] == [("mirrored", "9")]
    assert direction in findings[0].measured


def test_a_single_label_or_a_place_that_fits_neither_way_says_nothing() -> None:
    one = {3: (0.7, 0.5, 0.3)}
    alone = [
        case(str(n), labels=LabelStatistics(9, {0: 8, 3: 1}, {3: CENTRES[3]})) for n in range(5)
    ]
    assert (
        list(check_mirrored([*alone, case("9", labels=LabelStatistics(9, {0: 8, 3: 1}, one))]))
        == []
    )
    moved = {label: (a, b + 0.2, c) for label, (a, b, c) in CENTRES.items()}
    far = case("9", labels=LabelStatistics(100, {0: 97, 1: 1, 2: 1, 3: 1}, moved))
    assert list(check_mirrored([*COHORT, far])) == []
