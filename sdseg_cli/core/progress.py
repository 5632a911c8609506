"""Callbacks through which work reports its progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Progress = Callable[[int, int, str], None]
"""Called as `progress(done, total, what)`, for example `progress(3, 30, "case 07")`."""


def no_op(*_: object) -> None:
    """The default of every callback: nothing is reported."""


@dataclass(frozen=True)
class TrainProgress:
    """Progress of a training: reported before the first step and after each."""

    step: int
    """Steps done, those before a resume included."""
    steps: int
    slices_per_step: int
    validate_every: int
    seconds: float = 0.0
    """Since this call's first step began."""
    row: Mapping[str, float] = field(default_factory=dict)
    """The newest line of the log that has a loss: its terms and `lr`."""
    validation: Mapping[str, float] = field(default_factory=dict)
    """The newest line of the log that has a `val_dice`, with its step."""
    best: Mapping[str, Any] = field(default_factory=dict)
    """`{"step": ..., "val_dice": ...}`."""
    checkpoint: int = 0
    """Step of the newest checkpoint that can be resumed; 0: none yet."""
    peak_gpu_bytes: int | None = None
    """None where there is no GPU."""

    @property
    def validated(self) -> bool:
        """This very step ended with a validation."""
        return self.validation.get("step") == self.step


OnStep = Callable[[TrainProgress], None]
"""Called by `train` as `on_step(now)`."""


class Pace:
    """Speed of a training and the time it still takes, from its reports.

    Steps with and without a validation are counted apart, and only those of this call: right
    after a resume nothing is known, and soon all is. The first step, which also opens files and
    warms the device up, does not count.

    Args:
        validations_after: What follows the training takes as long as so many validations.
    """

    SPAN = 100
    """Steps that the mean looks back, more or less."""

    def __init__(self, validations_after: float = 0.0) -> None:
        self._after = validations_after
        self._last: TrainProgress | None = None
        self._reports = self._counted = self._validations = 0
        self._step_s = self._validation_s = 0.0

    def take(self, now: TrainProgress) -> None:
        """Take in one report; each has to come after the one before."""
        last, self._last = self._last, now
        if last is None:
            return
        self._reports += 1
        taken = (now.seconds - last.seconds) / max(1, now.step - last.step)
        if now.validated:
            self._validations += 1
            extra = max(0.0, taken - self._step_s)
            self._validation_s += (extra - self._validation_s) / self._validations
        elif (
            self._reports > 1 and now.checkpoint == last.checkpoint
        ):  # saving is no step's own time
            self._counted += 1
            self._step_s += (taken - self._step_s) / min(self._counted, self.SPAN)

    @property
    def slices_per_second(self) -> float | None:
        """While it trains, validations left out; None before the second step."""
        if self._last is None or self._step_s <= 0:
            return None
        return self._last.slices_per_step / self._step_s

    @property
    def seconds_left(self) -> float | None:
        """Seconds of the remaining work; None while it cannot be estimated."""
        now, known = self._last, self._step_s + self._validation_s
        if now is None or known <= 0:
            return None
        # The last step validates as well, wherever it falls.
        validations = -(-now.steps // now.validate_every) - now.step // now.validate_every
        if now.step == now.steps:
            validations = 0
        after = validations + self._after
        return (now.steps - now.step) * self._step_s + after * self._validation_s
