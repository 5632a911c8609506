from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from sdseg_cli.core.config import SampleConfig
from sdseg_cli.core.errors import ConfigError, DataError, RunError, WeightsError
from sdseg_cli.imaging.intensity import Normalisation
from sdseg_cli.imaging.io.files import read_image
from sdseg_cli.imaging.volume import Geometry, Volume
from sdseg_cli.inference.options import OutputPaths, PredictOptions
from sdseg_cli.inference.predict import check_volume, predict_file
from sdseg_cli.inference.predictor import Predictor, checked_crop
from sdseg_cli.runs.checkpoint import Checkpoint
from sdseg_cli.runs.run_folder import RunDir
from tests.conftest import PLANE, Workspace, linked_copy
from tests.inference.conftest import lively


def _bytes(predictor: Predictor, scan: Path, out: Path, seed: int = 0) -> bytes:
    predict_file(scan, OutputPaths(out), predictor, PredictOptions(seed=seed))
    return out.read_bytes()


def test_the_mask_lies_on_the_scan_bit_for_bit(
    predictor: Predictor, shared_run: Workspace, tmp_path: Path
) -> None:
    out = tmp_path / "new folder" / "mask.nii.gz"
    report = predict_file(shared_run.scan, OutputPaths(out), predictor, PredictOptions(seed=1))
    scan, mask = nib.load(shared_run.scan), nib.load(out)
    assert mask.shape == scan.shape
    assert mask.get_data_dtype() == np.uint8
    for field in ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "pixdim", "xyzt_units"):
        assert mask.header[field].tobytes() == scan.header[field].tobytes(), field
    values = np.asarray(mask.dataobj)
    assert set(np.unique(values)) == {0, 1}
    assert report.foreground_voxels == np.count_nonzero(values)
    assert report.foreground_ml == pytest.approx(report.foreground_voxels * 45 / 1000)  # 3x3x5 mm
    assert report.slices == 6


@pytest.mark.slow
def test_one_seed_gives_identical_bytes_and_another_seed_other_noise(
    predictor: Predictor, shared_run: Workspace, tmp_path: Path
) -> None:
    first = _bytes(predictor, shared_run.scan, tmp_path / "a.nii.gz")
    assert first == _bytes(predictor, shared_run.scan, tmp_path / "b.nii.gz")
    volume = read_image(shared_run.scan)
    zero, one = (predictor.predict(volume, seed=seed).probability for seed in (0, 1))
    assert not np.array_equal(zero, one)


@pytest.mark.slow
def test_the_batch_size_does_not_change_a_byte(shared_run: Workspace, tmp_path: Path) -> None:
    masks, maps = [], []
    for size in (1, 4, 16):
        predictor = lively(Predictor(shared_run.run.path, device="cpu", batch_size=size))
        masks.append(_bytes(predictor, shared_run.scan, tmp_path / f"{size}.nii.gz"))
        maps.append(predictor.predict(read_image(shared_run.scan)).probability)
    assert masks[0] == masks[1] == masks[2]
    assert np.array_equal(maps[0], maps[1]) and np.array_equal(maps[0], maps[2])
    assert 0 < (maps[0] > 0.5).mean() < 1


def test_the_api_and_the_file_agree(
    predictor: Predictor, shared_run: Workspace, tmp_path: Path
) -> None:
    prediction = predictor.predict(read_image(shared_run.scan), case_id="x", seed=2)
    assert prediction.probability.shape == (6, PLANE, PLANE)
    assert 0 <= prediction.probability.min() and prediction.probability.max() <= 1
    _bytes(predictor, shared_run.scan, tmp_path / "m.nii.gz", seed=2)
    assert np.array_equal(prediction.mask(), np.asarray(nib.load(tmp_path / "m.nii.gz").dataobj))


def test_more_reverse_steps_give_another_map(predictor: Predictor, shared_run: Workspace) -> None:
    volume = read_image(shared_run.scan)
    one, three = (
        predictor.predict(volume, sample=SampleConfig(steps=steps)).probability for steps in (1, 3)
    )
    assert one.shape == three.shape
    assert not np.array_equal(one, three)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["exact", "fast"])
def test_a_slice_alone_is_as_in_the_whole_scan_bit_for_bit(
    shared_run: Workspace, decoder: str
) -> None:
    predictor = lively(Predictor(shared_run.run.path, device="cpu", decoder=decoder, batch_size=4))
    volume, sample = read_image(shared_run.scan), SampleConfig(steps=2, eta=1.0, samples=2)
    stack = predictor.stack(volume)
    whole = predictor.predict(volume, seed=3, sample=sample).probability
    for k in (0, 1, 5):
        alone = predictor.plane(stack, k, seed=3, sample=sample)
        assert alone.shape == (1, PLANE, PLANE)
        assert alone.tobytes() == whole[k].tobytes()
    assert alone.max() > 0 and not np.array_equal(whole[0], whole[5])


def test_a_slice_of_air_alone_is_zero_as_in_the_whole_scan(predictor: Predictor) -> None:
    air = Volume(np.full((40, 36, 3), -1000, np.int16), Geometry((40, 36, 3), np.eye(4)))
    plane = predictor.plane(predictor.stack(air), 2)
    assert plane.dtype == np.float32
    assert not plane.any()


@pytest.mark.slow
def test_the_batch_size_changes_no_byte_with_fresh_noise_and_samples(shared_run: Workspace) -> None:
    sample, volume = SampleConfig(steps=2, eta=1.0, samples=2), read_image(shared_run.scan)
    maps = [
        lively(Predictor(shared_run.run.path, device="cpu", batch_size=size))
        .predict(volume, sample=sample)
        .probability
        for size in (1, 4)
    ]
    assert np.array_equal(*maps)


def test_the_report_says_how_it_was_sampled(
    predictor: Predictor, shared_run: Workspace, tmp_path: Path
) -> None:
    out, twice = OutputPaths(tmp_path / "m.nii.gz"), PredictOptions(sample=SampleConfig(samples=2))
    report = predict_file(shared_run.scan, out, predictor, twice)
    expected = {"steps": 1, "eta": 0.0, "samples": 2, "noise": "slice", "flips": ""}
    assert report.to_json()["sample"] == expected
    assert predict_file(shared_run.scan, out, predictor).sample == predictor.config.sample


@pytest.mark.slow
def test_an_odd_scan_is_predicted_with_a_warning(
    predictor: Predictor, shared_run: Workspace, tmp_path: Path
) -> None:
    scan = nib.load(shared_run.scan)
    lifted = np.asanyarray(scan.dataobj).astype(np.int16) + 1100  # air at 100: nothing negative
    lifted[0, 0, 0] = 0
    nib.save(nib.Nifti1Image(lifted, scan.affine), tmp_path / "lifted.nii.gz")
    broken = np.asanyarray(scan.dataobj).astype(np.float32)
    broken[3, 3, 3] = np.nan
    nib.save(nib.Nifti1Image(broken, scan.affine), tmp_path / "broken.nii.gz")
    expected = {
        shared_run.scan: [],
        tmp_path / "lifted.nii.gz": ["hu-offset"],
        tmp_path / "broken.nii.gz": ["values-not-finite"],
        shared_run.scan.with_name("label.nii.gz"): ["image-looks-like-mask"],
    }
    for path, codes in expected.items():
        report = predict_file(path, OutputPaths(tmp_path / "m.nii.gz"), predictor)
        assert [(one.code, one.level) for one in report.warnings] == [
            (code, "warning") for code in codes
        ]
        assert [one["code"] for one in report.to_json()["warnings"]] == codes


@pytest.mark.parametrize(("low", "high"), [(0, 180), (2, 2700), (-2.5, 8)])
def test_mr_given_to_a_run_of_ct_is_said_not_to_look_like_ct(
    predictor: Predictor, shared_run: Workspace, low: float, high: float
) -> None:
    scan = read_image(shared_run.scan)
    mr = np.random.default_rng(0).uniform(low, high, scan.array.shape).astype(np.float32)
    found = check_volume(replace(scan, array=mr), predictor.normalisation)
    assert ["this does not look like CT" in one.measured for one in found] == [True]


def test_a_run_with_a_window_above_zero_expects_no_ct(shared_run: Workspace) -> None:
    mr = np.random.default_rng(0).uniform(0, 2700, (8, 8, 3)).astype(np.float32)
    volume = replace(read_image(shared_run.scan), array=mr, geometry=Geometry((8, 8, 3), np.eye(4)))
    assert check_volume(volume, Normalisation("window", 0, 2000)) == ()
    assert len(check_volume(volume, Normalisation("window", -100, 2000))) == 1


@pytest.mark.data
def test_no_real_ct_is_taken_for_mr_and_every_real_mr_is_named(real_data: Path) -> None:
    run = Normalisation("window", -175, 250)
    scans = {
        "CT": ["*-ct/*/image.nii.gz", "*-ct/*/CT_image.nii.gz", "*/*_ct/image.nii.gz"],
        "MR": ["msd-hippocampus/images/*.nii.gz"],
    }
    for kind, patterns in scans.items():
        paths = [path for pattern in patterns for path in real_data.glob(pattern)]
        found = [
            any("does not look like CT" in one.measured for one in check_volume(read_image(p), run))
            for p in paths
        ]
        assert len(found) == 40
        assert set(found) == {kind == "MR"}


def test_progress_counts_slices(shared_run: Workspace) -> None:
    seen: list[tuple[int, int]] = []
    predictor = Predictor(shared_run.run.path, device="cpu", batch_size=4)
    predictor.predict(read_image(shared_run.scan), progress=lambda a, b, _: seen.append((a, b)))
    assert seen == [(4, 6), (6, 6)]


def test_a_failure_leaves_an_existing_mask_untouched(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "bad.nii.gz").write_text("no scan")
    out = tmp_path / "mask.nii.gz"
    out.write_bytes(b"precious")
    with pytest.raises(DataError):
        predict_file(tmp_path / "bad.nii.gz", OutputPaths(out), predictor)
    assert out.read_bytes() == b"precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.nii.gz", "mask.nii.gz"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_size": 0}, "--batch-size is 0"),
        ({"crop": "head"}, "--crop head is unknown"),
        ({"compiled": True}, "--compile is for a GPU"),
    ],
)
def test_wrong_options_are_refused(shared_run: Workspace, options: dict, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Predictor(shared_run.run.path, device="cpu", **options)


def test_the_body_of_a_picture_is_refused() -> None:
    with pytest.raises(ConfigError, match="--crop body does not go with pictures"):
        checked_crop("body", pictures=True)
    assert checked_crop("none", pictures=True) == "none"


def test_crop_overrides_the_runs_own(predictor: Predictor, shared_run: Workspace) -> None:
    body = Predictor(shared_run.run.path, device="cpu", crop="body")
    assert (predictor.crop, body.crop) == ("none", "body")
    volume = read_image(shared_run.scan)
    # The body has 28 rows and 32 columns of a plane of 36 x 40; with its margins, 35 on a side.
    assert predictor.stack(volume).restore.boxes[2].tolist() == [-2, 0, 40]
    assert body.stack(volume).restore.boxes[2][2] == 35


def test_a_batch_takes_its_pixels_twice_its_answers_and_the_networks_planes(
    shared_run: Workspace,
) -> None:
    predictor = Predictor(shared_run.run.path, device="cpu", batch_size=4, threads=2)
    fixed, plane = 50_000_000, PLANE * PLANE * 4
    # Of tiny's autoencoder's 8 channels 12 planes each, for the two slices that are computed.
    assert predictor.batch_bytes() == fixed + plane * (4 * 6 + 2 * 12 * 8)
    assert predictor.batch_bytes(draws=5) == fixed + plane * (4 * 22 + 2 * 12 * 8)
    assert predictor.batch_bytes(batch_size=1) == fixed + plane * (6 + 12 * 8)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"best\.pt: no such checkpoint"):
        Predictor(tmp_path, device="cpu")


@pytest.mark.slow
def test_leaving_out_air_changes_no_other_slice(shared_run: Workspace) -> None:
    volume = read_image(shared_run.scan)
    hu = volume.array.copy()
    hu[:, :, 2] = -1000
    some_air = Volume(hu, volume.geometry)
    skipping, whole = (
        lively(Predictor(shared_run.run.path, device="cpu", skip_air=skip)).predict(some_air)
        for skip in (True, False)
    )
    empty = [not plane.any() for plane in skipping.probability]
    assert empty == [False, False, True, False, False, False]
    assert whole.probability[2].any()
    for k in (0, 1, 3, 4, 5):
        assert np.array_equal(skipping.probability[k], whole.probability[k])


@pytest.mark.slow
def test_a_diverged_network_is_an_error_and_no_empty_mask(
    shared_run: Workspace, tmp_path: Path
) -> None:
    broken = Predictor(shared_run.run.path, device="cpu")
    torch.nn.init.constant_(broken.model.unet.out[2].bias, float("nan"))
    volume, out = read_image(shared_run.scan), tmp_path / "mask.nii.gz"
    # Of its six slices every one shows the body.
    named = f"{re.escape(str(shared_run.scan))}: the model answers NaN on slice 1, 2, 3, 4, 5 and 1"
    with pytest.raises(RunError, match=named):
        broken.predict(volume)
    with pytest.raises(RunError, match="NaN on slice 3"):
        broken.plane(broken.stack(volume), 2)
    with pytest.raises(RunError, match=named):
        predict_file(shared_run.scan, OutputPaths(out), broken, PredictOptions(runs=2))
    assert not out.exists()


@pytest.fixture
def two_runs(shared_run: Workspace, tmp_path: Path) -> tuple[Path, Path]:
    """The shared run, and a second with other weights."""
    other = RunDir(linked_copy(shared_run.run.path, tmp_path / "other"))
    checkpoint = Checkpoint.load(other.best)
    changed = {
        name: value * 1.5 if name.startswith("unet.") else value
        for name, value in checkpoint.weights.items()
    }
    for path in other.checkpoints.glob("best.pt*"):
        path.unlink()
    replace(checkpoint, weights=changed, ema={}).save(other.best)
    return shared_run.run.path, other.path


def test_an_ensemble_answers_with_the_mean_of_its_members(
    two_runs: tuple[Path, Path], shared_run: Workspace
) -> None:
    scan = read_image(shared_run.scan)
    one, two = (Predictor(run, device="cpu").predict(scan, seed=3) for run in two_runs)
    assert not np.array_equal(one.probabilities, two.probabilities)
    both = Predictor(two_runs, device="cpu", batch_size=2).predict(scan, seed=3)
    expected = (one.probabilities + two.probabilities) / np.float32(2)
    np.testing.assert_array_equal(both.probabilities, expected)


def test_an_ensemble_of_one_is_that_run(shared_run: Workspace) -> None:
    scan, run = read_image(shared_run.scan), shared_run.run.path
    alone = Predictor(run, device="cpu").predict(scan).probabilities
    np.testing.assert_array_equal(Predictor([run], device="cpu").predict(scan).probabilities, alone)


def test_members_loaded_one_after_the_other_answer_the_same(
    two_runs: tuple[Path, Path], shared_run: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = read_image(shared_run.scan)
    held = Predictor(two_runs, device="cpu")
    monkeypatch.setattr("sdseg_cli.inference.predictor.free_bytes", lambda _: 0)
    in_turn = Predictor(two_runs, device="cpu")
    assert (held.in_turn, in_turn.in_turn) == (False, True)
    assert in_turn.batch_bytes() > held.batch_bytes()
    sample = SampleConfig(samples=2, flips="h")
    found = [one.predict(scan, sample=sample).probabilities for one in (held, in_turn)]
    np.testing.assert_array_equal(*found)


def test_members_that_do_not_go_together_are_refused(
    two_runs: tuple[Path, Path], shared_run: Workspace
) -> None:
    run, other = two_runs
    with pytest.raises(ConfigError, match="given twice"):
        Predictor([run, str(run)], device="cpu")
    with pytest.raises(ConfigError, match="no run"):
        Predictor([], device="cpu")
    best = RunDir(other).best
    checkpoint = Checkpoint.load(best)
    for path in best.parent.glob("best.pt*"):
        path.unlink()
    window = {"kind": "window", "low": 0.0, "high": 100.0}
    replace(checkpoint, data=checkpoint.data | {"normalisation": window, "crop": "body"}).save(best)
    with pytest.raises(ConfigError, match="differ in window, crop"):
        Predictor(two_runs, device="cpu")
