"""A prepared set that replaces another one, and the runs that were trained on that. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from sdseg_cli.core.errors import ConfigError, DataError, RunError
from sdseg_cli.core.findings import EVERY_CASE, WARNING, Finding
from sdseg_cli.core.locks import holder, is_locked
from sdseg_cli.data.manifest import Manifest, lock_of
from sdseg_cli.runs.run_folder import RunDir


def replaced(root: Path, settings: Mapping[str, Any]) -> Finding | None:
    """What becomes of runs if the set in place is replaced by one with these settings.

    Args:
        root: `<workspace>/prepared/<name>`.
        settings: `Manifest.inference_settings` of the new set, or those that are known yet.

    Returns:
        A warning where the set in place has other settings and a run was trained on it.

    Raises:
        ConfigError: Such a run is being trained right now.
    """
    try:
        before = Manifest.load(root)
    except DataError:
        return None  # there is none, or it is damaged and no run can use it
    known = before.inference_settings()
    changed = [key for key, value in settings.items() if known.get(key) != value]
    runs = _trained_on(before) if changed else []
    if not runs:
        return None
    what = f"another {', '.join(key.removesuffix('_sha256') for key in changed)}"
    for run in runs:
        if run.is_locked():
            raise ConfigError(
                f"{before.name} would get {what}, and {run.path} is being trained on it.",
                "Wait for that run or stop it; or prepare the new set under another --name.",
            )
    names = ", ".join(f"{run.path.parent.name}/{run.path.name}" for run in runs)
    return Finding(
        code="set-replaced",
        level=WARNING,
        case=EVERY_CASE,
        measured=f"replaced {before.name}, which had {what}; trained on the old one: {names}",
        fix="They can no longer be evaluated or resumed: prepare it as before, or train them anew.",
    )


def require_settled(manifest: Manifest) -> None:
    """Asked by a training that holds its run's lock, which `replaced` in turn looks for.

    Args:
        manifest: The set to train on, as it was read before.

    Raises:
        RunError: The set is being prepared right now.
        ConfigError: It was prepared anew since it was read.
    """
    lock = lock_of(manifest.root)
    if is_locked(lock):
        raise RunError(
            f"{manifest.root}: {holder(lock)} is preparing this set.", "Train when it has ended."
        )
    if manifest.path.is_file():
        now = Manifest.load(manifest.root).inference_settings()
        if now != manifest.inference_settings():
            raise ConfigError(
                f"{manifest.root}: was prepared anew just now.", "Run the same command again."
            )


def _trained_on(manifest: Manifest) -> list[RunDir]:
    """Runs of the set's workspace that were trained on it, or are."""
    found = []
    for file in sorted((manifest.root.parents[1] / "runs").glob("*/*/config.toml")):
        run = RunDir(file.parent)
        with suppress(ConfigError):  # no run of this version
            if run.config().dataset in (manifest.name, str(manifest.root)):
                found.append(run)
    return [run for run in found if run.is_locked() or run.best.exists() or run.step_files()]
