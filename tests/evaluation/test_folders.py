"""Two folders of masks made of blocks, so that every score is counted by hand."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

from sdseg_cli.core.errors import ConfigError, DataError, GeometryError, RunError
from sdseg_cli.core.processes import available_cores
from sdseg_cli.evaluation import folders as module
from sdseg_cli.evaluation.folders import FolderOptions
from sdseg_cli.evaluation.results import FEW_NOTE
from sdseg_cli.metrics import ScoringOptions
from tests.evaluation.options import gathered
from tests.fake_run import AFFINE, EMPTY, SHAPE, block, write_nifti

# Each block has 4 columns x 4 rows x 2 slices = 32 voxels; moved by 2 columns half of it overlaps.
FOUR, MOVED = block(slice(4, 8)), block(slice(6, 10))
ORGANS = FOUR + 2 * block(slice(10, 12))  # 32 voxels of label 1, 16 of label 2


@pytest.fixture(autouse=True)
def one_process(monkeypatch) -> None:
    """Starting processes takes longer than scoring blocks; one test asks for two."""
    monkeypatch.setattr("sdseg_cli.evaluation.folders.available_cores", lambda: 1)


def evaluate_folders(pred, ref, **options):
    kinds = {"reading": FolderOptions, "options": ScoringOptions}
    return module.evaluate_folders(pred, ref, **gathered(options, **kinds))


def folders(root, **pairs):
    """pred/ and ref/ with a mask each for every pair; None leaves one out."""
    for name, masks in pairs.items():
        for folder, mask in zip(("pred", "ref"), masks, strict=True):
            if mask is not None:
                write_nifti(root / folder / f"{name}.nii.gz", mask)
    return root / "pred", root / "ref"


def dices(report) -> list[float | None]:
    return [row.values["dice"] for row in report.cases]


def test_folders_are_scored_by_name(tmp_path):
    write_nifti(tmp_path / "pred" / "x.nii", MOVED)
    write_nifti(tmp_path / "pred" / "deep" / "y.nii.gz", FOUR)
    write_nifti(tmp_path / "pred" / "extra.nii.gz", FOUR)
    write_nifti(tmp_path / "ref" / "x.nii.gz", FOUR * 3)
    write_nifti(tmp_path / "ref" / "deep" / "y.nii.gz", FOUR * 5)
    found = evaluate_folders(tmp_path / "pred", tmp_path / "ref").to_json()
    assert [(case["id"], case["dice"]) for case in found["cases"]] == [("deep/y", 1.0), ("x", 0.5)]
    assert (found["run"], found["notes"]) == (
        None,
        ["not scored, no reference: extra", FEW_NOTE.format(2)],
    )
    only = evaluate_folders(
        tmp_path / "pred", tmp_path / "ref", target=(5,), report=tmp_path / "out"
    )
    assert [case.values["dice"] for case in only.cases] == [1.0, 0.0]  # x has no label 5
    assert [file.name for file in only.files] == [
        "evaluate.csv",
        "evaluate.json",
        "evaluate.tex",
        "report.html",
    ]


def test_a_mask_stored_in_another_order_of_axes_scores_the_same(tmp_path):
    """A reference in LAS against a mask in LPS: one grid, the y axis the other way round."""
    turned = AFFINE.copy()
    turned[:, 1] *= -1
    turned[:, 3] = AFFINE @ [0, SHAPE[1] - 1, 0, 1]
    write_nifti(tmp_path / "pred" / "x.nii", MOVED)
    write_nifti(tmp_path / "ref" / "x.nii", FOUR[:, ::-1], turned)
    write_nifti(tmp_path / "same" / "x.nii", FOUR)
    one, other = (evaluate_folders(tmp_path / "pred", tmp_path / ref) for ref in ("ref", "same"))
    assert one.to_json()["metrics"] == other.to_json()["metrics"]
    assert 0 < one.to_json()["metrics"]["dice"]["mean"] < 1
    write_nifti(tmp_path / "wrong" / "x.nii", FOUR, turned @ np.diag([1, -1, -1, 1]))
    with pytest.raises(GeometryError, match="voxels apart"):
        evaluate_folders(tmp_path / "pred", tmp_path / "wrong")


def test_masks_in_linked_folders_are_scored_and_hidden_ones_are_not(tmp_path):
    """Half of the blocks overlap in the linked case: without it the mean would be 1."""
    for name in ("pred/a/m", "ref/a/m", "store/b/m"):
        write_nifti(tmp_path / f"{name}.nii.gz", FOUR)
    write_nifti(tmp_path / "pred/b/m.nii.gz", MOVED)
    for folder in ("pred", "ref"):
        for name in (".cache/c.nii.gz", "a/.m.nii.gz", "__MACOSX/d.nii.gz"):
            write_nifti(tmp_path / folder / name, FOUR)
        (tmp_path / folder / "loop").symlink_to(".")
    (tmp_path / "ref/b").symlink_to("../store/b")
    (tmp_path / "store/b/back").symlink_to("../../ref")
    (tmp_path / "link").symlink_to("ref")
    for ref in ("ref", "link"):
        found = evaluate_folders(tmp_path / "pred", tmp_path / ref).to_json()["cases"]
        assert [(case["id"], case["dice"]) for case in found] == [("a/m", 1.0), ("b/m", 0.5)]


@pytest.mark.parametrize("lost", ["ref/b.nii.gz", "pred/b.nii.gz", "ref/more", "pred/more"])
def test_masks_and_folders_that_are_links_to_nowhere_are_named(tmp_path, lost):
    for name in ("pred/a", "pred/b", "ref/a", "ref/b"):
        write_nifti(tmp_path / f"{name}.nii.gz", FOUR)
    (tmp_path / lost).unlink(missing_ok=True)
    (tmp_path / lost).symlink_to("/not/there")
    with pytest.raises(DataError, match=f"{lost}: a link to /not/there, which is not there"):
        evaluate_folders(tmp_path / "pred", tmp_path / "ref", allow_missing=True)


def test_folders_that_do_not_match_are_refused(tmp_path):
    pred, ref = tmp_path / "pred", tmp_path / "ref"
    with pytest.raises(DataError, match="no such folder"):
        evaluate_folders(pred, ref)
    write_nifti(pred / "x.nii.gz", FOUR)
    ref.mkdir()
    with pytest.raises(DataError, match="no masks"):
        evaluate_folders(pred, ref)
    for name in "xyz":
        write_nifti(ref / f"{name}.nii.gz", FOUR)
    with pytest.raises(DataError, match="no mask for 2 of 3 cases: y, z"):
        evaluate_folders(pred, ref)
    write_nifti(pred / "y.nii.gz", FOUR)
    write_nifti(pred / "z.nii.gz", np.zeros((16, 16, 5), np.uint8))
    sizes = r"case z: prediction .* has shape \(16, 16, 5\), reference .* \(16, 16, 4\)"
    with pytest.raises(GeometryError, match=sizes):
        evaluate_folders(pred, ref)
    write_nifti(pred / "z.nii", FOUR)
    with pytest.raises(DataError, match="both case z"):
        evaluate_folders(pred, ref)


def test_references_of_pictures_are_read_by_the_rule_of_their_set(tmp_path):
    mask = np.zeros((20, 20), np.uint8)
    mask[5:10, 5:10] = 255
    soft = np.where(mask > 0, mask, 11).astype(np.uint8)  # nearly black, as some cvc masks are
    for folder, pixels in (("pred", mask), ("ref", soft)):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels).save(tmp_path / folder / "1.png")
    plain = evaluate_folders(tmp_path / "pred", tmp_path / "ref")
    by_rule = evaluate_folders(tmp_path / "pred", tmp_path / "ref", dataset="cvc")
    assert by_rule.to_json()["metrics"]["dice"]["mean"] == 1.0
    assert plain.to_json()["metrics"]["dice"]["mean"] == pytest.approx(2 * 25 / (25 + 400))
    with pytest.raises(ConfigError, match="Unknown data set adapter 'cvcc'"):
        evaluate_folders(tmp_path / "pred", tmp_path / "ref", dataset="cvcc")


def test_several_processes_find_the_same(tmp_path):
    pred, ref = folders(tmp_path, a=(FOUR, FOUR), b=(MOVED, FOUR), c=(EMPTY, FOUR))
    told: list[tuple[int, int, str]] = []
    alone = evaluate_folders(pred, ref, workers=1, progress=lambda *values: told.append(values))
    assert told == [(1, 3, "case a"), (2, 3, "case b"), (3, 3, "case c")]
    together = evaluate_folders(pred, ref, workers=2)
    when = {"provenance": None}
    assert together.to_json() | when == alone.to_json() | when
    assert available_cores() >= 1


def test_the_report_says_where_the_masks_come_from_and_how_they_are_judged(tmp_path):
    pred, ref = folders(tmp_path, a=(FOUR, FOUR))
    found = evaluate_folders(pred, ref, options=ScoringOptions(3.0, 0.5)).to_json()
    assert (found["run"], found["pred"], found["ref"]) == (None, str(pred), str(ref))
    assert found["tolerance"] == {"value": 3.0, "unit": "mm"}
    assert found["detection_iou"] == 0.5
    assert (found["classes"], found["missing"], found["resampled"]) == (None, [], [])
    assert found["units"]["hd95_mm"] == "mm" and found["units"]["volume_difference_ml"] == "ml"
    assert found["better"]["assd_mm"] == "lower" and found["better"]["dice"] == "higher"
    assert found["better"]["volume_difference_ml"] == "zero"


def test_missing_masks_are_all_named_and_left_out_only_if_allowed(tmp_path):
    names = "abcdefg"
    pairs = {name: (None if name in "bcdefg" else FOUR, FOUR) for name in names}
    pred, ref = folders(tmp_path, **pairs)
    with pytest.raises(DataError, match="6 of 7 cases: b, c, d, e, f, g") as caught:
        evaluate_folders(pred, ref)
    assert "--allow-missing" in caught.value.hint
    found = evaluate_folders(pred, ref, allow_missing=True).to_json()
    assert [case["id"] for case in found["cases"]] == ["a"]
    assert found["missing"] == list("bcdefg")
    assert found["notes"] == ["6 of 7 cases have no mask and are not scored: b, c, d, e, f, g"]


@pytest.mark.parametrize("deep", ["", "patient 1/"])
def test_masks_named_as_nnunet_names_scans_belong_to_references_named_as_its_labels(tmp_path, deep):
    pred, ref = folders(
        tmp_path,
        **{
            f"{deep}a_0000": (MOVED, None),
            f"{deep}a": (None, FOUR),
            f"{deep}b": (FOUR, FOUR),
            f"{deep}b_0001": (EMPTY, None),  # another channel: no mask of b
        },
    )
    found = evaluate_folders(pred, ref)
    assert {row.case_id: row.values["dice"] for row in found.cases} == {
        f"{deep}a": 0.5,
        f"{deep}b": 1.0,
    }
    assert found.notes[:2] == (
        f"not scored, no reference: {deep}b_0001",
        f"masks named as nnU-Net names a scan (_0000 after the case): {deep}a",
    )


def test_references_named_so_themselves_have_masks_of_their_own(tmp_path):
    pred, ref = folders(tmp_path, a_0000=(FOUR, FOUR), a=(MOVED, FOUR))
    assert dices(evaluate_folders(pred, ref)) == [0.5, 1.0]
    (pred / "a.nii.gz").unlink()
    with pytest.raises(DataError, match="no mask for 1 of 2 cases: a"):
        evaluate_folders(pred, ref)  # that of a_0000 is not taken twice


def test_two_masks_that_may_both_be_meant_are_refused(tmp_path):
    pred, ref = folders(tmp_path, a_0000=(FOUR, None), a=(MOVED, FOUR))
    with pytest.raises(DataError, match=r"a_0000\.nii\.gz .*a\.nii\.gz are both masks of case a"):
        evaluate_folders(pred, ref)


def test_no_mask_at_all_is_refused_even_if_allowed(tmp_path):
    pred, ref = folders(tmp_path, a=(FOUR, None), b=(None, FOUR), c=(None, FOUR))
    with pytest.raises(DataError, match="no mask for any of 2 cases, such as b"):
        evaluate_folders(pred, ref, allow_missing=True)


def test_grids_are_compared_before_any_case_is_scored(tmp_path, monkeypatch):
    def scored(*_: object) -> None:
        raise AssertionError("scored before the headers were looked at")

    monkeypatch.setattr("sdseg_cli.evaluation.folders.score_pair", scored)
    pred, ref = folders(tmp_path, a=(FOUR, FOUR), z=(FOUR[:, :, :3], FOUR))
    with pytest.raises(GeometryError, match=r"case z: .*\(16, 16, 3\)") as caught:
        evaluate_folders(pred, ref)
    assert "--resample" in caught.value.hint


def test_resampling_is_asked_for_and_said(tmp_path):
    """A mask at twice the resolution in the plane, in another corner of the world."""
    pred, ref = folders(tmp_path, a=(FOUR, FOUR), b=(None, FOUR))
    fine = FOUR.repeat(2, axis=0).repeat(2, axis=1)
    half = np.diag([0.5, 0.5, 1, 1])
    half[:2, 3] = -0.25  # the fine voxels' centres lie a quarter of a voxel off
    write_nifti(pred / "b.nii.gz", fine, AFFINE @ half)
    with pytest.raises(GeometryError, match="case b"):
        evaluate_folders(pred, ref)
    found = evaluate_folders(pred, ref, resample=True)
    assert dices(found) == [1.0, 1.0]
    assert found.to_json()["resampled"] == ["b"]
    assert found.notes == ("resampled onto the reference's grid, to the nearest neighbour: b",)


def test_pictures_of_two_sizes_are_refused_also_with_resample(tmp_path):
    for folder, size in (("pred", 8), ("ref", 9)):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.ones((size, 8), np.uint8)).save(tmp_path / folder / "1.png")
    with pytest.raises(GeometryError, match=r"\(8, 8, 1\)") as caught:
        evaluate_folders(tmp_path / "pred", tmp_path / "ref", resample=True)
    assert "--resample" not in caught.value.hint


def test_pictures_are_measured_in_pixels_and_have_no_volume(tmp_path):
    for folder, column in (("pred", 5), ("ref", 2)):
        (tmp_path / folder).mkdir()
        pixels = np.zeros((9, 9), np.uint8)
        pixels[4, column] = 255
        Image.fromarray(pixels).save(tmp_path / folder / "1.png")
    found = evaluate_folders(tmp_path / "pred", tmp_path / "ref").to_json()
    (case,) = found["cases"]
    assert (case["hd95"], case["assd"], case["surface_dice"]) == (3.0, 3.0, 0.0)
    assert found["units"]["hd95"] == "px" and found["tolerance"] == {"value": 2.0, "unit": "px"}
    assert "volume_difference" not in " ".join(found["units"])


def test_each_class_is_scored_on_its_own(tmp_path):
    moved = MOVED + 2 * block(slice(10, 12))
    pred, ref = folders(tmp_path, a=(moved, ORGANS), b=(FOUR, FOUR), c=(EMPTY, EMPTY))
    report = evaluate_folders(pred, ref, classes={1: (1,), 2: (2,)}, report=tmp_path / "out")
    found = report.to_json()
    rows = [(case["id"], case["class"], case["dice"]) for case in found["cases"]]
    assert rows == [("a", 1, 0.5), ("a", 2, 1.0), ("b", 1, 1.0)]
    assert found["excluded"] == ["c"]
    assert "3 of 6 pairs of case and class are empty in both files and not scored" in found["notes"]
    assert {name: one["dice"]["mean"] for name, one in found["classes"].items()} == {
        "1": 0.75,
        "2": 1.0,
    }
    # By case first: a has 0.75 over its classes, b 1.
    assert found["metrics"]["dice"]["mean"] == 0.875
    assert (found["metrics"]["dice"]["n"], found["classes"]["2"]["dice"]["n"]) == (2, 1)
    assert found["worst"] == ["a", "b"]
    with (tmp_path / "out" / "evaluate.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [(cells["id"], cells["class"]) for cells in table][:3] == [
        ("a", "1"),
        ("a", "2"),
        ("b", "1"),
    ]
    assert json.loads((tmp_path / "out" / "evaluate.json").read_text()) == found


@pytest.mark.parametrize("side", ["pred", "ref"])
def test_labels_in_no_class_are_background_and_noted(tmp_path, side):
    pred, ref = folders(tmp_path, a=(FOUR, FOUR))
    write_nifti(tmp_path / side / "a.nii.gz", FOUR + 9 * block(slice(10, 12)))
    found = evaluate_folders(pred, ref, classes={1: (1,)})
    assert dices(found) == [1.0]
    assert "labels in no class of --classes are background: 9" in found.notes


def test_a_class_of_several_labels_has_a_name(tmp_path):
    pred, ref = folders(tmp_path, a=(ORGANS, ORGANS))
    found = evaluate_folders(pred, ref, classes={"both": (1, 2), 2: (2,)}).to_json()
    assert [(case["class"], case["dice"]) for case in found["cases"]] == [("both", 1.0), (2, 1.0)]


def test_classes_that_make_no_sense_are_refused(tmp_path):
    pred, ref = folders(tmp_path, a=(FOUR, FOUR))
    with pytest.raises(ConfigError, match="--classes and --target"):
        evaluate_folders(pred, ref, classes={1: (1,)}, target=(1,))
    with pytest.raises(ConfigError, match="--classes is"):
        evaluate_folders(pred, ref, classes={0: (0,)})


def test_the_target_is_looked_for_in_a_mask_of_several_labels(tmp_path):
    pred, ref = folders(tmp_path, a=(ORGANS, ORGANS))
    found = evaluate_folders(pred, ref, target=(2,))
    assert dices(found) == [1.0]
    assert found.notes == ("1 of 1 masks hold several labels, of which --target 2 counts: a",)


def test_a_mask_of_several_labels_without_a_target_is_any_label_and_a_note_says_so(tmp_path):
    pred, ref = folders(tmp_path, a=(ORGANS, FOUR), b=(FOUR, FOUR))
    found = evaluate_folders(pred, ref)
    assert dices(found) == [pytest.approx(2 * 32 / (48 + 32)), 1.0]
    assert found.notes == ("1 of 2 masks hold several labels, of which any label counts: a",)


def test_a_mask_of_one_value_is_the_target_whatever_the_value(tmp_path):
    pred, ref = folders(tmp_path, a=(FOUR, FOUR * 5))
    assert dices(evaluate_folders(pred, ref, target=(5,))) == [1.0]


def test_beside_label_maps_a_mask_with_another_label_alone_lacks_the_target(tmp_path):
    """In b the second organ was not found at all: what it holds is not it."""
    pred, ref = folders(tmp_path, a=(ORGANS, ORGANS), b=(FOUR, ORGANS))
    assert dices(evaluate_folders(pred, ref, target=(2,))) == [1.0, 0.0]


def test_a_target_that_cannot_be_looked_for_is_refused(tmp_path):
    soft = FOUR * 200 + block(slice(10, 12)) * 90
    pred, ref = folders(tmp_path, a=(soft, FOUR))
    with pytest.raises(DataError, match=r"case a: .* holds the values 90, 200, none of which"):
        evaluate_folders(pred, ref, target=(1,))


def test_probabilities_and_nan_are_no_masks(tmp_path):
    pred, ref = folders(tmp_path, a=(FOUR, FOUR))
    write_nifti(pred / "a.nii.gz", FOUR.astype(np.float32) * 0.7)
    with pytest.raises(
        DataError, match=r"case a: .*not a label map \(values from 0 to 0\.7\)"
    ) as caught:
        evaluate_folders(pred, ref)
    assert "0.5" in caught.value.hint
    broken = FOUR.astype(np.float32)
    broken[3, 3, 2] = np.nan
    write_nifti(pred / "a.nii.gz", broken)
    with pytest.raises(DataError, match=r"case a: .*it holds NaN") as caught:
        evaluate_folders(pred, ref)
    assert "NaN" in caught.value.hint


def test_a_damaged_header_names_its_case(tmp_path):
    pred, ref = folders(tmp_path, a=(FOUR, FOUR), b=(FOUR, FOUR))
    (pred / "b.nii.gz").write_bytes(b"no scan")
    with pytest.raises(DataError, match=r"case b: .*not a gzip file"):
        evaluate_folders(pred, ref)


def test_the_same_folders_by_both_protocols(tmp_path):
    pred, ref = folders(tmp_path, a=(MOVED, FOUR), b=(FOUR, EMPTY), c=(EMPTY, EMPTY))
    standard, official = (
        evaluate_folders(pred, ref, protocol=protocol) for protocol in ("standard", "official")
    )
    assert dices(standard) == [0.5, 0.0, None]
    assert (standard.grid, standard.excluded) == ("native", ("c",))
    assert dices(official) == [0.5, 1.0, 0.0]
    assert (official.grid, official.excluded) == ("model", ())
    assert official.cases[0].reference_voxels == 32 * 16 * 16  # 16 voxels a side become 256 pixels
    assert list(official.units) == ["dice", "iou", "precision", "recall"]
    assert "256 x 256" in official.notes[0] and "official protocol" in official.notes[1]
    model = evaluate_folders(pred, ref, grid="model")
    assert (dices(model), model.protocol) == ([0.5, 0.0, None], "standard")
    with pytest.raises(ConfigError, match="--grid is 'voxel'"):
        evaluate_folders(pred, ref, grid="voxel")


def test_one_folder_as_both_is_refused(tmp_path):
    pred, _ = folders(tmp_path, x=(FOUR, FOUR))
    with pytest.raises(ConfigError, match="both --pred and --ref"):
        evaluate_folders(pred, pred)


def test_a_target_that_no_reference_holds_is_refused(tmp_path):
    pred, ref = folders(tmp_path, x=(FOUR, ORGANS), y=(FOUR, FOUR))
    with pytest.raises(DataError, match="no reference holds --target 9") as caught:
        evaluate_folders(pred, ref, target=(9,))
    assert caught.value.hint == "They hold 1,2."


def test_references_of_several_labels_without_a_target_are_named(tmp_path):
    pred, ref = folders(tmp_path, x=(FOUR, ORGANS), y=(FOUR, FOUR))
    said = "1 of 2 references hold several labels, of which any label counts: x"
    assert said in evaluate_folders(pred, ref).notes
    assert said not in evaluate_folders(pred, ref, target=(1,)).notes


def test_a_mask_of_another_label_than_the_target_is_named(tmp_path):
    pred, ref = folders(tmp_path, x=(2 * FOUR, ORGANS), y=(FOUR, ORGANS))
    (note,) = evaluate_folders(pred, ref, target=(1,)).notes
    assert note.startswith("1 of 2 masks hold one label that is in their reference but not")
    assert note.endswith(": x")


def test_resampling_that_leaves_nothing_is_refused(tmp_path):
    away = AFFINE.copy()
    away[0, 3] += 500
    write_nifti(tmp_path / "pred" / "x.nii.gz", FOUR, away)
    write_nifti(tmp_path / "ref" / "x.nii.gz", FOUR)
    with pytest.raises(GeometryError, match=r"case x: nothing of .*x\.nii\.gz is left"):
        evaluate_folders(tmp_path / "pred", tmp_path / "ref", resample=True)


def cut(mask: np.ndarray, *box: slice) -> tuple[np.ndarray, np.ndarray]:
    """A part of a mask, and where it lies."""
    affine = AFFINE.copy()
    affine[:3, 3] = (AFFINE @ [*(part.start or 0 for part in box), 1])[:3]
    return mask[box], affine


SPREAD = block(slice(2, 12), rows=slice(1, 10), slices=slice(0, 4))  # 10 x 9 x 4 = 360 voxels
LOOSE = FOUR + block(slice(13, 15), slices=slice(3, 4))  # 32 voxels, and 8 elsewhere


@pytest.mark.parametrize(
    ("mask", "box", "outside"),
    [
        (SPREAD, (slice(4, 8), slice(4, 8), slice(1, 3)), 360 - 32),  # at minimum extent
        (SPREAD, (slice(3, 16), slice(4, 8), slice(1, 4)), 360 - 9 * 4 * 3),
        (LOOSE, (slice(4, 8), slice(4, 8), slice(1, 3)), 8),
        (FOUR, (slice(4, 8), slice(4, 8), slice(1, 3)), 0),
        (MOVED, (slice(4, 8), slice(4, 8), slice(1, 3)), 16),
    ],
)
def test_a_reference_cut_to_what_it_shows_scores_as_the_whole_one(tmp_path, mask, box, outside):
    write_nifti(tmp_path / "pred" / "x.nii.gz", mask)
    write_nifti(tmp_path / "ref" / "x.nii.gz", FOUR)
    write_nifti(tmp_path / "crop" / "x.nii.gz", *cut(FOUR, *box))
    whole = evaluate_folders(tmp_path / "pred", tmp_path / "ref")
    found = evaluate_folders(tmp_path / "pred", tmp_path / "crop", resample=True)
    assert found.cases[0].values == pytest.approx(whole.cases[0].values)
    assert found.cases[0].counts == whole.cases[0].counts
    assert found.to_json()["outside"] == ({"x": outside} if outside else {})
    said = f"predicted voxels beyond the reference's grid, counted as false: x ({outside})"
    assert (said in found.notes) == bool(outside)


def test_what_lies_beyond_a_reference_counts_by_hand(tmp_path):
    # 32 voxels right and 328 wrong: Dice 64 / (360 + 32).
    write_nifti(tmp_path / "pred" / "x.nii.gz", SPREAD)
    crop = (slice(4, 8), slice(4, 8), slice(1, 3))
    write_nifti(tmp_path / "ref" / "x.nii.gz", *cut(FOUR, *crop))
    found = evaluate_folders(tmp_path / "pred", tmp_path / "ref", resample=True)
    assert dices(found) == [pytest.approx(64 / 392)]


def test_a_slice_cut_out_of_a_volume_is_measured_as_a_part_of_it(tmp_path):
    one = block(slice(4, 8), slices=slice(1, 2))
    write_nifti(tmp_path / "pred" / "x.nii.gz", block(slice(4, 9), slices=slice(1, 2)))
    write_nifti(tmp_path / "ref" / "x.nii.gz", one)
    write_nifti(tmp_path / "crop" / "x.nii.gz", *cut(one, slice(2, 12), slice(2, 12), slice(1, 2)))
    whole = evaluate_folders(tmp_path / "pred", tmp_path / "ref").cases[0].values
    found = evaluate_folders(tmp_path / "pred", tmp_path / "crop", resample=True)
    assert found.cases[0].values == pytest.approx(whole)


def test_both_cut_and_each_class_for_itself(tmp_path):
    """Label 2 (16 voxels) lies beyond the reference, and 8 of label 1's 32."""
    write_nifti(
        tmp_path / "pred" / "x.nii.gz", *cut(ORGANS, slice(2, 13), slice(4, 8), slice(1, 3))
    )
    write_nifti(tmp_path / "ref" / "x.nii.gz", *cut(FOUR, slice(5, 10), slice(2, 9), slice(0, 4)))
    found = evaluate_folders(
        tmp_path / "pred", tmp_path / "ref", resample=True, classes={1: (1,), 2: (2,)}
    )
    # Label 1: 24 of 24 found, 8 more: 48 / 56. Label 2: in the prediction alone.
    assert dices(found) == [pytest.approx(48 / 56), 0.0]
    assert found.to_json()["outside"] == {"x": 8 + 16}


def test_a_prediction_wholly_beside_a_cut_reference_scores_0(tmp_path):
    write_nifti(tmp_path / "pred" / "x.nii.gz", block(slice(12, 16)))
    crop = cut(FOUR, slice(4, 8), slice(4, 8), slice(1, 3))
    write_nifti(tmp_path / "ref" / "x.nii.gz", *crop)
    found = evaluate_folders(tmp_path / "pred", tmp_path / "ref", resample=True)
    # Border voxels lie 5 to 8 columns of 2 mm apart: column 15 is 8 from 7, column 4 from 12.
    assert (dices(found), found.cases[0].values["hd95_mm"]) == ([0.0], 16.0)


def test_the_models_planes_are_those_of_the_reference_so_nothing_may_lie_beyond(tmp_path):
    write_nifti(tmp_path / "pred" / "x.nii.gz", SPREAD)
    write_nifti(tmp_path / "ref" / "x.nii.gz", *cut(FOUR, slice(4, 8), slice(4, 8), slice(1, 3)))
    with pytest.raises(GeometryError, match=r"case x: 328 voxels of .* beyond the grid"):
        evaluate_folders(tmp_path / "pred", tmp_path / "ref", resample=True, grid="model")


def test_grids_that_reach_too_far_for_the_memory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sdseg_cli.evaluation.pairs.available_bytes", lambda: 1000)
    write_nifti(tmp_path / "pred" / "x.nii.gz", SPREAD)
    write_nifti(tmp_path / "ref" / "x.nii.gz", *cut(FOUR, slice(4, 8), slice(4, 8), slice(1, 3)))
    with pytest.raises(GeometryError, match=r"case x: .* do not fit into memory"):
        evaluate_folders(tmp_path / "pred", tmp_path / "ref", resample=True)


def test_the_report_of_a_run_is_not_mixed_with_that_of_masks(tmp_path):
    pred, ref = folders(tmp_path, x=(FOUR, FOUR))
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "panels.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds the report of a run"):
        evaluate_folders(pred, ref, report=tmp_path / "report")


def test_a_report_that_cannot_be_written_is_refused_before_scoring(tmp_path, monkeypatch):
    pred, ref = folders(tmp_path, x=(FOUR, FOUR))
    monkeypatch.setattr("sdseg_cli.evaluation.folders._score", lambda *_: pytest.fail("scored"))
    with pytest.raises(RunError, match="no report can be written there"):
        evaluate_folders(pred, ref, report=pred / "x.nii.gz" / "deep")


def test_no_report_is_written_among_the_masks(tmp_path):
    pred, ref = folders(tmp_path, a=(FOUR, FOUR))
    for folder in (pred, ref):
        with pytest.raises(ConfigError, match="holds the masks"):
            evaluate_folders(pred, ref, report=folder)


@pytest.mark.parametrize("mask", ["1/image", "1/label", "1/mask", "1"])
def test_label_maps_of_case_folders_are_the_references_and_not_their_scans(tmp_path, mask):
    """A scan of whole numbers could pass for a label map."""
    for case, scan in (("1", MOVED), ("2", EMPTY)):
        write_nifti(tmp_path / "ref" / case / "image.nii.gz", scan)
        write_nifti(tmp_path / "ref" / case / "label.nii.gz", FOUR)
    write_nifti(tmp_path / "pred" / f"{mask}.nii.gz", MOVED)
    write_nifti(tmp_path / "pred" / "2" / "image.nii.gz", FOUR)
    found = evaluate_folders(tmp_path / "pred", tmp_path / "ref").to_json()
    assert [(case["id"], case["dice"]) for case in found["cases"]] == [("1", 0.5), ("2", 1.0)]
    assert found["notes"] == [FEW_NOTE.format(2)]


def test_a_case_folder_whose_label_map_is_unclear_is_refused(tmp_path):
    for name in ("1/image", "1/label", "2/image", "2/label", "2/mask"):
        write_nifti(tmp_path / "ref" / f"{name}.nii.gz", FOUR)
    write_nifti(tmp_path / "pred" / "1.nii.gz", FOUR)
    with pytest.raises(DataError, match="ref/2: not one label map beside its scan"):
        evaluate_folders(tmp_path / "pred", tmp_path / "ref")


def test_scans_beside_label_maps_are_no_references(tmp_path):
    for folder in ("images", "labels"):
        write_nifti(tmp_path / "ref" / folder / "1.nii.gz", FOUR)
    write_nifti(tmp_path / "pred" / "images" / "1.nii.gz", FOUR)
    with pytest.raises(DataError, match="scans in images/ beside label maps") as caught:
        evaluate_folders(tmp_path / "pred", tmp_path / "ref")
    assert "ref/labels" in caught.value.hint


def test_two_masks_of_a_case_folder_are_refused(tmp_path):
    for name in ("ref/1/image", "ref/1/label", "pred/1/image", "pred/1/other"):
        write_nifti(tmp_path / f"{name}.nii.gz", FOUR)
    with pytest.raises(DataError, match="both masks of case 1"):
        evaluate_folders(tmp_path / "pred", tmp_path / "ref")


def test_a_note_on_scores_of_classes_counts_pairs_of_case_and_class(tmp_path):
    pred, ref = folders(tmp_path, x=(FOUR, ORGANS), y=(ORGANS, ORGANS))
    notes = evaluate_folders(pred, ref, classes={1: (1,), 2: (2,)}).to_json()["notes"]
    assert any("leave out 1 of 4 pairs of case and class with one empty mask" in n for n in notes)
