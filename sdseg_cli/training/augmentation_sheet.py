"""`sdseg train --show-augmentation`: what the network sees, on one contact sheet."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from sdseg_cli.core.config import NO_AUGMENTATION, RunConfig
from sdseg_cli.model.diffusion import seeded_generator
from sdseg_cli.report.drawing import (
    INK,
    PREDICTION_COLOUR,
    Frame,
    Line,
    class_legend,
    fitted,
    legend_inches,
    new_figure,
    save_figure,
    show_panel,
)
from sdseg_cli.training.batches import PreparedSlices, augmented, flip_codes

SLICES, DRAWS = 6, 7
"""At most so many rows; columns beside the slice as it is prepared."""
_PANEL_INCHES, _HEAD_INCHES = 1.9, 0.45


def augmentation_sheet(path: Path, slices: PreparedSlices, config: RunConfig) -> None:
    """Draw some training slices as they are prepared and as steps 0, 1, 2, ... would change them.

    Args:
        path: The .png file; missing folders are made.
        slices: The training slices.
        config: Seed and recipe.

    Raises:
        RunError: The disk refused.
    """
    found = slices.with_foreground or list(range(len(slices)))
    places = np.linspace(0, len(found) - 1, min(SLICES, len(found)))
    positions = [found[round(float(place))] for place in places]
    rows, columns = len(positions), 1 + DRAWS
    legend = dict(enumerate(slices.classes.names, start=1)) if len(slices.classes) > 1 else {}
    width = columns * _PANEL_INCHES
    height = rows * (_PANEL_INCHES + 0.25) + _HEAD_INCHES + legend_inches(legend, width)
    figure = new_figure(width, height)
    recipe = config.train
    pasted = f", cutmix {recipe.cutmix:g}" if recipe.cutmix else ""
    figure.suptitle(
        f"Training slices, augmentation {recipe.augment}{pasted}, seed {config.seed}", color=INK
    )
    without = replace(config, train=replace(recipe, augment=NO_AUGMENTATION, cutmix=0.0))
    grid = figure.subplots(rows, columns, squeeze=False)
    line = Line(None if legend else PREDICTION_COLOUR, 1.0)
    for column in range(columns):
        step = column - 1  # -1: as prepared
        flips = flip_codes(
            rows, recipe.flips if column else "", seeded_generator("step", config.seed, step)
        )
        seen = augmented(slices, config if column else without, step, positions, flips)
        for row, axes in enumerate(grid[:, column]):
            image, masks = seen.image[row].numpy(), seen.masks[row].numpy()
            name = fitted(slices.names([positions[row]]), _PANEL_INCHES - 0.2, 10)
            show_panel(
                axes,
                name if step < 0 else f"step {step}",
                image.transpose(1, 2, 0) if image.ndim == 3 else image,
                Frame(),
                limits=(-1.0, 1.0),
                # One by one: classes may overlap.
                outlines=[
                    ((mask * number).astype(np.uint16), line)
                    for number, mask in enumerate(masks, start=1)
                ],
                colour=INK,
            )
    if legend:
        class_legend(figure, legend, width)
    save_figure(figure, path)
