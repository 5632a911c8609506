from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from sdseg_cli.core.config import ModelConfig, VisionConfig
from sdseg_cli.core.errors import ConfigError
from sdseg_cli.core.presets import PRESETS
from sdseg_cli.model.vision_encoder import PatchEncoder, VisionEncoder, build_vision_encoder

TINY = PRESETS["tiny"].model


def test_without_widths_it_is_the_papers() -> None:
    with torch.device("meta"):
        assert isinstance(build_vision_encoder(ModelConfig()), VisionEncoder)
    assert isinstance(build_vision_encoder(TINY), PatchEncoder)


@pytest.mark.parametrize(
    ("widths", "blocks"), [((8,), (1,)), ((8, 16), (1, 2)), ((4, 8, 8), (1,) * 3)]
)
def test_the_condition_has_the_latents_resolution(
    widths: tuple[int, ...], blocks: tuple[int, ...]
) -> None:
    config = replace(TINY, vision=VisionConfig(widths, blocks), condition_channels=5)
    zc = build_vision_encoder(config)(torch.zeros(2, 3, 64, 48))
    assert zc.shape == (2, 5, 8, 6)


def test_each_position_sees_its_patch_and_a_border_of_half_a_stride() -> None:
    """Stride 8, a kernel of 16: with the blocks set to nothing, a pixel reaches two patches."""
    encoder = build_vision_encoder(replace(TINY, vision=VisionConfig((8,), (1,))))
    assert isinstance(encoder, PatchEncoder)
    torch.nn.init.zeros_(encoder.levels[0][0].back.weight)  # type: ignore[index, union-attr]
    torch.nn.init.zeros_(encoder.levels[0][0].back.bias)  # type: ignore[index, union-attr]
    dark, dot = torch.zeros(2, 3, 64, 64)[:, None].unbind()
    dot = dot.clone()
    dot[..., 13, 13] = 1  # rows and columns 8..15 are patch 1; 12..15 lie in patch 2's border
    changed = (encoder(dot) != encoder(dark)).any(dim=1)[0].nonzero().tolist()
    assert changed == [[1, 1], [1, 2], [2, 1], [2, 2]]


@pytest.mark.parametrize(
    ("widths", "blocks", "message"),
    [
        ((8, 16), (1,), "2 widths and 1 blocks"),
        ((8, 0), (1, 1), "not all multiples"),
        ((8,), (0,), "model.vision.blocks"),
    ],
)
def test_impossible_sizes_are_refused(
    widths: tuple[int, ...], blocks: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        VisionConfig(widths, blocks)


def test_more_resolutions_than_halvings_are_refused() -> None:
    with pytest.raises(ConfigError, match="4 resolutions, and the latent is a 8th of the plane"):
        replace(TINY, vision=VisionConfig((8,) * 4, (1,) * 4))
