"""Files of weights, read without running anything in them, and copied only where every name and
every shape fits.
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sdseg_cli.core.errors import WeightsError
from sdseg_cli.core.json_files import parse_json

NAMED_AT_MOST = 3
"""So many offending keys are spelled out in a message."""


GET_AGAIN = "Get the file again, as .safetensors if offered."
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""In which weights may come; in eight bits they mean nothing without scales of their own."""
WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
COUNTERS = re.compile(r"(.*\.)?(num_updates|num_batches_tracked|relative_position_index)")
"""Names of what may be whole numbers: counters and indices."""


class _Inert:
    """Stands for a class of the trainer that wrote a checkpoint; building it does nothing."""

    def __init__(self, *values: object) -> None:
        """Drop all arguments from the file."""


# Checkpoints of the latent-diffusion family were written by Lightning, which keyed a dictionary
# with its callback classes. The file names them; an inert class of ours takes their place.
_NAMED_IN_CHECKPOINTS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_Inert, f"{package}.callbacks.{module}")
    for package in ("pytorch_lightning", "lightning.pytorch")
    for module in (
        "model_checkpoint.ModelCheckpoint",
        "early_stopping.EarlyStopping",
        "lr_monitor.LearningRateMonitor",
    )
]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a `.safetensors` file or of a checkpoint saved by torch; code in it is never
    run.

    Raises:
        WeightsError: Missing, damaged, or holding more than tensors.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise WeightsError(f"{path}: is no file.", "Give a file of weights.")
        if path.suffix == ".safetensors":
            return state_dict_of(_from_safetensors(path), source=str(path))
        return state_dict_of(unpickled(path), source=str(path))
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: no such file.", "Check the path of the weights.") from error
    except IsADirectoryError as error:
        raise WeightsError(
            f"{path}: is a folder.", "Give a file of weights; a package goes to --model or --init."
        ) from error
    except OSError as error:
        raise WeightsError(f"{path}: damaged, or not a file of weights.", GET_AGAIN) from error


def _from_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of the file, whose header the library checks.

    Raises:
        OSError: The file cannot be opened.
        WeightsError: It is damaged, or of a kind of number that torch has not.
    """
    try:
        tensors = load_file(path)
        with path.open("rb") as file:  # of two tensors of one name the library takes the last
            parse_json(file.read(int.from_bytes(file.read(8), "little")), source=str(path))
        return tensors
    except OSError:
        raise
    except Exception as error:
        # What a header claims raises at random: KeyError for a type, RuntimeError for a shape.
        raise WeightsError(f"{path}: damaged, or not a file of weights.", GET_AGAIN) from error


def unpickled(path: Path) -> Any:
    """Contents of a torch file, plain values and tensors only; code in it is never run.

    Raises:
        OSError: The file cannot be opened.
        WeightsError: It is damaged or holds more.
    """
    try:
        with torch.serialization.safe_globals(_NAMED_IN_CHECKPOINTS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: damaged, or it holds more than plain weights, which is never run.", GET_AGAIN
        ) from error
    except Exception as error:
        # Damage at random raises at random: KeyError, IndexError, struct.error and more were seen.
        raise WeightsError(f"{path}: damaged, or not a file of weights.", GET_AGAIN) from error


def state_dict_of(values: Any, *, source: str) -> dict[str, Tensor]:
    """The tensors of what `torch.load` gave, be they the whole of it or its `state_dict`.

    Parameters become plain tensors, which share the memory.

    Raises:
        WeightsError: It is no dictionary of tensors, or one is not plain: see `plain`.
    """
    if isinstance(values, Mapping) and isinstance(values.get("state_dict"), Mapping):
        values = values["state_dict"]
    if not isinstance(values, Mapping) or not values:
        raise WeightsError(f"{source}: holds no state_dict.", "Give a checkpoint of weights.")
    for key, value in values.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise WeightsError(
                f"{source}: {key} is no tensor.",
                "Give a checkpoint with a state_dict; a run of sdseg goes to --init or `export`.",
            )
    return {key: plain(value, key, source=source) for key, value in values.items()}


def plain(value: Tensor, key: str, *, source: str) -> Tensor:
    """A tensor that is nothing but numbers in memory, each in a place of its own; without
    gradients.

    Args:
        value: Of whatever kind.
        key: Its name, for messages.
        source: Where it comes from, for messages.

    Raises:
        WeightsError: It is of a class of its own, has no memory (meta), is sparse, nested or
            quantised, is larger than its memory, or is neither of floating point in 16 to 64 bits
            nor of whole numbers.
    """
    what = ""
    if type(value) not in (Tensor, nn.Parameter):
        what = f"a {type(value).__name__}"
    elif value.is_meta:
        what = "a shape without values (meta)"
    elif value.is_quantized:
        what = f"quantised ({value.dtype})"
    elif value.is_nested or value.layout != torch.strided:
        what = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
    elif value.dtype not in (*FLOATS, *WHOLE):
        what = f"of {str(value.dtype).removeprefix('torch.')}"
    elif value.numel() * value.element_size() > value.untyped_storage().nbytes():
        what = "larger than its memory (expanded)"
    if what:
        raise WeightsError(
            f"{source}: {key} is {what}, not a plain tensor of weights.",
            "Give the weights as they were trained, in floating point of 16 or 32 bits.",
        )
    return value.detach().resolve_neg()


def write_tensors(
    tensors: dict[str, Tensor], path: Path, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a `.safetensors` file, readable for those the user's umask lets read.

    Args:
        tensors: By name.
        path: The file.
        metadata: Texts that are kept with them.

    Raises:
        OSError: The disk refused.
    """
    try:
        save_file(_apart(tensors), path, None if metadata is None else dict(metadata))
    except safetensors.SafetensorError as error:
        raise OSError(str(error)) from error
    umask = os.umask(0)  # it can only be read by setting it
    os.umask(umask)
    path.chmod(0o666 & ~umask)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, each in memory of its own, as the format wants them."""
    seen: set[int] = set()
    apart = {}
    for key, value in tensors.items():
        place = value.untyped_storage().data_ptr()
        apart[key] = value.contiguous()
        if place in seen and apart[key] is value:
            apart[key] = value.clone()
        seen.add(place)
    return apart


def read_metadata(path: Path) -> dict[str, str]:
    """The texts kept in a `.safetensors` file.

    Raises:
        WeightsError: Missing or damaged.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except Exception as error:  # as in `_from_safetensors`
        raise WeightsError(f"{path}: damaged, or not a file of weights.", GET_AGAIN) from error


def check_tensors(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], *, source: str
) -> None:
    """Every wanted name is there in its shape, no other is, all are plain tensors of floating
    point, but for counters and indices, and all values are finite in float32.

    Raises:
        WeightsError: Naming the keys that are wrong.
    """
    tensors = {key: plain(value, key, source=source) for key, value in tensors.items()}
    problems = [f"missing {key}" for key in wanted if key not in tensors]
    problems += [f"unexpected {key}" for key in tensors if key not in wanted]
    problems += [
        f"{key} is {tuple(value.shape)}, not {tuple(wanted[key])}"
        for key, value in tensors.items()
        if key in wanted and value.shape != wanted[key]
    ]
    problems = problems or [
        f"{key} holds {str(value.dtype).removeprefix('torch.')}, not floating point"
        for key, value in tensors.items()
        if not (value.is_floating_point() or COUNTERS.fullmatch(key))
    ]
    # Values last: they take the time.
    problems = problems or [
        f"{key} holds NaN or infinity"
        for key, value in tensors.items()
        if value.is_floating_point() and not _is_finite(value)
    ]
    if problems:
        named = "; ".join(problems[:NAMED_AT_MOST])
        rest = len(problems) - NAMED_AT_MOST
        more = f"; and {rest} more" if rest > 0 else ""
        raise WeightsError(
            f"{source}: weights of another architecture or damaged: {named}{more}.",
            "Give the weights that belong to this model.",
        )


def _is_finite(value: Tensor) -> bool:
    # What float64 holds may be infinite in float32, in which networks compute.
    held = value.float() if value.dtype == torch.float64 else value
    return bool(torch.isfinite(held).all())


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Copy `tensors` into `module`, as float32 but for counters and indices; where it is only
    shapes, copies become its tensors.

    Raises:
        WeightsError: As `check_tensors`; nothing is copied then.
    """
    own = module.state_dict()
    check_tensors(tensors, {key: value.shape for key, value in own.items()}, source=source)
    bare = any(value.is_meta for value in own.values())
    copies = {key: _like(own[key], value, copy=bare) for key, value in tensors.items()}
    module.load_state_dict(copies, assign=bare)


def _like(own: Tensor, value: Tensor, *, copy: bool) -> Tensor:
    kind = torch.float32 if own.is_floating_point() else own.dtype
    return value.detach().to("cpu" if copy else value.device, kind, copy=copy)


def positive_scale(value: float, *, source: str) -> float:
    """A latent scale, which has to be finite and above 0.

    Raises:
        WeightsError: It is not.
    """
    if not 0 < value < float("inf"):
        raise WeightsError(
            f"{source}: its latent scale is {value}.", "Get the file again: it must be positive."
        )
    return value
