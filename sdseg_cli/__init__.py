"""Segment medical volumes with a single-step latent diffusion model (SDSeg).

What scripts and notebooks use; each name is loaded when it is first used:

    from sdseg_cli import Predictor, load_official, read_image, write_mask
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sdseg_cli.imaging.io.files import read_image as read_image
    from sdseg_cli.imaging.io.files import write_mask as write_mask
    from sdseg_cli.inference.predictor import Predictor as Predictor
    from sdseg_cli.model.pretrained import load_official as load_official

__version__ = "0.1.0"
__all__ = ["Predictor", "__version__", "load_official", "read_image", "write_mask"]

_FOUND_IN = {
    "Predictor": "sdseg_cli.inference.predictor",
    "load_official": "sdseg_cli.model.pretrained",
    "read_image": "sdseg_cli.imaging.io.files",
    "write_mask": "sdseg_cli.imaging.io.files",
}


def __getattr__(name: str) -> Any:
    """A public name, loaded now; `import sdseg_cli` alone loads nothing heavy."""
    if name not in _FOUND_IN:
        raise AttributeError(f"module 'sdseg_cli' has no attribute {name!r}")
    return getattr(import_module(_FOUND_IN[name]), name)
