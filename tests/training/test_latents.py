from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from sdseg_cli.core.errors import RunError
from sdseg_cli.core.presets import PRESETS
from sdseg_cli.model.distributed import Ranks
from sdseg_cli.model.sdseg import build_sdseg
from sdseg_cli.training.latents import MaskLatents, encode_masks, latents_key, open_latents
from tests.training.small import ROW, small_latents, small_slices

CPU = torch.device("cpu")


def test_empty_slices_share_row_0_and_others_have_one_per_flip(tmp_path: Path) -> None:
    latents = small_latents(tmp_path)
    # Slices 1 and 3 have foreground: rows 1 to 4 and 5 to 8.
    assert latents.rows([0, 1, 1, 3, 2], torch.tensor([3, 0, 3, 2, 1])) == [[0], [1], [4], [7], [0]]


def test_what_was_written_is_read_and_nothing_else_is_known(tmp_path: Path) -> None:
    latents = small_latents(tmp_path)
    values = torch.arange(1.0, 1 + np.prod(ROW)).reshape(1, *ROW)
    latents.write([4], values)
    moments, known = latents.read([[4], [5]])
    assert known.tolist() == [[True], [False]]
    assert torch.equal(moments[:1], values)
    again, known = MaskLatents(latents.path, small_slices(tmp_path), ROW).read([[4]])
    assert known.tolist() == [[True]]
    assert torch.equal(again, values)


def test_a_row_cut_short_by_a_kill_is_not_known(tmp_path: Path) -> None:
    latents = small_latents(tmp_path)
    half = torch.ones(1, *ROW)
    half[:, 4:] = 0
    latents.write([2], half)
    assert latents.read([[2]])[1].tolist() == [[False]]


def test_the_file_takes_no_room_before_it_is_filled(tmp_path: Path) -> None:
    file = small_latents(tmp_path).path.stat()
    assert file.st_size > 9 * np.prod(ROW) * 4
    assert file.st_blocks * 512 < file.st_size


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00"])
def test_a_damaged_file_is_made_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "latents.npy").write_bytes(content)
    assert small_latents(tmp_path).read([[0]])[1].tolist() == [[False]]


def test_who_comes_second_uses_the_file_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first: list[MaskLatents] = []
    link = os.link

    def overtaken(made: Path, path: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        first.append(small_latents(tmp_path))  # another process, between our look and our link
        link(made, path)

    monkeypatch.setattr(os, "link", overtaken)
    second = small_latents(tmp_path)
    second.write([1], torch.ones(1, *ROW))
    assert first[0].read([[1]])[1].tolist() == [[True]]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["case_a", "latents.npy"]


def test_a_full_disk_loses_only_the_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    latents = small_latents(tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        latents.write([1], torch.ones(1, *ROW))
    assert latents.read([[1]])[1].tolist() == [[False]]


def test_a_folder_that_cannot_be_written_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("")
    slices, model = small_slices(tmp_path), build_sdseg(PRESETS["tiny"].model)
    folders = [tmp_path / "a file" / "latents", tmp_path / "run" / "latents"]
    latents = open_latents(folders, slices, model, {}, CPU)
    assert latents.path.parent == folders[1]
    with pytest.raises(RunError):
        open_latents(folders[:1], slices, model, {}, CPU)


def test_the_first_process_makes_the_file_and_the_others_wait_for_it(tmp_path: Path) -> None:
    slices, model = small_slices(tmp_path), build_sdseg(PRESETS["tiny"].model)
    path = tmp_path / f"{latents_key(model, {}, CPU)}.npy"
    seen: list[bool] = []

    class Together(Ranks):
        def wait(self) -> None:
            seen.append(path.exists())
            if not self.writes:  # as if the first had come here by now
                MaskLatents(path, slices, ROW).write([2], torch.ones(1, *ROW))

    second = open_latents([tmp_path], slices, model, {}, CPU, Together(1, 2))
    assert second.read([[2]])[1].all()
    open_latents([tmp_path], slices, model, {}, CPU, Together(0, 2))
    assert seen == [False, True]


def test_the_key_knows_the_autoencoder_the_data_and_the_device() -> None:
    model = build_sdseg(PRESETS["tiny"].model)
    key = latents_key(model, {"split": 1}, CPU)
    assert latents_key(model, {"split": 1}, CPU) == key
    assert latents_key(model, {"split": 2}, CPU) != key
    assert latents_key(model, {"split": 1}, torch.device("cuda", 1)) != key
    with torch.no_grad():
        model.unet.time_embed[0].bias += 1
        model.autoencoder.decoder.conv_in.bias += 1
    assert latents_key(model, {"split": 1}, CPU) == key  # neither makes latents
    with torch.no_grad():
        model.autoencoder.quant_conv.bias += 1
    assert latents_key(model, {"split": 1}, CPU) != key


def test_a_masks_moments_do_not_depend_on_its_batch() -> None:
    model = build_sdseg(PRESETS["tiny"].model).eval()
    foreground = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)) > 0.5
    together = encode_masks(model, foreground)
    assert torch.equal(together[1:2], encode_masks(model, foreground[1:2]))
    mask = (foreground.float() * 2 - 1)[:, None].expand(-1, 3, -1, -1)
    assert torch.allclose(together, model.mask_moments(mask), atol=1e-5)
