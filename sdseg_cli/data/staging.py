"""A prepared set is built beside its place and moved there whole. Standard library only."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from sdseg_cli.core.errors import RunError
from sdseg_cli.data.manifest import FILE_NAME


def lock_of(root: Path) -> Path:
    """The lock that whoever prepares the set at `<workspace>/prepared/<name>` holds."""
    return root.with_name(f".{root.name}.lock")


@dataclass(frozen=True)
class Staging:
    """Where a prepared set is built, and where it goes.

    Attributes:
        final: `<workspace>/prepared/<name>`.
    """

    final: Path

    @property
    def building(self) -> Path:
        """Where it is built; a killed run leaves its finished cases here."""
        return self.final.with_name(f".{self.final.name}.part")

    @property
    def _replaced(self) -> Path:
        return self.final.with_name(f".{self.final.name}.old")

    def is_current(self, manifest: str) -> bool:
        """Whether the set in place already has this manifest."""
        file = self.final / FILE_NAME
        return file.is_file() and file.read_bytes() == manifest.encode()

    def publish(self, manifest: str, built: Collection[str], kept: Collection[str]) -> None:
        """Complete the new set and put it in place of the old one.

        Args:
            manifest: Content of the manifest, written last.
            built: Ids of the cases that were built.
            kept: Ids of the cases taken over from the set in place, without a second copy.

        Raises:
            RunError: The disk refused.
        """
        cases = self.building / "cases"
        try:
            cases.mkdir(parents=True, exist_ok=True)
            for folder in list(cases.iterdir()):
                if folder.name not in built:
                    shutil.rmtree(folder)
            for id in kept:
                shutil.copytree(self.final / "cases" / id, cases / id, copy_function=_link)
            (self.building / FILE_NAME).write_text(manifest, encoding="utf-8")
            shutil.rmtree(self._replaced, ignore_errors=True)
            if self.final.exists():
                self.final.rename(self._replaced)
            self.building.rename(self.final)
            shutil.rmtree(self._replaced, ignore_errors=True)
        except OSError as error:
            raise RunError(
                f"{self.final}: cannot be written ({error.strerror or error}).",
                "Check the folder's permissions and the space left on the disk.",
            ) from error

    def discard(self) -> None:
        """Remove what was built, and the folders above if they are empty."""
        shutil.rmtree(self.building, ignore_errors=True)
        parent = self.final.parent
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        # Some file systems know no hard links.
        shutil.copy2(source, target)
    return target
