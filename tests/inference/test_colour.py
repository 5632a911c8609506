"""Pictures in colour through the five commands."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from sdseg_cli.core.config import RunConfig
from sdseg_cli.core.config_file import to_toml
from sdseg_cli.core.errors import ConfigError, DataError
from sdseg_cli.data.manifest import Manifest
from sdseg_cli.data.prepare import PrepareOptions, prepare
from sdseg_cli.evaluation.evaluate import evaluate
from sdseg_cli.evaluation.evaluation_split import SplitOptions
from sdseg_cli.evaluation.folders import evaluate_folders
from sdseg_cli.evaluation.stability import StabilityOptions, stability
from sdseg_cli.imaging.intensity import Normalisation
from sdseg_cli.imaging.io.files import read_image
from sdseg_cli.inference.options import OutputPaths
from sdseg_cli.inference.predict import predict_file
from sdseg_cli.inference.predictor import Predictor
from sdseg_cli.metrics import ScoringOptions
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training.train import train
from tests.conftest import Workspace, tiny_settings
from tests.fake_run import FakePredictor
from tests.inference.conftest import lively
from tests.raw_pictures import polyp, save, save_pair

SHAPE = (48, 64)


def png(path: Path) -> np.ndarray:
    """(H, W) or (H, W, C), as stored."""
    with Image.open(path) as image:
        return np.array(image)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Five prepared pictures, 3 train, 1 val, 1 test, and a run on them by name. Read-only."""
    root = tmp_path_factory.mktemp("pictures")
    for number in range(5):
        save_pair(root / f"raw/images/{number}.png", root / f"raw/masks/{number}.png", number)
    prepare(root / "raw", root, PrepareOptions(name="tiny", workers=1))
    workspace = Workspace(root)
    workspace.run.best.parent.mkdir(parents=True)
    workspace.run.best.write_bytes(b"a checkpoint")
    (workspace.run.path / "config.toml").write_text(to_toml(RunConfig(dataset="tiny")))
    return workspace


@pytest.fixture(scope="module")
def predictor(pictures: Workspace, shared_run: Workspace) -> Predictor:
    """A run of volumes as if they had been pictures."""
    predictor = lively(Predictor(shared_run.run.path, device="cpu"))
    predictor.data = pictures.manifest.inference_settings()
    predictor.normalisation = Normalisation.from_dict(pictures.manifest.normalisation)
    predictor.skip_air = False
    return predictor


@pytest.fixture
def answering(pictures: Workspace) -> FakePredictor:
    """Says of the test picture what is true of its upper half, and with seed 1 of the lower."""
    (case,) = pictures.manifest.cases("test")
    upper = polyp(int(case.id))[1][:, :, None].astype(np.uint8)
    lower = upper.copy()
    upper[24:], lower[:24] = 0, 0
    data = pictures.manifest.inference_settings()
    return FakePredictor(data, {case.id: {0: upper, 1: lower}})


def test_prepared_pictures_hold_three_channels(pictures: Workspace) -> None:
    manifest = pictures.manifest
    assert (manifest.modality, manifest.labels) == ("photograph", (255,))
    assert manifest.normalisation == {"kind": "window", "low": 0.0, "high": 255.0}
    case = manifest.entries[2]
    assert (case.slices, case.spacing_mm) == (1, None)
    pixels = np.load(manifest.pixels_file(case))
    assert (pixels.shape, pixels.dtype) == ((1, 3, 256, 256), np.float16)
    # 48 rows are padded to 64: 32 of 256 rows lie above, the last two blend into the picture.
    assert (pixels[..., :30, :] == -1).all()
    colours, mask = polyp(2)
    inside = np.load(manifest.labels_file(case))[0] == 255
    expected = colours[mask].mean(axis=0) / 127.5 - 1
    assert pixels[0, :, inside].mean(axis=0) == pytest.approx(expected, abs=0.03)
    assert manifest.inference_settings()["modality"] == "photograph"


def test_preparing_again_keeps_every_picture(pictures: Workspace) -> None:
    before = pictures.manifest.path.stat().st_mtime_ns
    prepare(pictures.root / "raw", pictures.root, PrepareOptions(name="tiny", workers=1))
    assert pictures.manifest.path.stat().st_mtime_ns == before


def test_a_mask_is_a_png_of_the_pictures_size(
    predictor: Predictor, pictures: Workspace, tmp_path: Path
) -> None:
    out, prob = tmp_path / "mask.png", tmp_path / "prob.png"
    report = predict_file(pictures.scan, OutputPaths(out, probability=prob), predictor)
    mask = png(out)
    assert (mask.shape, mask.dtype, set(np.unique(mask))) == (SHAPE, np.uint8, {0, 255})
    # The mask is the map above one half.
    assert np.array_equal(png(prob) > 127, mask == 255)
    assert report.slices == 1
    assert report.foreground_voxels == np.count_nonzero(mask)
    assert report.to_json()["foreground_ml"] is None
    again = tmp_path / "again.png"
    predict_file(pictures.scan, OutputPaths(again), predictor)
    assert again.read_bytes() == out.read_bytes()


def test_a_picture_is_not_turned_or_mirrored(predictor: Predictor, tmp_path: Path) -> None:
    pixels = np.zeros((*SHAPE, 3), np.uint8)
    pixels[:8, :16, 0] = 255  # red in the upper left
    square = predictor.stack(read_image(save(tmp_path / "a.png", pixels))).pixels(0, 1)[0]
    # 48 rows of 64 columns in a square of 64, with 8 rows of nothing above.
    assert square[0, 12, 8] == 1
    assert (square[0, 40:] == -1).all()
    assert (square[:, :, 32:] == -1).all()
    assert (square[1:] == -1).all()


def test_wrong_outputs_of_a_picture_are_refused_and_leave_nothing(
    predictor: Predictor, pictures: Workspace, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="for a picture") as caught:
        predict_file(pictures.scan, OutputPaths(tmp_path / "mask.nii.gz"), predictor)
    assert caught.value.hint == "End the name in .png."
    with pytest.raises(ConfigError, match="holds no float32"):
        predict_file(
            pictures.scan,
            OutputPaths(
                tmp_path / "mask.png",
                probability=tmp_path / "prob.png",
                probability_dtype="float32",
            ),
            predictor,
        )
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_pictures_refuses_a_volume(predictor: Predictor, tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 2), np.int16), np.eye(4)), tmp_path / "ct.nii.gz")
    with pytest.raises(DataError, match=r"ct\.nii\.gz is a volume, .* trained on pictures"):
        predict_file(tmp_path / "ct.nii.gz", OutputPaths(tmp_path / "mask.nii.gz"), predictor)
    assert not (tmp_path / "mask.nii.gz").exists()


def test_a_run_of_volumes_refuses_a_picture(tiny_run: Workspace, tmp_path: Path) -> None:
    picture = save(tmp_path / "a.png", polyp(0)[0])
    with pytest.raises(DataError, match=r"a\.png is a picture, .* trained on volumes") as caught:
        predict_file(
            picture, OutputPaths(tmp_path / "mask.png"), Predictor(tiny_run.run.path, device="cpu")
        )
    assert "--run" in caught.value.hint


@pytest.mark.slow
def test_evaluate_scores_each_picture_and_keeps_png_masks(
    pictures: Workspace, answering: FakePredictor
) -> None:
    report = evaluate(pictures.run.path, pictures.root, cases=SplitOptions(predictor=answering))
    (case,) = pictures.manifest.cases("test")
    (scored,) = report.cases
    kept = pictures.run.predictions / "test" / f"{case.id}.png"
    found, truth = png(kept) > 0, polyp(int(case.id))[1]
    both = np.count_nonzero(found & truth)
    assert 0 < both < truth.sum()
    assert scored.values["dice"] == pytest.approx(2 * both / (found.sum() + truth.sum()))
    assert scored.reference_voxels == truth.sum()
    # The middle of the first panel shows the picture in its colours, not in grey.
    drawn = png(pictures.run.report / "test/best.png").astype(int)
    panel = drawn[drawn.shape[0] // 2 - 20 : drawn.shape[0] // 2, 150:250]
    assert (panel[..., 0] - panel[..., 2]).mean() > 30


@pytest.mark.slow
def test_stability_compares_seeded_masks_of_pictures(
    pictures: Workspace, answering: FakePredictor
) -> None:
    report = stability(
        pictures.run.path,
        pictures.root,
        options=StabilityOptions(2),
        cases=SplitOptions(predictor=answering),
    )
    assert 0 < report.to_json()["seg"]["ssim"] < 1
    assert (pictures.run.report / "test/stability.png").is_file()


@pytest.mark.slow
def test_pictures_go_through_all_five_commands(pictures: Workspace) -> None:
    run = RunDir(pictures.root / "runs" / "tiny" / "trained")
    train(tiny_settings(steps=2), pictures.manifest, run, device="cpu")
    predictor = Predictor(run.path, device="cpu")
    mask = pictures.root / "mask.png"
    predict_file(pictures.scan, OutputPaths(mask), predictor)
    assert png(mask).shape == SHAPE
    for grid in ("native", "model"):
        report = evaluate(
            run.path,
            pictures.root,
            options=ScoringOptions(grid=grid),
            cases=SplitOptions(predictor=predictor),
        )
        assert 0 <= report.cases[0].values["dice"] <= 1
    cases = SplitOptions(predictor=predictor)
    assert stability(run.path, pictures.root, options=StabilityOptions(2), cases=cases).files


def test_two_folders_of_pictures_are_scored(tmp_path: Path) -> None:
    truth = np.zeros((4, 4), np.uint8)
    truth[:2] = 255
    half = np.zeros((4, 4), np.uint8)
    half[:1] = 1
    save(tmp_path / "ref/a.png", truth)
    save(tmp_path / "pred/a.png", half)
    (case,) = evaluate_folders(tmp_path / "pred", tmp_path / "ref").cases
    assert case.values["dice"] == pytest.approx(2 * 4 / (4 + 8))
    # Beside volumes, pictures are views of them.
    for name in ("pred", "ref"):
        nib.save(
            nib.Nifti1Image(np.ones((2, 2, 2), np.uint8), np.eye(4)), tmp_path / name / "a.nii"
        )
    (case,) = evaluate_folders(tmp_path / "pred", tmp_path / "ref").cases
    assert case.reference_voxels == 8


def test_a_picture_without_its_mask_or_with_another_size_is_named(tmp_path: Path) -> None:
    for number in range(4):
        save_pair(tmp_path / f"raw/images/{number}.png", tmp_path / f"raw/masks/{number}.png", 0)
    save(tmp_path / "raw/masks/2.png", np.zeros((48, 63), np.uint8))
    with pytest.raises(DataError, match=r"case 2: .*\(48, 64, 1\).*\(48, 63, 1\)"):
        prepare(tmp_path / "raw", tmp_path, PrepareOptions(workers=1))
    (tmp_path / "raw/masks/3.png").unlink()
    (tmp_path / "raw/masks/2.png").unlink()
    with pytest.raises(DataError, match="case 2: no label map"):
        prepare(tmp_path / "raw", tmp_path, PrepareOptions(workers=1))
    assert not (tmp_path / "prepared").exists()


def test_pictures_and_volumes_in_one_set_are_refused(raw: Path, workspace: Path) -> None:
    save_pair(raw / "pt_1/image.png", raw / "pt_1/label.png", 0)
    with pytest.raises(DataError, match=r"image\.png is a picture, image\.nii\.gz a volume"):
        prepare(
            raw,
            workspace,
            PrepareOptions(image_glob="*/image.[np]*", label_glob="*/label.[np]*", workers=1),
        )


def test_a_body_is_not_looked_for_in_pictures(pictures: Workspace, workspace: Path) -> None:
    with pytest.raises(ConfigError, match="--crop body does not go with pictures"):
        prepare(pictures.root / "raw", workspace, PrepareOptions(crop="body", workers=1))
    assert list(workspace.iterdir()) == []


def test_a_manifest_from_before_pictures_is_still_read(pictures: Workspace, tmp_path: Path) -> None:
    content = json.loads(pictures.manifest.path.read_text())
    assert content.pop("mask_levels") is None
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    assert Manifest.load(tmp_path) == replace(pictures.manifest, root=tmp_path)


@pytest.mark.data
@pytest.mark.slow
def test_real_polyps_are_prepared_by_their_published_rules(real_data: Path, tmp_path: Path) -> None:
    kseg = Manifest.load(prepare(real_data / "kvasir-seg", tmp_path).manifest)
    assert (kseg.adapter, kseg.labels, len(kseg.entries)) == ("kseg", (1,), 880)
    cvc = Manifest.load(prepare(real_data / "cvc-clinicdb", tmp_path).manifest)
    assert (cvc.adapter, cvc.labels, len(cvc.entries)) == ("cvc", (1,), 503)
    assert all(case.foreground_slices == 1 for case in (*kseg.entries, *cvc.entries))
