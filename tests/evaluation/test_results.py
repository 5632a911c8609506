"""Summaries of scores, what they leave out, and their provenance, without names."""

from __future__ import annotations

import getpass
import hashlib
import json
import platform
from datetime import datetime, timedelta

import numpy as np
import pytest

from sdseg_cli import __version__
from sdseg_cli.evaluation import results as module
from sdseg_cli.evaluation.results import (
    CaseResult,
    EvaluateReport,
    provenance,
    score_case,
    shortened,
    undefined_notes,
)
from sdseg_cli.metrics import Score, ScoringOptions
from tests.test_architecture import _loaded

EMPTY = np.zeros((4, 4, 4), bool)
ONE = EMPTY.copy()
ONE[1, 1, 1] = True


def result(id: str, dice: float | None, hd95: float | None = 1.0, label: int | None = None):
    scores = Score(id, "dice", dice, "native", "1"), Score(id, "hd95", hd95, "native", "mm")
    return CaseResult(id, scores, 10, 10, class_label=label)


def report(*cases, **more) -> EvaluateReport:
    return EvaluateReport(None, None, "native", "standard", cases, **more)


def test_a_case_empty_on_both_sides_has_no_score_at_all():
    found = score_case("a", EMPTY, EMPTY, (1.0, 1.0, 1.0))
    assert set(found.values.values()) == {None}  # also no volume difference of 0 ml
    assert found.lesions is None
    assert report(found).excluded == ("a",)


def test_a_class_that_is_nowhere_counts_in_no_mean():
    rows = (
        score_case("a", ONE, ONE, (1.0, 1.0, 1.0), class_label=1),
        score_case("a", EMPTY, EMPTY, (1.0, 1.0, 1.0), class_label=2),
    )
    found = report(*rows, classes=(1, 2))
    assert (found.excluded, len(found.scored)) == ((), 1)
    classes = found.class_metrics
    assert classes is not None
    assert (classes[2]["volume_difference_ml"].n, classes[1]["volume_difference_ml"].n) == (0, 1)


def test_the_worst_are_five_with_the_lowest_dice():
    found = report(*(result(f"case{n}", n / 10) for n in range(8)), result("none", None))
    assert found.worst == ("case0", "case1", "case2", "case3", "case4")


def test_a_case_counts_with_the_mean_of_its_classes():
    rows = [result("a", 0.2, None, 1), result("a", 0.6, 4.0, 2), result("b", 1.0, None, 1)]
    found = report(*rows, classes=(1, 2))
    assert found.case_means("dice") == {"a": pytest.approx(0.4), "b": 1.0}
    assert found.case_means("hd95_mm") == {"a": 4.0, "b": None}
    summary = found.metrics["hd95_mm"]
    assert (summary.mean, summary.n, summary.undefined) == (4.0, 1, 1)
    assert "leaves out 2 of 3 pairs of case and class with" in found.to_json()["notes"][0]
    assert "(a 1, b 1)" in found.to_json()["notes"][0]


def test_metrics_that_leave_out_the_same_cases_share_a_note():
    rows = [result(str(n), 0.0, None) for n in range(7)] + [result("x", 1.0)]
    (note,) = undefined_notes(rows)
    assert note == (
        "hd95_mm leaves out 7 of 8 cases with one empty mask (0, 1, 2, 3, 4 and 2 more): over the "
        "rest the mean is optimistic"
    )
    assert undefined_notes(rows[-1:]) == ()
    assert undefined_notes([]) == ()


def test_many_names_are_cut_short():
    assert shortened(list("abcde")) == "a, b, c, d, e"
    assert shortened(list("abcdefg")) == "a, b, c, d, e and 2 more"


def test_a_picture_is_scored_in_pixels_and_the_models_planes_without_distances():
    plane = ONE[:, :, 1:2]
    assert list(score_case("a", plane, plane, None).values)[4:6] == ["hd95", "assd"]
    model = score_case("a", ONE, ONE, None, options=ScoringOptions(grid="model"))
    assert list(model.values) == ["dice", "iou", "precision", "recall"]
    assert model.counts == {"reference_voxels": 1, "predicted_voxels": 1}
    both = ScoringOptions(detection_iou=0.1, grid="model")
    asked = score_case("a", ONE, ONE, None, options=both)
    assert asked.counts["reference_lesions"] is None
    assert list(asked.values) == list(model.values)


def test_files_are_known_by_their_hash(tmp_path):
    (tmp_path / "best.pt").write_bytes(b"abc")
    found = provenance(
        command="sdseg evaluate",
        files={"best.pt": tmp_path / "best.pt", "gone": tmp_path / "gone"},
    )
    assert found["sha256"] == {"best.pt": hashlib.sha256(b"abc").hexdigest(), "gone": None}
    assert found["command"] == "sdseg evaluate"
    assert found["sdseg"] == __version__
    assert found["python"] == platform.python_version()


def test_the_date_is_utc():
    date = datetime.fromisoformat(str(provenance(command="", files={})["date"]))
    assert date.utcoffset() == timedelta(0)


def test_a_library_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr(module, "LIBRARIES", ("numpy", "no-such-library"))
    import numpy

    versions = provenance(command="", files={})["versions"]
    assert versions == {"numpy": numpy.__version__, "no-such-library": None}


def test_neither_machine_nor_person_is_named(monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "secret-host")
    monkeypatch.setattr(getpass, "getuser", lambda: "secret-user")
    text = json.dumps(provenance(command="sdseg evaluate", files={}))
    assert "secret" not in text
    assert set(json.loads(text)) == {
        "command", "date", "sdseg", "python", "platform", "versions", "sha256",
    }  # fmt: skip


@pytest.mark.slow
def test_asking_for_versions_loads_no_library():
    statement = "import sdseg_cli.evaluation.results as p; p._version('torch')"
    assert not _loaded(statement) & {"torch", "monai"}
