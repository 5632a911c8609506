"""Masks of given probabilities, and the memory they need: no network, expected values by hand."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from sdseg_cli.core.config import SampleConfig
from sdseg_cli.core.errors import ConfigError, DataError, RunError
from sdseg_cli.data.spec import ClassRule
from sdseg_cli.imaging.intensity import PICTURE_WINDOW, Normalisation
from sdseg_cli.imaging.io.files import read_image
from sdseg_cli.imaging.postprocess import PostProcess
from sdseg_cli.imaging.scans import Scan
from sdseg_cli.imaging.slices import SliceStack, to_stack
from sdseg_cli.imaging.volume import Geometry, Volume
from sdseg_cli.inference.cohort import Task, predict_one
from sdseg_cli.inference.ledger import FAILED
from sdseg_cli.inference.options import DEFAULT_RUNS, OutputPaths, PredictOptions
from sdseg_cli.inference.predict import (
    PREVIEW_BYTES,
    MemoryGuard,
    Need,
    PredictReport,
    advice,
    need_of,
    predict_file,
)
from tests.fake_run import write_nifti

SIDE, SLICES = 8, 5
HALF = np.float32(0.5)
AVAILABLE = "sdseg_cli.inference.predict.available_bytes"


class Given:
    """A predictor of one class whose answers are given: (draws,S,8,8), drawn in this order."""

    run = Path("given")
    runs = (run,)
    config = SimpleNamespace(sample=SampleConfig())
    decoder = "exact"
    run_threshold = None
    batch_size = None
    classes = ClassRule()

    def __init__(self, *answers: np.ndarray, window: tuple[float, float] = (-175, 250)) -> None:
        self.answers = np.stack(answers).astype(np.float32)
        self.normalisation = Normalisation("window", *window)
        self.asked: list[SampleConfig] = []

    def require_kind(self, name: str, *, picture: bool) -> None:
        """Any kind will do."""

    def batch_bytes(self, draws: int, batch_size: int | None) -> int:
        return 0

    def stack(self, volume: Volume) -> SliceStack:
        return to_stack(volume, self.normalisation, size=SIDE)

    def planes(self, stack: SliceStack, *, sample: SampleConfig, **_: object) -> Iterator[Any]:
        self.asked.append(sample)
        yield 0, self.answers[0][:, None]

    def draws(self, stack: SliceStack, *, sample: SampleConfig, **_: object) -> Iterator[Any]:
        self.asked.append(sample)
        yield 0, self.answers[:, :2].swapaxes(0, 1)[:, :, None]
        yield 2, self.answers[:, 2:].swapaxes(0, 1)[:, :, None]


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
        report = predict_file(scan, OutputPaths(out), Given(answer), PredictOptions(post=post))
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
    predict_file(scan, OutputPaths(out, probability=prob), Given(answer))
    assert nib.load(prob).get_data_dtype() == np.uint8
    assert nib.load(prob).dataobj.slope == pytest.approx(1 / 255, rel=1e-7)
    assert np.array_equal(read(prob) > 0.5, read(out) == 1)
    assert read(out)[2, 2, 2:5].tolist() == [0, 0, 1]


@pytest.mark.parametrize("name", ["p.nii.gz", "p.nrrd", "p.mha"])
def test_at_any_threshold_a_float_map_says_the_mask_again(
    scan: Path, tmp_path: Path, name: str
) -> None:
    answer = np.random.default_rng(0).random(zeros().shape, dtype=np.float32)
    out, prob, shares = tmp_path / "m.nii.gz", tmp_path / name, tmp_path / f"shares-{name}"
    outputs = OutputPaths(out, probability=prob, probability_dtype="float32")
    options = PredictOptions(post=PostProcess(threshold=0.3))
    predict_file(scan, outputs, Given(answer), options)
    values = read_image(prob).values().transpose(2, 1, 0)
    assert np.array_equal(values, answer)
    assert np.array_equal(values > np.float32(0.3), read(out) == 1)
    # In shares of 255, as float where the format has no slope.
    predict_file(scan, OutputPaths(out, probability=shares), Given(answer), options)
    values = read_image(shares).values().transpose(2, 1, 0)
    assert np.allclose(values, np.ceil(answer * 255 - 0.5) / 255, atol=1e-6)


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
    )
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
    report = predict_file(scan, OutputPaths(out, uncertainty=unc), given, PredictOptions(runs=2))
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
    )
    assert report.stability is not None
    assert (report.stability.dice, report.stability.flipped) == (1.0, 0.0)
    empty = predict_file(scan, OutputPaths(out), Given(zeros(), zeros()), PredictOptions(runs=2))
    assert empty.to_json()["stability"] == {"runs": 2, "dice": None, "flipped": None}
    assert "stability" not in predict_file(scan, OutputPaths(out), Given(answer)).to_json()


def test_a_threshold_that_validation_chose_is_said(scan: Path, tmp_path: Path) -> None:
    given = Given(zeros())
    plain = predict_file(scan, OutputPaths(tmp_path / "m.nii.gz"), given).to_json()
    assert "run_threshold" not in plain
    given = Given(zeros())
    given.run_threshold = 0.3
    found = predict_file(scan, OutputPaths(tmp_path / "m.nii.gz"), given).to_json()
    assert (found["run_threshold"], found["post"]["threshold"]) == (0.3, 0.5)


def test_an_uncertainty_alone_draws_five_times(scan: Path, tmp_path: Path) -> None:
    given = Given(*[zeros()] * DEFAULT_RUNS)
    predict_file(scan, OutputPaths(tmp_path / "m.nii.gz", uncertainty=tmp_path / "u.nii.gz"), given)
    assert given.asked == [SampleConfig(samples=5)]


def test_the_draws_are_compared_at_the_threshold_and_before_cleaning(
    scan: Path, tmp_path: Path
) -> None:
    first, second = zeros(), zeros()
    first[1, 2, :2], second[1, 2, :2] = 0.9, 0.7
    first[4, 7, 7] = second[4, 7, 7] = 0.9
    post = PostProcess(threshold=0.75, keep_largest=1)
    out, given = tmp_path / "m.nii.gz", Given(first, second)
    report = predict_file(scan, OutputPaths(out), given, PredictOptions(post=post, runs=2))
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


@pytest.mark.slow
def test_a_picture_takes_all_options_but_millilitres(picture: Path, tmp_path: Path) -> None:
    first = np.zeros((1, SIDE, SIDE), np.float32)
    first[0, 1:4, 1:4] = 1
    first[0, 2, 2] = 0  # a hole, in a plane
    second = first.copy()
    first[0, 6, 6] = 0.9
    given = Given(first, second, window=PICTURE_WINDOW)
    given.draws = lambda *_, **__: iter([(0, given.answers.swapaxes(0, 1)[:, :, None])])
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
        )


def test_a_picture_that_does_not_fit_is_refused_before_it_is_decoded(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decoded(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    monkeypatch.setattr(AVAILABLE, lambda: 100)
    with pytest.raises(RunError, match=r"polyp\.png: predicting it takes .* GB are free"):
        predict_file(picture, OutputPaths(tmp_path / "m.png"), Given(zeros()))
    assert not (tmp_path / "m.png").exists()


def test_nothing_is_predicted_where_an_output_is_wrong(scan: Path, tmp_path: Path) -> None:
    given, out = Given(zeros()), tmp_path / "m.nii.gz"
    once = PredictOptions()
    wrong: list[tuple[type[Exception], str, dict[str, Any], PredictOptions]] = [
        (ConfigError, "both mask and --uncertainty", {"uncertainty": out}, once),
        (
            ConfigError,
            "both --prob and --uncertainty",
            {"probability": tmp_path / "p.nii.gz", "uncertainty": tmp_path / "x/../p.nii.gz"},
            once,
        ),
        (ConfigError, "is the scan itself", {"uncertainty": scan}, once),
        (DataError, "cannot write this kind", {"uncertainty": tmp_path / "u.docx"}, once),
        (ConfigError, "both mask and --prob", {"probability": out}, once),
        (ConfigError, "--prob-dtype is 'half'", {"probability_dtype": "half"}, once),
        (ConfigError, "is the scan itself", {"mask": scan}, once),
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
            predict_file(scan, replace(OutputPaths(out), **beside), given, options)
    assert given.asked == []
    assert sorted(tmp_path.iterdir()) == before


def test_a_preview_that_cannot_be_drawn_leaves_no_mask_either(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("sdseg_cli.report.preview.save_preview", fails)
    outputs = OutputPaths(
        tmp_path / "m.nii.gz",
        probability=tmp_path / "new" / "p.nii.gz",
        preview=tmp_path / "look.png",
    )
    with pytest.raises(Exception, match="cannot be written"):
        predict_file(scan, outputs, Given(zeros()))
    assert [path.name for path in tmp_path.iterdir()] == ["scan.nii.gz"]


@pytest.mark.parametrize("option", ["mask", "probability", "uncertainty", "preview"])
@pytest.mark.parametrize("name", ["file/{}", "file/new/{}", "gone/{}"])
def test_an_output_that_cannot_be_written_is_named_before_anything_is_predicted(
    scan: Path, tmp_path: Path, option: str, name: str
) -> None:
    (tmp_path / "file").write_text("a file")
    (tmp_path / "gone").symlink_to("nowhere")
    given = Given(zeros())
    written = tmp_path / name.format("p.png" if option == "preview" else "p.nii.gz")
    with pytest.raises(RunError) as caught:
        predict_file(scan, replace(OutputPaths(tmp_path / "m.nii.gz"), **{option: written}), given)
    assert caught.value.message.startswith(f"{written}: cannot be written (")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "gone", "scan.nii.gz"]
    assert given.asked == []


@pytest.mark.parametrize("name", ["mask.nii.gz", "mask.nrrd", "mask.mha"])
def test_a_writer_that_fails_names_the_output(
    scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "some other name")

    monkeypatch.setattr("sdseg_cli.imaging.io.nifti.replacing", lambda path: refuse())
    monkeypatch.setattr("SimpleITK.WriteImage", refuse)
    out = tmp_path / name
    with pytest.raises(RunError) as caught:
        predict_file(scan, OutputPaths(out), Given(zeros()))
    assert caught.value.message == f"{out}: cannot be written (No space left on device)."
    assert list(tmp_path.iterdir()) == [scan]


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


GRID = Geometry((20, 10, 5), np.diag([-2.0, -2.0, 3.0, 1.0]))
"""1,000 voxels; its planes are 10 x 20, so a slice on its way takes 20 x 20 x 24 = 9,600 bytes."""
NII, MHA = Path("m.nii.gz"), Path("m.mha")


def test_the_contracts_case_takes_scan_mask_probability_and_a_batch() -> None:
    need = need_of(OutputPaths(NII, Path("p.nii")), GRID, voxel_bytes=2, batch_bytes=7000, draws=1)
    # Each draw is compared as two bytes per pixel: 400 x 2.
    assert need == Need(2000, 1000, 1000, 0, 0, 0, 7000 + 9600 + 800)
    assert need.total == 2000 + 1000 + 1000 + 17400


def test_every_map_and_the_drawing_are_counted() -> None:
    outputs = OutputPaths(NII, Path("p.nii"), "float32", Path("u.nii"), Path("look.png"))
    need = need_of(outputs, GRID, voxel_bytes=4, batch_bytes=0, draws=5)
    assert need == Need(4000, 1000, 4000, 1000, 0, PREVIEW_BYTES, 9600 + 4000)


def test_other_formats_than_nifti_copy_the_largest_map_they_write() -> None:
    assert need_of(OutputPaths(MHA), GRID, 2, 0).copies == 1000
    assert need_of(OutputPaths(NII, MHA), GRID, 2, 0).copies == 4000, "as float32"
    assert need_of(OutputPaths(MHA, Path("p.nrrd")), GRID, 2, 0).copies == 4000, "one at a time"


ONE = {"--batch-size 1": 5, "no --preview": 0, "no --prob": 10}
SEVERAL = {"--batch-size 1": 5, "--prob-dtype uint8": 6, "no --preview": 0, "no --prob": 8}


@pytest.mark.parametrize(
    ("savings", "short", "says"),
    [
        (ONE, 5, "It fits with --batch-size 1."),
        (ONE, 6, "It fits with no --prob."),
        (SEVERAL, 13, "It fits with --batch-size 1 and no --prob."),
        (SEVERAL, 14, "No option makes it fit"),  # uint8 is a part of what no prob saves
    ],
)
def test_the_advice_is_the_first_option_that_is_enough_or_all_that_add_up(
    savings: dict[str, int], short: int, says: str
) -> None:
    assert advice(savings, short).startswith(says)


def refused(guard: MemoryGuard, free: int, monkeypatch: pytest.MonkeyPatch) -> RunError:
    monkeypatch.setattr(AVAILABLE, lambda: free)
    with pytest.raises(RunError) as caught:
        guard(Geometry((1000, 1000, 1000), np.diag([1.0, 1.0, 1.0, 1.0])), 2)
    return caught.value


def test_a_scan_that_does_not_fit_is_told_its_need_what_is_free_and_what_helps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guard = MemoryGuard("ct.nii.gz", OutputPaths(NII, Path("p.nii")), lambda _: 474_000_000)
    # 2 GB of scan, 1 of mask, 1 of probability, 0.474 of batch, 0.026 of a slice's 10^6 pixels.
    error = refused(guard, 3_600_000_000, monkeypatch)
    assert error.message == (
        "ct.nii.gz: predicting it takes 4.50 GB of memory (scan 2.00, mask 1.00, probability 1.00, "
        "batch 0.50), and 3.60 GB are free."
    )
    assert error.hint == "It fits with no --prob."
    assert error.exit_code == 1


@pytest.mark.parametrize(
    ("free", "hint"),
    [
        (4_400_000_000, "It fits with --batch-size 1."),
        (2_900_000_000, "No option makes it fit: end other programs, or take a machine"),
    ],
)
def test_what_helps_depends_on_how_much_is_missing(
    free: int, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {None: 474_000_000, 1: 74_000_000}
    guard = MemoryGuard("ct.nii.gz", OutputPaths(NII, Path("p.nii")), sizes.__getitem__)
    assert refused(guard, free, monkeypatch).hint.startswith(hint)


def test_a_batch_counts_no_more_slices_than_the_scan_has_and_the_hint_names_what_fits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def bytes_of(size: int | None) -> int:
        return (size or 0) * 1_000_000

    guard = MemoryGuard("ct.nii.gz", OutputPaths(NII), bytes_of, batch_size=10**9)
    # 2 GB of scan, 1 of mask, 0.026 of a slice's pixels: 0.974 GB are left for 1 MB a slice, and
    # the scan has 1000.
    error = refused(guard, 4_000_000_000, monkeypatch)
    assert "batch 1.03" in error.message
    assert error.hint == "It fits with --batch-size 974."
    MemoryGuard("ct", OutputPaths(NII), bytes_of, batch_size=10**9)(GRID, 2)  # five slices


def test_what_just_fits_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AVAILABLE, lambda: 13_400)
    MemoryGuard("ct", OutputPaths(NII), lambda _: 0)(GRID, 2)  # 2000 + 1000 + 9600 + 800
    with pytest.raises(RunError):
        MemoryGuard("ct", OutputPaths(NII), lambda _: 1)(GRID, 2)


class Endless(Given):
    """Answers the same for each slice: nothing, but for a corner; a scan may have any number."""

    def __init__(self) -> None:
        super().__init__(np.zeros((1, SIDE, SIDE)))
        self.answers[..., :4, :4] = 1

    def planes(self, stack: SliceStack, **_: object) -> Iterator[Any]:
        for k in range(len(stack)):
            yield k, self.answers[0][:, None]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_prediction_keeps_the_contracts_bound(suffix: str, tmp_path: Path) -> None:
    voxels = np.zeros((192, 192, 128), np.int16)
    voxels[::2] = 40
    scan = write_nifti(tmp_path / f"scan{suffix}", voxels)
    mask, probability = tmp_path / f"mask{suffix}", tmp_path / f"prob{suffix}"
    post = PostProcess(fill_holes=True, min_size_ml=0.1, keep_largest=1)
    count = voxels.size
    del voxels
    predictor: Any = Endless()
    predict_file(scan, OutputPaths(mask), predictor, PredictOptions(post=post))  # loads libraries
    tracemalloc.start()
    report = predict_file(
        scan, OutputPaths(mask, probability=probability), predictor, PredictOptions(post=post)
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert report.foreground_voxels > 0
    assert 4 * count < peak < (1.5 * 2 + 1 + 1) * count


def test_a_scan_that_does_not_fit_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = write_nifti(tmp_path / "ct.nii", np.zeros((8, 8, 8), np.int16))
    monkeypatch.setattr(AVAILABLE, lambda: 0)
    monkeypatch.setattr("sdseg_cli.imaging.io.nifti.read_array", None)
    with pytest.raises(RunError, match=r"ct\.nii: predicting it takes .* 0\.00 GB are free"):
        predict_file(scan, OutputPaths(tmp_path / "m.nii"), Endless())
    assert list(tmp_path.iterdir()) == [scan]


def test_in_a_cohort_it_is_one_failed_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_nifti(tmp_path / "in" / "ct.nii", np.zeros((8, 8, 8), np.int16))
    scan = Scan("ct", path, Path("ct.nii"))
    monkeypatch.setattr(AVAILABLE, lambda: 0)
    row = predict_one(Task(tmp_path, OutputPaths(tmp_path / "out")), scan, Endless(), {})
    assert row.status == FAILED
    assert "GB are free. No option makes it fit" in row.error
