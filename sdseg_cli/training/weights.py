"""Weights of others in, weights of ours out: the store, its public sources, and packages."""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from sdseg_cli.core.errors import ConfigError, WeightsError
from sdseg_cli.core.files import file_sha256
from sdseg_cli.core.presets import preset
from sdseg_cli.core.progress import Progress, no_op
from sdseg_cli.imaging.intensity import PHOTOGRAPH, Normalisation
from sdseg_cli.inference.decoders import decoder_file, read_check
from sdseg_cli.model.pretrained import official_config, recognise
from sdseg_cli.model.tensor_files import read_tensors
from sdseg_cli.model.weights import KNOWN, Entry, WeightStore, download
from sdseg_cli.runs.checkpoint import Checkpoint, config_values
from sdseg_cli.runs.package import Package, write_package
from sdseg_cli.runs.run_folder import RunDir

PLANE_SIZE = 256
"""Side of the plane official models were trained on, px."""


def add_weights(
    path: Path, store: WeightStore, *, name: str | None = None, kind: str | None = None
) -> Entry:
    """Recognise, check and keep a file of weights.

    Args:
        path: `.safetensors`, or a checkpoint of torch (.ckpt, .pt, .pth, .bin).
        store: Where to keep them.
        name: In the store; the file's own without its suffix by default.
        kind: What it has to be, as in `Source`.

    Raises:
        WeightsError: The file is missing, damaged, of no known kind or another than `kind`, or the
            name is taken by others. Nothing is stored, and nothing in the file is run.
    """
    tensors = read_tensors(path)
    source = recognise(tensors, source=str(path))
    if kind not in (None, source.kind):
        raise WeightsError(
            f"{path}: weights of kind {source.kind}, not {kind}.", "Check where they came from."
        )
    return store.add(
        name or re.sub(r"[^\w.-]", "-", path.stem),
        source,
        original=path.name,
        original_sha256=file_sha256(path),
    )


def fetch_weights(name: str, store: WeightStore, *, progress: Progress = no_op) -> Entry:
    """Download public weights into the store; there already, they are left alone.

    Args:
        name: One of `KNOWN`.
        store: Where to keep them.
        progress: Called with the bytes so far.

    Raises:
        ConfigError: The name is unknown.
        WeightsError: The network cannot be reached, or what came is not what it should be, or has
            changed since it was first fetched.
    """
    if name not in KNOWN:
        raise ConfigError(f'no public weights are called "{name}".', f"Known: {', '.join(KNOWN)}.")
    present = store.find(name)
    if present is not None and store.is_whole(present):
        return present
    waiting = store.folder / ".downloads" / name
    path = download(KNOWN[name], waiting, progress)
    try:
        _require_start(path, KNOWN[name].sha256_start)
        entry = add_weights(path, store, name=name, kind=KNOWN[name].kind)
    except WeightsError:
        if path.parent == waiting:  # what is wrong is not to be taken for whole the next time
            path.unlink()
            _remove_empty(waiting)
        raise
    shutil.rmtree(waiting, ignore_errors=True)
    _remove_empty(waiting.parent)
    return entry


def _remove_empty(folder: Path) -> None:
    """Remove a folder of downloads, and the one above it; what holds another download stays."""
    for each in (folder, folder.parent):
        with suppress(OSError):
            each.rmdir()


def _require_start(path: Path, sha256_start: str) -> None:
    found = file_sha256(path) if sha256_start else ""
    if not found.startswith(sha256_start):
        raise WeightsError(
            f"{path.name}: came with sha256 {found[:12]}, its publisher's begins {sha256_start}.",
            "Fetch it again; if that does not help, something between here and there changes it.",
        )


def export_run(run: Path, output: Path) -> Package:
    """Make a package of a run's best weights.

    Args:
        run: The run folder.
        output: Folder of the package.

    Raises:
        WeightsError: The checkpoint is missing or damaged.
        ConfigError: Something else lies at `output`.
    """
    checkpoint, check = Checkpoint.load(RunDir(run).best), read_check(run)
    fits = check is not None and check.fits(checkpoint.step)
    return write_package(checkpoint, output, fast_decoder=decoder_file(run) if fits else None)


def export_stored(
    entry: Entry,
    store: WeightStore,
    output: Path,
    *,
    normalisation: Normalisation,
    pictures: bool = False,
    half: bool = True,
) -> Package:
    """Make a package of an official SDSeg model of the store.

    Args:
        entry: Of kind "sdseg".
        store: Where it lies.
        output: Folder of the package.
        normalisation: How scan values become [-1,1], which an official checkpoint does not say.
        pictures: Whether it was trained on pictures, which it does not say either.
        half: Round the weights to float16; else they stay as the official checkpoint has them.

    Raises:
        WeightsError: The entry is of another kind, or its file has changed.
        ConfigError: Something else lies at `output`.
    """
    if entry.kind != "sdseg" or entry.latent_scale is None:
        raise WeightsError(
            f"{entry.name} is of kind {entry.kind}: no whole SDSeg model.",
            "Export a run, or a stored model of kind sdseg.",
        )
    tensors = store.load(entry)
    config = replace(preset("sd"), model=official_config(tensors, source=entry.name))
    checkpoint = Checkpoint(
        step=0,
        config=config_values(config),
        data={
            "dataset": None,
            "normalisation": normalisation.to_dict(),
            "crop": "none",
            "size": PLANE_SIZE,
            **({"modality": PHOTOGRAPH} if pictures else {}),
        },
        latent_scale=entry.latent_scale,
        weights=tensors,
        ema={},
        origin={"model": f"{entry.source}, sha256 {entry.source_sha256}"},
    )
    return write_package(checkpoint, output, half=half)
