"""What `predict_file` makes of given probabilities: no network, expected values by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from sdseg_cli.core.config import SampleConfig
from sdseg_cli.core.errors import ConfigError, DataError, RunError
from sdseg_cli.imaging.intensity import PICTURE_WINDOW, Normalisation
from sdseg_cli.imaging.postprocess import PostProcess
from sdseg_cli.imaging.slices import SliceStack, to_stack
from sdseg_cli.imaging.volume import Volume
from sdseg_cli.inference.options import DEFAULT_RUNS, OutputPaths, PredictOptions
from sdseg_cli.inference.predict import predict_file
from tests.fake_run import write_nifti

SIDE, SLICES = 8, 5
HALF = np.float32(0.5)


class Given:
    """A predictor whose answers are given: (K,S,8,8), drawn in this order."""

    run = Path("given")
    config = SimpleNamespace(sample=SampleConfig())
    decoder = "exact"

    def __init__(self, *answers: np.ndarray, window: tuple[float, float] = (-175, 250)) -> None:
        self.answers = np.stack(answers).astype(np.float32)
        self.normalisation = Normalisation("window", *window)
        self.asked: list[SampleConfig] = []

    batch_size = None

    def require_kind(self, name: str, *, picture: bool) -> None:
        """Any kind will do."""

    def batch_bytes(self, draws: int, batch_size: int | None) -> int:
        return 0

    def stack(self, volume: Volume) -> SliceStack:
        return to_stack(volume, self.normalisation, size=SIDE)

    def planes(self, stack: SliceStack, *, sample: SampleConfig, **_: object) -> Iterator[Any]:
        self.asked.append(sample)
        yield 0, self.answers[0]

    def draws(self, stack: SliceStack, *, sample: SampleConfig, **_: object) -> Iterator[Any]:
        self.asked.append(sample)
        yield 0, self.answers[:, :2].swapaxes(0, 1)
        yield 2, self.answers[:, 2:].swapaxes(0, 1)


def zeros() -> np.ndarray:
    return np.zeros((SLICES, SIDE, SIDE), np.float32)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """8 x 8 x 5 voxels of 2 x 2 x 3 mm, 40 HU; planes pass to the model's square unchanged."""
    return write_nifti(tmp_path / "scan.nii.gz", np.full((SIDE, SIDE, SLICES), 40, np.int16))


def read(path: Path) -> np.ndarray:
    """(S,rows,columns) as the model sees it: this scan's columns are its first axis."""
    return np.asarray(nib.load(path).dataobj).transpose(2, 1, 0)


def test_the_mask_is_what_lies_above_the_threshold(scan: Path, tmp_path: Path) -> None:
    answer = zeros()
    answer[1, 2, :4] = (0.2, 0.25, 0.5, 0.75)
    for threshold, columns in ((0.2, [1, 2, 3]), (0.25, [2, 3]), (0.5, [3]), (0.75, [])):
        out = tmp_path / "m.nii.gz"
        post = PostProcess(threshold=threshold)
        report = predict_file(scan, OutputPaths(out), Given(answer), PredictOptions(post=post))  # type: ignore[arg-type]
        assert np.flatnonzero(read(out)[1, 2]).tolist() == columns
        assert report.foreground_voxels == len(columns)
        assert report.to_json()["post"] == {
            "threshold": threshold,
            "fill_holes": False,
            "min_size_ml": None,
            "keep_largest": None,
        }


def test_at_one_half_the_stored_map_says_the_mask_again(scan: Path, tmp_path: Path) -> None:
    answer = np.linspace(0, 1, SLICES * SIDE * SIDE, dtype=np.float32).reshape(zeros().shape)
    answer[2, 2, 2:5] = np.nextafter(HALF, 0), HALF, np.nextafter(HALF, 1)
    out, prob = tmp_path / "m.nii.gz", tmp_path / "p.nii.gz"
    predict_file(scan, OutputPaths(out, probability=prob), Given(answer))  # type: ignore[arg-type]
    assert np.array_equal(read(prob) > 0.5, read(out) == 1)
    assert read(out)[2, 2, 2:5].tolist() == [0, 0, 1]


def test_at_any_threshold_a_float_map_says_the_mask_again(scan: Path, tmp_path: Path) -> None:
    answer = np.random.default_rng(0).random(zeros().shape, dtype=np.float32)
    out, prob = tmp_path / "m.nii.gz", tmp_path / "p.nii.gz"
    predict_file(
        scan,
        OutputPaths(out, probability=prob, probability_dtype="float32"),
        Given(answer),
        PredictOptions(post=PostProcess(threshold=0.3)),
    )
    assert np.array_equal(read(prob) > np.float32(0.3), read(out) == 1)


def test_the_mask_is_cleaned_on_the_scans_grid_and_the_map_is_not(
    scan: Path, tmp_path: Path
) -> None:
    answer = zeros()
    answer[1:4, 1:4, 1:4] = 1  # 27 voxels of 12 mm3: 0.324 ml
    answer[2, 2, 2] = 0
    answer[0, 6, 6] = answer[4, 7, :2] = 1
    out, prob = tmp_path / "m.nii.gz", tmp_path / "p.nii.gz"
    post = PostProcess(fill_holes=True, min_size_ml=0.02, keep_largest=2)
    report = predict_file(
        scan, OutputPaths(out, probability=prob), Given(answer), PredictOptions(post=post)
    )  # type: ignore[arg-type]
    expected = zeros()
    expected[1:4, 1:4, 1:4] = 1
    expected[4, 7, :2] = 1  # 0.024 ml; the voxel of 0.012 ml is gone
    assert np.array_equal(read(out), expected)
    assert np.array_equal(read(prob) > 0.5, answer == 1)
    assert report.foreground_voxels == 29
    assert report.foreground_ml == pytest.approx(29 * 0.012)


def test_of_two_draws_the_mask_is_the_mean_and_the_uncertainty_what_flips(
    scan: Path, tmp_path: Path
) -> None:
    first, second = zeros(), zeros()
    first[1, 2, :4] = (1.0, 0.9, 0.9, 0.3)
    second[1, 2, :4] = (1.0, 0.3, 0.0, 0.3)
    second[3, 0, 0] = 0.6
    out, unc = tmp_path / "m.nii.gz", tmp_path / "u.nii.gz"
    given = Given(first, second)
    report = predict_file(scan, OutputPaths(out, uncertainty=unc), given, PredictOptions(runs=2))  # type: ignore[arg-type]
    # Means 1, 0.6, 0.45, 0.3 and 0.3; masks 1110|0 and 1000|1.
    assert np.argwhere(read(out)).tolist() == [[1, 2, 0], [1, 2, 1]]
    image = nib.load(unc)
    assert image.get_data_dtype() == np.uint8
    assert np.argwhere(read(unc) > 0).tolist() == [[1, 2, 1], [1, 2, 2], [3, 0, 0]]
    assert read(unc).max() == pytest.approx(1, abs=1e-6)
    assert given.asked == [SampleConfig(samples=2)]
    # 3 and 2 voxels, 1 shared; of the 4 in any mask 3 flip.
    assert report.to_json()["stability"] == {"runs": 2, "dice": 0.4, "flipped": 0.75}
    assert report.to_json()["uncertainty"] == str(unc)
    assert report.outputs.files == (out, unc)


def test_runs_alone_give_the_score_and_draws_that_agree_score_one(
    scan: Path, tmp_path: Path
) -> None:
    answer = zeros()
    answer[2, 2:4, 2:4] = 1
    out = tmp_path / "m.nii.gz"
    report = predict_file(
        scan, OutputPaths(out), Given(answer, answer, answer), PredictOptions(runs=3)
    )  # type: ignore[arg-type]
    assert report.stability is not None
    assert (report.stability.dice, report.stability.flipped) == (1.0, 0.0)
    empty = predict_file(scan, OutputPaths(out), Given(zeros(), zeros()), PredictOptions(runs=2))  # type: ignore[arg-type]
    assert empty.to_json()["stability"] == {"runs": 2, "dice": None, "flipped": None}
    assert "stability" not in predict_file(scan, OutputPaths(out), Given(answer)).to_json()  # type: ignore[arg-type]


def test_an_uncertainty_alone_draws_five_times(scan: Path, tmp_path: Path) -> None:
    given = Given(*[zeros()] * DEFAULT_RUNS)
    predict_file(scan, OutputPaths(tmp_path / "m.nii.gz", uncertainty=tmp_path / "u.nii.gz"), given)  # type: ignore[arg-type]
    assert given.asked == [SampleConfig(samples=5)]


def test_the_draws_are_compared_at_the_threshold_and_before_cleaning(
    scan: Path, tmp_path: Path
) -> None:
    first, second = zeros(), zeros()
    first[1, 2, :2], second[1, 2, :2] = 0.9, 0.7
    first[4, 7, 7] = second[4, 7, 7] = 0.9
    post = PostProcess(threshold=0.75, keep_largest=1)
    out, given = tmp_path / "m.nii.gz", Given(first, second)
    report = predict_file(scan, OutputPaths(out), given, PredictOptions(post=post, runs=2))  # type: ignore[arg-type]
    # Means 0.8 twice and 0.9; 3 voxels and 1, 1 shared; 2 of 3 flip.
    assert np.argwhere(read(out)).tolist() == [[1, 2, 0], [1, 2, 1]]
    assert report.stability is not None
    assert report.stability.dice == pytest.approx(2 / 4)
    assert report.stability.flipped == pytest.approx(2 / 3)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "polyp.png"
    Image.fromarray(np.full((SIDE, SIDE, 3), 90, np.uint8)).save(path)
    return path


def png(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_a_picture_takes_all_options_but_millilitres(picture: Path, tmp_path: Path) -> None:
    first = np.zeros((1, SIDE, SIDE), np.float32)
    first[0, 1:4, 1:4] = 1
    first[0, 2, 2] = 0  # a hole, in a plane
    second = first.copy()
    first[0, 6, 6] = 0.9
    given = Given(first, second, window=PICTURE_WINDOW)
    given.draws = lambda *_, **__: iter([(0, given.answers.swapaxes(0, 1))])  # type: ignore[method-assign]
    out = {name: tmp_path / f"{name}.png" for name in ("mask", "unc", "look")}
    report = predict_file(
        picture,
        OutputPaths(out["mask"], uncertainty=out["unc"], preview=out["look"]),
        given,
        PredictOptions(post=PostProcess(threshold=0.4, fill_holes=True, keep_largest=1), runs=2),
    )
    assert np.argwhere(png(out["mask"])).tolist() == [[r, c] for r in (1, 2, 3) for c in (1, 2, 3)]
    assert np.argwhere(png(out["unc"])).tolist() == [[6, 6]]
    assert png(out["unc"])[6, 6] == 255
    assert png(out["look"]).ndim == 3
    assert report.foreground_voxels == 9
    with pytest.raises(ConfigError, match=r"polyp\.png: --min-size is in millilitres"):
        predict_file(
            picture,
            OutputPaths(out["mask"]),
            given,
            PredictOptions(post=PostProcess(min_size_ml=1.0)),
        )  # type: ignore[arg-type]


def test_a_picture_that_does_not_fit_is_refused_before_it_is_decoded(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decoded(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    monkeypatch.setattr("sdseg_cli.inference.predict.available_bytes", lambda: 100)
    with pytest.raises(RunError, match=r"polyp\.png: predicting it takes .* GB are free"):
        predict_file(picture, OutputPaths(tmp_path / "m.png"), Given(zeros()))  # type: ignore[arg-type]
    assert not (tmp_path / "m.png").exists()


def test_nothing_is_predicted_where_an_output_is_wrong(scan: Path, tmp_path: Path) -> None:
    given, out = Given(zeros()), tmp_path / "m.nii.gz"
    once = PredictOptions()
    wrong: list[tuple[type[Exception], str, dict[str, Path], PredictOptions]] = [
        (ConfigError, "both mask and --uncertainty", {"uncertainty": out}, once),
        (
            ConfigError,
            "both --prob and --uncertainty",
            {"probability": tmp_path / "p.nii.gz", "uncertainty": tmp_path / "x/../p.nii.gz"},
            once,
        ),
        (ConfigError, "is the scan itself", {"uncertainty": scan}, once),
        (DataError, "cannot write this kind", {"uncertainty": tmp_path / "u.docx"}, once),
        (DataError, "a preview is a PNG", {"preview": tmp_path / "look.jpg"}, once),
        (DataError, "is a folder", {"preview": tmp_path}, once),
        (ConfigError, "--runs is 1: there is nothing to compare", {}, PredictOptions(runs=1)),
        (ConfigError, "--runs is 0", {}, PredictOptions(runs=0)),
        (ConfigError, "--runs is 101", {}, PredictOptions(runs=101)),
        (
            ConfigError,
            "Without noise all runs are one",
            {},
            PredictOptions(runs=2, sample=SampleConfig(noise="zero")),
        ),
    ]
    before = sorted(tmp_path.iterdir())
    for kind, says, beside, options in wrong:
        with pytest.raises(kind, match=says):
            predict_file(scan, OutputPaths(out, **beside), given, options)  # type: ignore[arg-type]
    assert given.asked == []
    assert sorted(tmp_path.iterdir()) == before


def test_a_preview_that_cannot_be_drawn_leaves_no_mask_either(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("sdseg_cli.report.preview.save_preview", fails)
    outputs = OutputPaths(
        tmp_path / "m.nii.gz",
        probability=tmp_path / "new" / "p.nii.gz",
        preview=tmp_path / "look.png",
    )
    with pytest.raises(Exception, match="cannot be written"):
        predict_file(scan, outputs, Given(zeros()))  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nii.gz"]
