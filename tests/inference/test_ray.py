"""What needs no cluster; `test_cohort_killed` runs one."""

from __future__ import annotations

import pytest

import sdseg_cli.inference.ray
from sdseg_cli.core.errors import ConfigError
from sdseg_cli.inference.ray import actor_shares, require_ray


def test_actors_share_the_machines_evenly() -> None:
    one, gpus = [{"CPU": 16.0}], [{"CPU": 17.0, "GPU": 4.0}]
    assert actor_shares(one, None, "auto") == (8, {"num_cpus": 2, "num_gpus": 0})
    assert actor_shares([{"CPU": 1.0}], None, "cpu") == (1, {"num_cpus": 1, "num_gpus": 0})
    assert actor_shares(gpus, None, "auto") == (4, {"num_cpus": 4, "num_gpus": 1})
    assert actor_shares(gpus, 2, "cuda") == (2, {"num_cpus": 8, "num_gpus": 1})
    # Five on four GPUs: at 4/5 of a GPU each, the fifth would wait for ever.
    assert actor_shares(gpus, 5, "cuda") == (5, {"num_cpus": 3, "num_gpus": 0.5})
    assert actor_shares(gpus, 8, "cpu") == (8, {"num_cpus": 2, "num_gpus": 0})


def test_an_actor_fits_on_one_machine() -> None:
    two = [{"CPU": 4.0}, {"CPU": 4.0}]
    assert actor_shares(two, 1, "cpu")[1]["num_cpus"] == 4
    assert actor_shares(two, 3, "cpu")[1]["num_cpus"] == 2
    only_one_has_gpus = [{"CPU": 4.0, "GPU": 2.0}, {"CPU": 12.0}]
    assert actor_shares(only_one_has_gpus, None, "auto") == (2, {"num_cpus": 2, "num_gpus": 1})


def test_more_actors_than_there_is_room_for_are_refused() -> None:
    with pytest.raises(ConfigError, match="--workers is 3, and the cluster has 2 CPUs and 0 GPUs"):
        actor_shares([{"CPU": 2.0}], 3, "cpu")


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdseg_cli.inference.ray.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as refused:
        require_ray()
    assert "sdseg-cli[ray]" in refused.value.hint
