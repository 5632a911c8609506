"""The latents of the training masks, computed once.

The autoencoder is frozen, so a mask's posterior never changes: each mask of a slice and class that
is not empty is encoded when it is first drawn, once per flip, and kept in one memory-mapped file
beside the prepared data. All empty masks are one and the same.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import torch
from numpy.lib.format import write_array_header_1_0
from torch import Tensor

from sdseg_cli.core.errors import RunError
from sdseg_cli.core.files import replacing
from sdseg_cli.model.distributed import Ranks
from sdseg_cli.model.interface import SliceModel, as_three_channels
from sdseg_cli.model.sdseg import SDSeg, full_precision, has_latents
from sdseg_cli.training.batches import NOT_KEPT, PreparedSlices

FLIP_CODES = 4
"""0 as it is, 1 left-right, 2 up-down, 3 both: `batches.flip_codes`."""
GPU_MASKS = 16
"""Masks a GPU encodes at once: few enough that this never takes more memory than training."""


class MaskLatents:
    """Posterior moments of masks, by row: row 0 is the empty mask, then four rows per mask with
    foreground, one per flip, in the order of `PreparedSlices.nonempty`.

    A row that holds an exact zero is not computed yet. The file is made sparse, all zeros, and the
    numbers of a posterior are never exactly zero; so rows can be filled in any order, by several
    processes, and a kill in the middle of one leaves it unfilled. (A true zero would only be
    computed again.)

    Args:
        path: The .npy file, (rows,8,h,w) float32; made where missing or of another size.
        slices: The training slices.
        shape: (8,h,w) of one row.

    Raises:
        RunError: The file cannot be made or read.
    """

    def __init__(self, path: Path, slices: PreparedSlices, shape: tuple[int, int, int]) -> None:
        self._number = {mask: i for i, mask in enumerate(slices.nonempty)}
        self._classes = range(len(slices.classes))
        self._stored = _opened(path, (1 + FLIP_CODES * len(self._number), *shape))
        self.path = path

    def rows(self, positions: Sequence[int], flips: Tensor) -> list[list[int]]:
        """The row of each slice and class, flipped as the slice's code says."""
        return [
            [
                1 + FLIP_CODES * self._number[position, k] + code
                if (position, k) in self._number
                else 0
                for k in self._classes
            ]
            for position, code in zip(positions, flips.tolist(), strict=True)
        ]

    def read(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Moments (B,8K,h,w) float32 and, (B,K) bool, which of them are computed."""
        numbers = np.asarray(rows)
        moments = torch.from_numpy(self._stored[numbers])
        computed = (moments != 0).flatten(2).all(dim=2) & torch.from_numpy(numbers != NOT_KEPT)
        return moments.flatten(1, 2), computed

    def write(self, rows: Sequence[int], moments: Tensor) -> None:
        """Keep computed moments (N,8,h,w), but those of row `NOT_KEPT`; on a full disk they are
        simply computed again.
        """
        values = moments.float().cpu().numpy()
        # Not through the memory map: where the disk is full, that kills the process.
        with suppress(OSError), self.path.open("r+b") as file:
            for row, value in zip(rows, values, strict=True):
                if row == NOT_KEPT:
                    continue
                file.seek(self._stored.offset + row * value.nbytes)
                file.write(value.tobytes())


class NoLatents(MaskLatents):
    """For a model that has none: nothing is kept, and nothing is ever missing."""

    def __init__(self) -> None:
        """No file."""

    def rows(self, positions: Sequence[int], flips: Tensor) -> list[list[int]]:
        """Zeros."""
        return [[0]] * len(positions)

    def read(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Empty moments (B,0,0,0), all of them known."""
        return torch.empty(len(rows), 0, 0, 0), torch.ones(len(rows), 1, dtype=torch.bool)


def encode_masks(model: SDSeg, masks: Tensor) -> Tensor:
    """Moments (N,8,h,w) of masks (N,H,W) bool on the model's device: always float32, as they are
    computed once. On a CPU one mask at a time, so that the same mask gives the same bits in any
    batch.
    """
    planes = as_three_channels(masks.float() * 2 - 1)
    planes = planes.contiguous(memory_format=torch.channels_last)
    parts = torch.split(planes, 1 if planes.device.type == "cpu" else GPU_MASKS)
    with torch.no_grad(), full_precision():
        return torch.cat([model.mask_moments(part) for part in parts])


def open_latents(
    folders: Sequence[Path],
    slices: PreparedSlices,
    model: SliceModel,
    data: dict[str, Any],
    device: torch.device,
    ranks: Ranks | None = None,
) -> MaskLatents:
    """The file for this autoencoder and these slices; a baseline has none.

    Args:
        folders: The first that can be written is taken.
        slices: The training slices.
        model: Its autoencoder makes the latents.
        data: `Manifest.inference_settings`, with the hashes of split and arrays.
        device: Each kind rounds in its own way.
        ranks: The processes that train together, and call this together.

    Raises:
        RunError: None of the folders can be written.
    """
    if not has_latents(model):
        return NoLatents()
    name = f"{latents_key(model, data, device)}.npy"
    channels, height, width = model.latent_shape(*slices.plane)
    shape = 2 * channels // len(slices.classes), height, width

    def first_writable() -> MaskLatents:
        for folder in folders[:-1]:
            with suppress(RunError):
                return MaskLatents(folder / name, slices, shape)
        return MaskLatents(folders[-1] / name, slices, shape)

    ranks = ranks or Ranks()
    if not ranks.writes:
        ranks.wait()  # the first makes the file
        return first_writable()
    found = first_writable()
    ranks.wait()
    return found


def latents_key(model: SDSeg, data: dict[str, Any], device: torch.device) -> str:
    """Hex digest: equal for equal autoencoder weights, split, slices and kind of device."""
    digest = hashlib.sha256(json.dumps([data, device.type], sort_keys=True).encode())
    for name, value in sorted(model.autoencoder.state_dict().items()):
        if name.startswith(("encoder.", "quant_conv.")):
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:32]


def _opened(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.float32]]:
    if path.exists() and not os.access(path, os.W_OK):
        raise RunError(f"{path}: cannot be written.", "Check the permissions of the folder.")
    stored = _found(path)
    if stored is None or stored.shape != shape or stored.dtype != np.float32:
        _make(path, shape)
        stored = _found(path)
    if stored is None:
        raise RunError(f"{path}: cannot be read.", "Check the folder's permissions.")
    return stored


def _make(path: Path, shape: tuple[int, ...]) -> None:
    """A sparse file of zeros. Of processes that begin at once, one makes the file all use."""
    damaged = path.exists()
    own = path.with_name(f".{os.getpid()}.{secrets.token_hex(4)}.{path.name}")
    with replacing(own) as temporary, temporary.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        write_array_header_1_0(file, header)
        file.truncate(file.tell() + 4 * math.prod(shape))
    try:
        if not damaged:
            os.link(own, path)  # unlike a rename, this never takes another's place
            own.unlink()
        else:
            own.replace(path)
    except FileExistsError:
        own.unlink()
    except OSError:  # a file system without links
        own.replace(path)


def _found(path: Path) -> np.memmap[Any, np.dtype[np.float32]] | None:
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, TokenError):  # headers are Python
        return None
    return stored if isinstance(stored, np.memmap) else None
