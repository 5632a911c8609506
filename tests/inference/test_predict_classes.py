"""Label maps of several classes: what is written for each class, read back voxel for voxel."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from sdseg_cli.core.config import SampleConfig
from sdseg_cli.core.errors import ConfigError
from sdseg_cli.data.spec import ClassRule
from sdseg_cli.imaging.intensity import Normalisation
from sdseg_cli.imaging.io.files import read_image, read_labels
from sdseg_cli.imaging.postprocess import PostProcess
from sdseg_cli.imaging.slices import to_stack
from sdseg_cli.imaging.volume import Volume
from sdseg_cli.inference.ledger import DONE, Ledger, Model, Row
from sdseg_cli.inference.options import OutputPaths, PredictOptions, class_files
from sdseg_cli.inference.predict import predict_file
from tests.dicom_files import write_series
from tests.fake_run import write_nifti

SIDE, SLICES = 8, 5
THREE = ClassRule(((6,), (2, 3), (300,)), ("liver", "left kidney", "tumour, solid"))
REGIONS = ClassRule(((1, 2, 3), (2, 3)), ("whole", "core"))


class Given:
    """A predictor whose answers are given: (K,S,H,W), or (draws,K,S,H,W)."""

    run = Path("given")
    runs = (run,)
    config = SimpleNamespace(sample=SampleConfig())
    decoder = "exact"
    run_threshold = None
    batch_size = None
    normalisation = Normalisation("window", -175, 250)

    def __init__(self, rule: ClassRule, answers: np.ndarray) -> None:
        self.classes, self.answers = rule, answers.astype(np.float32)

    def require_kind(self, name: str, *, picture: bool) -> None:
        """Any kind will do."""

    def batch_bytes(self, draws: int, batch_size: int | None) -> int:
        return 0

    def mirror_safe(self, sample: SampleConfig) -> SampleConfig:
        return sample

    def stack(self, volume: Volume) -> Any:
        return to_stack(volume, self.normalisation, size=self.answers.shape[-1])

    def planes(self, *_: object, **__: object) -> Any:
        yield 0, self.answers.swapaxes(0, 1)

    def draws(self, *_: object, **__: object) -> Any:
        yield 0, self.answers.transpose(2, 0, 1, 3, 4)


def predict(scan: Path, outputs: OutputPaths, given: Given, **options: Any) -> Any:
    predictor: Any = given
    return predict_file(scan, outputs, predictor, PredictOptions(**options))


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """8 x 8 x 5 voxels of 2 x 2 x 3 mm; planes pass to the model's square unchanged."""
    return write_nifti(tmp_path / "scan.nii.gz", np.full((SIDE, SIDE, SLICES), 40, np.int16))


def answers(classes: int) -> np.ndarray:
    return np.zeros((classes, SLICES, SIDE, SIDE))


def planes(path: Path) -> np.ndarray:
    """(S,rows,columns) as the model sees it."""
    return read_labels(path).array.transpose(2, 1, 0)


def test_a_voxel_has_the_likeliest_class_where_that_of_any_is_above_the_threshold(
    scan: Path, tmp_path: Path
) -> None:
    given = answers(3)
    given[:, 1, 2, 0] = 0.3, 0.25, 0.1  # together 0.65: the first
    given[:, 1, 2, 1] = 0.2, 0.1, 0.1  # together 0.4
    given[:, 1, 2, 2] = 0.1, 0.0, 0.9
    out, union = tmp_path / "m.nii.gz", tmp_path / "p.nii.gz"
    report = predict(scan, OutputPaths(out, probability=union), Given(THREE, given))
    found = planes(out)
    assert nib.load(out).get_data_dtype() == np.uint16
    assert found[1, 2, :3].tolist() == [6, 0, 300]
    assert np.count_nonzero(found) == report.foreground_voxels == 2
    # 12 cubic mm a voxel.
    assert report.to_json()["classes"] == [
        {"name": "liver", "value": 6, "voxels": 1, "ml": 0.012},
        {"name": "left kidney", "value": 2, "voxels": 0, "ml": 0.0},
        {"name": "tumour, solid", "value": 300, "voxels": 1, "ml": 0.012},
    ]
    assert np.allclose(read_image(union).values()[:3, 2, 1], [0.65, 0.4, 1.0], atol=1 / 255)


def test_of_regions_the_last_is_shown_and_each_is_counted_and_written(
    scan: Path, tmp_path: Path
) -> None:
    given = answers(2)
    given[0, 2, 1:6, 1:6] = 0.9
    given[1, 2, 2:4, 2:4] = 0.8
    out = tmp_path / "m.nii.gz"
    outputs = OutputPaths(out, per_class=tmp_path / "each")
    report = predict(scan, outputs, Given(REGIONS, given))
    assert [one["voxels"] for one in report.classes] == [25, 4]
    assert np.bincount(planes(out).ravel()).tolist() == [SLICES * 64 - 25, 21, 4]
    assert np.count_nonzero(planes(tmp_path / "each" / "whole.nii.gz")) == 25
    assert np.count_nonzero(planes(tmp_path / "each" / "core.nii.gz")) == 4


def test_each_class_has_a_mask_and_a_probability_of_its_own(scan: Path, tmp_path: Path) -> None:
    given = answers(3)
    given[0, 0], given[1, 0, :4] = 0.2, 0.6
    outputs = OutputPaths(
        tmp_path / "m.nrrd",
        probability=tmp_path / "p",
        probability_per_class=True,
        per_class=tmp_path / "c",
    )
    predict(scan, outputs, Given(THREE, given))
    names = ["left_kidney.nrrd", "liver.nrrd", "tumour_solid.nrrd"]
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == names
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == names
    assert np.count_nonzero(planes(tmp_path / "c" / "left_kidney.nrrd")) == 32
    assert np.isclose(read_image(tmp_path / "p" / "liver.nrrd").values().max(), 0.2)


def test_names_that_come_out_alike_are_numbered() -> None:
    files = class_files(Path("f"), ["a b", "A_b", "肝臓", "../..", "a b"], ".nii.gz")
    assert [path.name for path in files] == [
        "a_b.nii.gz",
        "A_b_2.nii.gz",
        "肝臓.nii.gz",
        "class_4.nii.gz",
        "a_b_3.nii.gz",
    ]
    assert all(path.parent == Path("f") for path in files)


def test_each_class_is_cleaned_by_itself_and_no_hole_takes_anothers_voxels(
    scan: Path, tmp_path: Path
) -> None:
    given = answers(3)
    given[0, 1:4, 1:6, 1:6] = 0.9  # a block with another class and a hole in it
    given[0, 2, 3, 2:5] = 0
    given[1, 2, 3, 3] = 0.9
    given[0, 2, 7, 7] = 0.9  # a speck of each
    given[1, 0, 0, 0] = 0.9
    given[1, 2, 3, 2] = 0.9
    out = tmp_path / "m.nii.gz"
    post = PostProcess(fill_holes=True, keep_largest=1)
    predict(scan, OutputPaths(out), Given(THREE, given), post=post)
    found = planes(out)
    assert found[2, 3, 1:6].tolist() == [6, 2, 2, 6, 6]
    assert found[2, 7, 7] == found[0, 0, 0] == 0


def test_a_voxel_is_unstable_where_its_label_differs_between_draws(
    scan: Path, tmp_path: Path
) -> None:
    first = answers(3)
    first[0, 1, 2, :4] = 0.9
    second = first.copy()
    second[0, 1, 2, 3], second[1, 1, 2, 3] = 0, 0.9  # still foreground, of another class
    out, unstable = tmp_path / "m.nii.gz", tmp_path / "u.nii.gz"
    given = Given(THREE, np.stack([first, second]))
    report = predict(scan, OutputPaths(out, uncertainty=unstable), given, runs=2)
    assert np.argwhere(read_image(unstable).array.transpose(2, 1, 0)).tolist() == [[1, 2, 3]]
    assert report.stability.flipped == pytest.approx(1 / 4)
    # Liver 4 and 3 voxels, 3 shared; the kidney 0 and 1.
    assert report.stability.dice == pytest.approx((6 / 7 + 0) / 2)


def twenty(slices: int, side: int) -> tuple[ClassRule, np.ndarray]:
    rule = ClassRule(
        tuple((5 * n,) for n in range(1, 21)),
        ("liver", "right kidney", "Stück 3", *(f"part {n}" for n in range(4, 21))),
    )
    given = np.zeros((20, slices, side, side))
    for n in range(20):
        given[n, n % slices, side * (n // 10) // 2 :, n % side] = 0.6 + n / 100
    return rule, given


def test_a_segmentation_for_slicer_has_twenty_named_segments(scan: Path, tmp_path: Path) -> None:
    rule, given = twenty(SLICES, SIDE)
    out, plain = tmp_path / "m.seg.nrrd", tmp_path / "m.nii.gz"
    for path in (out, plain):
        predict(scan, OutputPaths(path), Given(rule, given))
    expected = planes(plain)
    assert np.array_equal(planes(out), expected)
    image = SimpleITK.ReadImage(str(out))
    voxels = SimpleITK.GetArrayFromImage(image)
    for n, (name, value) in enumerate(zip(rule.names, rule.values, strict=True)):
        of = {key: image.GetMetaData(f"Segment{n}_{key}") for key in ("Name", "Layer", "Extent")}
        assert (of["Name"], of["Layer"]) == (name, "0")
        assert int(image.GetMetaData(f"Segment{n}_LabelValue")) == value
        assert np.array_equal(voxels == value, expected == value)
        where = np.argwhere(voxels == value)
        extent = [int(one) for one in of["Extent"].split()]
        if len(where):
            pairs = zip(where.min(0)[::-1], where.max(0)[::-1], strict=True)
            assert extent == [end for pair in pairs for end in pair]
        else:
            assert extent == [0, -1] * 3
    assert not image.HasMetaDataKey("Segment20_Name")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("highdicom") is None, reason="no highdicom")
def test_a_dicom_seg_has_twenty_named_segments(tmp_path: Path) -> None:
    from highdicom.seg import segread
    from pydicom import dcmread

    series = write_series(tmp_path / "scan")
    geometry = read_image(series).geometry
    side = max(geometry.shape[:2])
    rule, given = twenty(geometry.shape[2], side)
    out, plain = tmp_path / "m.dcm", tmp_path / "m.nii.gz"
    for path in (out, plain):
        predict(series, OutputPaths(path), Given(rule, given))
    labels = read_labels(plain).array
    seg = segread(out)
    assert [seg.get_segment_description(n).segment_label for n in range(1, 21)] == list(rule.names)
    header = read_image(series).header
    slices = [str(dcmread(series / file).SOPInstanceUID) for file in header.files]
    frames = seg.get_pixels_by_source_instance(slices, assert_missing_frames_are_empty=True)
    for number, value in enumerate(rule.values):
        assert np.array_equal(frames[..., number].transpose(2, 1, 0), labels == value)
    assert seg.get_segment_description(1).segmented_property_type.value == "10200004"
    assert seg.get_segment_description(2).segmented_property_type.meaning == "Kidney"
    assert seg.get_segment_description(3).segmented_property_type.value == "85756007"


def test_the_ledger_has_voxels_and_ml_of_each_class(tmp_path: Path) -> None:
    classes = [{"name": "a, b", "value": 3, "voxels": 7, "ml": 0.5}]
    ledger = Ledger(tmp_path)
    ledger.write(Path("x.nii.gz"), Row("x", "i", "o", DONE, classes=classes))
    assert ledger.find(Path("x.nii.gz")).classes == classes
    ledger.publish()
    head, row = ledger.table.read_text().splitlines()
    assert head.endswith('error,"voxels_a, b","ml_a, b"')
    assert row.endswith(",7,0.5")


def test_masks_of_other_classes_are_no_cohort_to_go_on_with(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.keep_model(Model("first", "1", ("liver", "spleen")), named=True)
    with pytest.raises(ConfigError, match=r"the classes liver, spleen, and second finds one class"):
        ledger.keep_model(Model("second", "2"), named=True)
    assert ledger.model() == Model("first", "1", ("liver", "spleen"))
