from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sdseg_cli.core.errors import WeightsError
from sdseg_cli.model.pretrained import Source
from sdseg_cli.model.weights import WeightStore
from tests.json_cases import DAMAGED, OF_ANOTHER_KIND

ONES = Source("autoencoder", {"autoencoder.w": torch.ones(2)}, {"autoencoder": 128})


@pytest.fixture
def store(tmp_path: Path) -> WeightStore:
    return WeightStore(tmp_path / "store")


def test_what_is_added_comes_back(store: WeightStore) -> None:
    entry = store.add("kl-f8", ONES, original="model.ckpt", original_sha256="ab")
    assert store.entries() == [entry]
    found = store.find("kl-f8")
    assert found == entry
    assert (entry.kind, entry.source, entry.source_sha256) == ("autoencoder", "model.ckpt", "ab")
    assert entry.bytes == store.file(entry).stat().st_size
    assert store.load(entry)["autoencoder.w"].tolist() == [1, 1]


def test_an_empty_store_holds_nothing(store: WeightStore) -> None:
    assert store.entries() == []
    assert store.find("kl-f8") is None


def test_the_same_weights_may_be_added_again_but_no_others(store: WeightStore) -> None:
    store.add("a", ONES, original="x", original_sha256="1" * 64)
    store.add("a", ONES, original="x", original_sha256="1" * 64)
    with pytest.raises(WeightsError, match="a is in the store with other weights: sha256 1111"):
        store.add("a", ONES, original="x", original_sha256="2" * 64)


def test_of_a_kind_the_only_entry_is_taken_or_the_one_of_its_name(store: WeightStore) -> None:
    heads = Source("lpips-linear", {"lin0": torch.ones(2)}, {})
    assert store.of_kind("lpips-linear") is None
    store.add("kl-f8", ONES, original="x", original_sha256="0" * 64)
    mine = store.add("alex", heads, original="x", original_sha256="1" * 64)
    assert store.of_kind("lpips-linear") == mine
    store.add("other", heads, original="x", original_sha256="2" * 64)
    with pytest.raises(WeightsError, match="several of kind lpips-linear: alex, other"):
        store.of_kind("lpips-linear")
    named = store.add("lpips-linear", heads, original="x", original_sha256="3" * 64)
    assert store.of_kind("lpips-linear") == named


def test_a_file_that_changed_in_the_store_is_not_loaded(store: WeightStore) -> None:
    entry = store.add("a", ONES, original="x", original_sha256="1")
    changed = bytearray(store.file(entry).read_bytes())
    changed[-1] ^= 1
    store.file(entry).write_bytes(changed)
    with pytest.raises(WeightsError, match="no longer the file that was stored"):
        store.load(entry)


@pytest.mark.parametrize("name", ["", "../a", "a/b", ".hidden", "a b", "a" * 101])
def test_a_name_is_a_file_name(store: WeightStore, name: str) -> None:
    with pytest.raises(WeightsError, match="cannot be a name"):
        store.add(name, ONES, original="x", original_sha256="1")
    assert not store.folder.exists()


def test_the_environment_says_where_the_store_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("SDSEG_WEIGHTS", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert WeightStore.default().folder == Path("/home/me/.cache/sdseg/weights")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert WeightStore.default().folder == Path("/cache/sdseg/weights")
    monkeypatch.setenv("SDSEG_WEIGHTS", "/w")
    assert WeightStore.default().folder == Path("/w")


@pytest.mark.parametrize(
    "change", [{"bytes": None}, {"name": "../../etc/x"}, {"source_sha256": 5}, {"more": 1}]
)
def test_a_damaged_description_is_one_clear_error(store: WeightStore, change: dict) -> None:
    entry = store.add("a", ONES, original="x", original_sha256="1")
    (store.folder / "a.json").write_text(json.dumps({**entry.to_json(), **change}))
    with pytest.raises(WeightsError, match=r"a\.json: damaged description"):
        store.find("a")
    assert store.entries() == [] and list(store.damaged()) == ["a"]
    (store.folder / "a.json").write_text("{")
    with pytest.raises(WeightsError, match=r"a\.json: damaged description"):
        store.find("a")


@pytest.mark.parametrize(
    "content",
    [
        *DAMAGED.values(),
        *OF_ANOTHER_KIND.values(),
        b"{}",
        b'{"widths": {"unet": "32"}}',
        b'{"widths": {"unet": -1}}',
        b'{"bytes": true}',
        b'{"latent_scale": "1"}',
        b'{"latent_scale": 0}',
    ],
)
def test_one_damaged_entry_breaks_no_list(store: WeightStore, content: bytes) -> None:
    whole = store.add("good", ONES, original="x", original_sha256="1")
    entry = store.add("bad", ONES, original="x", original_sha256="1")
    text = content
    if content.startswith(b'{"') and content not in DAMAGED.values():
        text = json.dumps({**entry.to_json(), **json.loads(content)}).encode()
    (store.folder / "bad.json").write_bytes(text)
    assert store.entries() == [whole] and list(store.damaged()) == ["bad"]
    assert store.of_kind(whole.kind) == whole
    with pytest.raises(WeightsError, match=r"bad\.json: "):
        store.find("bad")


@pytest.mark.parametrize("name", ["../x", "", "a" * 300, "a/b", ".x", "a\0b"])
def test_what_can_be_no_name_is_not_in_the_store(store: WeightStore, name: str) -> None:
    assert store.find(name) is None
