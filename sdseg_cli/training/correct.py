"""Correct and continue: masks that a person corrected become training cases, and a run goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sdseg_cli.core.config import RunConfig
from sdseg_cli.core.errors import DataError
from sdseg_cli.core.filenames import LEDGER_FOLDER, as_path, require_there, safe_id
from sdseg_cli.core.files import file_sha256
from sdseg_cli.data.recognise import find_cases
from sdseg_cli.data.spec import Case
from sdseg_cli.inference.ledger import DONE, Ledger, Row

STEPS_SHARE, FEWEST_STEPS = 5, 50
"""By default a run goes on for a fifth of its steps, at least so many."""
RATE_SHARE = 0.5
"""Of the learning rate, where a run goes on: it has found most of what it can."""


def corrected_cases(folder: Path) -> list[Case]:
    """The cases of a folder of scans and masks; of one that `predict` filled, those whose masks
    were changed since.

    Raises:
        ConfigError: The folder is in no known layout.
        DataError: There is none.
    """
    hint = (
        "Give a folder that `sdseg predict` filled, or its copy, with corrected masks; or scans "
        "with masks, as `sdseg prepare` reads them."
    )
    require_there(folder, hint)
    if not (folder / LEDGER_FOLDER).is_dir():
        try:
            return find_cases(folder, None, None, None)[1]
        except DataError as error:
            raise DataError(error.message, hint, error.code) from error
    rows = [(row, _mask_in(folder, row)) for row in Ledger(folder).rows() if row.status == DONE]
    changed = [(row, mask) for row, mask in rows if mask and file_sha256(mask) != row.sha256]
    if not changed:
        raise DataError(
            f"{folder}: none of its {len(rows)} masks has changed since it was predicted.",
            "Correct some in an editor, and save them under the names they have.",
        )
    return [Case(safe_id(row.case) or "case", as_path(row.input), mask) for row, mask in changed]


def _mask_in(folder: Path, row: Row) -> Path | None:
    """A mask of the folder, which may be a copy of the one that `predict` filled."""
    parts = as_path(row.output).parts
    places = (folder.joinpath(*parts[start:]) for start in range(1, len(parts)))
    return next((place for place in places if place.is_file()), None)


def continued(config: RunConfig, run: Path, dataset: str, steps: int | None) -> RunConfig:
    """The settings of a run that goes on from the best weights of another.

    Args:
        config: Of the other.
        run: Its folder.
        dataset: The set with the added cases.
        steps: Of the run that goes on; None for `STEPS_SHARE`.
    """
    recipe = config.train
    steps = steps or max(FEWEST_STEPS, recipe.steps // STEPS_SHARE)
    every = max(1, min(recipe.validate_every, steps // 4))
    recipe = replace(
        recipe,
        init=str(run),
        steps=steps,
        learning_rate=RATE_SHARE * recipe.learning_rate,
        warmup_steps=min(recipe.warmup_steps, steps // 10),
        class_balance=0.0,  # small structures are found already
        validate_every=every,
        checkpoint_every=min(recipe.checkpoint_every, every),
    )
    return replace(config, dataset=dataset, train=recipe)
