"""Files of a training in its run folder; of several processes only the first writes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.config import TrainConfig
from sdseg_cli.core.config_file import to_toml
from sdseg_cli.core.errors import RunError
from sdseg_cli.core.files import remove_leftovers, replacing
from sdseg_cli.core.findings import WARNING, Finding
from sdseg_cli.data.manifest import PreparedCase
from sdseg_cli.runs.checkpoint import Resumed, keep, set_aside
from sdseg_cli.runs.log import RunLog, read_log, truncate_log
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training.batches import PreparedSlices, evenly_spaced
from sdseg_cli.training.step import StepResult, Trainer, Validation

SHOWN = 4


class RunFiles:
    """Log, checkpoints and status of one call; open within its `with` block. An error that leaves
    the block leaves the state "failed".

    Args:
        run: The folder, made ready by `begin`.
        loop: What is trained.
        data: `Manifest.inference_settings`.
        tensorboard: Write the log for TensorBoard too.
    """

    def __init__(
        self, run: RunDir, loop: Trainer, data: dict[str, Any], *, tensorboard: bool
    ) -> None:
        self.run, self._loop, self._data = run, loop, data
        self._log: RunLog | None = None
        if loop.ranks.writes:
            board = run.tensorboard if tensorboard else None
            self._log = RunLog(run.log_file, after=loop.step, tensorboard=board)
        self.saved = loop.step
        """Step of the newest checkpoint; 0 where there is none yet."""
        self.row: dict[str, float] = {}
        """The newest line of a step."""

    @staticmethod
    def begin(run: RunDir, loop: Trainer, found: Resumed | None) -> tuple[Finding, ...]:
        """Make the folder what it was at the step where the run resumes.

        Args:
            run: The folder.
            loop: At its first step of this call.
            found: The checkpoint it resumes from.

        Returns:
            Findings on damaged newer checkpoints.
        """
        if not loop.ranks.writes:
            return ()
        kept = set_aside(run, found.damaged) if found else None
        for folder in (run.path, run.checkpoints, run.report):
            remove_leftovers(folder)
        truncate_log(run.log_file, loop.step)
        # The status first: by it a folder without a checkpoint is known to be a run's.
        _write_status(run, "running", loop.step, loop.best)
        with replacing(run.config_file) as temporary:
            temporary.write_text(to_toml(loop.config), encoding="utf-8")
        if found is None or kept is None:
            return ()
        names = ", ".join(path.name for path in found.damaged)
        damage = Finding(
            code="checkpoint-damaged",
            level=WARNING,
            case=run.path.name,
            measured=f"{names} damaged, kept as {kept.name}; going on from step {loop.step}",
            fix="Nothing is lost but time; check the disk.",
        )
        return (damage,)

    def __enter__(self) -> RunFiles:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._log is None:
            return
        # An interrupt is no failure. A full disk may refuse this too; its own error matters more.
        if isinstance(error, Exception):
            with suppress(RunError):
                saved_best = self.run.status().get("best", {})
                _write_status(self.run, "failed", self.saved, saved_best)
        self._log.close()

    def log(self, result: StepResult, slices: PreparedSlices) -> bool:
        """Write a step's line; true if a process is to stop.

        Raises:
            RunError: The loss is not finite, or the disk refused.
        """
        row = result.row()
        if not math.isfinite(row["loss"]):
            names = slices.names(result.positions)
            raise self._diverged(f"the loss is {row['loss']} at step {result.step}, of {names}.")
        self.row = row
        if self._log is not None:
            self._log.write(row)
        return result.stop_requested

    def log_validation(self, found: Validation, names: Sequence[str] = ()) -> dict[str, Any]:
        """Write and return a validation's line, and keep weights that are the best so far.

        Args:
            found: The validation.
            names: Of the classes.
        """
        self._require_finite()
        loop, dice = self._loop, found.dice
        row: dict[str, Any] = {"step": loop.step, "val_dice": dice}
        if len(names) > 1:
            row["val_dice_classes"] = dict(zip(names, found.classes, strict=True))
            row["val_dice_union"] = found.union or 0.0
        if loop.config.train.threshold != "half":
            row["threshold"] = found.threshold
        if self._log is not None:
            self._log.write(row)
        # While nothing is found yet, later weights are better than earlier ones.
        if dice >= loop.best.get("val_dice", 0.0):
            loop.best = dict(row)
            if self._log is not None:
                loop.checkpoint(self._data, resumable=False).save(self.run.best)
        return row

    def save(self, state: str) -> None:
        """Write a checkpoint of this step, if there is none, and the run's status.

        Raises:
            RunError: The weights are not finite, or the disk refused.
        """
        self._require_finite()
        if self._log is None:
            return
        if self._loop.step != self.saved:
            self._log.sync()  # the checkpoint relies on these lines
            keep(self.run, self._loop.checkpoint(self._data, resumable=True))
            self.saved = self._loop.step
        _write_status(self.run, state, self.saved, self._loop.best)

    def _require_finite(self) -> None:
        # A finite loss may leave gradients that are not; such weights must never be kept.
        if not self._loop.is_finite():
            raise self._diverged(f"the weights are not finite after step {self._loop.step}.")

    def _diverged(self, what: str) -> RunError:
        last = f"{self.run.last}, step {self.saved}" if self.saved else "none yet"
        return RunError(
            what,
            "Lower train.learning_rate or set train.clip_norm, in a new --run; last checkpoint: "
            f"{last}.",
        )


def _write_status(run: RunDir, state: str, step: int, best: dict[str, Any]) -> None:
    with replacing(run.status_file) as temporary:
        values = {"state": state, "step": step, "best": best}
        temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def shown_slices(slices: PreparedSlices, among: Sequence[int], limit: int = SHOWN) -> list[int]:
    """Positions, ascending, of at most `limit` slices with most foreground among those validated.

    Each case gives its best slice first; where cases are few they give more, but no neighbours,
    which would look alike: at least a sixth of the case lies between two.
    """
    filled = set(slices.with_foreground)
    areas = {
        p: int(slices.masks(slices.batch([p]).labels).any(dim=1).sum())
        for p in among
        if p in filled
    }
    cases: dict[int, list[int]] = {}
    lengths: dict[int, int] = {}
    for case, k in slices.places:
        lengths[case] = max(lengths.get(case, 0), k + 1)
    for position in sorted(areas, key=lambda p: (-areas[p], p)):
        case, k = slices.places[position]
        chosen = cases.setdefault(case, [])
        if all(abs(k - slices.places[c][1]) > lengths[case] / 6 for c in chosen):
            chosen.append(position)
    # A case's second comes after every case's first; equals in the order of their area.
    ranked = [(turn, -areas[p], p) for chosen in cases.values() for turn, p in enumerate(chosen)]
    return sorted(position for _, _, position in sorted(ranked)[:limit])


class TrainPictures:
    """`report/training.png` and `report/validation.png` of a run.

    Args:
        run: The run.
        fixed: The validation slices.
        cases: Their cases.
        recipe: How many of them are validated.
        at: The step the run resumes from; later pictures are forgotten.
    """

    def __init__(
        self,
        run: RunDir,
        fixed: PreparedSlices,
        cases: Sequence[PreparedCase],
        *,
        recipe: TrainConfig,
        at: int,
    ) -> None:
        from sdseg_cli.report.validation_picture import ShownSlice, ValidationHistory

        self._run, self.slices = run, fixed
        self.positions = shown_slices(fixed, evenly_spaced(fixed, recipe.validation_slices))
        """Which validation slices are shown."""
        shown = []
        for position in self.positions:
            batch, (case, k) = fixed.batch([position]), fixed.places[position]
            place = f", slice {k + 1}" if cases[case].slices > 1 else ""
            image = batch.image[0].numpy()
            image = image.transpose(1, 2, 0) if image.ndim == 3 else image
            name = f"{cases[case].id}{place}"
            masks = fixed.masks(batch.labels)[0].numpy()
            shown.append(ShownSlice(name, image, masks if len(masks) > 1 else masks[0]))
        rule = fixed.classes if len(fixed.classes) > 1 else None
        self._history = ValidationHistory(run.history, tuple(self.positions), tuple(shown), rule)
        self._history.read(after=at)

    def draw(self, step: int, planes: NDArray[np.float32]) -> None:
        """Draw them after the validation of a step; `planes` (N,H,W) in [0,1] are the probabilities
        of the slices at `positions`, of several classes (N,K,H,W).
        """
        from sdseg_cli.report.training_curve import training_curve
        from sdseg_cli.report.validation_picture import validation_picture

        training_curve(read_log(self._run.log_file), self._run.curve)
        if self._history.shown:
            self._history.add(step, planes)
            validation_picture(self._run.validation_picture, self._history)
