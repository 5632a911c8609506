"""What `evaluate` and `stability` start from; their own tests cover the rest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sdseg_cli.core.errors import ConfigError, DataError
from sdseg_cli.evaluation.evaluation_split import CaseProgress, SplitOptions, open_held_out
from tests.fake_run import SHAPE, Workspace, block, make_workspace

FOUR = block(slice(4, 8))


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return make_workspace(tmp_path, {"a": FOUR, "b": FOUR * 2})


def opened(workspace: Workspace):
    return open_held_out(None, workspace.root, SplitOptions(predictor=workspace.predictor))


def test_a_case_is_read_on_its_own_grid_and_on_the_models_planes(workspace):
    held = opened(workspace)
    case = held.cases[1]
    scan, reference = held.read(case)
    assert scan.geometry.shape == SHAPE
    assert np.array_equal(reference, FOUR != 0)
    planes = held.reference_planes(case)
    assert (planes.shape, planes.dtype) == ((4, 256, 256), np.bool_)
    assert int(planes.sum()) == 32 * 16 * 16
    assert held.image_plane(case, 0).dtype == np.float32


def test_the_reference_loses_what_the_prepared_labels_lost(workspace):
    held = opened(workspace)
    cleaned = replace(held.manifest, cleaning={"smallest_voxels": 33, "inside_field": False})
    case = held.cases[0]
    assert held.read(case)[1].sum() == 32
    assert not replace(held, manifest=cleaned).read(case)[1].any()


def test_scans_that_were_moved_are_said_to_be_gone_and_whose_they_were(workspace):
    held = opened(workspace)
    held.cases[0].image.unlink()
    with pytest.raises(
        DataError, match=r"case a: .*, from which toy was prepared, is gone"
    ) as found:
        held.read(held.cases[0])
    assert "Put it back" in found.value.hint


def test_a_run_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no run yet"):
        open_held_out(None, tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"no array"])
def test_a_damaged_prepared_array_is_named(workspace, content):
    held = opened(workspace)
    path = held.manifest.labels_file(held.cases[0])
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"labels\.npy: missing or damaged"):
        held.reference_planes(held.cases[0])


def test_progress_within_cases_adds_up_over_repeats(workspace):
    told: list[tuple[int, int, str]] = []
    cases = workspace.manifest.cases("test")
    count = CaseProgress(cases, lambda *values: told.append(values), repeats=2)
    count.of(cases[0])(1, 4, "predicting slices")
    count.finish(cases[0])
    count.of(cases[1])(2, 4, "predicting slices")
    count.of(cases[1])(4, 4, "predicting slices")  # left to `finish`
    count.finish(cases[1])
    assert told == [(1, 16, "case a"), (4, 16, "case a"), (6, 16, "case b"), (8, 16, "case b")]
