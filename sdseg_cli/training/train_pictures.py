"""What a training draws at each validation: its curves, and what it makes of fixed slices."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sdseg_cli.core.config import TrainConfig
from sdseg_cli.data.manifest import PreparedCase
from sdseg_cli.runs.log import read_log
from sdseg_cli.runs.run_folder import RunDir
from sdseg_cli.training.batches import PreparedSlices, evenly_spaced
from sdseg_cli.training.shown import shown_slices


class TrainPictures:
    """`report/training.png` and `report/validation.png` of a run.

    Args:
        run: The run.
        fixed: The validation slices.
        cases: Their cases.
        recipe: How many of them are validated.
        at: The step the run goes on from; what the pictures had past it is forgotten.
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
            shown.append(ShownSlice(name, image, batch.foreground[0].numpy()))
        self._history = ValidationHistory(run.history, tuple(self.positions), tuple(shown))
        self._history.read(after=at)

    def draw(self, step: int, planes: NDArray[np.float32]) -> None:
        """The pictures as they are after the validation of a step.

        Args:
            step: The step.
            planes: (K,H,W) in [0,1], the probabilities of the slices at `positions`.
        """
        from sdseg_cli.report.training_curve import training_curve
        from sdseg_cli.report.validation_picture import validation_picture

        training_curve(read_log(self._run.log_file), self._run.curve)
        if self._history.shown:
            self._history.add(step, planes)
            validation_picture(self._run.validation_picture, self._history)
