from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sdseg_cli.core.errors import ConfigError, WeightsError
from sdseg_cli.core.files import file_sha256
from sdseg_cli.imaging.intensity import Normalisation
from sdseg_cli.imaging.io.files import read_image
from sdseg_cli.imaging.io.picture import Picture
from sdseg_cli.inference.predictor import Predictor
from sdseg_cli.model.pretrained import load_official
from sdseg_cli.model.weights import KNOWN, Entry, WeightStore
from sdseg_cli.runs.package import read_package
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training import weights as weights_module
from sdseg_cli.training.weights import add_weights, export_run, export_stored, fetch_weights
from tests.conftest import Workspace
from tests.parity.fill import (
    alexnet,
    lpips_heads,
    tiny_autoencoder,
    tiny_checkpoint,
    tiny_ldm,
)


@pytest.fixture
def store(tmp_path: Path) -> WeightStore:
    return WeightStore(tmp_path / "store")


WINDOW = Normalisation("window", -125, 275)


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> tuple[WeightStore, Entry]:
    """An official model in a store. Read-only."""
    folder = tmp_path_factory.mktemp("official")
    torch.save({"state_dict": tiny_checkpoint(), "global_step": 7}, folder / "official.ckpt")
    store = WeightStore(folder / "store")
    return store, add_weights(folder / "official.ckpt", store)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make", "kind"),
    [
        ("model.ckpt", tiny_autoencoder, "autoencoder"),
        ("vae.safetensors", tiny_autoencoder, "autoencoder"),
        ("churches.ckpt", tiny_ldm, "ldm"),
        ("alexnet.pth", alexnet, "lpips-alexnet"),
        ("alex.pth", lpips_heads, "lpips-linear"),
    ],
)
def test_every_known_kind_is_recognised_and_its_sha256_recorded(
    store: WeightStore, tmp_path: Path, name: str, make, kind: str
) -> None:
    path = tmp_path / name
    if path.suffix == ".pth":
        torch.save(make(), path)  # as torchvision and the authors of LPIPS do
    elif path.suffix == ".ckpt":
        torch.save({"state_dict": make(), "global_step": 7}, path)
    else:
        save_file(make(), path)
    entry = add_weights(path, store)
    assert (entry.name, entry.kind, entry.source) == (path.stem, kind, name)
    assert entry.source_sha256 == file_sha256(path)
    assert store.entries() == [entry]


class _Harmful:
    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (Path("harm-was-done"),)


def _saved(tensors: dict[str, object]) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def _checkpoint(**changes: object) -> bytes:
    """A small kl-f8 with some tensors of its own."""
    names = {key.replace("__", "."): value for key, value in changes.items()}
    return _saved({"state_dict": {**tiny_autoencoder(), **names}})


def _without_average() -> bytes:
    tensors = {k: v for k, v in tiny_checkpoint().items() if not k.startswith("model_ema.")}
    return _saved({"state_dict": tensors})


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "a text": (lambda: b"hello world\n", "damaged"),
    "an official model without its average": (_without_average, "missing model_ema."),
    "an official model of scale zero": (
        lambda: _saved({"state_dict": {**tiny_checkpoint(), "scale_factor": torch.tensor(0.0)}}),
        "latent scale is 0.0",
    ),
    "a truncated file": (lambda: _checkpoint()[:-1000], "damaged"),
    "another architecture": (
        lambda: _checkpoint(quantize__embedding__weight=torch.ones(2, 2)),
        "unexpected quantize.embedding.weight",
    ),
    "a pickle with code": (
        lambda: pickle.dumps({"state_dict": {"w": _Harmful()}}, protocol=2),
        "which is never run",
    ),
    "a checkpoint with code": (lambda: _checkpoint(w=_Harmful()), "which is never run"),
    "NaN inside": (
        lambda: _checkpoint(quant_conv__bias=torch.full((8,), torch.nan)),
        "quant_conv.bias holds NaN",
    ),
    "an empty file": (lambda: b"", "damaged"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", sorted(BAD))
def test_bad_weights_are_one_clear_error_and_nothing_is_run_or_stored(
    store: WeightStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.chdir(tmp_path)
    content, named = BAD[what]
    (tmp_path / "bad.ckpt").write_bytes(content())
    with pytest.raises(WeightsError, match=r"bad\.ckpt") as caught:
        add_weights(tmp_path / "bad.ckpt", store)
    assert named in caught.value.message
    assert "\n" not in caught.value.message
    assert [p.name for p in tmp_path.iterdir()] == ["bad.ckpt"]


def test_an_unknown_public_name_is_refused(store: WeightStore) -> None:
    with pytest.raises(ConfigError, match='called "vgg"'):
        fetch_weights("vgg", store)


@pytest.mark.parametrize("name", ["kl-f8", "sd-vae-ft-mse", "lpips-alexnet"])
def test_without_a_network_the_file_to_place_by_hand_is_named(
    store: WeightStore, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import huggingface_hub

    def unreachable(*args: object, **options: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    monkeypatch.setattr(huggingface_hub.file_download, "http_get", unreachable)
    with pytest.raises(WeightsError, match="Name or service not known") as caught:
        fetch_weights(name, store)
    assert f"--name {name}" in caught.value.hint
    assert not list(store.folder.rglob("*.*"))


def test_the_offline_setting_is_respected(
    store: WeightStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(file_download, "http_get", lambda *_, **__: pytest.fail("went online"))
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set"):
        fetch_weights("kl-f8", store)


def _archive() -> bytes:
    """What the publisher's zip holds, small."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("models/kl-f8/model.ckpt", _checkpoint())
    return archive.getvalue()


def test_a_stopped_download_goes_on_where_it_was(
    store: WeightStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import file_download

    archive, asked = _archive(), []

    def half(url: str, file, *, resume_size: int, tqdm_class: type) -> None:
        asked.append(resume_size)
        file.write(archive[:1000])
        raise OSError("connection lost")

    def rest(url: str, file, *, resume_size: int, tqdm_class: type) -> None:
        asked.append(resume_size)
        file.write(archive[resume_size:])

    monkeypatch.setattr(file_download, "http_get", half)
    with pytest.raises(WeightsError, match="connection lost"):
        fetch_weights("kl-f8", store)
    monkeypatch.setattr(file_download, "http_get", rest)
    entry = fetch_weights("kl-f8", store)
    assert asked == [0, 1000]
    assert (entry.name, entry.kind) == ("kl-f8", "autoencoder")
    assert sorted(p.name for p in store.folder.iterdir()) == ["kl-f8.json", "kl-f8.safetensors"]
    monkeypatch.setattr(weights_module, "download", lambda *_: pytest.fail("fetched again"))
    assert fetch_weights("kl-f8", store) == entry


def _served(monkeypatch: pytest.MonkeyPatch, content: bytes) -> list[str]:
    """The network answers with this; the urls that were asked for."""
    from huggingface_hub import file_download

    asked: list[str] = []

    def answer(url: str, file: io.BufferedWriter, **_: object) -> None:
        asked.append(url)
        file.write(content)

    monkeypatch.setattr(file_download, "http_get", answer)
    return asked


def test_the_heads_of_lpips_are_fetched_as_one_plain_file(
    store: WeightStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = _served(monkeypatch, _saved(lpips_heads()))
    entry = fetch_weights("lpips-linear", store)
    assert asked == [KNOWN["lpips-linear"].url]
    assert (entry.name, entry.kind, entry.source) == ("lpips-linear", "lpips-linear", "alex.pth")
    names = sorted(p.name for p in store.folder.iterdir())
    assert names == ["lpips-linear.json", "lpips-linear.safetensors"]


def test_an_alexnet_that_is_not_its_publishers_is_refused_and_not_kept(
    store: WeightStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = _saved(alexnet())
    _served(monkeypatch, content)
    with pytest.raises(WeightsError, match=r"7be5be79\.pth: came with sha256 .* begins 7be5be79"):
        fetch_weights("lpips-alexnet", store)
    assert not list(store.folder.iterdir())
    start = hashlib.sha256(content).hexdigest()[:8]
    known = replace(KNOWN["lpips-alexnet"], sha256_start=start)
    monkeypatch.setitem(KNOWN, "lpips-alexnet", known)
    assert fetch_weights("lpips-alexnet", store).source == "alexnet-owt-7be5be79.pth"


def test_a_page_in_place_of_weights_is_fetched_anew(
    store: WeightStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _served(monkeypatch, b"<html>please log in</html>")
    with pytest.raises(WeightsError, match="damaged"):
        fetch_weights("lpips-linear", store)
    _served(monkeypatch, _saved(lpips_heads()))
    assert fetch_weights("lpips-linear", store).kind == "lpips-linear"


def test_a_damaged_stored_file_is_fetched_again(
    store: WeightStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.save({"state_dict": tiny_autoencoder()}, tmp_path / "model.ckpt")
    monkeypatch.setattr(weights_module, "download", lambda *_: tmp_path / "model.ckpt")
    entry = fetch_weights("kl-f8", store)
    with store.file(entry).open("ab") as file:
        file.write(b"x")
    assert not store.is_whole(entry)
    assert store.is_whole(fetch_weights("kl-f8", store))


@pytest.mark.slow
def test_half_precision_official_checkpoints_are_read(store: WeightStore, tmp_path: Path) -> None:
    half = {k: v.half() if v.is_floating_point() else v for k, v in tiny_checkpoint().items()}
    torch.save({"state_dict": half}, tmp_path / "half.ckpt")
    assert add_weights(tmp_path / "half.ckpt", store).latent_scale == 0.125


def test_a_download_of_another_kind_is_not_stored(
    store: WeightStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.save({"state_dict": tiny_autoencoder()}, tmp_path / "wrong.ckpt")
    monkeypatch.setattr(weights_module, "download", lambda *_: tmp_path / "wrong.ckpt")
    with pytest.raises(WeightsError, match="of kind autoencoder, not ldm"):
        fetch_weights("ldm-8", store)
    assert store.entries() == []


def test_a_run_is_exported(tiny_run: Workspace, tmp_path: Path) -> None:
    made = export_run(tiny_run.run.path, tmp_path / "p")
    assert made.bytes == sum(f.stat().st_size for f in (tmp_path / "p").iterdir())
    assert read_package(tmp_path / "p").step == tiny_run.run.status()["best"]["step"]


def test_a_run_without_a_checkpoint_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such checkpoint"):
        export_run(RunDir(tmp_path / "none").path, tmp_path / "p")
    assert not (tmp_path / "p").exists()


@pytest.mark.slow
def test_an_official_model_keeps_its_bits_or_their_halves(
    official: tuple[WeightStore, Entry], tmp_path: Path
) -> None:
    store, entry = official
    assert (entry.name, entry.kind, entry.latent_scale) == ("official", "sdseg", 0.125)
    exact = load_official(tiny_checkpoint()).state_dict()
    for half in (True, False):
        made = export_stored(entry, store, tmp_path / str(half), normalisation=WINDOW, half=half)
        for key, value in read_package(made.folder).weights.items():
            assert torch.equal(value, exact[key].half() if half else exact[key])


@pytest.mark.slow
def test_an_official_model_predicts_a_scan_through_its_package(
    official: tuple[WeightStore, Entry], tiny_set: Workspace, tmp_path: Path
) -> None:
    store, entry = official
    export_stored(entry, store, tmp_path / "p", normalisation=WINDOW)
    predictor = Predictor(tmp_path / "p", device="cpu")
    assert predictor.normalisation == WINDOW
    assert predictor.model.latent_scale == 0.125
    prediction = predictor.predict(read_image(tiny_set.scan))
    assert prediction.probability.shape == (6, 256, 256)
    assert prediction.probability.std() > 0


@pytest.mark.slow
def test_an_official_model_of_pictures_predicts_a_picture(
    official: tuple[WeightStore, Entry], tmp_path: Path
) -> None:
    store, entry = official
    window = Normalisation.for_modality("photograph")
    export_stored(entry, store, tmp_path / "p", normalisation=window, pictures=True)
    predictor = Predictor(tmp_path / "p", device="cpu")
    picture = Picture.of(np.full((8, 8, 3), (255, 0, 51), np.uint8))
    square = predictor.stack(picture).pixels(0, 1)
    assert square[0, :, 128, 128] == pytest.approx([1, -1, -0.6], abs=1e-6)


def test_only_a_whole_model_of_the_store_is_exported(store: WeightStore, tmp_path: Path) -> None:
    torch.save({"state_dict": tiny_autoencoder()}, tmp_path / "vae.ckpt")
    entry = add_weights(tmp_path / "vae.ckpt", store)
    with pytest.raises(WeightsError, match="no whole SDSeg model"):
        export_stored(entry, store, tmp_path / "p", normalisation=WINDOW)
