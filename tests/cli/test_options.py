from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sdseg_cli.cli.app import run_command
from sdseg_cli.cli.options import one_input, sampling
from sdseg_cli.core.config import SampleConfig
from sdseg_cli.core.errors import ConfigError
from tests.conftest import Workspace


def asked(settings: SampleConfig, **given: Any) -> SampleConfig:
    values = {"steps": None, "eta": None, "samples": None, **given}
    return sampling(settings, **values)


def test_what_is_not_given_stays_the_runs_setting() -> None:
    settings = SampleConfig(steps=3, eta=0.5, samples=2, noise="shared", flips="h")
    assert asked(settings) == settings
    assert asked(settings, samples=4) == SampleConfig(3, 0.5, 4, "shared", "h")


def test_without_noise_what_a_run_says_of_samples_and_eta_lapses() -> None:
    settings = SampleConfig(steps=3, eta=0.5, samples=2)
    assert asked(settings, deterministic=True) == SampleConfig(steps=3, noise="zero")
    assert asked(settings, deterministic=True, samples=1, eta=0.0).noise == "zero"


@pytest.mark.parametrize("given", [{"samples": 2}, {"eta": 0.5}])
def test_what_needs_noise_is_refused_without_it(given: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"--{next(iter(given))} has no effect without noise"):
        asked(SampleConfig(steps=2), deterministic=True, **given)


def test_flips_are_those_of_the_training_and_there_have_to_be_some() -> None:
    assert asked(SampleConfig(), flips="hv").flips == "hv"
    with pytest.raises(ConfigError, match="--tta: this run was trained without flips"):
        asked(SampleConfig(), flips="")


def test_the_input_is_the_argument_or_what_follows_i() -> None:
    assert one_input(Path("a"), None, "SCAN") == one_input(None, Path("a"), "SCAN") == Path("a")
    with pytest.raises(ConfigError, match="a and --input b are both given"):
        one_input(Path("a"), Path("b"), "SCAN")
    with pytest.raises(ConfigError, match="Missing argument 'SCAN'"):
        one_input(None, None, "SCAN")


def test_a_run_to_export_may_be_an_option_and_a_replaced_package_is_said(
    tiny_run: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SDSEG_HOME", str(tiny_run.root))
    monkeypatch.setenv("SDSEG_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.chdir(tmp_path)
    for option, replaced in ([], False), (["--run"], True):
        assert run_command(["weights", "export", *option, "tiny/run", "-o", "pk"]) == 0
        assert ("replaced the package that was in" in capsys.readouterr().err) is replaced
    assert run_command(["weights", "export", "tiny/run", "--run", "tiny/run"]) == 2
    assert "are both given" in capsys.readouterr().err
