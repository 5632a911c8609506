"""`sdseg next`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdseg_cli.cli import options as opt
from sdseg_cli.cli.console import Output
from sdseg_cli.cli.options import number
from sdseg_cli.core.errors import ConfigError
from sdseg_cli.core.filenames import LEDGER_FOLDER, require_there

if TYPE_CHECKING:
    from sdseg_cli.inference.ledger import Row

FLIPPED, DICE = "flipped", "dice"


def next_scans(
    masks: Annotated[
        Path, typer.Argument(metavar="MASKS", help="Folder that predict filled with --runs.")
    ],
    count: Annotated[
        int | None, typer.Option("-n", "--count", min=1, help="List only so many.")
    ] = None,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """List masks by how much they depend on the noise."""
    from sdseg_cli.inference.ledger import DONE, Ledger

    again = "Predict with several runs: sdseg predict SCANS -o MASKS --runs 5."
    require_there(masks, again)
    if not (masks / LEDGER_FOLDER).is_dir():
        raise ConfigError(f"{masks}: no folder of masks that `sdseg predict` made.", again)
    done = [row for row in Ledger(masks).rows() if row.status == DONE]
    known = [row for row in done if row.stability]
    if not known:
        raise ConfigError(f"{masks}: none of its {len(done)} masks was drawn several times.", again)
    known.sort(key=_most_stable_last)
    shown = known[:count]
    output = Output(as_json=as_json, quiet=quiet)
    output.result(
        {
            "scans": [
                {
                    "case": row.case,
                    "input": row.input,
                    "output": row.output,
                    "foreground_voxels": row.foreground_voxels,
                    **row.stability,
                }
                for row in shown
            ],
            "of": len(known),
            "drawn_once": len(done) - len(known),
        },
        title=f"{len(shown)} of {len(known)} masks in {masks}, the least stable first",
        columns=("case", "voxels that flip", "Dice between runs", "foreground voxels"),
        rows=[
            (
                row.case,
                number(row.stability[FLIPPED]),
                number(row.stability[DICE]),
                str(row.foreground_voxels),
            )
            for row in shown
        ],
        unbroken=True,
    )
    if len(done) > len(known):
        output.say(f"{len(done) - len(known)} other masks were drawn once: not ranked.")
    output.say("Correct masks in a copy of the folder, then: sdseg train --run RUN --add COPY")


def _most_stable_last(row: Row) -> tuple[float, float]:
    """Where all runs found nothing, they agree."""
    flipped, dice = row.stability[FLIPPED], row.stability[DICE]
    return -(flipped or 0.0), 1.0 if dice is None else dice
