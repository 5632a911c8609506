"""Where numbers come from: the command, the versions and the hashes of the files behind them."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from sdseg_cli import __version__
from sdseg_cli.core.files import file_sha256

LIBRARIES = ("torch", "monai", "numpy", "scipy", "SimpleITK", "nibabel")
"""Those whose version can change a score."""


def provenance(*, command: str, files: Mapping[str, Path | str]) -> dict[str, object]:
    """What a reader needs to get the same numbers again.

    Args:
        command: As it was typed.
        files: Name -> file that the numbers rest on, for example a manifest; one that is not there
            gets no hash. Or its sha256, of one that may have been replaced since.

    Returns:
        `command`, `date` (ISO 8601, UTC, to the second), `sdseg`, `python`, `platform` (system and
        processor; never the machine's or a person's name), `versions` by library
        (None where it is not installed) and `sha256` by name (None without a file).
    """
    return {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "sdseg": __version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": {name: _version(name) for name in LIBRARIES},
        "sha256": {name: _sha256(file) for name, file in files.items()},
    }


def _sha256(file: Path | str) -> str | None:
    if isinstance(file, str):
        return file
    return file_sha256(file) if file.is_file() else None


def _version(name: str) -> str | None:
    """Of an installed package; read from its metadata, so nothing heavy is imported."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
