"""Where numbers come from, without telling on whom."""

from __future__ import annotations

import getpass
import hashlib
import json
import platform
from datetime import datetime, timedelta

from sdseg_cli import __version__
from sdseg_cli.evaluation import provenance as module
from sdseg_cli.evaluation.provenance import provenance
from tests.test_architecture import _loaded


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


def test_asking_for_versions_loads_no_library():
    statement = "import sdseg_cli.evaluation.provenance as p; p._version('torch')"
    assert not _loaded(statement) & {"torch", "monai"}
