"""The networks SDSeg is compared with: MONAI's, each in the sizes of the presets `tiny` and `sd`.

To add one is to add its line to `BASELINES`. Standard library only, as `config.py`: MONAI takes
seconds to import, and `--help` shall name them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SDSEG = "sdseg"
SCALES = ("tiny", "sd")


@dataclass(frozen=True)
class Network:
    """A network of `monai.networks.nets`, from three channels of a plane to one logit per pixel."""

    monai: str
    """Name of its class."""
    tiny: Mapping[str, Any]
    """Arguments for about as many weights and operations as SDSeg has in the preset `tiny`: 3.7
    million trained, 4.6 million that predict, 7.3 GFLOP per slice."""
    sd: Mapping[str, Any]
    """Arguments for the width that is usual in publications."""
    learning_rate: float = 1e-3
    """In `tiny`; a third of it in `sd`."""
    start: str = "from scratch"
    """What its weights start from, for the record."""
    needs: tuple[str, ...] = field(default=())
    """Packages it takes besides MONAI."""


def _dynunet(*filters: int, supervised: int) -> dict[str, Any]:
    """nnU-Net's network: a level per width, and so many lower levels that learn to answer too."""
    levels = len(filters)
    return {
        "filters": filters,
        "kernel_size": (3,) * levels,
        "strides": (1,) + (2,) * (levels - 1),
        "upsample_kernel_size": (2,) * (levels - 1),
        "norm_name": ("INSTANCE", {"affine": True}),
        "deep_supervision": True,
        "deep_supr_num": supervised,
    }


BASELINES: dict[str, Network] = {
    "unet": Network(
        "BasicUNet",
        tiny={"features": (16, 32, 64, 160, 384, 16)},
        sd={"features": (64, 128, 256, 512, 1024, 64)},
    ),
    "unet-r50": Network(
        "FlexibleUNet",
        tiny={"backbone": "resnet50", "decoder_channels": (64, 32, 16, 16, 8)},
        sd={"backbone": "resnet50", "decoder_channels": (256, 128, 64, 32, 16)},
        start="from scratch, no ImageNet weights",
    ),
    "swin-unetr": Network(
        "SwinUNETR",
        tiny={"feature_size": 24},
        sd={"feature_size": 48},
        learning_rate=5e-4,
        needs=("einops",),
    ),
    "dynunet": Network(
        "DynUNet",
        tiny=_dynunet(16, 32, 64, 128, 192, 224, supervised=3),
        sd=_dynunet(32, 64, 128, 256, 512, 512, 512, supervised=4),
    ),
    "segresnet": Network(
        "SegResNet",
        tiny={"init_filters": 16, "blocks_down": (1, 1, 1, 2, 2), "blocks_up": (1, 1, 1, 1)},
        sd={"init_filters": 32, "blocks_down": (1, 2, 2, 4), "blocks_up": (1, 1, 1)},
    ),
}
"""`--model` -> the network."""


def models() -> tuple[str, ...]:
    """What `--model` offers."""
    return (SDSEG, *BASELINES)
