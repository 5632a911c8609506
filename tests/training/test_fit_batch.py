from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import sdseg_cli.training.fit_batch as fit_module
from sdseg_cli.core import processes
from sdseg_cli.core.config import RunConfig
from sdseg_cli.core.config_file import to_toml
from sdseg_cli.core.errors import ConfigError, RunError
from sdseg_cli.core.presets import for_classes
from sdseg_cli.model.distributed import Ranks
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training.fit_batch import (
    fastest_batch_size,
    fitted,
    fitting_batch_size,
    require_batch_memory,
)
from sdseg_cli.training.objective import Objective
from sdseg_cli.training.train import TrainOptions, train
from tests.conftest import Workspace, tiny_settings
from tests.training.small import small_config, small_slices

CPU = torch.device("cpu")


def measures(rates: dict[int, float | None]) -> tuple[Callable[[int], float | None], list[int]]:
    """Made-up slices/s by batch size, and a list of what was asked."""
    asked: list[int] = []

    def slices_per_s(size: int) -> float | None:
        asked.append(size)
        return rates[size]

    return slices_per_s, asked


def test_doubling_stops_where_it_does_not_pay() -> None:
    measure, asked = measures({1: 10, 2: 20, 4: 30, 8: 31, 16: 99})
    assert fastest_batch_size(measure) == 4  # 8 is 3 % faster: not worth it
    assert asked == [1, 2, 4, 8]


def test_doubling_stops_where_memory_ends() -> None:
    measure, asked = measures({1: 10, 2: 20, 4: None})
    assert fastest_batch_size(measure) == 2
    assert asked == [1, 2, 4]


def test_memory_is_counted_for_each_class_whose_mask_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "available_bytes", lambda: 0)

    def needed(config: RunConfig) -> float:
        with pytest.raises(RunError) as caught:
            require_batch_memory(config, 256 * 256, CPU, Ranks(), 1)
        return float(caught.value.message.split(" takes ")[1].split()[0])

    batch = 100  # so that the two digits of the message say enough
    plane = 256 * 256 * batch / 1e9
    one = small_config(batch_size=batch)
    assert needed(one) == pytest.approx(plane * (8 + 4 * 25 * 8), abs=0.01)
    seven = for_classes(one, 7, overlapping=False)
    assert needed(seven) == pytest.approx(plane * (14 + 4 * (25 * 8 + 28 * 7)), abs=0.01)


def test_doubling_stops_at_the_limit() -> None:
    measure, asked = measures({1: 1, 2: 2, 4: 4, 8: 8})
    assert fastest_batch_size(measure, largest=7) == 4
    assert asked == [1, 2, 4]


def test_where_not_even_one_slice_fits_the_batch_is_one() -> None:
    assert fastest_batch_size(lambda size: None) == 1


def gpu_in_name(monkeypatch: pytest.MonkeyPatch, *, peak: int, whole: int) -> None:
    """CUDA's meters on a CPU."""
    properties = SimpleNamespace(total_memory=whole)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peak)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)


@pytest.mark.slow
def test_a_batch_that_runs_out_of_memory_is_measured_as_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, asked = Objective.forward, list[int]()

    def limited(self: Objective, inputs: object, *rest: object) -> torch.Tensor:
        asked.append(len(inputs.positions))  # type: ignore[attr-defined]
        if asked[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, inputs, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Objective, "forward", limited)
    gpu_in_name(monkeypatch, peak=1, whole=100)
    assert fitting_batch_size(small_config(), small_slices(tmp_path), tmp_path, CPU) == 1
    # Once for the mask's moments, once to warm up, three times by the clock.
    assert asked == [1, 1, 1, 1, 1, 2]


@pytest.mark.slow
def test_a_step_that_takes_almost_all_memory_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu_in_name(monkeypatch, peak=91, whole=100)
    assert fitting_batch_size(small_config(), small_slices(tmp_path), tmp_path, CPU) == 1


def begun(folder: Path, config: RunConfig) -> RunDir:
    run = RunDir(folder / "run")
    run.path.mkdir()
    run.config_file.write_text(to_toml(config))
    run.status_file.write_text(json.dumps({"state": "stopped", "step": 2, "best": {}}))
    return run


def test_a_cpu_keeps_the_batch_that_is_set(tiny_set: Workspace, tmp_path: Path) -> None:
    config = tiny_settings(batch_size=6)
    assert fitted(config, tiny_set.manifest, RunDir(tmp_path / "run"), "cpu") == config


def test_a_gpu_is_measured_and_nothing_else_changes(
    tiny_set: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_module, "choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(fit_module, "fitting_batch_size", lambda *_: 32)
    found = fitted(tiny_settings(steps=9), tiny_set.manifest, RunDir(tmp_path / "run"), "auto")
    assert found == tiny_settings(steps=9, batch_size=32)


def test_a_run_that_was_begun_keeps_its_batch(
    tiny_set: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit_module, "choose_device", lambda name: torch.device("cuda"))
    run = begun(tmp_path, tiny_settings(batch_size=12))
    found = fitted(tiny_settings(batch_size=2), tiny_set.manifest, run, "auto")
    assert found == tiny_settings(batch_size=12)


def test_several_processes_are_told_to_find_the_batch_with_one(
    tiny_set: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="for one process") as caught:
        fitted(tiny_settings(), tiny_set.manifest, RunDir(tmp_path / "run"), "cpu")
    assert "one GPU first" in caught.value.hint


def test_a_batch_that_memory_cannot_hold_is_refused_before_anything_is_written(
    tiny_set: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdseg_cli.core.processes.available_bytes", lambda: 2_000_000_000)
    settings = tiny_settings(steps=4, batch_size=100_000)
    with pytest.raises(RunError) as refused:
        run, options = RunDir(tmp_path / "run"), TrainOptions(workers=1)
        train(settings, tiny_set.manifest, run, device="cpu", options=options)
    # 64 x 64 pixels: 8 bytes in each of three steps' inputs, and 25 planes of float32 for each of 8
    # channels: 3.375104 MB a slice.
    assert "--batch-size 100000: to train with it takes 337.51 GB" in refused.value.message
    assert refused.value.hint == "It fits with --batch-size 592."
    assert not (tmp_path / "run").exists()
