from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.results import processor, told
from sdseg_cli.core.errors import ConfigError


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
