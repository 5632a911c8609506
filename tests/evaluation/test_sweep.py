"""Ways of sampling whose answers are known."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdseg_cli.core.config import SampleConfig
from sdseg_cli.core.errors import ConfigError
from sdseg_cli.evaluation.evaluation_split import SplitOptions
from sdseg_cli.evaluation.stability import StabilityOptions
from sdseg_cli.evaluation.sweep import every_sampling, sweep
from sdseg_cli.inference.predictor import Prediction
from tests.fake_run import EMPTY, Workspace, block, make_workspace

FOUR, MOVED = block(slice(4, 8)), block(slice(6, 10))


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("SDSEG_WEIGHTS", str(tmp_path / "store"))
    return make_workspace(tmp_path, {"a": FOUR, "nothing": EMPTY})


def how(*values: tuple[int, float, int]) -> tuple[SampleConfig, ...]:
    return tuple(SampleConfig(steps=s, eta=float(e), samples=n) for s, e, n in values)


def test_every_combination_stands_once_and_one_step_has_no_eta() -> None:
    found, skipped = every_sampling(SampleConfig(), (1, 2), (0.0, 1.0), (1, 5))
    assert found == how((1, 0, 1), (2, 0, 1), (2, 1, 1), (1, 0, 5), (2, 0, 5), (2, 1, 5))
    assert skipped


def test_what_is_not_given_is_the_runs_setting() -> None:
    own = SampleConfig(steps=10, eta=0.5, samples=3, flips="h")
    assert every_sampling(own, None, None, None) == ((own,), False)
    found, skipped = every_sampling(own, (1, 2), None, None)
    assert found == (
        SampleConfig(steps=1, eta=0.0, samples=3, flips="h"),
        SampleConfig(steps=2, eta=0.5, samples=3, flips="h"),
    )
    assert not skipped  # nobody asked for it


@pytest.mark.parametrize("steps", [None, (1,)])
def test_an_eta_that_no_row_could_have_is_refused(steps: tuple[int, ...] | None) -> None:
    with pytest.raises(ConfigError, match="--eta has no effect with one reverse step"):
        every_sampling(SampleConfig(), steps, (0.0, 1.0), None)


def test_each_row_has_the_same_seeds_its_own_dice_and_its_own_speed(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = workspace.predictor.predict

    def predict(volume, *, case_id, seed=0, sample=None, progress=None):
        # With two steps the second run moves; the very first prediction of a row is slow.
        workspace.answers(a={7: FOUR, 8: MOVED if sample.steps == 2 else FOUR})
        found = answer(volume, case_id=case_id, seed=seed, sample=sample, progress=progress)
        first = (case_id, seed) == ("a", 7)
        seconds = 100.0 if first else 0.2 * sample.steps
        return Prediction(case_id, found.probabilities, found.restore, seed, seconds)

    monkeypatch.setattr(workspace.predictor, "predict", predict)
    told: list[tuple[int, int, str]] = []
    rows = how((1, 0, 1), (2, 1, 1))
    report = sweep(
        None,
        workspace.root,
        rows,
        skipped_eta=True,
        options=StabilityOptions(2),
        cases=SplitOptions(seed=7, predictor=workspace.predictor),
        progress=lambda *now: told.append(now),
    )
    asked = [(seed, sample.steps) for _, seed, sample in workspace.predictor.calls]
    assert asked == [(7, 1), (8, 1)] * 2 + [(7, 2), (8, 2)] * 2
    one, two = report.to_json()["sweep"]
    assert (one["steps"], one["eta"], one["samples"]) == (1, 0.0, 1)
    assert one["dice"] == {"mean": 1.0, "sd": 0.0}
    assert two["dice"] == {"mean": 0.75, "sd": pytest.approx(0.5 / 2**0.5)}
    # Three predictions of four slices count, of 0.2 s with one step: 0.05 s a slice.
    assert one["seconds_per_slice"] == pytest.approx(0.05)
    assert two["slices_per_second"] == pytest.approx(10)
    assert one["seg"]["psnr"] is None and two["seg"]["psnr"] > 0
    assert (one["identical"]["seg"], two["identical"]["seg"], one["pairs"]) == (2, 0, 2)
    # Two rows of two cases of four slices, each twice.
    assert told[-1] == (32, 32, "row 2 of 2, steps 2, eta 1, samples 1: case nothing")
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    notes = " ".join(report.notes)
    assert "eta has no effect with one reverse step" in notes
    assert "empty reference: nothing" in notes and "lpips is absent" in notes


def test_the_files_say_the_same_and_no_map_is_written(workspace: Workspace) -> None:
    rows = how((1, 0, 1), (2, 0, 1), (2, 1, 1), (10, 0, 1), (10, 1, 1))
    report = sweep(
        None,
        workspace.root,
        rows,
        options=StabilityOptions(2),
        cases=SplitOptions(predictor=workspace.predictor),
    )
    folder = workspace.run / "report" / "test"
    assert {path.name for path in folder.iterdir()} == {
        "report.html",
        "sweep.csv",
        "sweep.json",
        "sweep.png",
    }
    text = (folder / "sweep.json").read_text(encoding="utf-8")
    assert json.loads(text) == report.to_json()
    assert report.to_json()["files"] == [str(path) for path in report.files]
    with (folder / "sweep.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [(line["steps"], line["eta"]) for line in lines] == [
        ("1", "0.0"),
        ("2", "0.0"),
        ("2", "1.0"),
        ("10", "0.0"),
        ("10", "1.0"),
    ]
    assert lines[0]["dice_mean"] == "1.0"
    same = lines[0]["seg_psnr"], lines[0]["seg_identical"]
    assert same == ("", lines[0]["pairs"])  # every slice is the same plane twice
    assert any(note.startswith("psnr: some pairs of slices are identical") for note in report.notes)
    with Image.open(folder / "sweep.png") as picture:
        assert np.asarray(picture.convert("RGB")).std() > 5


def test_one_run_and_no_noise_are_refused_here_too(workspace: Workspace) -> None:
    rows = how((1, 0, 1), (2, 0, 1))
    with pytest.raises(ConfigError, match="nothing to compare"):
        sweep(
            None,
            workspace.root,
            rows,
            options=StabilityOptions(1),
            cases=SplitOptions(predictor=workspace.predictor),
        )
    still = [SampleConfig(noise="zero", steps=steps) for steps in (1, 2)]
    with pytest.raises(ConfigError, match="predicts without noise"):
        sweep(
            None,
            workspace.root,
            still,
            options=StabilityOptions(2),
            cases=SplitOptions(predictor=workspace.predictor),
        )
