"""What the benchmarks compute that share a test's few lines: the suite, precision, the tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from benchmarks import kill_train, precision
from benchmarks.gpu_baselines import compare
from benchmarks.gpu_baselines import table as networks_table
from benchmarks.gpu_steps import ALL, Setting
from benchmarks.gpu_suite import MIDDLE, summary
from benchmarks.precision import FLOAT32, CudaRules, fastest_safe, lowerings, to_tf32
from benchmarks.precision import table as precision_table
from benchmarks.results import Results, Row, processor, told
from benchmarks.table2 import Task, settings_of
from benchmarks.threshold import table as threshold_table
from sdseg_cli.core.config import BASELINES, Network
from sdseg_cli.core.errors import ConfigError, RunError
from sdseg_cli.core.presets import PRESETS, for_network
from sdseg_cli.model.baselines import build_baseline
from sdseg_cli.runs.run_folder import RunDir
from tests.conftest import Workspace, tiny_settings

ROOT = Path(__file__).resolve().parents[1]


def test_the_gpu_suite_loads_on_a_bare_torch_machine() -> None:
    code = "import benchmarks.gpu_suite, sys, json; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=ROOT,
    )
    assert not {"monai", "nibabel", "SimpleITK"} & set(json.loads(run.stdout.splitlines()[-1]))


def test_the_gpu_suite_names_the_fastest_setting_and_its_ratio() -> None:
    assert len({setting.name for setting in ALL}) == 3 * 2 * 2
    name = Setting("mixed", tf32=True, compiled=True).name
    assert name == "mixed/tf32/compiled"
    rows = {
        "sd/train/batch4/mixed": {"slices_per_s": 100.0, "paper_hours": 400_000 / 100 / 3600},
        f"sd/train/batch4/{name}": {"slices_per_s": 200.0, "paper_hours": 400_000 / 200 / 3600},
        "sd/train/batch4/float32": {"error": "CUDA out of memory."},
        "sd/train/batch16/mixed": {"slices_per_s": 999.0, "paper_hours": 0.1},
        "sd/plain/batch4": {"slices_per_s": 25.0},
    }
    text = summary(rows, "sd", 4)
    assert "mixed/tf32/compiled is fastest, 200.0 slices/s" in text
    assert "in 0.56 hours; 8.00 times the plain loop" in text
    assert summary(rows, "sd", 64) == "batch 64: nothing measured"


@pytest.fixture
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """SDSeg of the tests' size, one small network, and one whose package nobody has."""
    monkeypatch.setitem(PRESETS, "tiny", tiny_settings())
    for name in list(BASELINES):
        monkeypatch.delitem(BASELINES, name)
    small = Network("monai.networks.nets:BasicUNet", tiny={"features": (4, 4, 8, 8, 8, 4)}, sd={})
    monkeypatch.setitem(BASELINES, "small", small)
    monkeypatch.setitem(BASELINES, "other", replace(small, needs=("no_such_package",)))
    monkeypatch.setattr("benchmarks.gpu_steps.SLICES", 4)
    for module in ("made_up", "gpu_baselines"):
        monkeypatch.setattr(f"benchmarks.{module}.SIZE", 64)


def compared(file: Path) -> dict[str, dict[str, float]]:
    results, cpu = Results(file), torch.device("cpu")
    compare(results, "tiny", cpu, batches=(2,), predict_batches=(1, 2), budget_s=0.0)
    return results.rows


@pytest.mark.usefixtures("small_networks")
def test_the_gpu_suite_measures_sdseg_and_the_networks_it_is_compared_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = compared(tmp_path / "results.json")
    per_network = ("size", "predict/batch1", "predict/batch2")
    assert set(rows) == {
        "tiny/train/batch2/mixed",  # as the suite's part `train` calls it
        "tiny/baselines/small/train/batch2",
        *(f"tiny/baselines/sdseg/{name}" for name in per_network),
        *(f"tiny/baselines/sdseg, fast decoder/{name}" for name in per_network),
        *(f"tiny/baselines/small/{name}" for name in per_network),
    }
    built = build_baseline(for_network(PRESETS["tiny"], "small").model)
    size = rows["tiny/baselines/small/size"]
    assert size["parameters"] == sum(value.numel() for value in built.parameters())
    assert size["gflop_per_slice"] > 0
    assert all(row["s_per_step"] > 0 for name, row in rows.items() if "/train/" in name)
    assert all(row["slices_per_s"] > 0 for name, row in rows.items() if "/predict/" in name)
    assert "other: left out, other needs no_such_package." in capsys.readouterr().out
    lines = networks_table(rows, "tiny", (2,)).splitlines()
    names = ["network", "---", "sdseg", "sdseg, fast decoder", "small"]
    assert [line.split("|")[1].strip() for line in lines] == names
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.usefixtures("small_networks")
def test_without_monai_nothing_is_stored_of_the_networks_that_need_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)  # an import of it fails
    file = tmp_path / "results.json"
    rows = compared(file)
    assert rows and not [name for name in rows if "small" in name]
    assert "small: left out, " in capsys.readouterr().out
    assert set(json.loads(file.read_text())) == set(rows)


def test_the_table_of_networks_shows_their_fastest_prediction_and_what_did_not_fit() -> None:
    rows = {
        "sd/baselines/unet/size": {"parameters": 31_100_000, "gflop_per_slice": 12.5},
        "sd/baselines/unet/train/batch4": {"s_per_step": 0.0215, "peak_gib": 3.0},
        "sd/baselines/unet/train/batch64": {"error": "CUDA out of memory."},
        "sd/baselines/unet/predict/batch1": {"slices_per_s": 90.0, "peak_gib": 0.5},
        "sd/baselines/unet/predict/batch32": {"slices_per_s": 800.0, "peak_gib": 4.0},
        "sd/baselines/unet/predict/batch128": {"error": "out of memory: 64 slices at a time fit"},
    }
    line = networks_table(rows, "sd", (4, 64)).splitlines()[-1]
    speed = "| 21.50 | 3.00 | out of memory | out of memory | 800.00 | 32 | 4.00 |"
    assert line == f"| unet | 31.10 | 12.50 {speed}"


def test_the_suites_middle_sizes_train_from_what_ships_and_share_their_recipe(
    tiny_set: Workspace,
) -> None:
    cpu = torch.device("cpu")
    ours, unet, dynunet = (
        Task(tiny_set.root, "tiny", model, 0, "tiny", 1.0, cpu, settings_of(model, MIDDLE)).config(
            10
        )
        for model in ("sdseg", "unet", "dynunet")
    )
    assert ours.model.autoencoder == PRESETS["tiny"].model.autoencoder
    assert ours.model.unet.model_channels == 96
    assert unet.model.scale == dynunet.model.scale == "sd"
    for key in ("steps", "batch_size", "learning_rate", "flips", "schedule", "ema_decay"):
        values = {getattr(config.train, key) for config in (ours, unet, dynunet)}
        assert len(values) == 1, key


def test_tf32_keeps_ten_bits_of_mantissa() -> None:
    value = torch.tensor([1 + 2**-10, 1 + 2**-11, 1 + 2**-12, -1 - 2**-11, 0.0])
    kept = torch.tensor([1 + 2**-10, 1 + 2**-10, 1.0, -1 - 2**-10, 0.0])
    assert torch.equal(to_tf32(value), kept)


def test_cudas_rules_lower_products_and_keep_norms_in_float32() -> None:
    value, weight = torch.tensor([[1 + 2**-9]]), torch.tensor([[3.0]])
    with CudaRules("bfloat16"):
        product = F.linear(value, weight)
        normed = F.group_norm(torch.randn(1, 4, 2, 2).bfloat16(), 2)
    assert product.dtype == torch.bfloat16
    assert product.item() == 3.0  # the summand 2^-9 does not fit bfloat16's 8 bits
    assert normed.dtype == torch.float32
    with CudaRules("tf32"):
        assert F.linear(value, weight).item() == 3 * (1 + 2**-9)


def test_a_measurement_is_done_once(tmp_path: Path) -> None:
    file = tmp_path / "new" / "results.json"
    assert Results(file).measure("a", lambda: {"value": 1}) == {"value": 1}
    assert Results(file).measure("a", lambda: {"value": 2}) == {"value": 1}


def test_running_out_of_memory_is_a_result_also_where_a_person_is_told_what_to_do(
    tmp_path: Path,
) -> None:
    def full() -> dict[str, object]:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")
        except torch.OutOfMemoryError as error:
            raise RunError("out of memory at step 1.", "Try --batch-size 2.") from error

    def diverged() -> dict[str, object]:
        raise RunError("the loss became NaN.", "Lower the rate.")

    results = Results(tmp_path / "results.json")
    assert results.measure("full", full) == {"error": "CUDA out of memory."}
    with pytest.raises(RunError, match="NaN"):
        results.measure("diverged", diverged)


def test_float32_differs_from_itself_by_nothing_and_rounded_weights_by_little(
    tiny_run: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "TIMINGS", 1)
    cpu = torch.device("cpu")
    run = RunDir(tiny_run.run.path)
    comparison = precision.Comparison(run, tiny_run.manifest, "test", 2, cpu)
    with torch.no_grad():
        for value in comparison.model.parameters():
            value.mul_(1.0003)  # the best checkpoint has been through float16 already
    assert len(comparison.sample.numbers) == 2
    assert comparison.sample.reference.flatten(1).any(dim=1).all()
    itself = comparison.measure(FLOAT32)
    assert itself["z0_error_max"] == itself["dice_change"] == itself["flipped_pixels"] == 0
    weights = next(row for row in lowerings(cpu) if row.float16_weights)
    rounded = comparison.measure(weights)
    assert 0 < rounded["z0_error_max"] < 0.05
    assert "speed_over_float32" not in rounded  # its arithmetic is float32's


def test_the_fastest_safe_row_is_timed_and_changes_dice_by_less_than_a_thousandth() -> None:
    rows = {
        "float32": {"dice_change": 0.0, "speed_over_float32": 1.0},
        "fast": {"dice_change": -0.0009, "speed_over_float32": 2.0},
        "unsafe": {"dice_change": 0.001, "speed_over_float32": 3.0},
        "emulated": {"dice_change": 0.0},
        "refused": {"unsupported": "no such kernel"},
    }
    assert fastest_safe(rows) == "fast"


def test_every_line_of_the_table_has_as_many_columns() -> None:
    measured = {"z0_error_mean": 0.1, "dice": 0.5, "speed_over_float32": 2.0}
    text = precision_table(
        {"unet/bfloat16": measured, "unet/float16": {"unsupported": "no such kernel"}}
    )
    assert len({line.count("|") for line in text.splitlines()}) == 1
    assert "| unet | bfloat16 | 0.1 | - | 0.5000 |" in text
    assert "| unet | float16 | not computed: no such kernel | - |" in text


def test_a_training_killed_twice_ends_with_the_undisturbed_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    kill_train.prepare(tmp_path)
    # Aimed at a checkpoint that is being written: where a random moment seldom falls.
    killed = kill_train.kill_and_resume(tmp_path, steps=11, kills=0, aimed=2, seed=0)
    assert killed.moments.total() == 2
    assert killed.runs >= 1


def test_a_processor_is_named_as_linux_names_it(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor : 0\nmodel name\t: Some CPU @ 2.00GHz\nmodel name\t: Some CPU\n")
    assert processor(file) == f"Some CPU @ 2.00GHz, {os.cpu_count()} cores"


def test_without_that_file_it_is_what_python_knows(tmp_path: Path) -> None:
    assert processor(tmp_path / "none").endswith(f", {os.cpu_count()} cores")


def test_what_is_wrong_with_a_call_is_one_line_and_a_hint(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as left, told():
        raise ConfigError("no such set.", "Prepare it.")
    assert left.value.code == ConfigError.exit_code
    assert capsys.readouterr().err == "Error: no such set.\nHint: Prepare it.\n"


def scored(threshold: float, dice: float, predicted: int) -> Row:
    voxels = {"predicted_voxels": predicted, "reference_voxels": 100}
    return {
        "threshold": threshold,
        "cases": [{"id": "a", "dice": dice, "precision": 0.5, "recall": None, **voxels}],
    }


def test_a_run_has_a_line_at_a_half_and_one_with_its_own_threshold() -> None:
    row = {"half": scored(0.5, 0.4, 150), "own": scored(0.65, 0.6, 90)}
    _, _, half, own = threshold_table({"set/run": row}).splitlines()
    assert half == "| set/run | 0.50 | 0.400 | - | 0.50 | nan | 1.50 |"
    assert own == "| set/run | 0.65 | 0.600 | +0.200 | 0.50 | nan | 0.90 |"
