"""The weight store, and the public weights that can be downloaded into it.

    NAME.safetensors   the tensors, in our names
    NAME.json          kind, where they came from, sha256 of the original and of the stored file

A name stands in the store only with both; the `.json` is written last. Downloads go through
huggingface_hub: resumable, and its settings hold. `HF_HUB_OFFLINE=1` forbids the network,
`HF_ENDPOINT` names a mirror of the hub.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
import zipfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sdseg_cli.core.errors import DataError, WeightsError
from sdseg_cli.core.files import file_sha256, replacing
from sdseg_cli.core.json_files import read_object
from sdseg_cli.core.progress import Progress
from sdseg_cli.metrics.lpips import BACKBONE, HEADS
from sdseg_cli.model.pretrained import Source
from sdseg_cli.model.tensor_files import positive_scale, read_tensors, write_tensors

LONGEST_NAME = 100
_TYPES: dict[str, type | tuple[type, ...]] = {
    "kind": str,
    "widths": dict,
    "sha256": str,
    "source": str,
    "source_sha256": str,
    "bytes": int,
    "added": str,
    "latent_scale": (float, int, type(None)),
}


@dataclass(frozen=True)
class Entry:
    """One set of weights in the store."""

    name: str
    kind: str
    """As in `Source`."""
    widths: dict[str, int]
    """As in `Source`."""
    sha256: str
    """Of the stored file."""
    source: str
    """Name of the original file."""
    source_sha256: str
    bytes: int
    added: str
    """Date, ISO 8601."""
    latent_scale: float | None = None

    def to_json(self) -> dict[str, Any]:
        """For `--json` and the `.json` beside the weights."""
        return asdict(self)


class WeightStore:
    """Named weights in one folder.

    Args:
        folder: Need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def default(cls) -> WeightStore:
        """`$SDSEG_WEIGHTS`, else `$XDG_CACHE_HOME/sdseg/weights`, else `~/.cache/sdseg/weights`."""
        if own := os.environ.get("SDSEG_WEIGHTS"):
            return cls(Path(own))
        cache = os.environ.get("XDG_CACHE_HOME")
        return cls((Path(cache) if cache else Path.home() / ".cache") / "sdseg" / "weights")

    def entries(self) -> list[Entry]:
        """All of them, by name, but the damaged."""
        return [entry for entry in self._all().values() if isinstance(entry, Entry)]

    def damaged(self) -> dict[str, WeightsError]:
        """Name -> what is wrong with its description, of those that `entries` leaves out."""
        found = self._all()
        return {name: entry for name, entry in found.items() if isinstance(entry, WeightsError)}

    def find(self, name: str) -> Entry | None:
        """The entry of that name.

        Raises:
            WeightsError: Its description is damaged.
        """
        if not _can_be_a_name(name):
            return None
        path = self.folder / f"{name}.json"
        return self._read(path) if path.exists() else None

    def _all(self) -> dict[str, Entry | WeightsError]:
        """Name -> what its description says, or what is wrong with it."""
        found: dict[str, Entry | WeightsError] = {}
        for path in sorted(self.folder.glob("*.json")):
            if _can_be_a_name(path.stem):
                try:
                    found[path.stem] = self._read(path)
                except WeightsError as error:
                    found[path.stem] = error
        return found

    def of_kind(self, kind: str) -> Entry | None:
        """The entry of a kind of which one is enough: that of the same name, or the only one.

        Raises:
            WeightsError: There are several, and none has the kind's name.
        """
        entries = {entry.name: entry for entry in self.entries() if entry.kind == kind}
        if len(entries) < 2 or kind in entries:
            return entries.get(kind) or next(iter(entries.values()), None)
        raise WeightsError(
            f"the weight store holds several of kind {kind}: {', '.join(entries)}.",
            f"Add the one you mean as `--name {kind}`.",
        )

    def file(self, entry: Entry) -> Path:
        """Path of its tensors."""
        return self.folder / f"{entry.name}.safetensors"

    def is_whole(self, entry: Entry) -> bool:
        """True if its file is the one that was stored."""
        path = self.file(entry)
        return path.is_file() and file_sha256(path) == entry.sha256

    def load(self, entry: Entry) -> dict[str, Tensor]:
        """Its tensors, once the file is known to be the one that was stored.

        Raises:
            WeightsError: The file is gone or has changed.
        """
        path = self.file(entry)
        if not self.is_whole(entry):
            raise WeightsError(
                f"{path}: is no longer the file that was stored.",
                f"Add or fetch {entry.name} again.",
            )
        return read_tensors(path)

    def add(self, name: str, source: Source, *, original: str, original_sha256: str) -> Entry:
        """Keep weights under a name; the same weights again are no error.

        Args:
            name: Letters, digits, dots, dashes and underscores.
            source: Recognised, hence checked.
            original: Name of the file they came from.
            original_sha256: Of that file.

        Raises:
            WeightsError: The name is taken by other weights, or cannot be a file's name.
        """
        if not _can_be_a_name(name):
            raise WeightsError(
                f'"{name}" cannot be a name in the store.',
                f"Give --name of up to {LONGEST_NAME} letters, digits, dots, dashes, underscores.",
            )
        before = self.find(name)
        if before is not None and before.source_sha256 != original_sha256:
            raise WeightsError(
                f"{name} is in the store with other weights: sha256 {before.source_sha256[:12]}, "
                f"not {original_sha256[:12]}.",
                f"Give another --name, or delete {self.folder / name}.json first.",
            )
        path = self.folder / f"{name}.safetensors"
        with replacing(path) as temporary:
            write_tensors(source.tensors, temporary)
        entry = Entry(
            name=name,
            kind=source.kind,
            widths=source.widths,
            sha256=file_sha256(path),
            source=original,
            source_sha256=original_sha256,
            bytes=path.stat().st_size,
            added=time.strftime("%Y-%m-%d"),
            latent_scale=source.latent_scale,
        )
        with replacing(self.folder / f"{name}.json") as temporary:
            temporary.write_text(json.dumps(entry.to_json(), indent=2) + "\n", encoding="utf-8")
        return entry

    def _read(self, path: Path) -> Entry:
        try:
            entry = Entry(**read_object(path))
            typed = all(isinstance(getattr(entry, key), kind) for key, kind in _TYPES.items())
            numbers = [entry.bytes, *(entry.widths.values() if typed else ())]
            counts = all(type(number) is int and number >= 0 for number in numbers)
            if entry.name != path.stem or not (typed and counts):
                raise TypeError(entry)
        except (DataError, TypeError) as error:
            raise WeightsError(
                f"{path}: damaged description of weights.", "Delete it and add the weights again."
            ) from error
        if entry.latent_scale is not None:
            positive_scale(entry.latent_scale, source=str(path))
        return entry


def _can_be_a_name(name: str) -> bool:
    letters = all(c.isalnum() or c in "._-" for c in name)
    return letters and 0 < len(name) <= LONGEST_NAME and name[0] != "."


@dataclass(frozen=True)
class KnownWeights:
    """One public file of weights, on the Hugging Face hub or at an address of its own."""

    name: str
    what: str
    kind: str
    """As in `Source`."""
    file: str
    """The file to place by hand where the network is closed."""
    repository: str = ""
    """On the hub, with `file`."""
    url: str = ""
    """Of `file`, or of a zip file that holds it."""
    sha256_start: str = ""
    """How the sha256 begins, where its publisher says so."""

    @property
    def zipped(self) -> bool:
        """True if `file` has to be unpacked."""
        return self.url.endswith(".zip")

    @property
    def place(self) -> str:
        """The address at which a person finds it."""
        return self.url or f"https://huggingface.co/{self.repository} ({self.file})"


KNOWN: dict[str, KnownWeights] = {
    known.name: known
    for known in (
        KnownWeights(
            name="kl-f8",
            what="the paper's autoencoder, also the start of the vision encoder",
            kind="autoencoder",
            file="model.ckpt",
            url="https://ommer-lab.com/files/latent-diffusion/kl-f8.zip",
        ),
        KnownWeights(
            name="ldm-8",
            what="unconditional latent diffusion on LSUN churches, the start of the U-Net",
            kind="ldm",
            file="model.ckpt",
            url="https://ommer-lab.com/files/latent-diffusion/lsun_churches.zip",
        ),
        KnownWeights(
            name="sd-vae-ft-mse",
            what="an autoencoder of the same architecture as kl-f8, fine-tuned by Stability AI",
            kind="autoencoder",
            file="diffusion_pytorch_model.safetensors",
            repository="stabilityai/sd-vae-ft-mse",
        ),
        KnownWeights(
            name=BACKBONE,
            what="torchvision's ImageNet AlexNet, whose features LPIPS compares",
            kind=BACKBONE,
            file="alexnet-owt-7be5be79.pth",
            url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
            sha256_start="7be5be79",
        ),
        KnownWeights(
            name=HEADS,
            what="the linear heads of LPIPS v0.1 for AlexNet",
            kind=HEADS,
            file="alex.pth",
            url="https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/alex.pth",
        ),
    )
}


def download(known: KnownWeights, folder: Path, progress: Progress) -> Path:
    """A known file of weights, below `folder` or in the hub's own cache.

    Args:
        known: What to get.
        folder: Where half a download waits for the next call; made if missing.
        progress: Called with the bytes so far.

    Raises:
        WeightsError: The network cannot be reached or may not be used; the message names the file
            to place by hand.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.utils.logging import set_verbosity

    set_verbosity(logging.CRITICAL)  # one error, ours, is enough
    reported = _reporting(progress, known.name)
    try:
        if known.repository:
            return Path(hf_hub_download(known.repository, known.file, tqdm_class=reported))
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set")
        folder.mkdir(parents=True, exist_ok=True)
        whole = _resumed(known, folder, reported)
        return _unzipped(whole, known.file, folder) if known.zipped else whole
    except Exception as error:
        said = str(error).strip().splitlines()
        reason = said[0] if said else type(error).__name__  # without the library's own advice
        raise WeightsError(
            f"{known.name} could not be fetched from {known.place}: {reason.rstrip('.')}.",
            f"Get {known.file} there on another machine, then: "
            f"sdseg weights add {known.file} --name {known.name}",
        ) from error


def _resumed(known: KnownWeights, folder: Path, reported: type) -> Path:
    from huggingface_hub.file_download import http_get

    whole = folder / (f"{known.name}.zip" if known.zipped else known.file)
    if not whole.is_file():
        part = whole.with_suffix(".part")
        try:
            with part.open("ab") as file:
                http_get(known.url, file, resume_size=file.tell(), tqdm_class=reported)
        except Exception as error:
            # An empty part is no start, and one the server cannot go on from (416) never will be.
            if part.stat().st_size == 0 or "416" in str(error):
                shutil.rmtree(folder)
                with suppress(OSError):
                    folder.parent.rmdir()
            raise
        part.rename(whole)
    return whole


def _unzipped(archive: Path, name: str, folder: Path) -> Path:
    """The named file of the archive, wherever in it."""
    target = folder / f"{archive.stem}-{name}"
    try:
        with zipfile.ZipFile(archive) as opened:
            member = next(m for m in opened.namelist() if Path(m).name == name)
            with opened.open(member) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file)
    except (zipfile.BadZipFile, StopIteration) as error:
        archive.unlink()  # the next call gets it anew
        raise ValueError(f"the archive holds no {name} or is damaged") from error
    return target


def _reporting(progress: Progress, name: str) -> type:
    """huggingface_hub's progress bar, which calls `progress` instead of drawing itself."""
    from tqdm.auto import tqdm

    class Reporting(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **{**options, "disable": False})

        def display(self, *args: Any, **options: Any) -> None:
            progress(int(self.n), int(self.total or 0), f"fetching {name}")

    return Reporting
