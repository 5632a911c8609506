"""The rules for one case, on statistics written by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sdseg_cli.data.checks import Expected, check_case, check_grid, check_labels, check_scan
from sdseg_cli.imaging.measure import (
    CaseFacts,
    Fault,
    GridStatistics,
    LabelStatistics,
    ScanStatistics,
)

CT = ScanStatistics(
    minimum=-1024,
    maximum=1500,
    not_finite=0,
    distinct=None,
    zero_share=0.01,
    air_share=0.5,
    shifted_share=0.1,
    wrapped_share=0,
    beyond_share=0,
)
GRID = GridStatistics((512, 512, 90), (512, 512), "LPS", (0.8, 0.8, 5.0))
MASK = LabelStatistics(100, {0: 90, 1: 10})
SHIFTED = replace(CT, minimum=0, maximum=2500, air_share=0, shifted_share=0.9)


def codes(scan: ScanStatistics, ct: bool | None = True) -> list[str]:
    return [finding.code for finding in check_scan("x", scan, ct)]


@pytest.mark.parametrize("ct", [True, False, None])
def test_a_ct_in_hounsfield_units_is_sound(ct: bool | None) -> None:
    assert codes(CT, ct) == []


@pytest.mark.parametrize(
    ("scan", "code"),
    [
        (SHIFTED, "hu-offset"),
        (replace(SHIFTED, shifted_share=0.1), "hu-offset"),
        (replace(CT, minimum=0, maximum=255, air_share=0), "hu-range"),
        (replace(CT, minimum=0, maximum=1, air_share=0), "hu-range"),
        (replace(CT, minimum=-10240, maximum=30000, beyond_share=0.02), "hu-range"),
        (replace(SHIFTED, maximum=65535, wrapped_share=0.4, shifted_share=0), "hu-wrapped"),
        (replace(CT, not_finite=3), "values-not-finite"),
        (replace(CT, maximum=-1024), "values-constant"),
        (replace(CT, minimum=0, maximum=7, distinct=8, zero_share=0.9), "image-looks-like-mask"),
    ],
)
def test_each_fault_of_a_ct_has_its_code(scan: ScanStatistics, code: str) -> None:
    assert codes(scan) == [code]


@pytest.mark.parametrize(
    "scan",
    [
        replace(CT, minimum=-120, air_share=0),  # a crop within the body: fat, no air
        replace(CT, minimum=-3024, beyond_share=0),  # padding
        replace(CT, maximum=30710, beyond_share=0.0005),  # metal
    ],
)
def test_odd_but_sound_cts_pass(scan: ScanStatistics) -> None:
    assert codes(scan) == []


@pytest.mark.parametrize("ct", [False, None])
def test_of_another_modality_only_the_plain_signs_of_ct_count(ct: bool | None) -> None:
    assert codes(SHIFTED, ct) == ["hu-offset"]
    assert codes(replace(SHIFTED, shifted_share=0.2), ct) == []
    assert codes(replace(CT, minimum=0, maximum=255, air_share=0, zero_share=0.1), ct) == []
    assert codes(replace(SHIFTED, maximum=65535, wrapped_share=0.4), ct) == ["hu-wrapped"]


def test_few_values_without_background_are_no_mask() -> None:
    scan = replace(CT, minimum=3, maximum=60, distinct=40, zero_share=0.0)
    assert codes(scan, None) == []


@pytest.mark.parametrize(
    ("changed", "code", "measured"),
    [
        ({"forms_apart_mm": 37.417}, "place-twofold", "sform and qform lie 37.4 mm apart"),
        ({"says_place": False}, "place-unsaid", "codes are both 0"),
        ({"unit_known": False}, "unit-unknown", "unit of length has no meaning"),
        ({"spare_bytes": 1440}, "bytes-unread", "1,440 bytes follow the voxels"),
    ],
)
def test_what_a_nifti_header_leaves_open_is_a_warning(changed, code, measured) -> None:
    (found,) = check_grid("x", replace(GRID, **changed))
    assert (found.code, found.level) == (code, "warning")
    assert measured in found.measured
    assert GridStatistics.from_dict(replace(GRID, **changed).to_dict()) == replace(GRID, **changed)


def test_records_of_older_versions_leave_nothing_open() -> None:
    names = ("forms_apart_mm", "says_place", "unit_known", "spare_bytes")
    old = {name: value for name, value in GRID.to_dict().items() if name not in names}
    assert list(check_grid("x", GridStatistics.from_dict(old))) == []


def test_grids_are_judged_by_shear_and_spacing() -> None:
    assert list(check_grid("x", GRID)) == []
    sheared = replace(GRID, shear_degrees=1.25)
    assert [(one.code, one.measured) for one in check_grid("x", sheared)] == [
        ("image-straightened", "axes 1.2 degrees off right angles")
    ]
    for spacing in ((0.0008, 0.0008, 0.005), (800.0, 800.0, 5000.0)):
        found = list(check_grid("x", replace(GRID, spacing_mm=spacing)))
        assert [one.code for one in found] == ["spacing-implausible"]


def label_codes(counts: dict[int, int], expected: Expected, picture: bool = False) -> list[str]:
    found = check_labels("x", LabelStatistics(100, counts), expected, is_picture=picture)
    return [finding.code for finding in found]


@pytest.mark.parametrize(
    ("counts", "expected", "codes"),
    [
        ({0: 90, 1: 10}, Expected(), []),
        ({0: 90, 1: 10}, Expected(target=(1, 2)), []),
        ({0: 100}, Expected(), ["label-empty"]),
        ({1: 100}, Expected(), ["label-full"]),
        ({0: 90, 4: 10}, Expected(target=(1, 2)), ["label-empty"]),
        ({0: 90, 255: 10}, Expected(), ["label-255"]),
        ({0: 90, 255: 10}, Expected(target=(255,)), []),
        ({0: 90, 1: 5, 14: 5}, Expected(target=(1,), declared=(1, 2)), ["label-undeclared"]),
        (dict.fromkeys(range(17), 5), Expected(), []),
        (dict.fromkeys(range(18), 5), Expected(), ["labels-many"]),
        (dict.fromkeys(range(18), 5), Expected(target=(3,)), []),
    ],
)
def test_label_values_are_judged(
    counts: dict[int, int], expected: Expected, codes: list[str]
) -> None:
    assert label_codes(counts, expected) == codes


def test_255_is_what_white_means_in_a_picture() -> None:
    assert label_codes({0: 90, 255: 10}, Expected(), picture=True) == []


def test_the_fix_is_an_option_to_type() -> None:
    found = check_labels(
        "x", LabelStatistics(9, {0: 5, 4: 4}), Expected(target=(1,)), is_picture=False
    )
    assert "--target 4" in next(found).fix
    many = LabelStatistics(99, dict.fromkeys([*range(15), 20, 21, 22, 44], 1))
    finding = next(check_labels("x", many, Expected(), is_picture=False))
    assert finding.measured == "19 label values, 0 to 44; all but 0 would be one foreground"
    assert finding.fix.endswith("Present: 1..14, 20..22, 44")


def test_a_case_gathers_its_faults_and_a_missing_mask() -> None:
    fault = Fault("image-damaged", "ct.nii.gz: cut short", "Copy it again.")
    case = CaseFacts("7", Path("ct.nii.gz"), None, faults=(fault,))
    found = [(one.code, one.level, one.case) for one in check_case(case, Expected())]
    assert found == [("image-damaged", "error", "7"), ("label-missing", "error", "7")]
    sound = CaseFacts("7", Path("ct.nii"), Path("mask.nii"), GRID, CT, MASK)
    assert list(check_case(sound, Expected(ct=True))) == []
