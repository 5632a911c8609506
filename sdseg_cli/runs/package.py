"""The inference package: all that prediction needs of a run, small enough to hand on.

PACKAGE/
  model.safetensors   weights of the three networks, float16, the U-Net averaged over the steps
  sdseg.json          settings, how slices are made, latent scale, origin of the weights, sha256
  LICENSE.md          what may be done with it
  mask_decoder.safetensors   the fast decoder and what it costs, where the run has one
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sdseg_cli import __version__
from sdseg_cli.core.config import THRESHOLD, RunConfig
from sdseg_cli.core.config_file import from_dict
from sdseg_cli.core.errors import ConfigError, DataError, RunError, WeightsError
from sdseg_cli.core.filenames import PACKAGE_FILE
from sdseg_cli.core.files import file_sha256, remove_old_folders, temporary_for
from sdseg_cli.core.json_files import read_object
from sdseg_cli.data.spec import ClassRule
from sdseg_cli.model.baselines import unfilled_model
from sdseg_cli.model.interface import SliceModel
from sdseg_cli.model.runtime import to_device
from sdseg_cli.model.sdseg import SDSeg, has_latents
from sdseg_cli.model.tensor_files import (
    load_strictly,
    positive_scale,
    read_tensors,
    write_tensors,
)
from sdseg_cli.runs.checkpoint import Checkpoint, to_float16
from sdseg_cli.runs.run_folder import RunDir

FORMAT_VERSION = 1
SEVERAL_VERSION = 2
"""Of several classes, which versions that know one alone refuse by this number."""
READABLE = (FORMAT_VERSION, SEVERAL_VERSION)
MODEL, DESCRIPTION, LICENSE = "model.safetensors", PACKAGE_FILE, "LICENSE.md"
FAST_DECODER = "mask_decoder.safetensors"
FILES = {MODEL, DESCRIPTION, LICENSE, FAST_DECODER}
_TYPES: dict[str, type | tuple[type, ...]] = {
    "sha256": str,
    "step": int,
    "best": dict,
    "latent_scale": (int, float),
    "origin": dict,
    "data": dict,
    "config": dict,
}


@dataclass(frozen=True)
class Package:
    """A package that was written."""

    folder: Path
    sha256: str
    """Of `model.safetensors`."""
    bytes: int
    replaced: bool = False
    """Another package was there before."""

    def to_json(self) -> dict[str, Any]:
        """The object of `--json`."""
        return {"package": str(self.folder), "sha256": self.sha256, "bytes": self.bytes}


def write_package(
    checkpoint: Checkpoint, folder: Path, *, half: bool = True, fast_decoder: Path | None = None
) -> Package:
    """Make a package; it appears whole or not at all, and replaces only another package.

    Args:
        checkpoint: What prediction uses: `best.pt` of a run.
        folder: Of the package.
        half: Round the weights to float16; else they stay as they are.
        fast_decoder: The run's mask decoder, if it has one.

    Raises:
        ConfigError: Something else lies there.
        RunError: The disk refused; a package that was there is still there.
    """
    folder = folder.resolve()
    if folder.exists() and not _holds_only_a_package(folder):
        raise ConfigError(f"{folder}: exists and is no package.", "Give -o another name.")
    building, old = temporary_for(folder), temporary_for(folder)
    try:
        building.mkdir(parents=True)
        weights = checkpoint.prediction_weights()
        several = checkpoint.config.get("model", {}).get("classes", 1) > 1
        write_tensors(to_float16(weights) if half else weights, building / MODEL)
        sha256 = file_sha256(building / MODEL)
        if fast_decoder is not None:
            shutil.copyfile(fast_decoder, building / FAST_DECODER)
        description = {
            "format_version": SEVERAL_VERSION if several else FORMAT_VERSION,
            "sdseg_version": __version__,
            "sha256": sha256,
            "step": checkpoint.step,
            "best": checkpoint.best,
            "latent_scale": checkpoint.latent_scale,
            "origin": checkpoint.origin,
            "data": checkpoint.data,
            "config": checkpoint.config,
        }
        text = json.dumps(description, indent=2, allow_nan=False) + "\n"
        _write_text(building / DESCRIPTION, text)
        _write_text(building / LICENSE, license_note(checkpoint))
        if replaced := folder.exists():
            folder.rename(old)
        building.rename(folder)
    except OSError as error:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise RunError(
            f"{folder}: cannot be written ({error.strerror or error}).",
            "Check the folder's permissions and the space left on the disk.",
        ) from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    remove_old_folders(folder)
    size = sum(path.stat().st_size for path in folder.iterdir())
    return Package(folder, sha256, size, replaced)


def _holds_only_a_package(folder: Path) -> bool:
    if not is_package(folder) or {path.name for path in folder.iterdir()} - FILES:
        return False
    try:
        read_description(folder)
    except WeightsError:
        return False
    return True


def read_description(folder: Path) -> dict[str, Any]:
    """The description of a package, of known types.

    Raises:
        WeightsError: It is incomplete, damaged, or of another format.
    """
    try:
        description = read_object(folder / DESCRIPTION)
        version, writer = description["format_version"], description["sdseg_version"]
        if version not in READABLE:
            raise WeightsError(
                f"{folder}: package format {version}, not {FORMAT_VERSION}.",
                f"Use sdseg {writer}, which wrote it.",
            )
        for key, kind in _TYPES.items():
            if not isinstance(description[key], kind) or isinstance(description[key], bool):
                raise TypeError(key)
        if not all(isinstance(where, str) for where in description["origin"].values()):
            raise TypeError("origin")
    except (DataError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{folder}: no package of sdseg, or damaged.",
            "Give --model a folder made by `sdseg weights export`.",
        ) from error
    positive_scale(description["latent_scale"], source=str(folder))
    return dict(description)


def read_package(folder: Path) -> Checkpoint:
    """A package as the checkpoint it was made from.

    Raises:
        WeightsError: It is incomplete, damaged, or of another format.
    """
    description = read_description(folder)
    model = folder / MODEL
    if model.is_file() and file_sha256(model) != description["sha256"]:
        raise WeightsError(
            f"{model}: is not the file this package was made with (sha256 differs).",
            "Copy the package again, or export it anew.",
        )
    return Checkpoint(
        step=description["step"],
        config=description["config"],
        data=description["data"],
        latent_scale=float(description["latent_scale"]),
        weights=read_tensors(model),
        ema={},
        best=description["best"],
        origin=description["origin"],
    )


def networks_of(checkpoint: Checkpoint, device: torch.device, *, source: str) -> SliceModel:
    """The networks of a checkpoint as they predict: filled, on the device, in eval mode.

    Raises:
        WeightsError: They do not fit its own settings.
    """
    config = from_dict(checkpoint.config, RunConfig(), source=source)
    model = unfilled_model(config.model)
    load_strictly(model, checkpoint.prediction_weights(), source=source)
    model.latent_scale = checkpoint.latent_scale
    model.threshold = threshold_of(checkpoint, source=source)
    if config.model.classes > 1:
        model.mirrored = ClassRule.of_settings(checkpoint.data).mirrored
    model.eval().requires_grad_(False)
    return to_device(model, device)


def threshold_of(checkpoint: Checkpoint, *, source: str) -> float:
    """The probability above which a pixel is foreground; 0.5 where no validation chose one.

    Raises:
        WeightsError: It does not lie between 0 and 1.
    """
    value = checkpoint.best.get("threshold", THRESHOLD)
    if not (isinstance(value, float) and 0 < value < 1):
        raise WeightsError(
            f"{source}: its threshold is {value!r}, not between 0 and 1.",
            "Export it again from its run; of a run, train again.",
        )
    return value


def sdseg_of(checkpoint: Checkpoint, device: torch.device, *, source: str) -> SDSeg:
    """Like `networks_of`, for uses that only SDSeg supports.

    Raises:
        WeightsError: As `networks_of`.
        ConfigError: It is another network.
    """
    model = networks_of(checkpoint, device, source=source)
    if not has_latents(model):
        raise ConfigError(
            f"{source}: is a {model.config.network}, which has no latents and no decoder.",
            "Choose a run of SDSeg.",
        )
    return model


def read_trained(path: Path) -> Checkpoint:
    """The weights of a run folder or a package.

    Raises:
        WeightsError: They are missing or damaged.
    """
    return read_package(path) if is_package(path) else Checkpoint.load(RunDir(path).best)


def is_package(path: Path) -> bool:
    """True if this folder claims to be a package."""
    return (path / DESCRIPTION).is_file()


def license_note(checkpoint: Checkpoint) -> str:
    """The licence terms that apply, in a few lines."""
    dataset = checkpoint.data.get("dataset")
    lines = ["# Terms of these weights", ""]
    if dataset:
        lines += [
            "The software that trained them, sdseg, is under Apache-2.0. They were trained on",
            f'the data set "{dataset}", whose owner\'s terms apply to them.',
            "",
        ]
    others = {k: v for k, v in checkpoint.origin.items() if not v.startswith("from scratch")}
    if others:
        lines += [
            "They hold, or started from, these weights; those of others have their own terms:",
            "",
        ]
        lines += [f"- {part}: {where}" for part, where in sorted(others.items())]
        lines += [""]
    lines.append("For research. No medical device: approved for neither diagnosis nor therapy.")
    return "\n".join(lines) + "\n"


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
