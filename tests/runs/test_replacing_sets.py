from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sdseg_cli.core.errors import ConfigError, RunError
from sdseg_cli.core.locks import locked
from sdseg_cli.data.prepare import PrepareOptions, prepare
from sdseg_cli.data.staging import lock_of
from sdseg_cli.runs.run_folder import replaced, require_settled
from tests.fake_run import Workspace, make_workspace
from tests.raw_cases import contents


@pytest.fixture
def trained(tmp_path: Path) -> Workspace:
    """A set "toy" and a run "toy/tiny" that was trained on it."""
    return make_workspace(tmp_path, {"a": np.ones((16, 16, 4), np.uint8)})


def test_a_run_that_loses_its_set_is_named_and_what_changed(trained: Workspace) -> None:
    settings = trained.manifest.inference_settings()
    root = trained.root / "prepared" / "toy"
    assert replaced(root, settings) is None
    found = replaced(root, {**settings, "crop": "body", "data_sha256": "1"})
    assert found is not None
    assert (found.code, found.level, found.case) == ("set-replaced", "warning", "*")
    assert found.measured == (
        "replaced toy, which had another crop, data; trained on the old one: toy/tiny"
    )


def test_without_a_set_or_a_run_nothing_is_lost(trained: Workspace) -> None:
    root, others = trained.root / "prepared" / "toy", {"crop": "body"}
    assert replaced(root.with_name("new"), others) is None
    (trained.run / "checkpoints" / "best.pt").unlink()  # it has learned nothing yet
    assert replaced(root, others) is None


def test_a_set_is_not_replaced_under_a_run_that_trains(trained: Workspace) -> None:
    root = trained.root / "prepared" / "toy"
    with locked(trained.run / ".lock"):
        assert replaced(root, trained.manifest.inference_settings()) is None
        with pytest.raises(ConfigError, match=r"toy would get another crop, and .*toy/tiny is"):
            replaced(root, {"crop": "body"})


def test_prepare_refuses_that_before_it_reads_a_scan(
    trained: Workspace, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a scan was read")

    monkeypatch.setattr("sdseg_cli.data.prepare._records", never)
    before = contents(trained.root)
    with locked(trained.run / ".lock"), pytest.raises(ConfigError, match="being trained on it"):
        prepare(
            raw,
            trained.root,
            PrepareOptions(name="toy", crop="body", workers=1),
            on_replace=replaced,
        )
    assert contents(trained.root) == before


def test_a_set_whose_scans_changed_is_not_replaced_under_a_run_that_trains(
    trained: Workspace, raw: Path
) -> None:
    prepare(
        raw, trained.root, PrepareOptions(name="toy", workers=1), on_replace=replaced
    )  # other scans: a warning
    manifest = replace(trained.manifest, root=trained.root / "prepared" / "toy").path
    before = manifest.read_bytes()
    (raw / "pt_1" / "image.nii.gz").unlink()
    (raw / "pt_1" / "label.nii.gz").unlink()
    with locked(trained.run / ".lock"), pytest.raises(ConfigError, match="another split, data"):
        prepare(raw, trained.root, PrepareOptions(name="toy", workers=1), on_replace=replaced)
    assert manifest.read_bytes() == before


def test_a_training_waits_for_a_set_that_is_being_prepared(trained: Workspace) -> None:
    require_settled(trained.manifest)
    root = trained.root / "prepared" / "toy"
    with locked(lock_of(root)), pytest.raises(RunError, match=r"process \d+ on .* is preparing"):
        require_settled(trained.manifest)


def test_a_training_does_not_begin_on_a_set_that_changed_since_it_was_read(
    trained: Workspace,
) -> None:
    newer = replace(trained.manifest, crop="body")
    newer.path.write_text(newer.to_text())
    with pytest.raises(ConfigError, match="prepared anew"):
        require_settled(trained.manifest)
