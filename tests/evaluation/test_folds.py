"""Folds scored by the run that did not see them; every Dice is counted by hand."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from sdseg_cli.core.config import RunConfig
from sdseg_cli.core.config_file import to_toml
from sdseg_cli.core.errors import ConfigError
from sdseg_cli.evaluation import evaluation_split, folds
from sdseg_cli.evaluation.evaluate import evaluate
from sdseg_cli.evaluation.evaluation_split import SplitOptions
from sdseg_cli.evaluation.folds import evaluate_folds
from sdseg_cli.runs.run_folder import RunDir, find_folds
from tests.fake_run import EMPTY, FakePredictor, block, make_workspace

# Each block has 32 voxels; moved by 2 of 4 columns half of it overlaps.
FOUR, MOVED = block(slice(4, 8)), block(slice(6, 10))


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """Cases a, b in fold 0 and c in fold 1; t tests. Each run knows its own answers alone."""
    monkeypatch.setattr("sdseg_cli.evaluation.evaluate.save_cases", lambda *_: None)
    made = make_workspace(tmp_path, dict.fromkeys("abct", FOUR))
    of = {"a": 0, "b": 0, "c": 1}
    entries = tuple(
        replace(case, fold=of.get(case.id), split="train" if case.id in of else "test")
        for case in made.manifest.entries
    )
    manifest = replace(made.manifest, entries=entries)
    manifest.path.write_text(manifest.to_text(), encoding="utf-8")
    shutil.rmtree(made.run)
    answers = [{"a": FOUR, "b": MOVED}, {"c": EMPTY}]
    predictors = {}
    for number, answer in enumerate(answers):
        run = tmp_path / "runs" / "toy" / f"tiny-fold{number}"
        (run / "checkpoints").mkdir(parents=True)
        (run / "checkpoints" / "best.pt").write_bytes(b"checkpoint %d" % number)
        config = to_toml(RunConfig(dataset="toy", fold=number))
        (run / "config.toml").write_text(config, encoding="utf-8")
        status = {"state": "finished", "step": 1, "best": {}}
        (run / "status.json").write_text(json.dumps(status), encoding="utf-8")
        settings = manifest.of_fold(number).inference_settings()
        predictors[run] = FakePredictor(settings, answer)
    monkeypatch.setattr(
        "sdseg_cli.inference.predictor.Predictor", lambda run, **_: predictors[Path(run)]
    )
    both = FakePredictor({}, {"t": MOVED})
    monkeypatch.setattr(folds, "Predictor", lambda runs, **_: both)
    return tmp_path


def test_each_case_is_judged_by_the_fold_that_did_not_see_it(home: Path) -> None:
    found = evaluate_folds(find_folds(home, "tiny"), home).to_json()
    # a is found whole, b by half, c not at all.
    assert {case["id"]: case["dice"] for case in found["cases"]} == {"a": 1.0, "b": 0.5, "c": 0.0}
    assert found["metrics"]["dice"]["mean"] == 0.5
    assert found["metrics"]["dice"]["n"] == 3
    assert [(one["fold"], one["metrics"]["dice"]["mean"]) for one in found["folds"]] == [
        (0, 0.75),
        (1, 0.0),
    ]
    assert [Path(one["run"]).name for one in found["folds"]] == ["tiny-fold0", "tiny-fold1"]
    spread = found["fold_spread"]["dice"]
    # The sample deviation of two values is their difference over the root of 2.
    assert spread["mean"] == 0.375
    assert spread["sd"] == pytest.approx(0.75 / 2**0.5)
    assert found["ensemble"]["metrics"]["dice"]["mean"] == 0.5
    assert [case["id"] for case in found["ensemble"]["cases"]] == ["t"]


def test_the_reports_lie_beside_the_runs_and_the_page_has_the_folds(home: Path) -> None:
    evaluate_folds(find_folds(home, None), home)
    report = home / "runs" / "toy" / "tiny-folds" / "report"
    page = (report / "folds" / "report.html").read_text(encoding="utf-8")
    assert 'id="folds"' in page
    assert "SD of folds" in page
    assert page.index("mean of folds") < page.index("SD of folds") < page.index("by all folds")
    test = json.loads((report / "test" / "evaluate.json").read_text(encoding="utf-8"))
    assert "folds" not in test
    assert test["metrics"]["dice"]["n"] == 1


def test_one_fold_alone_is_evaluated_on_its_own_cases(home: Path) -> None:
    run = home / "runs" / "toy" / "tiny-fold0"
    found = evaluate(run, home, cases=SplitOptions("val")).to_json()
    assert [case["id"] for case in found["cases"]] == ["a", "b"]
    assert "folds" not in found


def test_an_unfinished_fold_is_named(home: Path) -> None:
    status = {"state": "stopped", "step": 1, "best": {}}
    run = RunDir(home / "runs" / "toy" / "tiny-fold1")
    run.status_file.write_text(json.dumps(status), encoding="utf-8")
    found = find_folds(home, "toy/tiny-fold0")
    assert [one.path.name for one in found.finished] == ["tiny-fold0"]
    assert [one.path.name for one in found.unfinished] == ["tiny-fold1"]
    with pytest.raises(ConfigError, match="of 2 folds 1 is not finished") as caught:
        evaluate_folds(found, home)
    assert "--fold all" in caught.value.hint


def test_without_any_fold_the_hint_says_how_to_train_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folds") as caught:
        find_folds(tmp_path, None)
    assert "--fold all" in caught.value.hint


def test_evaluation_split_is_what_the_fold_saw(home: Path) -> None:
    run = home / "runs" / "toy" / "tiny-fold1"
    held = evaluation_split.open_held_out(run, home, SplitOptions("train"))
    assert [case.id for case in held.cases] == ["a", "b"]
