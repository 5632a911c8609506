"""One checkpoint: everything a run is at one step, in a file whose sha256 stands beside it.

And which of them a run keeps, and which one it goes on from.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch

from sdseg_cli.core.config import LATER, NO_FOLD, SEVERAL_CLASSES, RunConfig
from sdseg_cli.core.config_file import differing_keys, from_dict
from sdseg_cli.core.errors import ConfigError, RunError, WeightsError
from sdseg_cli.core.files import file_sha256, replacing
from sdseg_cli.model.interface import SliceModel
from sdseg_cli.model.tensor_files import plain, positive_scale, unpickled
from sdseg_cli.runs.log import PER_CLASS
from sdseg_cli.runs.run_folder import RunDir

KEPT = 2
NOTHING_YET = re.compile(r"\.lock|latents|\..*\.part\..*")
"""What a process may leave that was ended before its run began."""
MAY_CHANGE = ("train.steps", "train.accumulate", "train.patience")
"""Settings in which the command that resumes may differ; fewer steps than were done are refused."""

FORMAT_VERSION = 2
READABLE = (1, FORMAT_VERSION)
"""Version 1 had no `scaler`."""


class DamagedError(WeightsError):
    """The file is not as it was written; another one may do."""


class UnfitError(WeightsError):
    """It is a checkpoint, and holds what can be nobody's weights."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run is, at one step.

    There is no state of random generators and no position in the data, and none is missing: all
    that is drawn in a step (slices, flips, t, noise, dropout) is a function of (seed, step), and
    both are here. So a resumed run draws what it would have drawn.

    In `best.pt` there is no optimiser, and the U-Net is the averaged one, all in float16: the very
    numbers of an exported package, so that both predict the same masks.
    """

    step: int
    config: dict[str, Any]
    """`dataclasses.asdict` of the RunConfig, with the seed."""
    data: dict[str, Any]
    """`Manifest.inference_settings`: how the slices were made, and hashes of split and arrays."""
    latent_scale: float
    weights: dict[str, torch.Tensor]
    """The model, with the U-Net as trained."""
    ema: dict[str, torch.Tensor]
    """The averaged U-Net, where it is not in `weights`."""
    optimizer: dict[str, Any] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    """State of the gradient scaler; empty where none is used."""
    best: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    """Part of the model -> the weights it started from, with their sha256."""
    format_version: int = FORMAT_VERSION

    @classmethod
    def begin(
        cls,
        config: RunConfig,
        model: SliceModel,
        data: Mapping[str, Any] | None = None,
        origin: Mapping[str, str] | None = None,
    ) -> Checkpoint:
        """Step 0 of a model, whose average begins as its U-Net. The arguments are fields."""
        return cls(
            step=0,
            config=config_values(config),
            data=dict(data or {}),
            latent_scale=model.latent_scale,
            weights=model.state_dict(),
            ema=model.unet.state_dict(),
            origin=dict(origin or {}),
        )

    def prediction_weights(self) -> dict[str, torch.Tensor]:
        """The weights of the model as it predicts, with the averaged U-Net."""
        return {**self.weights, **{f"unet.{name}": value for name, value in self.ema.items()}}

    def save(self, path: Path) -> None:
        """Write the file and its `.sha256`; whenever this ends, `path` is a whole checkpoint.

        Raises:
            RunError: The disk refused; what was there before is still there.
        """
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        replaces = path.exists()
        with replacing(path) as temporary:
            with temporary.open("wb") as file:
                sha256 = _write(values, file)
            if replaces:
                # A moment without a hash: the new one would condemn the old file, and the reverse.
                hash_file(path).unlink(missing_ok=True)
            else:
                _write_hash(path, sha256)
        if replaces:
            _write_hash(path, sha256)

    @classmethod
    def load(cls, path: Path) -> Checkpoint:
        """Read a checkpoint; no code in it is ever run.

        Raises:
            DamagedError: It is not the file that was written, as its sha256 says, or none at all.
            WeightsError: Missing, or of another format.
        """
        if not path.is_file():
            raise WeightsError(f"{path}: no such checkpoint.", "Train first, or check --run.")
        proved = None
        try:
            proved = _is_as_written(path)
            values = {} if proved is False else unpickled(path)
            version = values.get("format_version")
            if isinstance(version, int) and version in READABLE:
                return _checked(cls(**values), path)
        except PermissionError as error:
            raise WeightsError(f"{path}: may not be read.", "Check its permissions.") from error
        except UnfitError:
            raise
        except (OSError, TypeError, AttributeError, WeightsError) as error:
            raise _unreadable(path, proved) from error
        if not isinstance(version, int):
            raise _unreadable(path, proved)
        raise WeightsError(
            f"{path}: checkpoint format {version}, not {FORMAT_VERSION}.",
            "Use the sdseg version that wrote it.",
        )


_TYPES: dict[str, type | tuple[type, ...]] = {
    "step": int,
    "latent_scale": (float, int),
    **dict.fromkeys(("config", "data", "weights", "ema"), dict),
    **dict.fromkeys(("optimizer", "scaler", "best", "origin"), dict),
}


def _checked(found: Checkpoint, path: Path) -> Checkpoint:
    """The checkpoint, of known types throughout, but for what its optimiser was.

    Raises:
        TypeError: A field is of another type.
        UnfitError: A tensor is none of weights, or the scale is none.
    """
    for name, kind in _TYPES.items():
        if not isinstance(getattr(found, name), kind) or isinstance(getattr(found, name), bool):
            raise TypeError(name)
    classes = found.best.get(PER_CLASS, {})
    if not isinstance(classes, dict):
        raise TypeError(PER_CLASS)
    numbers = [of for key, of in found.best.items() if key != PER_CLASS]
    numbers += [of for of in classes.values() if of is not None]  # None: no case has the class
    texts = (*found.best, *classes, *found.origin, *found.origin.values())
    tensors = (*found.weights.items(), *found.ema.items())
    if not (
        all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
        and all(isinstance(text, str) for text in (*texts, *dict(tensors)))
        and all(isinstance(value, torch.Tensor) for _, value in tensors)
    ):
        raise TypeError("best, origin, weights or ema")
    try:
        positive_scale(found.latent_scale, source=str(path))
        for key, value in tensors:
            plain(value, key, source=str(path))
    except WeightsError as error:
        raise UnfitError(error.message, error.hint) from error
    return found


UNFITTING = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""What torch raises of a state of another kind."""


def restore_optimizer(
    optimizer: torch.optim.AdamW, state: Mapping[str, Any], *, source: str
) -> None:
    """Go on with the moments of a checkpoint; rate, decay and the rest stay the optimiser's own.

    Raises:
        WeightsError: They are not those of these parameters.
    """
    own = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(dict(state))
        for weight, kept in optimizer.state.items():
            for key in ("exp_avg", "exp_avg_sq"):
                plain(kept[key], key, source=source)
                if kept[key].shape != weight.shape or not kept[key].is_floating_point():
                    raise ValueError(f"{key} is {tuple(kept[key].shape)}")
            if kept["step"].numel() != 1 or not kept["step"].is_floating_point():
                raise ValueError("step")
    except (*UNFITTING, WeightsError) as error:
        optimizer.state.clear()
        raise WeightsError(
            f"{source}: its optimiser is not that of this model ({error}).",
            "Train anew, in another folder; --init takes the weights over.",
        ) from error
    finally:
        for group, options in zip(optimizer.param_groups, own, strict=True):
            group.update(options)


def _unreadable(path: Path, proved: bool | None) -> WeightsError:
    if proved:
        # Whole, so never to be set aside: memory is short, or another program wrote it.
        return WeightsError(
            f"{path}: is as it was written, and still cannot be read.",
            "Free some memory, or use the sdseg version that wrote it.",
        )
    what = "damaged, or no checkpoint of sdseg"
    if proved is False:
        what = f"damaged, its sha256 is not the one in {hash_file(path).name}"
    return DamagedError(
        f"{path}: {what}.", "Copy it back if you have a copy; else train anew, in another folder."
    )


def hash_file(path: Path) -> Path:
    """Path of a checkpoint's sha256, in the format of `sha256sum -c`."""
    return path.with_name(f"{path.name}.sha256")


def _write_hash(path: Path, sha256: str) -> None:
    with replacing(hash_file(path)) as temporary:
        temporary.write_text(f"{sha256}  {path.name}\n", encoding="utf-8")


def _is_as_written(path: Path) -> bool | None:
    """True if the file matches its sha256; None without one, as in older versions."""
    try:
        written = hash_file(path).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    return written.split(maxsplit=1)[:1] == [file_sha256(path)]


class _Hashing:
    """A file for `torch.save` that hashes what passes, so that nothing is read again."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.failure: BaseException | None = None

    def write(self, content: bytes) -> int:
        try:
            self.sha256.update(content)
            return self._file.write(content)
        except BaseException as failure:
            self.failure = failure
            raise

    def flush(self) -> None:
        self._file.flush()


def _write(values: dict[str, Any], file: BinaryIO) -> str:
    """The sha256 of what was written."""
    hashing = _Hashing(file)
    try:
        torch.save(values, hashing)  # type: ignore[arg-type]  # it asks for write and flush
    except RuntimeError as error:
        # torch turns whatever stops a write, a full disk or Ctrl-C, into an error of its own.
        if hashing.failure is not None:
            raise hashing.failure from error
        raise
    return hashing.sha256.hexdigest()


def to_float16(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights as float16; a tensor that float16 cannot hold (beyond 65504, or whole numbers) stays
    as it is.
    """
    smaller = {}
    for name, value in weights.items():
        half = value.half().contiguous()
        fits = value.is_floating_point() and torch.isfinite(half).all()
        smaller[name] = half if fits else value.contiguous()
    return smaller


def config_values(config: RunConfig) -> dict[str, Any]:
    """The configuration as nested dictionaries of plain values (tuples as lists).

    Settings of several classes stand there only where there are several, later ones only where
    they are not at their defaults, and the fold only where there is one: the rest is what older
    versions write and read.
    """
    values = dict(json.loads(json.dumps(asdict(config))))
    if config.model.classes == 1:
        for name in SEVERAL_CLASSES:
            del values["model"][name]
    for section, names in LATER.items():
        given, plain = getattr(config, section), getattr(RunConfig(), section)
        for name in names:
            if getattr(given, name) == getattr(plain, name):
                del values[section][name]
    if config.fold == NO_FOLD:
        del values["fold"]
    return values


@dataclass(frozen=True)
class Resumed:
    """The checkpoint from which a run resumes, and damaged ones found before it."""

    checkpoint: Checkpoint
    path: Path
    damaged: tuple[Path, ...]
    """Newer ones that are not as they were written, under their old names, newest first."""


def keep(run: RunDir, checkpoint: Checkpoint) -> None:
    """Save the newest checkpoint of a run; once it is whole, all but the last two go.

    Raises:
        RunError: The disk refused; the checkpoints before are still there.
    """
    checkpoint.save(run.step_file(checkpoint.step))
    try:
        for old in run.step_files()[KEPT:]:
            # The file first: a hash without a file is nothing, a file without a hash is unproved.
            old.unlink()
            hash_file(old).unlink(missing_ok=True)
    except OSError as error:
        raise _refused(run, error) from error


def newest_whole(run: RunDir) -> Resumed | None:
    """The checkpoint to go on from: the newest that is as it was written.

    Nothing is changed on disk: see `set_aside`.

    Returns:
        None where no checkpoint was saved yet.

    Raises:
        WeightsError: None is whole, or they are of another format.
    """
    damaged: list[Path] = []
    for path in run.step_files():
        try:
            return Resumed(Checkpoint.load(path), path, tuple(damaged))
        except DamagedError:
            damaged.append(path)
    if damaged:
        names = ", ".join(path.name for path in damaged)
        raise WeightsError(
            f"{run.checkpoints}: no checkpoint to go on from is whole ({names}).",
            "Copy one back if you have a copy; else delete the run folder, and the same command "
            "begins anew.",
        )
    return None


def refuse_foreign(run: RunDir) -> None:
    """Refuse a folder in which a new run would replace files of others; nothing is written.

    A run that was interrupted before its first checkpoint left a `status.json`, and settings that
    can be read.

    Raises:
        ConfigError: The folder is not empty and holds no run.
    """
    try:
        names = [path.name for path in run.path.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return  # new, or refused when the lock is made
    except OSError as error:
        raise ConfigError(
            f"{run.path}: cannot be read ({error.strerror}).", "Give --run a new folder."
        ) from error
    empty = all(NOTHING_YET.fullmatch(name) for name in names)
    if not (empty or run.step_files() or _is_begun(run)):
        raise ConfigError(f"{run.path} is not empty and holds no run.", "Give --run a new folder.")


def _is_begun(run: RunDir) -> bool:
    """True if `status.json` is a run's, and its settings too, where there are any yet."""
    if not run.status().keys() >= {"state", "step", "best"}:
        return False
    try:
        if run.config_file.exists():
            run.config()
    except ConfigError:
        return False
    return True


def resumed(config: RunConfig, data: dict[str, Any], run: RunDir) -> Resumed | None:
    """The checkpoint that a command resumes from, if its run was begun before.

    Args:
        config: The settings of the command.
        data: `Manifest.inference_settings` of the prepared set as it is now.
        run: The folder; nothing in it is changed.

    Raises:
        ConfigError: The run was begun with other settings or other data, or is past the last step.
        WeightsError: No checkpoint is whole.
    """
    found = newest_whole(run)
    if found is None:
        return None
    checkpoint = found.checkpoint
    before = from_dict(checkpoint.config, RunConfig(), source=str(found.path))
    changed = [key for key in differing_keys(before, config) if key not in MAY_CHANGE]
    changed += [
        f"{key} of the prepared data"
        for key in sorted(checkpoint.data.keys() | data.keys())
        if checkpoint.data.get(key) != data.get(key)
    ]
    if changed:
        raise ConfigError(
            f"{run.path} holds a run with other settings: {', '.join(changed)}.",
            "Give a new folder with --run; to go on, train and prepare with the old settings.",
        )
    if config.train.steps < checkpoint.step:
        raise ConfigError(
            f"{run.path} is at step {checkpoint.step}, past the {config.train.steps} asked for.",
            "Give a new folder with --run, or more --steps.",
        )
    return found


def set_aside(run: RunDir, damaged: tuple[Path, ...]) -> Path | None:
    """Rename damaged checkpoints to `*.damaged` and keep one, the newest.

    Returns:
        The one that is kept, if there is any.

    Raises:
        RunError: The disk refused.
    """
    if not damaged:
        return None
    kept = damaged[0].with_name(f"{damaged[0].name}.damaged")
    try:
        for old in run.checkpoints.glob("*.damaged"):
            old.unlink()
        damaged[0].replace(kept)
        for path in damaged:
            path.unlink(missing_ok=True)
            hash_file(path).unlink(missing_ok=True)
    except OSError as error:
        raise _refused(run, error) from error
    return kept


def _refused(run: RunDir, error: OSError) -> RunError:
    return RunError(
        f"{run.checkpoints}: cannot be written ({error.strerror or error}).",
        "Check the folder's permissions and the space left on the disk.",
    )
