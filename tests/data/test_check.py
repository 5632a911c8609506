"""`sdseg check`: each bad input is made here, found, and named with its code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from sdseg_cli.cli.app import run_command
from sdseg_cli.core.errors import ConfigError, DataError
from sdseg_cli.data.check import check
from sdseg_cli.data.classes import ClassOptions
from tests.data.faulty_cases import (
    Fault,
    colour,
    constant,
    cut,
    flat_affine,
    lose_mask,
    metres,
    move,
    nan,
    no_offset,
    offset,
    relabel,
    reorient,
    save,
    series,
    shear,
    spoil_checksum,
    swap,
    text,
    values_of,
    window,
    wrap,
    zero_affine,
)
from tests.dicom_files import write_contours, write_series
from tests.raw_cases import IDS

FAULTS: dict[str, tuple[Fault, list[tuple[str, str]]]] = {
    "cut short": (cut, [("image-damaged", "error")]),
    "checksum": (spoil_checksum, [("image-damaged", "error")]),
    "voxels inside the header": (no_offset, [("image-damaged", "error")]),
    "no scan": (text, [("image-kind", "error")]),
    "four dimensions": (series, [("image-dimensions", "error")]),
    "colour": (colour, [("image-dimensions", "error")]),
    "zero affine": (zero_affine, [("image-affine", "error")]),
    "flat affine": (flat_affine, [("image-affine", "error")]),
    "small shear": (shear(2), [("image-straightened", "warning")]),
    "large shear": (shear(20), [("image-sheared", "error"), ("label-sheared", "error")]),
    "NaN": (nan, [("values-not-finite", "error")]),
    "HU + 1024": (offset, [("hu-offset", "warning")]),
    "unsigned": (wrap, [("hu-wrapped", "warning")]),
    "windowed": (window, [("hu-range", "warning")]),
    "constant": (constant, [("values-constant", "warning")]),
    "mask as image": (swap, [("image-looks-like-mask", "warning")]),
    "metres": (metres, [("spacing-implausible", "warning"), ("spacing-outlier", "warning")]),
    "probabilities": (relabel(lambda m: (m > 0) * np.float32(0.7)), [("label-values", "error")]),
    "negative labels": (relabel(lambda m: m.astype(np.int16) - 1), [("label-values", "error")]),
    "labels of 255": (
        relabel(lambda m: ((m > 0) * 255).astype(np.uint8)),
        [("label-255", "warning")],
    ),
    "no background": (relabel(lambda m: np.ones_like(m)), [("label-full", "warning")]),
    "empty mask": (relabel(lambda m: np.zeros_like(m)), [("label-empty", "warning")]),
    "many labels": (
        relabel(lambda m: np.arange(m.size, dtype=np.uint16).reshape(m.shape) % 40),
        [("labels-many", "warning")],
    ),
    "shape": (relabel(lambda m: m[:-1]), [("grid-shape", "error")]),
    "place": (move, [("grid-place", "error")]),
    "orientation": (reorient, [("orientation-outlier", "warning")]),
    "no mask": (lose_mask, [("label-missing", "error")]),
}


@pytest.fixture
def sound(raw: Path) -> Path:
    """Five cases with nothing odd: square planes, as scanners make them."""
    for id in IDS:
        for name in ("image.nii.gz", "label.nii.gz"):
            values = values_of(raw / id / name)
            save(raw / id / name, np.pad(values, [(2, 2), (0, 0), (0, 0)], mode="edge"))
    return raw


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found_in_its_case_and_nothing_else_is(sound: Path, name: str) -> None:
    fault, expected = FAULTS[name]
    fault(sound / "pt_3")
    report = check(sound, options=ClassOptions(classes="any"), workers=1)
    about = [one for one in report.findings if one.code != "planes-not-square"]
    assert [(one.code, one.level, one.case) for one in about] == [
        (code, level, "pt_3") for code, level in expected
    ]
    assert report.cases == 5
    for one in about:
        assert one.measured
        assert one.fix
        assert "\n" not in one.measured + one.fix


def test_a_sound_set_gives_no_finding_in_one_process_or_two(sound: Path) -> None:
    assert check(sound, workers=1) == check(sound, workers=2)
    assert check(sound, workers=1).to_json() == {"findings": [], "cases": 5}


def test_a_leak_is_found_across_names_types_and_orders(sound: Path, tmp_path: Path) -> None:
    values = values_of(sound / "pt_1/image.nii.gz")
    flipped = np.ascontiguousarray(values[:, :, ::-1].astype(np.float32))
    affine = np.diag([-2.0, -2.0, -5.0, 1.0])
    save(sound / "pt_10/image.nii.gz", flipped, affine)
    save(sound / "pt_10/label.nii.gz", (flipped > 400).astype(np.uint8), affine)
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": ["pt_1", "pt_2"], "val": ["pt_3"], "test": ["pt_10"]}))
    findings = check(sound, split_file=split, workers=1).findings
    assert [(one.code, one.case) for one in findings if one.level == "error"] == [
        ("leakage", "pt_10")
    ]
    same = {"train": ["pt_1", "pt_10"], "val": ["pt_3"]}
    split.write_text(json.dumps(same))
    codes = [one.code for one in check(sound, split_file=split, workers=1).findings]
    assert "duplicate" in codes
    assert "leakage" not in codes


def test_a_target_that_is_nowhere_is_an_error(sound: Path) -> None:
    findings = check(sound, options=ClassOptions((2,)), workers=1).findings
    assert [one.case for one in findings if one.code == "target-absent"] == ["*"]
    assert check(sound, options=ClassOptions((300,)), workers=1).findings == ()


def test_pictures_are_checked_before_they_can_be_prepared(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    mask = np.zeros((40, 50), np.uint8)
    mask[9:21, 5:27] = 255
    rng = np.random.default_rng(0)
    for number in range(4):
        pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{number}.png")
        Image.fromarray(mask).save(tmp_path / f"masks/{number}.{'jpg' if number else 'png'}")
    report = check(tmp_path, workers=1)
    assert [(one.code, one.level, one.case) for one in report.findings] == [
        ("mask-not-binary", "warning", "*")
    ]
    assert report.findings[0].measured.startswith("3 of 4 .jpg mask(s)")


def test_a_folder_of_data_sets_is_checked_set_by_set(sound: Path, tmp_path: Path) -> None:
    for folder in ("pictures/images", "pictures/masks", "notes"):
        (tmp_path / folder).mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(tmp_path / f"pictures/images/{number}.png")
        Image.new("L", (20, 20), 255).save(tmp_path / f"pictures/masks/{number}.png")
    cut(sound / "pt_1")
    report = check(tmp_path, workers=1)
    assert report.cases == 8
    assert [(one.code, one.case) for one in report.findings] == [
        ("image-damaged", "raw data/pt_1"),
        *(("label-full", f"pictures/{number}") for number in range(3)),
    ]


def test_a_file_alone_is_checked_alone(sound: Path) -> None:
    assert check(sound / "pt_1/image.nii.gz").to_json() == {"findings": [], "cases": 1}
    mask = sound / "mask.nii.gz"
    save(mask, np.minimum(values_of(sound / "pt_1/label.nii.gz"), 1).astype(np.uint8))
    assert [one.code for one in check(mask).findings] == ["image-looks-like-mask"]
    cut(sound / "pt_1")
    assert [(one.code, one.case) for one in check(sound / "pt_1/image.nii.gz").findings] == [
        ("image-damaged", "image.nii.gz")
    ]


def test_dicom_without_an_image_is_a_warning(sound: Path) -> None:
    (sound / "pt_1/plan").mkdir()
    write_contours(sound / "pt_1/plan/RS1")
    findings = check(sound, workers=1).findings
    assert [(one.code, one.case) for one in findings] == [("dicom-unchecked", "pt_1/plan")]


def test_a_series_that_predict_refuses_is_an_error(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", leave_out=(2,))
    report = check(tmp_path / "ct")
    assert [(one.code, one.level) for one in report.findings] == [("image-series", "error")]
    assert report.cases == 1
    assert "1 slice is missing" in report.findings[0].measured


def test_options_that_make_no_sense_are_refused(sound: Path, tmp_path: Path) -> None:
    for options in (
        {"dataset": "nothing"},
        {"options": ClassOptions((0,))},
        {"image_glob": "*/image.nii.gz"},
    ):
        with pytest.raises(ConfigError):
            check(sound, workers=1, **options)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="does not exist"):
        check(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no cases"):
        check(tmp_path / "empty")


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = run_command(["check", "--workers", "1", *arguments])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err
    return code, captured.out


def test_a_clean_set_says_so_and_exits_0(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, str(sound)) == (0, "nothing found in 5 cases\n")


def test_warnings_exit_0_and_errors_2(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    offset(sound / "pt_2")
    code, out = shown(capsys, str(sound))
    assert code == 0
    assert out.startswith("warning hu-offset  pt_2: values 2")
    assert out.endswith("0 errors, 1 warning in 5 cases\n")
    spoil_checksum(sound / "pt_3")
    code, out = shown(capsys, str(sound))
    assert code == 2
    assert out.startswith("error image-damaged  pt_3: ")
    assert out.index("warning hu-offset") > out.index("Fix: ")


def test_json_is_one_object_with_every_finding(
    sound: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for id in IDS:
        nan(sound / id)
    code, out = shown(capsys, str(sound), "--json")
    found: dict[str, Any] = json.loads(out)
    assert code == 2
    assert found["cases"] == 5
    assert [one["case"] for one in found["findings"]] == IDS
    assert found["findings"][0] == {
        "code": "values-not-finite",
        "level": "error",
        "case": "pt_1",
        "measured": "2 voxels are NaN or infinite",
        "fix": "Replace them, for example by -1000 in CT, or leave the case out.",
    }
    code, out = shown(capsys, str(sound))
    assert out.count("values-not-finite") == 1
    assert "pt_1, pt_2, pt_3 and 2 more: 2 voxels" in out


def test_it_writes_nothing(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sound.parent)
    before = sorted(path for path in sound.parent.rglob("*"))
    assert run_command(["check", str(sound), "--quiet", "--workers", "1"]) == 0
    assert sorted(path for path in sound.parent.rglob("*")) == before


REAL: dict[str, set[tuple[str, str]]] = {
    "openkbp-hn-ct": {("mirror-pair-unnamed", "*")},
    "pyradiomics-lung1": set(),
    "ibsi-sts-ct": {("planes-not-square", "*")},
    "msd-hippocampus": {("planes-not-square", "*")},
    "totalsegmentator-tests": {
        ("planes-not-square", "*"),
        ("labels-many", "full_ct"),
        ("labels-many", "sm_ct"),
        ("class-in-some-cases", "*"),
        ("class-imbalance", "*"),
    },
    "kvasir-seg": {("mask-not-binary", "*")},
    "cvc-clinicdb": {("mask-not-binary", "*")},
}
"""What there is to find. DICOM, which other code reads, is left out of the comparison."""


@pytest.mark.data
@pytest.mark.parametrize("name", REAL)
def test_the_real_oddities_are_found_and_nothing_else(real_data: Path, name: str) -> None:
    report = check(real_data / name)
    found = {(one.code, one.case) for one in report.findings if "dicom" not in one.case}
    assert found == REAL[name]
    assert report.errors == 0
    measured = {one.case: one.measured for one in report.findings if one.code == "labels-many"}
    for case, values in (("full_ct", 60), ("sm_ct", 42)):
        assert case not in measured or measured[case].startswith(f"{values} label values")


@pytest.mark.data
@pytest.mark.parametrize(("axis", "words"), [(0, "left to right"), (1, "front to back")])
def test_a_real_case_that_is_mirrored_is_found(
    real_data: Path, tmp_path: Path, axis: int, words: str
) -> None:
    folders = sorted((real_data / "openkbp-hn-ct").glob("pt_*"))[:12]
    for folder in folders:
        (tmp_path / folder.name).symlink_to(folder)
    (tmp_path / folders[5].name).unlink()
    shutil.copytree(folders[5], tmp_path / "mirrored")
    for name in ("image.nii.gz", "label.nii.gz"):
        image = nib.load(folders[5] / name)
        array = np.flip(np.asanyarray(image.dataobj), axis)
        (tmp_path / "mirrored" / name).unlink()
        nib.save(nib.Nifti1Image(array, image.affine), tmp_path / "mirrored" / name)
    findings = check(tmp_path, options=ClassOptions(classes="any")).findings
    assert [(one.code, one.case) for one in findings] == [("mirrored", "mirrored")]
    assert words in findings[0].measured
