"""A prepared set takes its place whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from sdseg_cli.core.errors import RunError
from sdseg_cli.data import manifest
from sdseg_cli.data.manifest import Staging


def build(place: Staging, *ids: str) -> None:
    for id in ids:
        (place.building / "cases" / id).mkdir(parents=True)
        (place.building / "cases" / id / "pixels.npy").write_text(id)


def test_publishing_moves_the_built_cases_and_nothing_else(tmp_path: Path) -> None:
    place = Staging(tmp_path / "prepared/set")
    build(place, "a", "stale")
    place.publish("manifest", {"a"}, set())
    assert sorted(path.name for path in (place.final / "cases").iterdir()) == ["a"]
    assert place.is_current("manifest")
    assert [path.name for path in place.final.parent.iterdir()] == ["set"]


@pytest.mark.parametrize("links", [True, False])
def test_kept_cases_are_carried_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    place = Staging(tmp_path / "prepared/set")
    build(place, "a")
    place.publish("old", {"a"}, set())
    inode = (place.final / "cases/a/pixels.npy").stat().st_ino
    if not links:
        monkeypatch.setattr(manifest.os, "link", lambda *_: Path("/no such file").stat())
    build(place, "b")
    place.publish("new", {"b"}, {"a"})
    assert (place.final / "cases/a/pixels.npy").read_text() == "a"
    assert ((place.final / "cases/a/pixels.npy").stat().st_ino == inode) is links
    assert (place.final / "cases/b/pixels.npy").read_text() == "b"
    assert place.is_current("new")


def test_discarding_leaves_no_trace_but_keeps_neighbours(tmp_path: Path) -> None:
    place, neighbour = Staging(tmp_path / "prepared/set"), Staging(tmp_path / "prepared/other")
    build(place, "a")
    place.discard()
    assert not place.final.parent.exists()
    build(neighbour, "b")
    neighbour.publish("text", {"b"}, set())
    place.discard()
    assert neighbour.is_current("text")


def test_a_refusing_disk_is_a_run_error(tmp_path: Path) -> None:
    (tmp_path / "prepared").write_text("a file in the way")
    with pytest.raises(RunError, match="cannot be written"):
        Staging(tmp_path / "prepared/set").publish("text", set(), set())
