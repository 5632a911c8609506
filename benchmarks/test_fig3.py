"""What benchmarks/fig3.py computes, on rows made by hand, on masks made by hand, and on one run."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import fig3
from benchmarks.fig3 import Subject, draw, of_eta, rows_of, table
from benchmarks.results import Results
from sdseg_cli.core.config import RunConfig
from sdseg_cli.evaluation.evaluation_split import EvaluationSplit, SplitOptions, open_held_out
from tests.conftest import Workspace as Trained
from tests.fake_run import Workspace, block, make_workspace

CPU = torch.device("cpu")


def row(steps: int, eta: float, dice: dict[str, float | None], seed: int = 0) -> dict[str, object]:
    return {
        "run": "set/run",
        "decoder": "exact",
        "parameterisation": "eps",
        "timesteps": "uniform",
        "noise_loss_weight": 1.0,
        "latent_loss_weight": 0.0,
        "training_steps": 300,
        "weights_of_step": 250,
        "steps": steps,
        "eta": eta,
        "seed": seed,
        "cases": [{"id": case, "dice": value} for case, value in dice.items()],
        "scored_cases": len(dice),
        "test_cases": 6,
        "seconds_per_slice": 0.1 * steps,
    }


ROWS = [
    row(1, 0.0, {"a": 0.5, "b": 0.7}),
    row(5, 0.0, {"a": 0.4, "b": 0.6}),
    row(5, 1.0, {"a": 0.75, "b": 0.95}),
]


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Cases a and b; the run finds half of a (Dice 2 x 16 / (32 + 32)), and all of b."""
    references = {"a": block(slice(2, 6)), "b": block(slice(2, 6))}
    made = make_workspace(tmp_path, references)
    made.answers(a=block(slice(4, 8)))
    made.predictor.config, made.predictor.step = RunConfig(dataset="toy"), 4

    def held(run: Path, workspace: Path, options: SplitOptions) -> EvaluationSplit:
        return open_held_out(run, workspace, replace(options, predictor=made.predictor))

    monkeypatch.setattr(fig3, "open_held_out", held)
    return made


def subject(of: Workspace, cases: int | None = None) -> Subject:
    return Subject(of.root, "toy/tiny", CPU, cases)


def measure(of: Workspace, steps: list[int], etas: list[float], cases: int | None = None) -> list:
    return rows_of(subject(of, cases), Results(of.root / "rows.json"), steps, etas, 0)


def test_the_table_has_a_line_per_number_of_steps_with_its_difference_to_one_step() -> None:
    named, _, head, _, one, five = table(ROWS).splitlines()
    assert named.startswith(
        "**set/run**: predicts eps, t uniform in training, loss 1 noise + 0 latent; weights of "
        "step 250 of 300, exact decoder; 2 of 6 test cases, seed 0"
    )
    assert head == (
        "| DDIM steps | Dice, eta 0 | Dice, eta 1 | eta 0 less one step | eta 1 less one step "
        "| s/slice |"
    )
    assert one == "| 1 | 0.600 (0.500 to 0.700) | 0.600 (0.500 to 0.700) | - | - | 0.1 |"
    assert five == (
        "| 5 | 0.500 (0.400 to 0.600) | 0.850 (0.750 to 0.950) "
        "| -0.100 (-0.100 to -0.100) | +0.250 (+0.250 to +0.250) | 0.5 |"
    )


def test_seeds_are_averaged_within_cases() -> None:
    again = [row(1, 0.0, {"a": 0.7, "b": 0.9}, seed=1), row(5, 0.0, {"a": 0.8, "b": 1.0}, seed=1)]
    # a: (0.5 + 0.7) / 2, b: (0.7 + 0.9) / 2; with five steps again 0.6 and 0.8.
    named, *_, one, five = table([*ROWS[:2], *again]).splitlines()
    assert "2 of 6 test cases, seeds 0, 1" in named
    assert one == "| 1 | 0.700 (0.600 to 0.800) | - | 0.1 |"
    assert five == "| 5 | 0.700 (0.600 to 0.800) | +0.000 (+0.000 to +0.000) | 0.5 |"


def test_each_run_has_a_block() -> None:
    other = [{**one, "run": "set/other", "timesteps": "last"} for one in ROWS]
    named = [line for line in table([*ROWS, *other]).splitlines() if line.startswith("**")]
    assert [line.split(",")[0:2] for line in named] == [
        ["**set/run**: predicts eps", " t uniform in training"],
        ["**set/other**: predicts eps", " t last in training"],
    ]


def test_one_step_belongs_to_every_eta() -> None:
    assert of_eta(ROWS, 1.0) == [ROWS[0], ROWS[2]]


def test_one_step_is_measured_once_whatever_the_etas(toy: Workspace) -> None:
    rows = measure(toy, [1, 5], [0.0, 1.0])
    assert [(one["steps"], one["eta"]) for one in rows] == [(1, 0.0), (5, 0.0), (5, 1.0)]
    assert [sample.steps for case, _, sample in toy.predictor.calls if case == "a"] == [1, 5, 5]


def test_a_row_has_the_scores_of_evaluate_and_the_settings_of_the_run(toy: Workspace) -> None:
    (found,) = measure(toy, [1], [0.0])
    assert found["cases"] == [
        {"id": "a", "dice": 0.5, "iou": pytest.approx(1 / 3)},
        {"id": "b", "dice": 1.0, "iou": 1.0},
    ]
    assert (found["timesteps"], found["parameterisation"]) == ("uniform", "eps")
    assert (found["weights_of_step"], found["latent_loss_weight"]) == (4, 1.0)
    assert found["seconds_per_slice"] >= 0


def test_only_the_first_cases_are_scored_where_so_asked(toy: Workspace) -> None:
    (found,) = measure(toy, [1], [0.0], cases=1)
    assert [case["id"] for case in found["cases"]] == ["a"]
    assert (found["scored_cases"], found["test_cases"]) == (1, 2)


def test_what_is_in_the_file_is_not_measured_again(toy: Workspace) -> None:
    first = measure(toy, [1, 5], [0.0])
    calls = len(toy.predictor.calls)
    assert measure(toy, [1, 5], [0.0]) == first and len(toy.predictor.calls) == calls
    measure(toy, [1, 5], [0.0, 1.0])  # one new row of two cases
    assert len(toy.predictor.calls) == calls + 2


def test_other_weights_and_other_cases_are_measured_anew(toy: Workspace) -> None:
    measure(toy, [1], [0.0])
    measure(toy, [1], [0.0], cases=1)
    (toy.run / "checkpoints" / "best.pt").write_bytes(b"another checkpoint")
    measure(toy, [1], [0.0])
    assert [case for case, *_ in toy.predictor.calls] == ["a", "b", "a", "a", "b"]


@pytest.mark.parametrize(
    ("text", "counts"), [("3", [3, 3]), ("all", [None, None]), ("3,all", [3, None])]
)
def test_cases_are_counted_for_all_runs_or_for_each(text: str, counts: list[int | None]) -> None:
    assert fig3._case_counts(text, 2) == counts


@pytest.mark.parametrize("text", ["0", "-1", "1,2,3"])
def test_no_cases_or_too_many_numbers_of_them_are_refused(text: str) -> None:
    with pytest.raises(SystemExit, match="--cases"):
        fig3._case_counts(text, 2)


def test_a_case_without_a_value_leaves_a_gap_in_the_picture_not_an_error(tmp_path: Path) -> None:
    rows = [*ROWS, row(10, 0.0, {"a": None, "b": None})]
    draw(tmp_path / "fig3.png", rows)
    assert (tmp_path / "fig3.png").read_bytes().startswith(b"\x89PNG")
    assert table(rows).splitlines()[-1] == "| 10 | - | - | - | - | 1 |"


def test_the_command_measures_a_trained_run_and_leaves_it_as_it_was(
    tiny_run: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sorted(tiny_run.run.path.rglob("*"))
    out, picture = tmp_path / "fig3.json", tmp_path / "fig3.png"
    command = ["fig3", "--workspace", str(tiny_run.root), "--runs", "tiny/run", "--steps", "1,2"]
    command += ["--eta", "0,1", "--device", "cpu", "--out", str(out), "--picture", str(picture)]
    monkeypatch.setattr(sys, "argv", command)
    fig3.main()
    assert len(Results(out).rows) == 3 and picture.is_file()
    named, *_, one, two = capsys.readouterr().out.splitlines()[-6:]
    assert "predicts z0, t last in training" in named and "of 4" in named
    assert one.startswith("| 1 | ") and two.startswith("| 2 | ")
    assert sorted(tiny_run.run.path.rglob("*")) == before
