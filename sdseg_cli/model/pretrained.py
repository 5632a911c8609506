"""Weights from files into our networks, always strictly: every name and every shape must match."""

from __future__ import annotations

import pickle
from importlib import resources
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sdseg_cli.errors import WeightsError
from sdseg_cli.model.autoencoder import Autoencoder
from sdseg_cli.model.sdseg import SDSeg

NAMED_AT_MOST = 3
"""So many offending keys are spelled out in a message."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a `.safetensors` file or of a checkpoint saved by torch; code in it is never
    run.

    Raises:
        WeightsError: Missing, damaged, or holding more than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        values = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: no such file.", "Check the path of the weights.") from error
    except (
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        pickle.UnpicklingError,
        safetensors.SafetensorError,
    ) as error:
        raise WeightsError(
            f"{path}: damaged, or not a file of plain weights.",
            "Download it again, as .safetensors if offered.",
        ) from error
    if isinstance(values, dict) and isinstance(values.get("state_dict"), dict):
        values = values["state_dict"]
    if not isinstance(values, dict) or not all(isinstance(v, Tensor) for v in values.values()):
        raise WeightsError(f"{path}: holds no state_dict.", "Give a checkpoint with a state_dict.")
    return values


def load_strictly(module: nn.Module, tensors: dict[str, Tensor], *, source: str) -> None:
    """Copy `tensors` into `module` as float32.

    Raises:
        WeightsError: A key is missing, unexpected or of another shape, or a value is not finite;
        nothing is copied.
    """
    wanted = module.state_dict()
    problems = [f"missing {key}" for key in wanted if key not in tensors]
    problems += [f"unexpected {key}" for key in tensors if key not in wanted]
    for key, value in tensors.items():
        if key not in wanted:
            continue
        if value.shape != wanted[key].shape:
            problems.append(f"{key} is {tuple(value.shape)}, not {tuple(wanted[key].shape)}")
        elif value.is_floating_point() and not torch.isfinite(value).all():
            problems.append(f"{key} holds NaN or infinity")
    if problems:
        named = "; ".join(problems[:NAMED_AT_MOST])
        more = (
            f"; and {len(problems) - NAMED_AT_MOST} more" if len(problems) > NAMED_AT_MOST else ""
        )
        raise WeightsError(
            f"{source}: weights of another architecture or damaged: {named}{more}.",
            "Give the weights that belong to this preset.",
        )
    module.load_state_dict({key: value.float() for key, value in tensors.items()})


def load_tiny_autoencoder(autoencoder: Autoencoder) -> None:
    """The autoencoder of the `tiny` preset, shipped with the package.

    Made by `scripts/train_tiny_autoencoder.py`; no downloaded weight or image went into it.
    """
    shipped = resources.files("sdseg_cli") / "weights" / "tiny_autoencoder.safetensors"
    with resources.as_file(shipped) as path:
        load_strictly(autoencoder, read_tensors(path), source="tiny autoencoder")


def load_autoencoder(autoencoder: Autoencoder, path: Path) -> None:
    """kl-f8 in CompVis naming; the discriminator's `loss.*` keys are left out.

    Raises:
        WeightsError: As `read_tensors` and `load_strictly`.
    """
    tensors = {k: v for k, v in read_tensors(path).items() if not k.startswith("loss.")}
    load_strictly(autoencoder, tensors, source=str(path))


def start_vision_encoder(model: SDSeg) -> None:
    """Start tau as the autoencoder's encoder; its `out` stays random, as in the paper."""
    model.vision_encoder.encoder.load_state_dict(model.autoencoder.encoder.state_dict())
