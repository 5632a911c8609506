"""A run on disk.

RunDir/
  config.toml        every setting
  log.jsonl          one line per optimiser step, and one per validation
  status.json        state (running, stopped, finished), step, best
  checkpoints/       last.pt (everything, to resume), best.pt (what prediction needs)
  predictions/  report/
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from sdseg_cli.atomic import replacing
from sdseg_cli.config import RunConfig
from sdseg_cli.config_file import load_toml
from sdseg_cli.errors import ConfigError, RunError, WeightsError
from sdseg_cli.filenames import PACKAGE_FILE
from sdseg_cli.model.tensor_files import unpickled

FORMAT_VERSION = 1


@dataclass(frozen=True)
class RunDir:
    """Where a run keeps its files."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.toml"

    @property
    def log_file(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def status_file(self) -> Path:
        return self.path / "status.json"

    @property
    def last(self) -> Path:
        return self.path / "checkpoints" / "last.pt"

    @property
    def best(self) -> Path:
        return self.path / "checkpoints" / "best.pt"

    @property
    def predictions(self) -> Path:
        return self.path / "predictions"

    @property
    def report(self) -> Path:
        return self.path / "report"

    @property
    def curve(self) -> Path:
        return self.report / "training.png"

    @property
    def validation_picture(self) -> Path:
        return self.report / "validation.png"

    @property
    def history(self) -> Path:
        return self.report / "validation.npz"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    def config(self) -> RunConfig:
        """The settings this run was started with."""
        return load_toml(self.config_file, RunConfig())

    def status(self) -> dict[str, Any]:
        """`{"state": ..., "step": ..., "best": {...}}`; empty if the run has not saved yet."""
        try:
            status = json.loads(self.status_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return status if isinstance(status, dict) else {}

    def is_locked(self) -> bool:
        """Whether a training is at work on it."""
        return False


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run is, at one step.

    In `best.pt` there is no optimiser, and the U-Net is the averaged one, all in float16: the very
    numbers of an exported package, so that both predict the same masks. There is no state of random
    generators and no sampler position: all that is drawn in a step is a function of (seed, step).
    """

    step: int
    config: dict[str, Any]
    """`dataclasses.asdict` of the RunConfig."""
    data: dict[str, Any]
    """`Manifest.inference_settings`: how the slices were made, and hashes of split and arrays."""
    latent_scale: float
    weights: dict[str, torch.Tensor]
    """SDSeg, with the U-Net as trained."""
    ema: dict[str, torch.Tensor]
    """The averaged U-Net, where it is not in `weights`."""
    optimizer: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    """Part of the model -> the weights it started from, with their sha256."""
    format_version: int = FORMAT_VERSION

    def prediction_weights(self) -> dict[str, torch.Tensor]:
        """The weights of SDSeg as it predicts, with the averaged U-Net."""
        return {**self.weights, **{f"unet.{name}": value for name, value in self.ema.items()}}

    def save(self, path: Path) -> None:
        """Write to a temporary name, then rename."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save(values, file)

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a checkpoint; no code in it is ever run.

        Raises:
            WeightsError: Missing, damaged, or of another format.
        """
        try:
            checkpoint = cls(**unpickled(path))
        except FileNotFoundError as error:
            raise WeightsError(
                f"{path}: no such checkpoint.", "Train first, or check --run."
            ) from error
        except (OSError, TypeError, WeightsError) as error:
            raise WeightsError(
                f"{path}: damaged, or no checkpoint of sdseg.",
                "Delete it and run the same `sdseg train` command again.",
            ) from error
        if checkpoint.format_version != FORMAT_VERSION:
            raise WeightsError(
                f"{path}: checkpoint format {checkpoint.format_version}, not {FORMAT_VERSION}.",
                "Use the sdseg version that wrote it.",
            )
        return checkpoint


def halved(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights as float16; a tensor that float16 cannot hold (beyond 65504) stays as it is."""
    smaller = {}
    for name, value in weights.items():
        half = value.half().contiguous()
        smaller[name] = half if torch.isfinite(half).all() else value.contiguous()
    return smaller


def config_values(config: RunConfig) -> dict[str, Any]:
    """The configuration as nested dictionaries of plain values (tuples as lists)."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return values


def find_run(workspace: Path, run: Path | None) -> RunDir:
    """The run asked for, or the newest finished one, or the newest stopped one.

    Args:
        workspace: Folder that holds `runs/`.
        run: A run folder, a path below `runs/`, or None.

    Raises:
        ConfigError: There is no such run, or none yet.
    """
    runs = workspace / "runs"
    if run is not None:
        return _named_run(workspace, run)
    found = [RunDir(path.parent.parent) for path in runs.glob("*/*/checkpoints/best.pt")]
    if not found:
        raise ConfigError(
            f"no run yet in {runs.absolute()}.",
            "Train one (sdseg train --dataset NAME), or set SDSEG_HOME to your workspace.",
        )

    def rank(candidate: RunDir) -> tuple[bool, float]:
        finished = candidate.status().get("state") == "finished"
        return finished, candidate.best.stat().st_mtime

    return max(found, key=rank)


def run_folder(workspace: Path, run: Path) -> Path | None:
    """The run at a path, at a path below `runs`, or, for a bare word, of that name in any set.

    Raises:
        ConfigError: Several runs have that name.
    """
    runs = workspace / "runs"
    there = [path for path in (run, runs / run) if RunDir(path).config_file.is_file()]
    if not there and len(run.parts) == 1:
        there = sorted(p for p in runs.glob(f"*/{run}") if RunDir(p).config_file.is_file())
        if len(there) > 1:
            names = ", ".join(str(path.relative_to(runs)) for path in there)
            raise ConfigError(
                f"several runs are called {run}: {names}.", "Give --run one of these."
            )
    return there[0] if there else None


def _named_run(workspace: Path, run: Path) -> RunDir:
    found, runs = run_folder(workspace, run), workspace / "runs"
    if found is None:
        if (run / PACKAGE_FILE).is_file():
            raise ConfigError(f"{run}: a package, no run.", "Give it to predict with --model.")
        made = ", ".join(
            sorted(str(p.parent.relative_to(runs)) for p in runs.glob("*/*/config.toml"))
        )
        raise ConfigError(
            f"{run}: no run there.",
            f"Runs here: {made}." if made else "Give --run a folder that `sdseg train` made.",
        )
    if not RunDir(found).best.is_file():
        raise ConfigError(
            f"run {found} has no checkpoint to predict with yet.",
            "Let it reach its first validation, or run the same `sdseg train` command again.",
        )
    return RunDir(found)


def truncate_log(path: Path, step: int) -> None:
    """Drop the lines past `step`, so that after a resume every step stands once.

    Raises:
        RunError: A line before the last is no JSON.
    """
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = []
    for number, line in enumerate(lines):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines) - 1:  # the last line may be cut off by a kill
                raise RunError(
                    f"{path}: line {number + 1} is damaged.",
                    "Delete the run folder and train again.",
                ) from error
    with replacing(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
