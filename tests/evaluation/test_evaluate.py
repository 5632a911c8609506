"""Scores of masks made of blocks, so that every Dice is counted by hand."""

from __future__ import annotations

import csv
import hashlib
import json
import os

import nibabel as nib
import numpy as np
import pytest

from sdseg_cli.core.config import SampleConfig
from sdseg_cli.core.errors import ConfigError, GeometryError
from sdseg_cli.data.manifest import Manifest
from sdseg_cli.evaluation import evaluation_split
from sdseg_cli.evaluation.evaluate import evaluate
from sdseg_cli.evaluation.evaluation_split import SplitOptions
from sdseg_cli.evaluation.results import FEW_NOTE
from sdseg_cli.metrics import ScoringOptions
from sdseg_cli.report.panels import load_panels
from tests.evaluation.options import gathered
from tests.fake_run import AFFINE, EMPTY, SHAPE, Workspace, block, make_workspace, write_nifti

# Each block has 4 columns x 4 rows x 2 slices = 32 voxels; moved by 2 columns half of it overlaps.
FOUR, MOVED = block(slice(4, 8)), block(slice(6, 10))


@pytest.fixture(autouse=True)
def drawn(monkeypatch) -> dict:
    """What would be drawn, path -> rows: drawing takes a second and is tested with `report`."""
    pictures: dict = {}
    monkeypatch.setattr("sdseg_cli.evaluation.evaluate.save_cases", pictures.__setitem__)
    return pictures


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    made = make_workspace(tmp_path, {"a": FOUR, "b": FOUR, "c": FOUR, "nothing": EMPTY})
    made.answers(b=MOVED, c=EMPTY)
    return made


def run(workspace: Workspace, **options):
    options["predictor"] = workspace.predictor
    kinds = {"options": ScoringOptions, "cases": SplitOptions}
    return evaluate(None, workspace.root, **gathered(options, **kinds))


LESIONS = ScoringOptions(detection_iou=0.1)


def row(id: str, **values) -> dict:
    """A case as in the JSON: where nothing else is said, a block found as it is."""
    scores = {"precision": 1.0, "recall": 1.0, "hd95_mm": 0.0, "assd_mm": 0.0}
    scores |= {"surface_dice": 1.0, "volume_difference_ml": 0.0, "detection_f1": 1.0}
    counts = {"reference_voxels": 32, "predicted_voxels": 32}
    lesions = {"reference_lesions": 1, "predicted_lesions": 1, "matched_lesions": 1}
    return {"id": id, **scores, **counts, **lesions, **values}


def test_scores_are_those_counted_by_hand(workspace):
    found = run(workspace, options=LESIONS).to_json()
    # b: two slices are all border, so of 32 border voxels each 16 are shared, 8 lie 2 mm and 8 lie
    # 4 mm away.
    half = {"precision": 0.5, "recall": 0.5, "surface_dice": 0.75, "detection_f1": 1.0}
    assert found["cases"] == [
        row("a", dice=1.0, iou=1.0),
        row("b", dice=0.5, iou=pytest.approx(1 / 3), hd95_mm=4.0, assd_mm=1.5, **half),
        row(
            "c",
            dice=0.0,
            iou=0.0,
            precision=None,
            recall=0.0,
            hd95_mm=None,
            assd_mm=None,
            surface_dice=0.0,
            volume_difference_ml=pytest.approx(-32 * 12 / 1000),
            detection_f1=0.0,
            predicted_voxels=0,
            predicted_lesions=0,
            matched_lesions=0,
        ),
    ]
    assert found["metrics"]["dice"] | {"ci95": None} == {
        "mean": 0.5,
        "median": 0.5,
        "sd": 0.5,
        "ci95": None,
        "n": 3,
        "undefined": 0,
    }
    assert found["metrics"]["hd95_mm"]["mean"] == 2.0
    assert found["metrics"]["hd95_mm"]["undefined"] == 1
    assert found["worst"] == ["c", "b", "a"]
    assert found["notes"] == [
        "precision leaves out 1 of 3 cases with no predicted voxel (c)",
        "hd95_mm and assd_mm leave out 1 of 3 cases with one empty mask (c): over the rest the "
        "mean is optimistic",
        FEW_NOTE.format(3),
    ]
    low, high = found["metrics"]["dice"]["ci95"]
    assert 0 <= low < 0.5 < high <= 1
    assert found["metrics"]["iou"]["mean"] == pytest.approx(4 / 9)
    assert (found["grid"], found["protocol"], found["split"]) == ("native", "standard", "test")
    assert found["run"] == str(workspace.run)
    assert found["sample"] == {"steps": 1, "eta": 0.0, "samples": 1, "noise": "slice", "flips": ""}
    assert found["decoder"] == "exact"


def test_a_case_empty_on_both_sides_is_excluded_and_listed(workspace):
    report = run(workspace, options=LESIONS)
    assert report.to_json()["excluded"] == ["nothing"]
    with (workspace.run / "report" / "test" / "evaluate.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    columns = list(report.to_json()["cases"][0])
    assert list(rows[0]) == [*columns, "grid", "protocol"]
    nothing = {"id": "nothing", "reference_voxels": "0", "predicted_voxels": "0"}
    how = {"grid": "native", "protocol": "standard"}
    assert rows[3] == dict.fromkeys(columns, "") | nothing | how
    assert (rows[2]["dice"], rows[2]["hd95_mm"], rows[2]["matched_lesions"]) == ("0.0", "", "0")
    for cells, case in zip(rows, report.to_json()["cases"], strict=False):
        assert {name: cells[name] for name in columns} == {
            name: "" if value is None else str(value) for name, value in case.items()
        }


def test_the_report_is_written_as_strict_json(workspace):
    def refuse(constant: str):
        raise AssertionError(constant)

    report = run(workspace)
    text = (workspace.run / "report" / "test" / "evaluate.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=refuse) == report.to_json()


def test_best_median_and_worst_are_drawn(workspace, drawn):
    report = run(workspace)
    names = [file.name for file in report.files]
    assert names == [
        "evaluate.csv",
        "evaluate.json",
        "evaluate.tex",
        "best.png",
        "median.png",
        "worst.png",
        "cases.png",
        "report.html",
    ]
    headings = [[(row.heading, row.case_id, row.dice) for row in rows] for rows in drawn.values()]
    each = [("best", "a", 1.0), ("median", "b", 0.5), ("worst", "c", 0.0)]
    assert headings == [each[:1], each[1:2], each[2:], each]
    assert [file.name for file in drawn] == names[3:7]


def test_the_same_predictions_are_shown_by_every_protocol(workspace):
    workspace.answers(nothing=FOUR)  # a false alarm: 0 by standard, 1 by official
    rows = run(workspace).to_json()["protocols"]
    assert [(row["protocol"], row["grid"], row["dice"]["mean"]) for row in rows] == [
        ("standard", "native", 0.375),  # 1, 1/2, 0, 0
        ("standard", "model", 0.375),
        ("official", "model", 0.625),  # 1, 1/2, 0, 1
    ]
    assert [row["excluded"] for row in rows] == [0, 0, 0]
    workspace.answers(nothing=EMPTY)
    rows = run(workspace, seed=1).to_json()["protocols"]
    assert [(row["dice"]["mean"], row["excluded"]) for row in rows] == [
        (0.5, 1),
        (0.5, 1),
        (0.375, 0),  # two empty masks are 0 there
    ]


def test_a_reference_is_known_by_its_voxels_alone(workspace):
    first = run(workspace).references
    workspace.answers(a=MOVED, nothing=FOUR)
    assert run(workspace, seed=1).references == first
    assert first["a"] == first["b"] != first["nothing"]


def test_the_report_names_command_and_hashes_and_has_a_panel_of_each_case(workspace):
    report = run(workspace, command="sdseg evaluate --run 'my run'")
    origin = report.to_json()["provenance"]
    assert origin["command"] == "sdseg evaluate --run 'my run'"
    assert origin["sha256"]["checkpoint"] == hashlib.sha256(b"a checkpoint").hexdigest()
    page = report.files[-1].read_text(encoding="utf-8")
    assert "sdseg evaluate --run &#39;my run&#39;" in page
    panels = load_panels(report.files[-1].parent)
    assert [panel.case_id for panel in panels] == ["a", "b", "c", "nothing"]
    # The third finds nothing in the slice that is shown, the fourth has nothing at all.
    outlines = [(len(panel.reference), len(panel.prediction)) for panel in panels]
    assert outlines == [(1, 1), (1, 1), (1, 0), (0, 0)]


def test_masks_lie_on_the_scans_grid(workspace):
    run(workspace)
    written = nib.load(workspace.run / "predictions" / "test" / "b.nii.gz")
    assert np.array_equal(written.affine, AFFINE)
    assert np.array_equal(np.asarray(written.dataobj), MOVED)


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Files that are read as a scan or a label map, in order."""
    names: list[str] = []
    for name in ("read_image", "read_labels"):
        read = getattr(evaluation_split, name)
        monkeypatch.setattr(
            evaluation_split,
            name,
            lambda path, *more, read=read: names.append(path.name) or read(path, *more),
        )
    return names


@pytest.mark.parametrize("grid", ["native", "model"])
def test_each_case_is_read_and_predicted_once_also_if_it_is_drawn(workspace, drawn, reads, grid):
    workspace.predictor.certainty = 0.75
    run(workspace, grid=grid, seed=3)
    assert [case for case, *_ in workspace.predictor.calls] == ["a", "b", "c", "nothing"]
    assert workspace.predictor.slices == []
    names = ("a", "b", "c", "nothing")
    assert reads == [f"{n}{what}.nii.gz" for n in names for what in ("", "_label")]
    # The blocks lie in slices 1 and 2, and the first of the fullest is drawn.
    (row,) = next(rows for path, rows in drawn.items() if path.name == "median.png")
    assert (row.case_id, row.slice_index, row.probability.max()) == ("b", 1, 0.75)
    assert np.array_equal(row.prediction, np.asarray(row.probability) > 0.5)


def test_a_second_call_predicts_nothing_and_draws_the_same(workspace, drawn, reads):
    workspace.predictor.certainty = 0.75
    run(workspace)
    first = {path: rows[0].probability for path, rows in drawn.items()}
    workspace.predictor.calls.clear()
    second = run(workspace)
    assert workspace.predictor.calls == workspace.predictor.slices == []
    assert len(reads) == 2 * 8
    assert second.to_json()["metrics"]["dice"]["mean"] == 0.5
    for path, rows in drawn.items():
        assert np.array_equal(rows[0].probability, first[path])


@pytest.mark.parametrize("why", ["kept by an earlier version", "another reference"])
def test_of_a_kept_mask_without_the_slice_to_draw_that_slice_is_predicted(workspace, drawn, why):
    run(workspace)
    if why == "another reference":  # that is largest elsewhere
        reference = FOUR + block(slice(0, 2), slices=slice(2, 3))
        write_nifti(workspace.root / "raw" / "a_label.nii.gz", reference)
    else:
        folder = workspace.run / "predictions" / "test"
        index = json.loads((folder / "predictions.json").read_text())
        file = folder / "planes" / "a.npz"
        with np.load(file) as kept:
            np.savez(file, bits=kept["bits"], shape=kept["shape"])
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        index["cases"]["a"]["planes_sha256"] = digest
        (folder / "predictions.json").write_text(json.dumps(index))
    workspace.predictor.calls.clear()
    run(workspace)
    run(workspace)  # keeps it
    assert workspace.predictor.calls == []
    k = 2 if why == "another reference" else 1
    assert workspace.predictor.slices == [("a", k, 0, SampleConfig())]


@pytest.mark.parametrize("change", ["seed", "sample", "checkpoint", "scan", "mask", "index"])
def test_a_mask_that_might_come_out_otherwise_is_predicted_anew(workspace, change):
    run(workspace)
    workspace.predictor.calls.clear()
    folder, options = workspace.run / "predictions" / "test", {}
    if change == "seed":
        options["seed"] = 7
    elif change == "sample":
        options["sample"] = SampleConfig(samples=2)
    elif change == "checkpoint":
        (workspace.run / "checkpoints" / "best.pt").write_bytes(b"another checkpoint")
    elif change == "scan":
        os.utime(workspace.scan("nothing"), ns=(1, 1))
    elif change == "mask":
        write_nifti(folder / "nothing.nii.gz", FOUR)
    else:
        (folder / "predictions.json").write_text("{damaged", encoding="utf-8")
    report = run(workspace, **options)
    expected = "nothing", options.get("seed", 0), options.get("sample", SampleConfig())
    assert expected in workspace.predictor.calls
    assert report.excluded == ("nothing",)


def test_the_model_grid_is_scored_on_the_prepared_planes(workspace):
    report = run(workspace, grid="model")
    assert report.grid == "model"
    values = {result.case_id: result for result in report.cases}
    assert values["b"].values["dice"] == 0.5
    assert values["b"].reference_voxels == 32 * 16 * 16  # 16 voxels a side become 256 pixels
    assert report.excluded == ("nothing",)
    found = report.to_json()
    assert list(found["units"]) == ["dice", "iou", "precision", "recall"]
    assert (found["tolerance"], found["detection_iou"]) == (None, None)
    found = run(workspace, grid="model", detection_iou=0.1).to_json()
    assert found["detection_iou"] is None
    assert found["cases"][0]["reference_lesions"] is None


def test_what_a_case_is_judged_by_is_passed_on_and_said(workspace):
    found = run(workspace, options=ScoringOptions(tolerance=4.0, detection_iou=0.4)).to_json()
    assert found["tolerance"] == {"value": 4.0, "unit": "mm"}
    assert found["detection_iou"] == 0.4
    assert found["cases"][1]["surface_dice"] == 1.0  # none lies further than 4 mm
    assert found["cases"][1]["detection_f1"] == 0.0  # the IoU is a third


def test_the_official_protocol_scores_empty_masks_its_own_way(workspace):
    workspace.answers(nothing=FOUR)
    report = run(workspace, protocol="official")
    assert (report.grid, report.excluded) == ("model", ())
    assert [result.values["dice"] for result in report.cases] == [1.0, 0.5, 0.0, 1.0]
    workspace.answers(nothing=EMPTY)
    report = run(workspace, protocol="official", seed=1)
    assert [result.values["dice"] for result in report.cases] == [1.0, 0.5, 0.0, 0.0]
    assert "empty reference" in report.notes[0]


def test_a_single_case_has_no_interval_but_pictures(tmp_path, drawn):
    made = make_workspace(tmp_path, {"only": FOUR})
    report = run(made)
    assert report.metrics["dice"].to_json() == {
        "mean": 1.0,
        "median": 1.0,
        "sd": None,
        "ci95": [None, None],
        "n": 1,
        "undefined": 0,
    }
    assert [row.case_id for rows in drawn.values() for row in rows] == 4 * ["only"]
    (rows,) = [rows for path, rows in drawn.items() if path.name == "cases.png"]
    assert [row.heading for row in rows] == ["best, median, worst"]


def test_progress_counts_slices_up_to_the_total(workspace):
    told: list[tuple[int, int, str]] = []
    run(workspace, progress=lambda *values: told.append(values))
    assert told[-1] == (16, 16, "case nothing")


def test_unknown_options_are_refused(workspace):
    for options in ({"split": "all"}, {"grid": "voxel"}, {"protocol": "paper"}):
        with pytest.raises(ConfigError, match="is '"):
            run(workspace, **options)
    with pytest.raises(ConfigError, match="no val case"):
        run(workspace, split="val")
    assert not (workspace.run / "report").exists()


def test_a_set_prepared_anew_is_refused(workspace):
    text = workspace.manifest.path.read_text(encoding="utf-8")
    workspace.manifest.path.write_text(text.replace("0" * 64, "1" * 64), encoding="utf-8")
    assert Manifest.load(workspace.manifest.path).split["sha256"] == "1" * 64
    with pytest.raises(ConfigError, match="prepared anew"):
        run(workspace)


def test_a_label_on_another_grid_is_refused(workspace):
    shifted = AFFINE.copy()
    shifted[0, 3] += 40
    write_nifti(workspace.root / "raw" / "b_label.nii.gz", FOUR, shifted)
    apart = r"case b: scan .* and label .* lie up to 20 voxels apart"
    with pytest.raises(GeometryError, match=apart):
        run(workspace)


def test_the_toy_scan_has_the_shape_the_blocks_assume():
    assert FOUR.shape == SHAPE
    assert (int(FOUR.sum()), int((FOUR & MOVED).sum())) == (32, 16)


def test_a_checkpoint_that_training_replaces_meanwhile_is_not_named_as_the_source(workspace):
    """The masks are kept, and the report signed, with the hash of the weights that predicted."""
    best = workspace.run / "checkpoints" / "best.pt"
    before = hashlib.sha256(best.read_bytes()).hexdigest()

    def replaced(*_):
        best.write_bytes(b"better weights")

    found = run(workspace, progress=replaced).to_json()
    assert found["provenance"]["sha256"]["checkpoint"] == before
    workspace.predictor.calls.clear()
    run(workspace)
    assert {case for case, *_ in workspace.predictor.calls} == {"a", "b", "c", "nothing"}


def test_without_a_dice_no_picture_of_a_former_call_is_left(tmp_path):
    made = make_workspace(tmp_path, {"nothing": EMPTY})
    former = made.run / "report" / "test" / "worst.png"
    former.parent.mkdir(parents=True)
    former.write_bytes(b"of a former call")
    assert not any(path.suffix == ".png" for path in run(made).files)
    assert not former.exists()
