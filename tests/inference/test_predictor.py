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
from sdseg_cli.inference.predict import PredictReport, check_volume, predict_file
from sdseg_cli.inference.predictor import Predictor, checked_crop
from tests.conftest import PLANE, Workspace


@pytest.fixture(scope="module")
def predictor(shared_run: Workspace) -> Predictor:
    return _lively(Predictor(shared_run.run.path, device="cpu"))


def _lively(predictor: Predictor) -> Predictor:
    """With a last layer that answers loudly: four steps of training predict next to nothing."""
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(predictor.model.unet.out[2].weight, std=0.3, generator=generator)
    return predictor


def _bytes(predictor: Predictor, scan: Path, out: Path, seed: int = 0) -> bytes:
    predict_file(scan, OutputPaths(out), predictor, PredictOptions(seed=seed))
    return out.read_bytes()


def test_the_mask_lies_on_the_scan_bit_for_bit(
    predictor: Predictor, tiny_run: Workspace, tmp_path: Path
) -> None:
    out = tmp_path / "new folder" / "mask.nii.gz"
    report = predict_file(tiny_run.scan, OutputPaths(out), predictor, PredictOptions(seed=1))
    scan, mask = nib.load(tiny_run.scan), nib.load(out)
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
    predictor: Predictor, tiny_run: Workspace, tmp_path: Path
) -> None:
    first = _bytes(predictor, tiny_run.scan, tmp_path / "a.nii.gz")
    assert first == _bytes(predictor, tiny_run.scan, tmp_path / "b.nii.gz")
    volume = read_image(tiny_run.scan)
    zero, one = (predictor.predict(volume, seed=seed).probability for seed in (0, 1))
    assert not np.array_equal(zero, one)


@pytest.mark.slow
def test_the_batch_size_does_not_change_a_byte(tiny_run: Workspace, tmp_path: Path) -> None:
    made = [
        _bytes(
            _lively(Predictor(tiny_run.run.path, device="cpu", batch_size=size)),
            tiny_run.scan,
            tmp_path / f"{size}.nii.gz",
        )
        for size in (1, 4, 16)
    ]
    assert made[0] == made[1] == made[2]
    maps = [
        _lively(Predictor(tiny_run.run.path, device="cpu", batch_size=size))
        .predict(read_image(tiny_run.scan))
        .probability
        for size in (1, 16)
    ]
    assert np.array_equal(*maps)
    assert 0 < (maps[0] > 0.5).mean() < 1


@pytest.mark.slow
def test_the_api_and_the_file_agree(
    predictor: Predictor, tiny_run: Workspace, tmp_path: Path
) -> None:
    prediction = predictor.predict(read_image(tiny_run.scan), case_id="x", seed=2)
    assert prediction.probability.shape == (6, PLANE, PLANE)
    assert 0 <= prediction.probability.min() and prediction.probability.max() <= 1
    predict_file(
        tiny_run.scan, OutputPaths(tmp_path / "m.nii.gz"), predictor, PredictOptions(seed=2)
    )
    assert np.array_equal(prediction.mask(), np.asarray(nib.load(tmp_path / "m.nii.gz").dataobj))


def test_the_probability_map_has_the_scans_grid_and_matches_the_mask(
    predictor: Predictor, tiny_run: Workspace, tmp_path: Path
) -> None:
    mask, prob = tmp_path / "m.nii.gz", tmp_path / "p.nii.gz"
    predict_file(tiny_run.scan, OutputPaths(mask, probability=prob), predictor)
    image = nib.load(prob)
    assert image.get_data_dtype() == np.uint8
    assert image.dataobj.slope == pytest.approx(1 / 255, rel=1e-7)
    values = image.get_fdata()
    assert values.shape == nib.load(tiny_run.scan).shape
    assert 0 <= values.min() and values.max() <= 1
    # 0.5 lies between the stored 127/255 and 128/255; a half itself is stored as 127.
    assert 0 < np.asarray(nib.load(mask).dataobj).mean() < 1
    assert np.array_equal(values > 0.5, np.asarray(nib.load(mask).dataobj) > 0)


@pytest.mark.parametrize("name", ["p.nii.gz", "p.nrrd", "p.mha"])
def test_a_float_map_holds_the_probability_itself(
    predictor: Predictor, tiny_run: Workspace, tmp_path: Path, name: str
) -> None:
    mask, prob = tmp_path / "m.nii.gz", tmp_path / name
    predict_file(
        tiny_run.scan, OutputPaths(mask, probability=prob, probability_dtype="float32"), predictor
    )
    values = read_image(prob).values()
    assert 0 <= values.min() < 0.5 < values.max() <= 1
    assert np.array_equal(values > 0.5, np.asarray(nib.load(mask).dataobj) > 0)
    with pytest.raises(ConfigError, match="--prob-dtype is 'half'"):
        predict_file(tiny_run.scan, OutputPaths(mask, probability_dtype="half"), predictor)


@pytest.mark.slow
def test_a_map_in_shares_is_written_as_float_where_there_is_no_slope(
    predictor: Predictor, tiny_run: Workspace, tmp_path: Path
) -> None:
    mask = tmp_path / "m.nii.gz"
    for name in ("p.nii.gz", "p.mha"):
        predict_file(tiny_run.scan, OutputPaths(mask, probability=tmp_path / name), predictor)
    shares, floats = (read_image(tmp_path / name).values() for name in ("p.nii.gz", "p.mha"))
    assert floats.max() <= 1
    assert np.allclose(shares, floats, atol=1e-6)


@pytest.mark.slow
def test_more_reverse_steps_give_another_map(predictor: Predictor, tiny_run: Workspace) -> None:
    volume = read_image(tiny_run.scan)
    one, three = (
        predictor.predict(volume, sample=SampleConfig(steps=steps)).probability for steps in (1, 3)
    )
    assert one.shape == three.shape
    assert not np.array_equal(one, three)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["exact", "fast"])
def test_a_slice_alone_is_as_in_the_whole_scan_bit_for_bit(
    tiny_run: Workspace, decoder: str
) -> None:
    predictor = _lively(Predictor(tiny_run.run.path, device="cpu", decoder=decoder, batch_size=4))
    volume, sample = read_image(tiny_run.scan), SampleConfig(steps=2, eta=1.0, samples=2)
    stack = predictor.stack(volume)
    whole = predictor.predict(volume, seed=3, sample=sample).probability
    for k in (0, 1, 5):
        alone = predictor.plane(stack, k, seed=3, sample=sample)
        assert alone.shape == (PLANE, PLANE)
        assert alone.tobytes() == whole[k].tobytes()
    assert alone.max() > 0 and not np.array_equal(whole[0], whole[5])


def test_a_slice_of_air_alone_is_zero_as_in_the_whole_scan(predictor: Predictor) -> None:
    air = Volume(np.full((40, 36, 3), -1000, np.int16), Geometry((40, 36, 3), np.eye(4)))
    plane = predictor.plane(predictor.stack(air), 2)
    assert plane.dtype == np.float32
    assert not plane.any()


@pytest.mark.slow
def test_the_batch_size_changes_no_byte_with_fresh_noise_and_samples(tiny_run: Workspace) -> None:
    sample, volume = SampleConfig(steps=2, eta=1.0, samples=2), read_image(tiny_run.scan)
    maps = [
        _lively(Predictor(tiny_run.run.path, device="cpu", batch_size=size))
        .predict(volume, sample=sample)
        .probability
        for size in (1, 4)
    ]
    assert np.array_equal(*maps)


@pytest.mark.slow
def test_the_report_says_how_it_was_sampled(
    predictor: Predictor, tiny_run: Workspace, tmp_path: Path
) -> None:
    out = tmp_path / "m.nii.gz"
    report = predict_file(
        tiny_run.scan, OutputPaths(out), predictor, PredictOptions(sample=SampleConfig(samples=2))
    )
    expected = {"steps": 1, "eta": 0.0, "samples": 2, "noise": "slice", "flips": ""}
    assert report.to_json()["sample"] == expected
    assert (
        predict_file(tiny_run.scan, OutputPaths(out), predictor).sample == predictor.config.sample
    )


@pytest.mark.slow
def test_a_scan_that_is_no_ct_is_predicted_with_a_warning(
    predictor: Predictor, tiny_run: Workspace, tmp_path: Path
) -> None:
    scan = nib.load(tiny_run.scan)
    lifted = np.asanyarray(scan.dataobj).astype(np.int16) + 1100  # air at 100: nothing negative
    lifted[0, 0, 0] = 0
    nib.save(nib.Nifti1Image(lifted, scan.affine), tmp_path / "lifted.nii.gz")
    broken = np.asanyarray(scan.dataobj).astype(np.float32)
    broken[3, 3, 3] = np.nan
    nib.save(nib.Nifti1Image(broken, scan.affine), tmp_path / "broken.nii.gz")
    label = tiny_run.scan.with_name("label.nii.gz")
    expected = {
        tiny_run.scan: [],
        tmp_path / "lifted.nii.gz": ["hu-offset"],
        tmp_path / "broken.nii.gz": ["values-not-finite"],
        label: ["image-looks-like-mask"],
    }
    for path, codes in expected.items():
        report = predict_file(path, OutputPaths(tmp_path / "m.nii.gz"), predictor)
        assert [(one.code, one.level) for one in report.warnings] == [
            (code, "warning") for code in codes
        ]
        assert [one["code"] for one in report.to_json()["warnings"]] == codes


@pytest.mark.parametrize(("low", "high"), [(0, 180), (2, 2700), (-2.5, 8)])
def test_mr_given_to_a_run_of_ct_is_said_not_to_look_like_ct(
    predictor: Predictor, tiny_run: Workspace, tmp_path: Path, low: float, high: float
) -> None:
    scan = nib.load(tiny_run.scan)
    values = np.random.default_rng(0).uniform(low, high, scan.shape).astype(np.float32)
    nib.save(nib.Nifti1Image(values, scan.affine), tmp_path / "mr.nii.gz")
    report = predict_file(tmp_path / "mr.nii.gz", OutputPaths(tmp_path / "m.nii.gz"), predictor)
    assert ["this does not look like CT" in one.measured for one in report.warnings] == [True]


def test_a_run_with_a_window_above_zero_asks_for_no_ct(tiny_run: Workspace) -> None:
    mr = np.random.default_rng(0).uniform(0, 2700, (8, 8, 3)).astype(np.float32)
    volume = replace(read_image(tiny_run.scan), array=mr, geometry=Geometry((8, 8, 3), np.eye(4)))
    assert check_volume(volume, Normalisation("window", 0, 2000)) == ()
    assert len(check_volume(volume, Normalisation("window", -100, 2000))) == 1


@pytest.mark.data
def test_no_real_ct_is_taken_for_mr_and_every_real_mr_is_told(real_data: Path) -> None:
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


def test_progress_counts_slices(tiny_run: Workspace) -> None:
    told: list[tuple[int, int]] = []
    predictor = Predictor(tiny_run.run.path, device="cpu", batch_size=4)
    predictor.predict(read_image(tiny_run.scan), progress=lambda a, b, _: told.append((a, b)))
    assert told == [(4, 6), (6, 6)]


def test_a_failure_leaves_an_existing_mask_untouched(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "bad.nii.gz").write_text("no scan")
    out = tmp_path / "mask.nii.gz"
    out.write_bytes(b"precious")
    with pytest.raises(DataError):
        predict_file(tmp_path / "bad.nii.gz", OutputPaths(out), predictor)
    assert out.read_bytes() == b"precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.nii.gz", "mask.nii.gz"]


def test_the_scan_is_never_overwritten(
    predictor: Predictor, tiny_run: Workspace, tmp_path: Path
) -> None:
    before = tiny_run.scan.read_bytes()
    with pytest.raises(ConfigError, match="is the scan itself"):
        predict_file(tiny_run.scan, OutputPaths(tiny_run.scan), predictor)
    with pytest.raises(ConfigError, match="both mask and --prob"):
        out = tmp_path / "m.nii.gz"
        predict_file(tiny_run.scan, OutputPaths(out, probability=out), predictor)
    assert tiny_run.scan.read_bytes() == before


@pytest.mark.parametrize("option", ["mask", "probability", "uncertainty", "preview"])
@pytest.mark.parametrize("name", ["file/{}", "file/new/{}", "gone/{}"])
def test_an_output_that_cannot_be_written_is_named_before_anything_is_predicted(
    predictor: Predictor,
    tiny_run: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    name: str,
) -> None:
    (tmp_path / "file").write_text("a file")
    (tmp_path / "gone").symlink_to("nowhere")
    monkeypatch.setattr(Predictor, "stack", None)  # called, it would be another error
    written = tmp_path / name.format("p.png" if option == "preview" else "p.nii.gz")
    outputs = replace(OutputPaths(tmp_path / "m.nii.gz"), **{option: written})
    with pytest.raises(RunError) as caught:
        predict_file(tiny_run.scan, outputs, predictor)
    assert caught.value.message.startswith(f"{written}: cannot be written (")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "gone"]


@pytest.mark.parametrize("name", ["mask.nii.gz", "mask.nrrd", "mask.mha"])
def test_a_writer_that_fails_names_the_output(
    predictor: Predictor,
    tiny_run: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "some other name")

    monkeypatch.setattr("sdseg_cli.imaging.io.nifti.replacing", lambda path: refuse())
    monkeypatch.setattr("SimpleITK.WriteImage", refuse)
    with pytest.raises(RunError) as caught:
        predict_file(tiny_run.scan, OutputPaths(tmp_path / name), predictor)
    assert (
        caught.value.message == f"{tmp_path / name}: cannot be written (No space left on device)."
    )
    assert list(tmp_path.iterdir()) == []


def test_a_batch_size_below_one_is_refused(tiny_run: Workspace) -> None:
    with pytest.raises(ConfigError, match="--batch-size is 0"):
        Predictor(tiny_run.run.path, device="cpu", batch_size=0)


def test_crop_overrides_the_runs_own(tiny_run: Workspace) -> None:
    whole, body = (Predictor(tiny_run.run.path, device="cpu", crop=crop) for crop in (None, "body"))
    assert (whole.crop, body.crop) == ("none", "body")
    volume = read_image(tiny_run.scan)
    # The body has 28 rows and 32 columns of a plane of 36 x 40; with its margins, 35 on a side.
    assert whole.stack(volume).restore.boxes[2].tolist() == [-2, 0, 40]
    assert body.stack(volume).restore.boxes[2][2] == 35


def test_an_unknown_crop_is_refused_and_so_is_the_body_of_a_picture(tiny_run: Workspace) -> None:
    with pytest.raises(ConfigError, match="--crop head is unknown"):
        Predictor(tiny_run.run.path, device="cpu", crop="head")
    with pytest.raises(ConfigError, match="--crop body does not go with pictures"):
        checked_crop("body", pictures=True)
    assert checked_crop("none", pictures=True) == "none"


def test_a_batch_takes_its_pixels_twice_its_answers_and_the_networks_planes(
    tiny_run: Workspace,
) -> None:
    predictor = Predictor(tiny_run.run.path, device="cpu", batch_size=4, threads=2)
    fixed, plane = 50_000_000, PLANE * PLANE * 4
    # Of tiny's autoencoder's 8 channels 12 planes each, for the two slices that are computed.
    assert predictor.batch_bytes() == fixed + plane * (4 * 6 + 2 * 12 * 8)
    assert predictor.batch_bytes(draws=5) == fixed + plane * (4 * 22 + 2 * 12 * 8)
    assert predictor.batch_bytes(batch_size=1) == fixed + plane * (6 + 12 * 8)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"best\.pt: no such checkpoint"):
        Predictor(tmp_path, device="cpu")


def test_the_report_is_the_contracts_object() -> None:
    report = PredictReport(
        OutputPaths(Path("m.nii.gz")), Path("run"), 3, 6, 10, 0.45, 1.23456, SampleConfig(steps=2)
    )
    assert report.to_json() == {
        "output": "m.nii.gz",
        "run": "run",
        "seed": 3,
        "sample": {"steps": 2, "eta": 0.0, "samples": 1, "noise": "slice", "flips": ""},
        "decoder": "exact",
        "post": {
            "threshold": 0.5,
            "fill_holes": False,
            "min_size_ml": None,
            "keep_largest": None,
        },
        "slices": 6,
        "foreground_voxels": 10,
        "foreground_ml": 0.45,
        "seconds": 1.235,
        "warnings": [],
    }


@pytest.mark.slow
def test_leaving_out_air_changes_no_other_slice(tiny_run: Workspace) -> None:
    volume = read_image(tiny_run.scan)
    hu = volume.array.copy()
    hu[:, :, 2] = -1000
    some_air = Volume(hu, volume.geometry)
    skipping, whole = (
        _lively(Predictor(tiny_run.run.path, device="cpu", skip_air=skip)).predict(some_air)
        for skip in (True, False)
    )
    empty = [not plane.any() for plane in skipping.probability]
    assert empty == [False, False, True, False, False, False]
    assert whole.probability[2].any()
    for k in (0, 1, 3, 4, 5):
        assert np.array_equal(skipping.probability[k], whole.probability[k])


def test_a_cpu_is_not_asked_to_compile(tiny_run: Workspace) -> None:
    with pytest.raises(ConfigError, match="--compile is for a GPU"):
        Predictor(tiny_run.run.path, device="cpu", compiled=True)


def test_a_diverged_network_is_an_error_and_no_empty_mask(
    tiny_run: Workspace, tmp_path: Path
) -> None:
    broken = Predictor(tiny_run.run.path, device="cpu")
    torch.nn.init.constant_(broken.model.unet.out[2].bias, float("nan"))
    volume, out = read_image(tiny_run.scan), tmp_path / "mask.nii.gz"
    # Of its six slices every one shows the body.
    named = re.escape(str(tiny_run.scan)) + r": the model answers NaN on slice 1, 2, 3, 4, 5 and 1"
    with pytest.raises(RunError, match=named):
        broken.predict(volume)
    with pytest.raises(RunError, match="NaN on slice 3"):
        broken.plane(broken.stack(volume), 2)
    with pytest.raises(RunError, match=named):
        predict_file(tiny_run.scan, OutputPaths(out), broken, PredictOptions(runs=2))
    assert not out.exists()
