"""Tests of the benchmarks: they lie beside what they test, and are all left to `make test`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import shared_run, tiny_run, tiny_set

__all__ = ["shared_run", "tiny_run", "tiny_set"]
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark them slow; the hook is given all tests, those of other folders too."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)
