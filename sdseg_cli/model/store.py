"""The weight store: what `sdseg weights` keeps in the user's cache.

    NAME.safetensors   the tensors, in our names
    NAME.json          kind, where they came from, sha256 of the original and of the stored file

A name stands in the store only with both; the `.json` is written last.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sdseg_cli.core.errors import DataError, WeightsError
from sdseg_cli.core.files import file_sha256, replacing
from sdseg_cli.core.json_files import read_object
from sdseg_cli.model.sources import Source
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
        return [entry for entry in self._all() if isinstance(entry, Entry)]

    def damaged(self) -> dict[str, WeightsError]:
        """Name -> what is wrong with its description, of those that `entries` leaves out."""
        names = (path.stem for path in self._descriptions())
        found = zip(names, self._all(), strict=True)
        return {name: entry for name, entry in found if isinstance(entry, WeightsError)}

    def find(self, name: str) -> Entry | None:
        """The entry of that name.

        Raises:
            WeightsError: Its description is damaged.
        """
        if not _can_be_a_name(name):
            return None
        path = self.folder / f"{name}.json"
        return self._read(path) if path.exists() else None

    def _descriptions(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("*.json") if _can_be_a_name(path.stem))

    def _all(self) -> Iterator[Entry | WeightsError]:
        """What each description says, or what is wrong with it."""
        for path in self._descriptions():
            try:
                yield self._read(path)
            except WeightsError as error:
                yield error

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
        """Where its tensors lie."""
        return self.folder / f"{entry.name}.safetensors"

    def is_whole(self, entry: Entry) -> bool:
        """Whether its file is the one that was stored."""
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
            if entry.name != path.stem or not _is_entry(entry):
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


def _is_entry(entry: Entry) -> bool:
    typed = all(isinstance(getattr(entry, key), kind) for key, kind in _TYPES.items())
    numbers = [entry.bytes, *(entry.widths.values() if typed else ())]
    return typed and all(type(number) is int and number >= 0 for number in numbers)
