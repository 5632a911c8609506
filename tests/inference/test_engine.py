from __future__ import annotations

import numpy as np
import pytest
import torch

from sdseg_cli.core.config import SampleConfig
from sdseg_cli.core.errors import ConfigError, RunError
from sdseg_cli.core.presets import PRESETS
from sdseg_cli.inference import engine as inference
from sdseg_cli.inference.engine import Inference, predict_planes, require_numbers
from sdseg_cli.model.sdseg import SDSeg, build_sdseg

PIXELS = np.random.default_rng(0).uniform(-1, 1, (5, 64, 64)).astype(np.float32)
HOW = {"seed": 3, "sample": SampleConfig()}
SLICES = [4, 9, 2, 7, 5]


@pytest.fixture(scope="module")
def model() -> SDSeg:
    built = build_sdseg(PRESETS["tiny"].model).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for value in built.parameters():
        torch.nn.init.normal_(value, std=0.1, generator=generator)
    return built


@pytest.mark.parametrize("option", ["batch_size", "threads"])
def test_fewer_than_one_is_refused_by_the_options_name(model: SDSeg, option: str) -> None:
    with pytest.raises(ConfigError, match=rf"--{option.replace('_', '-')} is 0"):
        Inference(model, **{option: 0})


def test_the_answers_are_in_the_order_of_the_slices_whatever_the_number_of_cores(
    model: SDSeg,
) -> None:
    one, three = (
        Inference(model, threads=n)(predict_planes, PIXELS, SLICES, **HOW) for n in (1, 3)
    )
    assert np.array_equal(one, three)
    alone = Inference(model)(predict_planes, PIXELS[1:2], [9], **HOW)
    assert np.array_equal(alone[0], one[1])
    assert not np.array_equal(one[0], one[1])


def test_every_operation_has_one_core_and_the_setting_comes_back(model: SDSeg) -> None:
    seen: list[int] = []

    def compute(model: SDSeg, pixels: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return pixels

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        found = Inference(model, threads=2)(compute, PIXELS, SLICES, **HOW)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [1] * 5
    assert np.array_equal(found, PIXELS)


class Gpu:
    """Takes so many slices at a time, and complains as CUDA does."""

    def __init__(self, room: int) -> None:
        self.room, self.asked = room, list[int]()

    def __call__(
        self, model: SDSeg, pixels: torch.Tensor, slices: list[int], **_: object
    ) -> torch.Tensor:
        self.asked.append(len(pixels))
        assert len(slices) == len(pixels)
        if len(pixels) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return pixels


def on_a_gpu(model: SDSeg, monkeypatch: pytest.MonkeyPatch) -> Inference:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    asked = Inference(model, batch_size=5)
    asked.device = torch.device("cuda")
    return asked


def test_a_gpu_without_memory_gets_half_the_batch_from_then_on(
    model: SDSeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, gpu = on_a_gpu(model, monkeypatch), Gpu(room=2)
    assert np.array_equal(asked(gpu, PIXELS, SLICES, **HOW), PIXELS)
    assert gpu.asked == [5, 2, 2, 1]
    asked(gpu, PIXELS[:4], SLICES[:4], **HOW)
    assert gpu.asked[4:] == [2, 2]


def test_a_gpu_too_small_for_one_slice_is_said_to_be(
    model: SDSeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError, match="one slice does not fit"):
        on_a_gpu(model, monkeypatch)(Gpu(room=0), PIXELS, SLICES, **HOW)


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    model: SDSeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        on_a_gpu(model, monkeypatch)(broken, PIXELS, SLICES, **HOW)


def test_what_suits_a_device_is_taken_where_nothing_is_asked_for(model: SDSeg) -> None:
    assert Inference(model).batch_size == inference.DEFAULT_BATCH["cpu"]
    assert Inference(model).threads == torch.get_num_threads()


def test_what_predicts_is_compiled_when_it_first_computes(
    model: SDSeg, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    inference.compile_networks(model)
    assert compiled == [model.vision_encoder, model.unet, model.autoencoder.decoder]
    monkeypatch.setattr(model, "mask_decoder", torch.nn.Identity())
    inference.compile_networks(model)
    assert compiled[-1] is model.mask_decoder


def test_on_a_cpu_the_decoder_that_draws_is_quickened_and_the_unet_never(
    monkeypatch: pytest.MonkeyPatch, model: SDSeg
) -> None:
    replaced: list[object] = []
    monkeypatch.setattr(inference, "use_winograd", replaced.append)
    inference.optimize_for_inference(model)
    assert replaced == [model.vision_encoder, model.autoencoder.decoder]
    monkeypatch.setattr(model, "mask_decoder", torch.nn.Identity())
    inference.optimize_for_inference(model)
    assert replaced[2:] == [model.vision_encoder]


def test_nan_is_refused_by_scan_and_slice_and_numbers_are_not() -> None:
    found = np.zeros((9, 2, 4, 4), np.float32)
    require_numbers(found, 0, "a.nii.gz")
    found[2, 1, 3, 3] = np.nan
    with pytest.raises(RunError, match=r"^a\.nii\.gz: the model answers NaN on slice 13\.$"):
        require_numbers(found, 10, "a.nii.gz")
    found[2:, 0, 0, 0] = np.nan
    with pytest.raises(RunError, match=r"NaN on slice 3, 4, 5, 6, 7 and 2 more\.$"):
        require_numbers(found, 0, "a.nii.gz")
