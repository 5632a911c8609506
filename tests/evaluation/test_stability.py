"""Runs that differ by a known number of pixels."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sdseg_cli.core.config import SampleConfig
from sdseg_cli.core.errors import ConfigError, DataError, WeightsError
from sdseg_cli.core.progress import no_op
from sdseg_cli.evaluation.evaluation_split import CaseProgress, SplitOptions
from sdseg_cli.evaluation.stability import StabilityOptions, Trial, open_conditions, stability
from sdseg_cli.model.weights import WeightStore
from sdseg_cli.training.weights import add_weights
from tests.evaluation.options import gathered
from tests.fake_run import EMPTY, Workspace, block, make_workspace
from tests.parity.fill import alexnet, lpips_heads

FOUR, MOVED = block(slice(4, 8)), block(slice(6, 10))
# Moved by half, 2 x 2 columns of 4 rows differ on each of 2 slices: 16 of a slice's 256 voxels.
DIFFERENT = 16 / 256
PSNR = -10 * math.log10(DIFFERENT)


@pytest.fixture(autouse=True)
def drawn(monkeypatch) -> dict:
    """What would be drawn, path -> the slice: drawing is tested with `report`."""
    pictures: dict = {}
    monkeypatch.setattr(
        "sdseg_cli.evaluation.stability.stability_picture",
        lambda path, view, dice: pictures.__setitem__(path, (view, dice)),
    )
    return pictures


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch) -> WeightStore:
    """An empty weight store."""
    monkeypatch.setenv("SDSEG_WEIGHTS", str(tmp_path / "store"))
    return WeightStore.default()


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return make_workspace(tmp_path, {"a": FOUR, "b": FOUR})


def run(workspace: Workspace, **options):
    options["predictor"] = workspace.predictor
    return stability(
        None,
        workspace.root,
        **gathered(options, options=StabilityOptions, cases=SplitOptions),
    )


def opened(workspace: Workspace, runs: int):
    cases = SplitOptions(device="cpu", predictor=workspace.predictor)
    return open_conditions(None, workspace.root, StabilityOptions(runs), cases)


def test_one_run_is_refused(workspace):
    with pytest.raises(ConfigError, match="nothing to compare") as failure:
        run(workspace, runs=1)
    assert "at least 2" in failure.value.hint
    assert workspace.predictor.calls == []


def test_runs_that_agree_are_wholly_similar_and_their_psnr_is_absent(workspace):
    found = run(workspace, runs=3).to_json()
    for name in ("seg", "score"):
        assert found[name] == {"psnr": None, "ssim": 1.0, "ms_ssim": 1.0, "lpips": None}
    assert (found["dice"]["mean"], found["dice"]["sd"]) == (1.0, 0.0)
    assert found["dice"]["by_run"] == [1.0, 1.0, 1.0]
    assert found["identical"] == {"seg": 8, "score": 8}
    assert found["pairs"] == 8
    assert found["median"]["seg"] == {"psnr": None, "ssim": 1.0, "ms_ssim": 1.0, "lpips": None}
    assert any("seg psnr: its median is infinite" in note for note in found["notes"])
    assert found["flipped"]["fraction"] == found["flipped"]["of_foreground"] == 0.0
    assert found["most_unstable"] == []
    # 2 cases x 2 slices with a reference x 2 other runs
    assert any("seg psnr: 8 of 8 pairs" in note and "absent" in note for note in found["notes"])
    assert any(note.startswith("lpips is absent") for note in found["notes"])


@pytest.mark.slow
def test_psnr_is_that_of_the_pixels_that_differ(workspace):
    workspace.answers(a={0: FOUR, 1: MOVED}, b={0: FOUR, 1: MOVED})
    found = run(workspace, runs=2).to_json()
    assert found["seg"]["psnr"] == pytest.approx(PSNR)
    assert found["score"]["psnr"] == pytest.approx(PSNR)
    assert 0 < found["seg"]["ssim"] < 1
    assert 0 < found["seg"]["ms_ssim"] < 1
    assert not any("identical" in note for note in found["notes"])


def test_score_keeps_what_the_threshold_hides(workspace):
    workspace.predictor.certainty = 0.4
    workspace.answers(a={0: FOUR, 1: MOVED}, b=FOUR)
    found = run(workspace, runs=2).to_json()
    # No pixel exceeds 0.5, so the masks are empty and alike; the scores differ by 0.4 of the range.
    assert (found["seg"]["psnr"], found["seg"]["ssim"]) == (None, 1.0)
    assert found["score"]["psnr"] == pytest.approx(PSNR - 20 * math.log10(0.4), abs=1e-4)


def test_identical_pairs_are_counted_and_the_others_averaged(workspace):
    workspace.answers(a={0: FOUR, 1: MOVED})
    found = run(workspace, runs=2).to_json()
    assert found["seg"]["psnr"] == pytest.approx(PSNR)
    assert any("seg psnr: 2 of 4 pairs" in note for note in found["notes"])


def test_only_slices_with_a_reference_are_compared(workspace):
    beside = FOUR + block(slice(0, 4), slices=slice(0, 1))  # on a slice without reference
    workspace.answers(a={0: FOUR, 1: beside}, b=FOUR)
    assert run(workspace, runs=2).to_json()["seg"]["ssim"] == 1.0


def test_dice_spreads_over_runs_not_over_cases(workspace):
    workspace.answers(a={0: FOUR, 1: MOVED}, b={0: FOUR, 1: MOVED})
    found = run(workspace, runs=2).to_json()
    # Run 1 has Dice 1 on both cases, run 2 has 0.5: deviation 0.5 / sqrt(2).
    assert found["dice"]["by_run"] == [1.0, 0.5]
    assert found["dice"]["mean"] == 0.75
    assert found["dice"]["sd"] == pytest.approx(0.5 / math.sqrt(2))


def test_each_run_has_its_own_seed(workspace):
    ten = SampleConfig(steps=10)
    found = run(workspace, runs=3, seed=5, sample=ten).to_json()
    assert workspace.predictor.calls[:3] == [("a", 5, ten), ("a", 6, ten), ("a", 7, ten)]
    assert found["seeds"] == [5, 6, 7]
    assert found["sample"] == {"steps": 10, "eta": 0.0, "samples": 1, "noise": "slice", "flips": ""}


def test_a_case_without_reference_is_left_out_and_named(tmp_path):
    made = make_workspace(tmp_path, {"a": FOUR, "nothing": EMPTY})
    made.answers(nothing={0: EMPTY, 1: FOUR})
    found = run(made, runs=2).to_json()
    assert found["dice"]["by_run"] == [1.0, 1.0]
    assert found["seg"]["ssim"] == 1.0
    assert any("empty reference: nothing" in note for note in found["notes"])


def test_nothing_to_compare_leaves_nulls_and_a_reason(tmp_path, drawn):
    made = make_workspace(tmp_path, {"nothing": EMPTY})
    former = made.run / "report" / "test" / "stability.png"
    former.parent.mkdir(parents=True)
    former.write_bytes(b"of a former call")
    found = run(made, runs=2).to_json()
    assert not former.exists()  # the page would show it as of this one
    assert found["seg"] == dict.fromkeys(("psnr", "ssim", "ms_ssim", "lpips"))
    assert found["dice"] == {"mean": None, "sd": None, "by_run": [], "by_case": []}
    assert found["flipped"]["by_case"] == [
        {"id": "nothing", "fraction": 0.0, "of_foreground": None}
    ]
    assert (found["pairs"], found["identical"]) == (0, {"seg": 0, "score": 0})
    assert any("no run finds anything in nothing" in note for note in found["notes"])
    assert any("nothing was compared" in note for note in found["notes"])
    assert not drawn


def test_the_least_stable_case_is_drawn_where_most_flips(workspace, drawn):
    workspace.answers(b={0: FOUR, 1: MOVED, 2: FOUR})
    report = run(workspace, runs=3)
    ((path, (view, dice)),) = drawn.items()
    assert path in report.files
    assert path == workspace.run / "report" / "test" / "stability.png"
    assert (view.case_id, view.slice_index, view.probability.shape) == ("b", 1, (3, 256, 256))
    assert dice == {"a": (1.0, 1.0, 1.0), "b": (1.0, 0.5, 1.0)}
    workspace.answers(b={0: FOUR, 1: FOUR + block(slice(0, 4), slices=slice(3, 4))})
    run(workspace, runs=2)
    assert drawn[path][0].slice_index == 3  # without reference, but there it flips


def test_without_any_flip_the_first_case_is_drawn_where_there_is_most_to_see(workspace, drawn):
    run(workspace, runs=2)
    ((view, _),) = drawn.values()
    assert (view.case_id, view.slice_index) == ("a", 1)


def test_files_hold_a_row_per_case_and_run_and_strict_json(workspace):
    def refuse(constant: str):
        raise AssertionError(constant)

    workspace.answers(b={0: FOUR, 1: MOVED})
    report = run(workspace, runs=2)
    folder = workspace.run / "report" / "test"
    text = (folder / "stability.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=refuse) == report.to_json()
    with (folder / "stability.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["id"], row["run"], row["seed"], row["dice"]) for row in rows] == [
        ("a", "1", "0", "1.0"),
        ("a", "2", "1", "1.0"),
        ("b", "1", "0", "1.0"),
        ("b", "2", "1", "0.5"),
    ]
    assert [row["seg_psnr"] for row in rows[:3]] == ["", "", ""]
    assert float(rows[3]["seg_psnr"]) == pytest.approx(PSNR)
    # Both filled slices of a are the same plane twice, those of b differ; run 1 is the yardstick.
    assert [row["seg_identical"] for row in rows] == ["", "2", "", "0"]


def test_lpips_is_measured_over_all_slices_when_weights_are_given(workspace, tmp_path):
    save_file(alexnet(), tmp_path / "backbone.safetensors")
    save_file(lpips_heads(), tmp_path / "linear.safetensors")
    options = {
        "runs": 2,
        "lpips_backbone": tmp_path / "backbone.safetensors",
        "lpips_linear": tmp_path / "linear.safetensors",
    }
    workspace.answers(a={0: FOUR, 1: MOVED})
    report = run(workspace, **options)
    measured = report.comparisons[0].values["seg", "lpips"]
    assert len(measured) == 4  # all slices, of which the two without reference are alike
    assert measured[0] == measured[3] == 0
    # Two cases of four slices, one of them the same in both runs.
    assert report.to_json()["seg"]["lpips"] == pytest.approx(measured.sum() / 8)
    assert not any("lpips" in note for note in report.notes)
    del options["lpips_linear"]
    with pytest.raises(ConfigError, match="LPIPS needs two files") as failure:
        run(workspace, **options)
    assert "--lpips-linear" in failure.value.hint
    with pytest.raises(WeightsError, match="of kind lpips-alexnet, not lpips-linear"):
        run(workspace, **options, lpips_linear=options["lpips_backbone"])


def test_a_scan_that_no_longer_fits_its_planes_is_refused(workspace):
    planes = workspace.manifest.labels_file(workspace.manifest.cases("test")[0])
    np.save(planes, np.zeros((3, 256, 256), np.uint8))
    with pytest.raises(DataError, match="case a: prepared as"):
        run(workspace, runs=2)


@pytest.mark.slow
def test_lpips_comes_from_the_weight_store_and_its_absence_names_the_commands(
    workspace, tmp_path, store
):
    workspace.answers(a={0: FOUR, 1: MOVED})
    (without,) = (note for note in run(workspace, runs=2).notes if "lpips" in note)
    fetch = "sdseg weights fetch"
    assert without.endswith(f"run {fetch} lpips-alexnet && {fetch} lpips-linear")
    torch.save(alexnet(), tmp_path / "alexnet.pth")
    add_weights(tmp_path / "alexnet.pth", store)
    report = run(workspace, runs=2)
    assert report.missing_lpips == ("lpips-linear",)
    assert report.mean("seg", "lpips") is None
    torch.save(lpips_heads(), tmp_path / "alex.pth")
    add_weights(tmp_path / "alex.pth", store)
    report = run(workspace, runs=2)
    assert report.missing_lpips == ()
    found = report.mean("seg", "lpips")
    assert found is not None and found > 0


def test_all_pairs_are_every_run_with_every_other(workspace):
    # Runs 2 and 3 agree with each other and not with run 1, in case a alone.
    workspace.answers(a={0: FOUR, 1: MOVED, 2: MOVED})
    report = run(workspace, runs=3)
    found = report.to_json()
    pairs = [(c.first, c.other) for c in report.comparisons if c.case_id == "a"]
    assert pairs == [(1, 2), (1, 3), (2, 3)]
    # Two slices each: first against rest 4 pairs of a, which differ, and 4 of b, which do not;
    # all pairs 6 and 6, of which 2 and 6 are the same.
    assert (found["pairs"], found["identical"]["seg"]) == (8, 4)
    every = found["all_pairs"]
    assert (every["pairs"], every["identical"]["seg"]) == (12, 8)
    assert found["seg"]["psnr"] == every["seg"]["psnr"] == pytest.approx(PSNR)
    apart = report.comparisons[0].values["seg", "ssim"][0]
    assert found["seg"]["ssim"] == pytest.approx((4 * apart + 4) / 8)
    assert every["seg"]["ssim"] == pytest.approx((4 * apart + 8) / 12)


@pytest.mark.slow
def test_the_median_is_infinite_where_more_than_half_of_the_pairs_are_identical(tmp_path):
    made = make_workspace(tmp_path, {"a": FOUR, "b": FOUR, "c": FOUR})
    made.answers(a={0: FOUR, 1: MOVED}, b={0: FOUR, 1: MOVED})
    found = run(made, runs=2).to_json()
    assert found["identical"]["seg"] == 2
    assert found["median"]["seg"]["psnr"] == pytest.approx(PSNR)
    made.answers(b=FOUR)
    found = run(made, runs=2).to_json()
    assert (found["median"]["seg"]["psnr"], found["median"]["seg"]["ssim"]) == (None, 1.0)


def test_voxels_that_flip_are_counted_on_the_scans_own_grid(workspace):
    workspace.answers(a={0: FOUR, 1: MOVED, 2: FOUR})
    found = run(workspace, runs=3).to_json()
    # In a 2 x 4 x 2 voxels leave the box and as many come in: 32 of 1024 flip, of the 6 x 4 x 2
    # that any run calls foreground. In b 32 voxels stay foreground.
    assert found["flipped"] == {
        "fraction": 32 / 2048,
        "of_foreground": 32 / 80,
        "by_case": [
            {"id": "a", "fraction": 32 / 1024, "of_foreground": 32 / 48},
            {"id": "b", "fraction": 0.0, "of_foreground": 0.0},
        ],
    }
    assert found["most_unstable"] == ["a"]
    assert found["dice"]["by_case"][0] == {
        "id": "a",
        "mean": pytest.approx(2.5 / 3),
        "sd": pytest.approx(0.5 / math.sqrt(3)),
        "min": 0.5,
        "max": 1.0,
    }


@pytest.mark.slow
def test_the_most_unstable_cases_are_five_worst_first(tmp_path):
    names = "abcdefg"
    made = make_workspace(tmp_path, dict.fromkeys(names, FOUR))
    for extra, name in enumerate(names):  # a never flips; g gains 6 columns beside its 4
        wider = FOUR if not extra else FOUR + block(slice(8, 8 + extra))
        made.answers(**{name: {0: FOUR, 1: wider}})
    assert run(made, runs=2).most_unstable == ("g", "f", "e", "d", "c")


def test_maps_lie_on_the_scan_bit_for_bit_and_say_4p_1_minus_p(workspace):
    workspace.answers(a={0: FOUR, 1: MOVED, 2: FOUR})
    report = run(workspace, runs=3)
    folder = workspace.run / "report" / "test" / "instability"
    assert report.maps == (folder / "a.nii.gz", folder / "b.nii.gz")
    assert report.to_json()["maps"] == [str(path) for path in report.maps]
    scan, drawn = nib.load(workspace.scan("a")), nib.load(report.maps[0])
    for name in ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "pixdim", "xyzt_units"):
        assert drawn.header[name].tobytes() == scan.header[name].tobytes(), name
    stored = np.asarray(drawn.dataobj.get_unscaled())
    expected = np.zeros(FOUR.shape, np.uint8)
    expected[(FOUR != MOVED)] = 227  # 4 x 1/3 x 2/3 = 8/9 of 255
    assert np.array_equal(stored, expected)
    assert not np.asarray(nib.load(report.maps[1]).dataobj).any()


@pytest.mark.slow
def test_more_than_255_runs_are_counted_rightly(tmp_path):
    made = make_workspace(tmp_path, {"a": EMPTY})
    made.answers(a={seed: FOUR if seed else EMPTY for seed in range(257)})
    trial = Trial(opened(made, runs=257), SampleConfig(), pairs=((0, 1),))
    report = trial.run(CaseProgress(trial.under.held.cases, no_op, repeats=257))
    assert (report.flips["a"].ever, report.flips["a"].flipped) == (32, 32)


@pytest.mark.slow
def test_pairs_are_matched_by_case_and_slice_whatever_the_order_of_cases(tmp_path):
    made = make_workspace(tmp_path, dict.fromkeys("abc", FOUR))
    made.answers(a={0: FOUR, 1: MOVED}, c={0: MOVED, 1: FOUR})
    under = opened(made, runs=2)
    found = []
    for cases in (under.held.cases, under.held.cases[::-1]):
        turned = replace(under, held=replace(under.held, cases=cases))
        trial = Trial.of_first_vs_rest(turned, SampleConfig())
        report = trial.run(CaseProgress(cases, no_op, repeats=2))
        found.append({c.case_id: c.values["seg", "psnr"].tolist() for c in report.comparisons})
    apart = [pytest.approx(PSNR)] * 2
    assert found[0] == found[1] == {"a": apart, "b": [math.inf] * 2, "c": apart}


def test_nothing_waits_on_the_disk_afterwards(workspace):
    before = sorted(workspace.run.iterdir())
    run(workspace, runs=2)
    assert set(workspace.run.iterdir()) - set(before) == {workspace.run / "report"}


def test_a_run_without_noise_is_refused(workspace):
    with pytest.raises(ConfigError, match=r"sample\.noise is zero"):
        run(workspace, runs=2, sample=SampleConfig(noise="zero"))
    assert workspace.predictor.calls == []


def test_table5_puts_the_run_beside_the_papers_rows(workspace):
    workspace.answers(a={0: FOUR, 1: MOVED})
    report = run(workspace, runs=2)
    folder = workspace.run / "report" / "test"
    assert {folder / "table5.csv", folder / "table5.tex"} < set(report.files)
    with (folder / "table5.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["method"] for row in rows] == ["MedSegDiff-V2", "Diff-U-Net", "SDSeg", "this run"]
    assert (rows[2]["seg_psnr"], rows[2]["score_lpips"]) == ("27.63", "0.0143")
    assert (rows[3]["data"], rows[3]["seg_lpips"]) == ("toy", "")
    assert float(rows[3]["seg_psnr"]) == pytest.approx(PSNR)


def test_an_interrupted_call_leaves_the_maps_of_the_one_before(workspace, monkeypatch):
    workspace.answers(a={0: FOUR, 1: MOVED, 2: FOUR})
    before = run(workspace, runs=3)
    maps = {path: path.read_bytes() for path in before.maps}
    assert [path.parent.name for path in before.maps] == ["instability", "instability"]

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("sdseg_cli.evaluation.stability.Trial._compare", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(workspace, runs=2)
    assert {path: path.read_bytes() for path in before.maps} == maps
    folder = before.maps[0].parent
    assert sorted(path.name for path in folder.iterdir()) == ["a.nii.gz", "b.nii.gz"]
    assert not list(folder.parent.glob(".*"))
